"""Keypoints of an image and their descriptors, for the verb and the protocols that match sparse features."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdesc.data import keypoints
from jaxdesc.errors import UserError
from jaxdesc.predictor import SCALES, SUPPORT_PX, Predictor
from jaxdesc.store.features import Features, list_names, read_keypoints, top

DETECTORS = ("sift", "grid")  # sources of keypoints that are no files


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
