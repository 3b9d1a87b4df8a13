"""Keypoints of images, their descriptors and their matches, for the verbs and the protocols."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxdesc.data.nearest import mutual_nearest
from jaxdesc.errors import UserError
from jaxdesc.images import fit, rescale, resize, to_float
from jaxdesc.matching import keypoints
from jaxdesc.matching.keypoints import SUPPORT_PX
from jaxdesc.matching.views import Crop, Views, factors, poses, view
from jaxdesc.predict.predictor import SCALES, Predictor, of_keypoints
from jaxdesc.store.features import Features, list_names, read_keypoints, top

SEARCH_SIDE = 256  # pixels: to which images are shrunk while their scale and rotation are sought
SEARCHED = 500  # keypoints that are matched then
AGREEMENT_PX = 8.0  # of matches with a similarity transform, in the shrunk image 2
AGREEING = 12  # fewer do so by chance


def check_source(predictor: Predictor, source: str, names: Sequence[str]) -> None:
    """Raises UserError unless `source` says where keypoints of all images `names` come from.

    That is the name of a detector, see `Predictor.detect`, or a file.
    """
    if keypoints.is_detector(source):
        return predictor.check_detector(source)
    if not Path(source).is_file():
        raise UserError(
            f"--keypoints {source} must be {keypoints.NAMES}, or a file of keypoints, and there "
            "is no such file."
        )
    known = list_names(source)
    if lacking := [name for name in names if name not in known]:
        raise UserError(
            f"{source} holds no keypoints of {len(lacking)} of the {len(names)} images, such as "
            f"{lacking[0]}: detect them first."
        )


def features_of(
    predictor: Predictor, source: str, name: str, rgb: np.ndarray, most: int, scales: str = "own"
) -> tuple[Features, int]:
    """At most `most` features of an image (H, W, 3), the best-scored.

    Args:
      source: the name of a detector, or a file that holds keypoints of `name`.
      scales: "own", or "all": one row for each keypoint and level, whose scale is the diameter
        that suits the level.
    Returns:
      the features, and how many keypoints of a file lie outside the image.
    """
    if keypoints.is_detector(source):
        if scales == "own":
            return predictor.features(rgb, most, source), 0
        found, outside = of_keypoints(predictor.detect(rgb, most, source), rgb), 0
    else:
        found, outside = read_keypoints(source, name, (rgb.shape[1], rgb.shape[0]))
        found = top(found, most)
    return _described(predictor, rgb, found, scales), outside


def _described(predictor: Predictor, rgb: np.ndarray, found: Features, scales: str) -> Features:
    if scales == "own":
        descriptors = predictor.describe_at(rgb, found.keypoints, found.scales)
        return dataclasses.replace(found, descriptors=descriptors)
    descriptors = predictor.describe_at(rgb, found.keypoints, "all")
    rows = found.take(np.repeat(np.arange(len(found)), len(SCALES)))
    diameters = np.tile(SUPPORT_PX / np.array(SCALES, np.float32), len(found)).astype(np.float32)
    return dataclasses.replace(
        rows, descriptors=descriptors.reshape(len(rows), -1), scales=diameters
    )


# ---- matches


def matched(predictor: Predictor, rgb1: np.ndarray, found1: Features, rgb2: np.ndarray, found2: Features, options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints of two images that are each other's nearest, described in the scale and rotation in which the images agree best.

    Descriptors learn to bear some change of scale and rotation; a search bears the rest, pair by pair: see `pose`. At scale s and rotation r image 1 is shrunk by
    min(s, 1), and image 2 by min(1 / s, 1) and turned by -r, before their keypoints are described.

    Args:
      rgb1, rgb2: (H, W, 3). found1, found2: their keypoints; a diameter counts as in `Predictor.describe_at`. Descriptors that they have already, as
        `features_of` gives them, serve where the images are seen as they are.
      options: the method's MatchOptions.
    Returns:
      (M, 2) indices with rising i, and (M,) float32 similarities, <d1, d2>.
    """
    if not (len(found1) and len(found2)):
        return np.zeros((0, 2), int), np.zeros(0, np.float32)
    scale, rotation_deg = pose(predictor, rgb1, found1, rgb2, found2, options)
    shrink1, shrink2 = factors(scale)
    return mutual_nearest(_seen(predictor, rgb1, found1, shrink1, 0.0), _seen(predictor, rgb2, found2, shrink2, rotation_deg))


def pose(predictor: Predictor, rgb1: np.ndarray, found1: Features, rgb2: np.ndarray, found2: Features, options: Any) -> tuple[float, float]:
    """(scale, rotation in degrees) of image 2 with respect to image 1, as `matching.views` defines them.

    In each pose that the options ask to search, the best keypoints of the images shrunk to SEARCH_SIDE are matched; the pose whose matches agree most with one
    similarity transform (RANSAC) wins, and that transform says the pose more exactly. (1, 0) where nothing is to be searched, or fewer than AGREEING agree.
    """
    views = options if isinstance(options, Views) else Views()
    scales, turns = views.max_scale > 1, views.max_rotation_deg > 0
    if not (scales or turns):
        return 1.0, 0.0
    (small1, top1), (small2, top2) = (_searched(rgb, found) for rgb, found in ((rgb1, found1), (rgb2, found2)))
    seen1 = functools.lru_cache(maxsize=None)(functools.partial(_seen, predictor, small1, top1, rotation_deg=0.0))
    seen2 = functools.lru_cache(maxsize=None)(functools.partial(_seen, predictor, small2, top2))
    most, best = AGREEING - 1, (1.0, 0.0)
    for scale, rotation_deg in sorted(poses(views), key=lambda p: (abs(p[1]), abs(np.log(p[0])))):  # of equals the least
        shrink1, shrink2 = factors(scale)
        indices, _ = mutual_nearest(seen1(shrink1), seen2(shrink2, rotation_deg))
        ends = top1.keypoints[indices[:, 0]], top2.keypoints[indices[:, 1]]
        transform, agreeing = cv2.estimateAffinePartial2D(*ends, ransacReprojThreshold=AGREEMENT_PX) if len(indices) > most else (None, None)
        if transform is None or agreeing.sum() <= most:
            continue
        a, b = transform[:, 0]  # of [[a, -b], [b, a]]
        found = float(np.hypot(a, b))
        turn_deg = (np.degrees(np.arctan2(b, a)) - rotation_deg + 180) % 360 - 180
        if scale / 2 < found < 2 * scale and abs(turn_deg) < 45:  # many matches into one crowd of keypoints agree on a scale near 0
            most = int(agreeing.sum())
            best = found if scales else scale, float(rotation_deg + turn_deg) if turns else rotation_deg
    return best[0] * max(small1.shape) / max(rgb1.shape) / (max(small2.shape) / max(rgb2.shape)), best[1]


def _searched(rgb: np.ndarray, found: Features) -> tuple[np.ndarray, Features]:
    """The image shrunk for the search, and its best keypoints in it, all to be described in one level: the search has scales of its own."""
    size = rgb.shape[:2]
    small = resize(rgb, fit(size, SEARCH_SIDE))
    best = top(found, SEARCHED)
    xy = rescale(best.keypoints, size, small.shape[:2])
    return small, dataclasses.replace(best, keypoints=xy, scales=None, descriptors=best.descriptors[:, :0])


def _seen(predictor: Predictor, rgb: np.ndarray, found: Features, shrink: float, rotation_deg: float) -> np.ndarray:
    """(N, D) descriptors of keypoints in the image shrunk and turned by -rotation."""
    if (shrink, rotation_deg) == (1, 0):
        return found.descriptors if found.descriptors.shape[1] else predictor.describe_at(rgb, found.keypoints, found.scales)
    looked = view(Crop(to_float(rgb)), shrink, rotation_deg)
    h, w = looked.size_hw
    diameters = None if found.scales is None else found.scales * shrink
    return predictor.describe_at(np.clip(looked.image[:h, :w], 0, 1), looked.find(found.keypoints), diameters)
