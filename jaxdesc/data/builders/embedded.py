"""The photographs inside scikit-image's wheel: training, tests and examples work
without a download.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdesc.data.builders import base, pairs, photos, posed
from jaxdesc.datasets.cameras import Camera, calibration
from jaxdesc.datasets.embedded import BASELINE, CENTRE_PX, DISPARITY, FOCAL_PX, OFFSET_PX, PAIR
from jaxdesc.datasets.embedded import disparity as read_disparity
from jaxdesc.datasets.embedded import files as files_of
from jaxdesc.errors import UserError
from jaxdesc.images import read_rgb
from jaxdesc.matching.keypoints import sift

TRAIN = (
    *(
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
    ),
    *("ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
)
VALIDATION = ("chelsea.png", "coffee.png", "rocket.jpg")

CARD = base.Card(
    about="Photographs inside scikit-image's wheel, which a user has installed: no download.",
    licence=(
        "scikit-image's documentation says of each photograph where it is from: most are in the "
        "public domain or CC0. It names no terms of moon.png, nor of the motorcycle pair, which is "
        "of the Middlebury 2014 stereo benchmark (Scharstein et al., GCPR 2014): ask their authors "
        "before you hand on a prepared dataset."
    ),
    homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
    citation="""@article{vanderwalt2014scikit,
  title = {scikit-image: image processing in {P}ython},
  author = {van der Walt, St{\\'e}fan and Sch{\\"o}nberger, Johannes L. and others},
  journal = {PeerJ},
  volume = {2},
  pages = {e453},
  year = {2014},
}""",
)


def photo_source(path: str, max_side_px: int) -> base.Source:
    """The embedded photographs, held out by hand; raises UserError if `path` is not
    empty.
    """
    found = photos.Photographs(_files(path, VALIDATION + TRAIN), len(VALIDATION))
    return photos.source_of("embedded", found, "embedded", max_side_px, CARD)


def pair_source(path: str, max_side_px: int) -> base.Source:
    """The one embedded pair; raises UserError if `path` is not empty."""
    listing = pairs.Listing("embedded_pair", _files(path, PAIR), {PAIR: None}, {})
    return pairs.source_of(listing, "embedded", max_side_px, CARD)


def posed_source(path: str, max_side_px: int) -> base.Source:
    """The one embedded pair with its calibration; raises UserError if `path` is not
    empty.
    """
    files = _files(path, (*PAIR, DISPARITY))
    scenes = [functools.partial(_motorcycle, files)]
    return posed.source_of("embedded_posed", scenes, files, "embedded", max_side_px, CARD)


photos.SOURCES["embedded"] = photo_source
pairs.SOURCES["embedded"] = pair_source
posed.SOURCES["embedded"] = posed_source


def open_photos(path: str, max_side_px: int, cache: str) -> photos.PhotoSet:
    """As `photo_source`; raises UserError if the cache cannot be written, too."""
    return photos.prepare(photo_source(path, max_side_px), max_side_px, cache)


def open_pairs(path: str, max_side_px: int, cache: str) -> pairs.PairSet:
    """As `pair_source`; raises UserError if the cache cannot be written, too."""
    return pairs.prepare(pair_source(path, max_side_px), max_side_px, cache)


def open_posed(path: str, max_side_px: int, cache: str) -> posed.PosedSet:
    """As `posed_source`; raises UserError if the cache cannot be written, too."""
    return posed.prepare(posed_source(path, max_side_px), max_side_px, cache)


def textures() -> dict[str, Path]:
    """The photographs that rendered scenes are papered with: those of TRAIN, but for
    two that are smooth nearly everywhere.
    """
    return _files("", tuple(name for name in TRAIN if name not in ("moon.png", "retina.jpg")))


def _motorcycle(files: Mapping[str, Path]) -> posed.Scene:
    """The stereo pair: known matches are SIFT's keypoints moved by the disparity; those
    of the right image are looked up through the left one's.
    """
    pictures = {name: read_rgb(files[name]) for name in PAIR}
    height, width = pictures[PAIR[0]].shape[:2]
    cameras = {}
    for i, name in enumerate(PAIR):
        K = calibration(FOCAL_PX, FOCAL_PX, CENTRE_PX[0] + i * OFFSET_PX, CENTRE_PX[1])
        xy = sift(pictures[name], posed.MAX_KEYPOINTS).xy_px.astype(np.float64)
        cameras[name] = Camera(
            width, height, K, np.eye(3), np.array([-i * BASELINE, 0, 0]), xy, np.arange(len(xy))
        )
    disparity = read_disparity()
    finite = np.isfinite(disparity)
    depth = posed.far_depth(FOCAL_PX * BASELINE / (disparity[finite] + OFFSET_PX))

    def match(name1: str, name2: str) -> tuple[np.ndarray, np.ndarray]:
        del name2
        xy = cameras[name1].xy_px
        moved = _moved(xy, disparity) if name1 == PAIR[0] else _moved_back(xy, disparity)
        known = np.isfinite(moved) & (moved >= 0) & (moved <= width - 1)
        return np.flatnonzero(known), np.stack([moved, xy[:, 1]], 1)[known]

    return posed.Scene(
        files={name: files[name] for name in PAIR},
        cameras=cameras,
        pairs=[PAIR],
        point_depth=depth,
        match=match,
        detect=False,
        guess=False,
        dropped={},
    )


def _moved(xy: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """x in the right image of points of the left one, (N,), by the nearest pixel's
    disparity; not finite where that is unknown.
    """
    row, column = (
        np.clip(np.rint(xy[:, axis]).astype(int), 0, disparity.shape[1 - axis] - 1)
        for axis in (1, 0)
    )
    return xy[:, 0] - disparity[row, column]


def _moved_back(xy: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """x in the left image of points of the right one, (N,): of the row's pixels that
    come within a pixel of the point, the nearest to the camera.
    """
    columns = np.arange(disparity.shape[1])
    found = np.full(len(xy), np.nan)
    for i, (x, y) in enumerate(xy):
        shift = disparity[min(round(y), len(disparity) - 1)]
        shifts = shift[np.isfinite(shift) & (np.abs(columns - shift - x) < 1)]
        if len(shifts):
            found[i] = x + shifts.max()
    return found


def _files(path: str, names: tuple[str, ...]) -> dict[str, Path]:
    if path:
        raise UserError(
            f"The source embedded:{path} is no folder: write embedded alone, or photos:{path} or "
            f"pairs:{path} for your own images."
        )
    return files_of(names)
