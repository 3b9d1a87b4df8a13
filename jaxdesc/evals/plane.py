"""Matches of two images whose pixels a homography relates: their errors, shares of right ones, and homographies estimated from them. NumPy, float64."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial import cKDTree

from jaxdesc.evals.hpatches import HomographyPair
from jaxdesc.store.features import Features

ESTIMATORS = {"cv2-ransac": cv2.RANSAC, "cv2-magsac": cv2.USAC_MAGSAC}
TAUS = 60  # thresholds along the curve of MMA against the number of matches


# ---- one pair


def project(H: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a homography, float64; infinite where it sends them to infinity."""
    uvw = np.asarray(xy, np.float64) @ H[:, :2].T + H[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(uvw[:, 2:] == 0, np.inf, uvw[:, :2] / uvw[:, 2:])


class Measured(NamedTuple):
    """Matches of a pair, by rising row of image 1's keypoints."""

    error_px: np.ndarray  # (M,) ||H p1 - p2||
    similarity: np.ndarray  # (M,)
    corner_px: float  # mean distance of the corners, infinite where no homography was found
    counts: tuple[int, int]  # keypoints of the images


def estimate(xy1: np.ndarray, xy2: np.ndarray, method: int, threshold_px: float) -> np.ndarray | None:
    """H_1to2 (3, 3) by OpenCV, whose draws are the same in every call; None if there are fewer than four matches or they determine none."""
    if len(xy1) < 4:
        return None
    try:
        H, _ = cv2.findHomography(np.asarray(xy1, np.float64), np.asarray(xy2, np.float64), method, threshold_px)
    except cv2.error:  # OpenCV 5 asserts that a model was found
        return None
    return H if H is not None and H.shape == (3, 3) and np.isfinite(H).all() else None


def corner_error(H: np.ndarray | None, truth: np.ndarray, size: tuple[int, int]) -> float:
    """Mean distance in image 2 of where H and the truth put the four corner pixels of image 1 (width, height); infinite without H.

    Source: SuperPoint's evaluation, with the corners (0, 0), (W-1, 0), (0, H-1), (W-1, H-1); the published program has the axes of two of them swapped.
    """
    if H is None:
        return np.inf
    w, h = size[0] - 1, size[1] - 1
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h]])
    with np.errstate(invalid="ignore"):
        error = np.linalg.norm(project(H, corners) - project(truth, corners), axis=1).mean()
    return float(error) if np.isfinite(error) else np.inf


def measure(
    pair: HomographyPair, f1: Features, f2: Features, matches: tuple[np.ndarray, np.ndarray], size1: tuple[int, int], estimator: tuple[int, float]
) -> Measured:
    """Reprojection errors in image 2 of matches (indices (M, 2), similarities (M,)), and the homography that `estimator` (method, px) finds in them."""
    indices, similarity = matches
    xy1, xy2 = f1.keypoints[indices[:, 0]], f2.keypoints[indices[:, 1]]
    error = np.linalg.norm(project(pair.H_1to2, xy1) - xy2, axis=1)
    return Measured(error, similarity, corner_error(estimate(xy1, xy2, *estimator), pair.H_1to2, size1), (len(f1), len(f2)))


def repeatability(
    H_1to2: np.ndarray,
    keypoints: tuple[np.ndarray, np.ndarray],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    thresholds_px: Sequence[float],
) -> np.ndarray:
    """(T,) fraction of the keypoints seen by both images that the other image has too.

    Of keypoints (N1, 2) and (N2, 2) of images of (width, height), those count that H or its
    inverse puts into the other image. One is repeated if one of the other image's is within t
    pixels in image 2; (N1 repeated + N2 repeated) / (N1 + N2), and 0 without any.
    Source: SuperPoint's evaluation, `compute_repeatability`.
    """
    seen = []
    for xy, H, (w, h) in zip(keypoints, (H_1to2, np.linalg.inv(H_1to2)), sizes[::-1], strict=True):
        there = project(H, xy)
        seen.append(((there >= -0.5) & (there <= np.array([w, h]) - 0.5)).all(1))
    moved, found = project(H_1to2, keypoints[0][seen[0]]), keypoints[1][seen[1]]
    if not (len(moved) and len(found)):
        return np.zeros(len(thresholds_px))
    nearest = np.concatenate([cKDTree(found).query(moved)[0], cKDTree(moved).query(found)[0]])
    return (nearest[:, None] <= np.asarray(thresholds_px)).mean(0)


# ---- all pairs


def accuracy(errors: Sequence[np.ndarray], thresholds_px: Sequence[float]) -> np.ndarray:
    """(P, T) share of each pair's matches with error <= t; 0 for a pair without matches. Source: D2-Net."""
    t = np.asarray(thresholds_px, np.float64)
    return np.array([(e[:, None] <= t).mean(0) if len(e) else np.zeros(len(t)) for e in errors]).reshape(len(errors), len(t))


def threshold_for(similarities: Sequence[np.ndarray], per_pair: float) -> float:
    """The similarity tau that as few matches as possible, but `per_pair` on average, reach or exceed; -inf if there are not as many.

    Source: PUMP, supplementary B: tau is tuned to the number of matches that the keypoint detector's own descriptors give.
    """
    falling = np.sort(np.concatenate([*similarities, np.zeros(0, np.float32)]))[::-1]
    wanted = round(per_pair * len(similarities))
    return float(falling[max(wanted, 1) - 1]) if wanted <= len(falling) and len(falling) else -np.inf


def above(measured: Sequence[Measured], tau: float) -> list[np.ndarray]:
    """Errors of the matches with similarity >= tau, by pair."""
    return [m.error_px[m.similarity >= tau] for m in measured]


def against_count(measured: Sequence[Measured], thresholds_px: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """MMA while tau falls: (K,) mean numbers of matches a pair, rising, and (K, T) MMA. Source: PUMP, figure A."""
    scores = np.sort(np.concatenate([m.similarity for m in measured]))[::-1]
    if not len(scores):
        return np.zeros(1), np.zeros((1, len(thresholds_px)))
    taus = np.unique(scores[np.linspace(0, len(scores) - 1, TAUS + 1).round().astype(int)[1:]])[::-1]
    kept = [above(measured, tau) for tau in taus]
    return np.array([np.mean([len(e) for e in errors]) for errors in kept]), np.array([accuracy(errors, thresholds_px).mean(0) for errors in kept])
