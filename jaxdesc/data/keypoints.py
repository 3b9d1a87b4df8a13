"""Where an image is described: keypoints that need no training."""

import cv2
import numpy as np

from jaxdesc.types import Keypoints

SIFT_SUPPORT = 6.0  # 4 x 4 bins of 3 sigma each, where OpenCV's size is 2 sigma
UPSCALING_PX = 0.25  # OpenCV doubles the image so that pixel x becomes 2 x + 0.5, and halves positions found there without going back
GRID_PX = 4  # least spacing of a grid


def sift(rgb: np.ndarray, most: int) -> Keypoints:
    """SIFT's keypoints of an image (H, W, 3) uint8, those of the greatest contrast; one where SIFT tells several orientations apart. scale_px = 12 sigma."""
    found = cv2.SIFT_create(enable_precise_upscale=True).detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None)
    rows = np.array([(*point.pt, point.size, point.response) for point in found], np.float32).reshape(-1, 4)
    rows = rows[np.sort(np.unique(rows[:, :3], axis=0, return_index=True)[1])]
    rows = rows[np.argsort(-rows[:, 3], kind="stable")[:most]]
    return Keypoints(rows[:, :2], SIFT_SUPPORT * rows[:, 2], rows[:, 3], np.ones(len(rows), bool))


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
    # OpenCV's own remedy, enable_precise_upscale, costs 3 to 5 points of MMA@3 on the Oxford sequences leuven and ubc
    found, histograms = cv2.SIFT_create(most).detectAndCompute(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None)
    rows = np.array([(*point.pt, point.size, point.response) for point in found], np.float32).reshape(-1, 4)
    histograms = np.zeros((0, 128), np.float32) if histograms is None else histograms
    descriptors = np.sqrt(histograms / np.maximum(histograms.sum(1, keepdims=True), 1e-12))
    return Keypoints(rows[:, :2] - UPSCALING_PX, SIFT_SUPPORT * rows[:, 2], rows[:, 3], np.ones(len(rows), bool)), descriptors
