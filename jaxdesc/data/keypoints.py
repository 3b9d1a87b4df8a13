"""Where an image is described: keypoints that need no training.

OpenCV detects SIFT in the doubled image. By default pixel x becomes 2 x + 0.5 there, and
positions are halved without going back, so that they are UPSCALING_PX too large. Its own
remedy, enable_precise_upscale, has worse keypoints: 2 points of MMA@3 on the Oxford
sequences graf, bark, leuven and ubc with PUMP's descriptors, 3 to 5 on leuven and ubc with
RootSIFT's.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from jaxdesc.types import Keypoints

SIFT_SUPPORT = 6.0  # 4 x 4 bins of 3 sigma each, where OpenCV's size is 2 sigma
UPSCALING_PX = 0.25
SIFT_VERSION = 2  # of `sift`, to be told from what was stored when it found other keypoints
GRID_PX = 4  # least spacing of a grid


def sift(rgb: np.ndarray, most: int) -> Keypoints:
    """SIFT's keypoints of an image (H, W, 3) uint8: the `most` of greatest contrast.

    At different places: one where SIFT tells several orientations apart. scale_px = 12 sigma.
    """
    found = _keypoints(cv2.SIFT_create().detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None))
    falling = np.argsort(-found.score, kind="stable")
    _, first = np.unique(found.xy_px[falling], axis=0, return_index=True)
    kept = falling[np.sort(first)[:most]]
    columns = (found.xy_px, found.scale_px, found.score, found.valid)
    return Keypoints(*(column[kept] for column in columns))


def _keypoints(found: Sequence[cv2.KeyPoint]) -> Keypoints:
    """OpenCV's SIFT keypoints where they are in the image."""
    rows = [(*point.pt, point.size, point.response) for point in found]
    x, y, size, response = np.array(rows, np.float32).reshape(-1, 4).T
    xy = np.stack([x, y], 1) - UPSCALING_PX
    return Keypoints(xy, SIFT_SUPPORT * size, response, np.ones(len(rows), bool))


def grid(hw: tuple[int, int], most: int) -> Keypoints:
    """The centres of equal squares of whole pixels, at least GRID_PX and as small as `most` allows; score 1, no scale."""
    side = GRID_PX
    while (hw[0] // side) * (hw[1] // side) > most:
        side += 1
    y, x = (np.arange(n // side) * side + side // 2 for n in hw)
    xy = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
    return Keypoints(xy, np.zeros(len(xy), np.float32), np.ones(len(xy), np.float32), np.ones(len(xy), bool))


def root_sift(rgb: np.ndarray, most: int) -> tuple[Keypoints, np.ndarray]:
    """SIFT's `most` strongest features of an image (H, W, 3) uint8, one for each orientation, with unit descriptors (N, 128) float32: the square roots of the
    histograms over their sum. Source: Lowe, IJCV 2004; Arandjelovic and Zisserman, CVPR 2012."""
    found, histograms = cv2.SIFT_create(most).detectAndCompute(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None)
    histograms = np.zeros((0, 128), np.float32) if histograms is None else histograms
    descriptors = np.sqrt(histograms / np.maximum(histograms.sum(1, keepdims=True), 1e-12))
    return _keypoints(found), descriptors
