"""Where an image is described: detectors that need no training, by name.

OpenCV detects SIFT in the doubled image. By default pixel x becomes 2 x + 0.5 there, and
positions are halved without going back, so that they are UPSCALING_PX too large. Its own
remedy, enable_precise_upscale, has worse keypoints: 2 points of MMA@3 on the Oxford
sequences graf, bark, leuven and ubc with PUMP's descriptors, 3 to 5 on leuven and ubc with
RootSIFT's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxdesc.errors import UserError
from jaxdesc.matching import hessian
from jaxdesc.types import Keypoints

DEFAULT = "hessian"
OWN = "own"  # the detector that a method itself has
NAMES = "hessian, hessian:SIGMA,SIGMA.., sift, grid or own"  # what messages offer

SUPPORT_PX = 32.0  # diameter of a support that fits a network at full size; R2D2 writes 32 / scale
SIFT_SUPPORT = 6.0  # 4 x 4 bins of 3 sigma each, where OpenCV's size is 2 sigma
UPSCALING_PX = 0.25
SIFT_VERSION = 2  # of `sift`, to be told from what was stored when it found other keypoints
GRID_VERSION = 1
GRID_PX = 4  # least spacing of a grid


class Detector(NamedTuple):
    """What finds keypoints in the pixels alone."""

    detect: Callable[[np.ndarray, int], Keypoints]
    """(image (H, W, 3) uint8 or floats in [0, 1], most) -> at most so many, the best"""
    version: int  # to be told from what was stored when it found other keypoints


def is_detector(name: str) -> bool:
    """Whether this names a detector, or the method's own; as `find`."""
    return name == OWN or find(name) is not None


def settings(name: str) -> dict[str, Any]:
    """What a file of features remembers of where its keypoints come from."""
    known = {"keypoints": name}
    detector = find(name)
    return known | {"keypoints_version": detector.version} if detector else known


def find(name: str) -> Detector | None:
    """hessian, hessian:1.2,1.7 with scales of its own, sift or grid; None for any other name.

    Raises:
      UserError: hessian's scales are no numbers, or none that it takes.
    """
    if name in DETECTORS:
        return DETECTORS[name]
    kind, _, text = name.partition(":")
    if kind != "hessian":
        return None
    try:
        sigmas = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(
            f"The keypoints {name} are malformed: write hessian:1.2,1.7 for scales of 1.2 and "
            "1.7 px, or hessian."
        ) from None
    hessian.check_sigmas(sigmas)
    return Detector(partial(hessian.hessian, sigmas=sigmas), hessian.VERSION)


def sift(rgb: np.ndarray, most: int) -> Keypoints:
    """SIFT's keypoints of an image (H, W, 3): the `most` of greatest contrast.

    At different places: one where SIFT tells several orientations apart. scale_px = 12 sigma.
    """
    found = _keypoints(cv2.SIFT_create().detect(_gray(rgb), None))
    falling = np.argsort(-found.score, kind="stable")
    _, first = np.unique(found.xy_px[falling], axis=0, return_index=True)
    kept = falling[np.sort(first)[:most]]
    columns = (found.xy_px, found.scale_px, found.score, found.valid)
    return Keypoints(*(column[kept] for column in columns))


def _gray(rgb: np.ndarray) -> np.ndarray:
    """(H, W) uint8, which is what OpenCV's SIFT takes."""
    pixels = rgb if rgb.dtype == np.uint8 else np.rint(255 * np.clip(rgb, 0, 1)).astype(np.uint8)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _keypoints(found: Sequence[cv2.KeyPoint]) -> Keypoints:
    """OpenCV's SIFT keypoints where they are in the image."""
    rows = [(*point.pt, point.size, point.response) for point in found]
    x, y, size, response = np.array(rows, np.float32).reshape(-1, 4).T
    xy = np.stack([x, y], 1) - UPSCALING_PX
    return Keypoints(xy, SIFT_SUPPORT * size, response, np.ones(len(rows), bool))


def grid(hw: tuple[int, int], most: int) -> Keypoints:
    """The centres of equal squares of whole pixels; score 1, no scale.

    They are at least GRID_PX wide and as small as `most` allows.
    """
    side = GRID_PX
    while (hw[0] // side) * (hw[1] // side) > most:
        side += 1
    y, x = (np.arange(n // side) * side + side // 2 for n in hw)
    xy = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
    ones = np.ones(len(xy), np.float32)
    return Keypoints(xy, 0 * ones, ones, ones > 0)


def root_sift(rgb: np.ndarray, most: int) -> tuple[Keypoints, np.ndarray]:
    """SIFT's `most` strongest features of an image (H, W, 3), one for each orientation.

    Their unit descriptors (N, 128) float32 are the square roots of the histograms over their sum.
    Source: Lowe, IJCV 2004; Arandjelovic and Zisserman, CVPR 2012.
    """
    found, histograms = cv2.SIFT_create(most).detectAndCompute(_gray(rgb), None)
    histograms = np.zeros((0, 128), np.float32) if histograms is None else histograms
    descriptors = np.sqrt(histograms / np.maximum(histograms.sum(1, keepdims=True), 1e-12))
    return _keypoints(found), descriptors


DETECTORS = {
    "hessian": Detector(hessian.hessian, hessian.VERSION),
    "sift": Detector(sift, SIFT_VERSION),
    "grid": Detector(lambda rgb, most: grid(rgb.shape[:2], most), GRID_VERSION),
}
