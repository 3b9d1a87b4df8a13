"""Correspondences between two photographs by SIFT and RANSAC: the aim of the crops of an unlabelled pair, never a label.

SIFT (Lowe 2004) with RootSIFT's square root (Arandjelovic & Zisserman 2012), mutual nearest neighbours with the ratio test, and the
epipolar geometry of two uncalibrated views by MAGSAC (Barath et al. 2020). Deterministic: OpenCV's USAC draws from a fixed seed.
"""

from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial import cKDTree

MAX_FEATURES = 1500
CONTRAST = 0.01  # a quarter of SIFT's usual threshold: dark and smooth places have features too
RATIO = 0.8  # of the distances to the best and the second-best neighbour
THRESHOLD_PX = 1.5  # from the epipolar line, in images of about 1000 px
MIN_INLIERS = 12  # photographs of different places agree on up to 10 by chance
NEIGHBOURS = 8  # of a correspondence, whose distances say how it is scaled and turned


class Features(NamedTuple):
    """SIFT features of one photograph; bytes, so that thousands of photographs fit in memory."""

    xy_px: np.ndarray  # (N, 2) float32
    descriptors: np.ndarray  # (N, 128) uint8


def features(rgb: np.ndarray) -> Features:
    """The MAX_FEATURES strongest SIFT features of a photograph (H, W, 3) uint8."""
    keypoints, descriptors = cv2.SIFT_create(MAX_FEATURES, contrastThreshold=CONTRAST).detectAndCompute(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None)
    if not keypoints:
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    return Features(cv2.KeyPoint.convert(keypoints), descriptors.astype(np.uint8))  # SIFT's floats are whole numbers up to 255


def align(features1: Features, features2: Features) -> np.ndarray:
    """(K, 4) float32 rows [x1, y1, x2, y2] in pixels that agree on one epipolar geometry; K = 0 if fewer than MIN_INLIERS do."""
    nothing = np.zeros((0, 4), np.float32)
    index1, index2 = _mutual_matches(features1.descriptors, features2.descriptors)
    if len(index1) < MIN_INLIERS:
        return nothing
    xy1, xy2 = features1.xy_px[index1], features2.xy_px[index2]
    try:
        _, inlier = cv2.findFundamentalMat(xy1, xy2, cv2.USAC_MAGSAC, THRESHOLD_PX, 0.999, 2000)
    except cv2.error:  # OpenCV 5 asserts that a model was found
        return nothing
    if inlier is None or inlier.sum() < MIN_INLIERS:
        return nothing
    return np.concatenate([xy1, xy2], axis=1)[inlier.ravel() > 0]


def local_similarity(xy12: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How image 2 shows the surroundings of correspondences (K, 4), by their neighbours.

    The scale is the median ratio of the distances to the NEIGHBOURS nearest ones, the
    turn the mean direction of their displacements. On 6,000 correspondences of six scenes
    with known depth the scale was wrong by more than 1.25 for 0.4 %; the ratio of SIFT's
    own sizes was for 3.3 %.

    Returns:
      log2_scale_1to2 (K,) float32; turns_1to2 (K,) int32, quarter turns, clockwise as seen.
    """
    if not len(xy12):
        return np.zeros(0, np.float32), np.zeros(0, np.int32)
    z1, z2 = (xy12[:, i : i + 2].astype(np.float64) @ [1, 1j] for i in (0, 2))
    count = min(NEIGHBOURS + 1, len(xy12))  # the point itself is among them
    near = cKDTree(xy12[:, :2]).query(xy12[:, :2], k=[*range(1, count + 1)])[1]
    d1, d2 = z1[near] - z1[:, None], z2[near] - z2[:, None]
    length1, length2 = (np.maximum(np.abs(d), 0.5) for d in (d1, d2))  # of a place matched twice: 0
    scale = np.median(np.log2(length2 / length1)[:, min(1, count - 1) :], axis=1)
    angle = np.angle((d2 * d1.conj() / (length1 * length2)).sum(1))
    return scale.astype(np.float32), (np.rint(2 * angle / np.pi) % 4).astype(np.int32)


def _mutual_matches(descriptors1: np.ndarray, descriptors2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M,), (M,) of mutual nearest neighbours that pass the ratio test in image 2."""
    if min(len(descriptors1), len(descriptors2)) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    similarity = _root(descriptors1) @ _root(descriptors2).T
    index1 = np.arange(len(similarity))
    best2, best1 = similarity.argmax(1), similarity.argmax(0)
    first = similarity[index1, best2]
    similarity[index1, best2] = -1.0
    second = similarity.max(1)
    keep = (best1[best2] == index1) & (1.0 - first < RATIO**2 * (1.0 - second))  # squared distances are 2 - 2 similarity
    return index1[keep], best2[keep]


def _root(descriptors: np.ndarray) -> np.ndarray:
    values = descriptors.astype(np.float32)
    return np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1.0))
