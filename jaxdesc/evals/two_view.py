"""Relative pose of two calibrated images from their matches: estimators, errors and the figures drawn from them. NumPy, float64."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from jaxdesc.datasets.cameras import angle_deg
from jaxdesc.errors import UserError

CONFIDENCE = 0.99999  # of RANSAC; SuperGlue, models/utils.py
MIN_MATCHES = 5  # of the five-point method

Pose = tuple[np.ndarray, np.ndarray]  # R (3, 3), t (3,) of any length
Estimator = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Pose | None]  # (xy0, xy1 (N, 2) px, K0, K1)


# ---- estimators


def normalised(xy: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Pixels (N, 2) as (x - cx) / fx, (y - cy) / fy, float64."""
    return (np.asarray(xy, np.float64) - K[:2, 2]) / K[[0, 1], [0, 1]]


def pose_cv2(xy0: np.ndarray, xy1: np.ndarray, K0: np.ndarray, K1: np.ndarray, threshold_px: float, method: int) -> Pose | None:
    """OpenCV's essential matrix by RANSAC, then the one of its four poses that has most points in front of both cameras.

    Points go in as f (x - c) / f_camera with f the mean of the four focal lengths, so that one threshold in pixels serves two cameras. (Normalised coordinates
    with the threshold over f are the same to RANSAC, but not to OpenCV's MAGSAC, some of whose constants are in pixels.) Of several essential matrices (five
    points have up to ten) the one whose pose has most points in front is taken. Deterministic: OpenCV draws from a fixed seed.
    Source: SuperGlue, models/utils.py, whose mean takes two focal lengths twice.

    Returns:
      None if there are fewer than five matches or no pose was found, as may be where all points fall together.
    """
    if len(xy0) < MIN_MATCHES:
        return None
    f = np.mean([K0[0, 0], K0[1, 1], K1[0, 0], K1[1, 1]])
    points0, points1, K = f * normalised(xy0, K0), f * normalised(xy1, K1), np.diag([f, f, 1.0])
    best, most = None, 0
    try:
        E, inlier = cv2.findEssentialMat(points0, points1, K, method=method, prob=CONFIDENCE, threshold=threshold_px)
        for candidate in np.split(E, len(E) // 3) if E is not None and len(E) else ():
            count, R, t, _ = cv2.recoverPose(candidate, points0 / f, points1 / f, np.eye(3), 1e9, mask=inlier.copy())
            if count > most and np.isfinite(R).all() and np.isfinite(t).all():
                best, most = (R, t.ravel()), count
    except cv2.error:  # OpenCV asserts that a model was found, and that some points are in front
        return best
    return best


def pose_poselib(xy0: np.ndarray, xy1: np.ndarray, K0: np.ndarray, K1: np.ndarray, threshold_px: float) -> Pose | None:
    """PoseLib's LO-RANSAC and refinement with a fixed seed; None as `pose_cv2`."""
    import poselib

    if len(xy0) < MIN_MATCHES:
        return None
    size = 2 * max(K0[:2, 2].max(), K1[:2, 2].max())  # not used by a camera without distortion, but asked for
    cameras = [{"model": "PINHOLE", "width": int(size), "height": int(size), "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]} for K in (K0, K1)]
    options = {"max_epipolar_error": threshold_px, "success_prob": CONFIDENCE, "seed": 0}
    pose, info = poselib.estimate_relative_pose(np.asarray(xy0, np.float64), np.asarray(xy1, np.float64), *cameras, options, {})
    if info["num_inliers"] < MIN_MATCHES or not np.isfinite(pose.Rt).all():
        return None
    return np.array(pose.R), np.array(pose.t)


def estimator(name: str, threshold_px: float) -> Estimator:
    """By the name in a result's key: cv2-ransac, cv2-magsac or poselib.

    Raises:
      UserError: PoseLib is not installed.
    """
    if name == "poselib":
        try:
            import poselib  # noqa: F401
        except ImportError as e:
            raise UserError("The estimator poselib needs the package poselib: run `pip install poselib`, or take --estimator cv2-ransac.") from e
        return partial(pose_poselib, threshold_px=threshold_px)
    return partial(pose_cv2, threshold_px=threshold_px, method={"cv2-ransac": cv2.RANSAC, "cv2-magsac": cv2.USAC_MAGSAC}[name])


ESTIMATORS = ("cv2-ransac", "cv2-magsac", "poselib")


# ---- errors


class PoseError(NamedTuple):
    """Degrees; both infinite where there is no pose."""

    rotation_deg: float
    translation_deg: float

    @property
    def worst_deg(self) -> float:
        return max(self)


FAILED = PoseError(np.inf, np.inf)


def direction_angle_deg(t: np.ndarray, t_true: np.ndarray) -> float:
    """min(a, 180 - a) of the angle a between two translations whose length and sign are not known, in degrees, 0 to 90.

    Without a direction to find (a true translation of length 0) every answer is right: 0. An answer without a direction is wrong by 90.
    """
    if np.linalg.norm(t_true) == 0:
        return 0.0
    if np.linalg.norm(t) == 0:
        return 90.0
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(t, t_true)), abs(np.dot(t, t_true)))))


def pose_error(pose: Pose | None, R_true: np.ndarray, t_true: np.ndarray) -> PoseError:
    """Angle between the rotations, and min(a, 180 - a) between the directions of the translations: an essential matrix leaves its sign open."""
    return FAILED if pose is None else PoseError(angle_deg(pose[0].T @ R_true), direction_angle_deg(pose[1], t_true))


def error_auc(errors: Sequence[float], thresholds: Sequence[float]) -> np.ndarray:
    """Area below the recall curve up to each threshold, over the threshold: 1 if every error is 0, 0 if none is below.

    The curve goes straight from (0, 0) through (e_k, k / n), e_k the k-th smallest error, and on level from the last one up to the threshold.
    Source: SuperGlue, `pose_auc`; LoFTR, `error_auc`.

    Args:
      errors: (n,) at least one; infinite where nothing was found.
      thresholds: (T,) positive.
    Returns:
      (T,).
    """
    ordered = np.concatenate([[0.0], np.sort(np.asarray(errors, np.float64))])
    recall = np.linspace(0, 1, len(ordered))
    areas = []
    for threshold in thresholds:
        last = np.searchsorted(ordered, threshold) if threshold > 0 else 1
        x = np.append(ordered[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold)
    return np.array(areas)


def symmetric_epipolar(xy0: np.ndarray, xy1: np.ndarray, K0: np.ndarray, K1: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """(x1^T E x0)^2 (1 / |(E x0)_xy|^2 + 1 / |(E^T x1)_xy|^2) with E = [t]x R and normalised x: the squared distances to both epipolar lines, without unit.

    Source: SuperGlue, `compute_epipolar_error`.

    Returns:
      (N,) float64; infinite at an epipole or where t = 0, which leaves no line.
    """
    E = np.cross(np.eye(3), t / max(np.linalg.norm(t), np.finfo(float).tiny)) @ R  # the rows e_i x t are those of [t]x
    x0, x1 = (np.column_stack([normalised(xy, K), np.ones(len(xy))]) for xy, K in ((xy0, K0), (xy1, K1)))
    line1, line0 = x0 @ E.T, x1 @ E
    squares = [np.sum(line[:, :2] ** 2, axis=1) for line in (line0, line1)]
    away = (squares[0] > 0) & (squares[1] > 0)
    inverse = sum(np.divide(1.0, square, out=np.zeros(len(square)), where=away) for square in squares)
    return np.where(away, np.sum(line1 * x1, axis=1) ** 2 * inverse, np.inf)
