"""Keypoints of images, their descriptors and their matches, for the verbs and the protocols that match sparse features."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdesc.data import keypoints
from jaxdesc.data.images import fitted_hw
from jaxdesc.errors import UserError
from jaxdesc.methods.pump.multiscale import Crop, factors, view
from jaxdesc.ops import frames
from jaxdesc.ops.matching import decode_pose
from jaxdesc.predictor import SCALES, SUPPORT_PX, Predictor
from jaxdesc.store.features import Features, list_names, read_keypoints, top

DETECTORS = ("sift", "grid")  # sources of keypoints that are no files
SEARCH_SIDE = 256  # pixels: to which images are shrunk whose dense matches vote for scales and rotations
ENOUGH = 0.25  # of the votes that the most voted one has: others with as many are tried too


def check_source(source: str, names: Sequence[str]) -> None:
    """Raises UserError unless `source` is a detector or a file with keypoints of all images `names`."""
    if source in DETECTORS:
        return
    if not Path(source).is_file():
        raise UserError(f"--keypoints {source} must be sift, grid or a file of keypoints, and there is no such file.")
    known = list_names(source)
    if lacking := [name for name in names if name not in known]:
        raise UserError(f"{source} holds no keypoints of {len(lacking)} of the {len(names)} images, such as {lacking[0]}: detect them first.")


def keypoints_of(source: str, name: str, rgb: np.ndarray, most: int) -> tuple[Features, int]:
    """Features of an image (H, W, 3) without descriptors, at most `most`, the best-scored, and how many keypoints of a file lie outside the image."""
    size = (rgb.shape[1], rgb.shape[0])
    if source not in DETECTORS:
        found, outside = read_keypoints(source, name, size)
        return top(found, most), outside
    found = keypoints.sift(rgb, most) if source == "sift" else keypoints.grid(rgb.shape[:2], most)
    return Features(found.xy_px, np.zeros((len(found.score), 0), np.float32), found.score, found.scale_px if source == "sift" else None, size), 0


def described(predictor: Predictor, rgb: np.ndarray, found: Features, scales: str = "own") -> Features:
    """Features with their descriptors; of scales "all" one row for each keypoint and level, whose scale is the diameter that suits the level."""
    if scales == "own":
        return dataclasses.replace(found, descriptors=predictor.describe_at(rgb, found.keypoints, found.scales))
    descriptors = predictor.describe_at(rgb, found.keypoints, "all")
    rows = found.take(np.repeat(np.arange(len(found)), len(SCALES)))
    diameters = np.tile(SUPPORT_PX / np.array(SCALES, np.float32), len(found))
    return dataclasses.replace(rows, descriptors=descriptors.reshape(len(rows), -1), scales=diameters.astype(np.float32))


# ---- matches


def matched(predictor: Predictor, rgb1: np.ndarray, found1: Features, rgb2: np.ndarray, found2: Features, options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints of two images that are each other's nearest, seen in the scales and rotations that the images' dense matches vote for.

    Descriptors learn to bear some change of scale and rotation; a search bears the rest, pair by pair. In each pose p = (scale s, rotation r) of `voted`, image 1 is
    shrunk by min(s, 1), and image 2 by min(1 / s, 1) and turned by -r; there each keypoint gets a descriptor. The similarity of keypoints i and j is
    max over p of <d1_p[i], d2_p[j]>. Without a search in the options there is one pose, the images as they are.

    Args:
      rgb1, rgb2: (H, W, 3). found1, found2: their keypoints; a diameter counts as in `Predictor.describe_at`.
      options: the method's MatchOptions.
    Returns:
      (M, 2) indices with rising i, and (M,) float32 similarities.
    """
    if not (len(found1) and len(found2)):
        return np.zeros((0, 2), int), np.zeros(0, np.float32)
    similarity = np.full((len(found1), len(found2)), -np.inf, np.float32)
    for scale, rotation_deg in voted(predictor, rgb1, rgb2, options):
        shrink1, shrink2 = factors(scale)
        seen = (_seen(predictor, rgb1, found1, shrink1, 0.0), _seen(predictor, rgb2, found2, shrink2, rotation_deg))
        np.maximum(similarity, seen[0] @ seen[1].T, out=similarity)
    nearest = similarity.argmax(1)
    mutual = np.flatnonzero(similarity.argmax(0)[nearest] == np.arange(len(nearest)))
    return np.column_stack([mutual, nearest[mutual]]), similarity[mutual, nearest[mutual]]


def voted(predictor: Predictor, rgb1: np.ndarray, rgb2: np.ndarray, options: Any) -> list[tuple[float, float]]:
    """(scale, rotation in degrees) of image 2 with respect to image 1, most voted first: those of the dense matches of the shrunk images, each match a vote.

    [(1, 0)] where the options search for neither, or nothing matches.
    """
    unturned = [(1.0, 0.0)]
    if getattr(options, "max_scale", 1) == 1 and getattr(options, "max_rotation_deg", 0) == 0:
        return unturned
    codes, votes = np.unique(predictor.match_with(rgb1, rgb2, options, SEARCH_SIDE).code, return_counts=True)
    shrunk1, shrunk2 = (max(fitted_hw(rgb.shape[:2], SEARCH_SIDE)) / max(rgb.shape[:2]) for rgb in (rgb1, rgb2))
    falling = np.argsort(-votes, kind="stable")
    poses = (decode_pose(code) for code in codes[falling[votes[falling] >= ENOUGH * votes.max(initial=0)]])
    return [(float(scale) * shrunk1 / shrunk2, float(rotation_deg)) for scale, rotation_deg in poses] or unturned


def _seen(predictor: Predictor, rgb: np.ndarray, found: Features, shrink: float, rotation_deg: float) -> np.ndarray:
    """(N, D) descriptors of keypoints in the image shrunk and turned by -rotation."""
    if (shrink, rotation_deg) == (1, 0):
        return predictor.describe_at(rgb, found.keypoints, found.scales)
    looked = view(Crop(frames.pixels(rgb)), shrink, rotation_deg)
    h, w = looked.size_hw
    diameters = None if found.scales is None else found.scales * shrink
    return predictor.describe_at(np.clip(looked.image[:h, :w], 0, 1), looked.find(found.keypoints), diameters)
