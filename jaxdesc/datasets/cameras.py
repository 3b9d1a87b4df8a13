"""Calibrated images: `cameras.json`, the `img_cam.txt` of the CAPS release, and how far
one pose is from another. COLMAP's models: see `colmap_models`.

A pose takes the world into a camera, x_cam = R X + t; its centre is c = -R^T t. Pixels
are (x, y), x ~ K x_cam, the top-left pixel centre is (0, 0).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdesc.datasets.lists import lines
from jaxdesc.errors import UserError

ROTATION_TOLERANCE = 1e-3  # of R R' to the identity, entry by entry: files hold few digits


class Camera(NamedTuple):
    """A calibrated image."""

    width: int
    height: int
    K: np.ndarray  # (3, 3) float64
    R: np.ndarray  # (3, 3) float64, camera from world
    t: np.ndarray  # (3,) float64
    xy_px: np.ndarray  # (N, 2) float64 where points of the model are seen
    point: np.ndarray  # (N,) int64 which these are, each once


class Pose(NamedTuple):
    """x_cam = R X + t."""

    R: np.ndarray  # (3, 3)
    t: np.ndarray  # (3,)


class Model(NamedTuple):
    """Cameras by the names of their images, and 3-D points by their numbers."""

    cameras: dict[str, Camera]
    points: dict[int, np.ndarray]  # (3,) float64; empty where a file has none


def calibration(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def is_rotation(R: np.ndarray) -> bool:
    return bool(np.abs(R @ R.T - np.eye(3)).max() < ROTATION_TOLERANCE and np.linalg.det(R) > 0)


def bare(
    width: int, height: int, K: np.ndarray, R: np.ndarray, t: np.ndarray, where: str
) -> Camera:
    """A camera that sees no known points; raises UserError, beginning with `where`, for
    numbers that no camera has.
    """
    if (
        not all(np.isfinite(values).all() for values in (K, R, t))
        or min(width, height) < 1
        or min(K[0, 0], K[1, 1]) <= 0
    ):
        raise UserError(
            f"{where} has a size, focal length or pose that is not a positive or finite number: "
            "write the file anew."
        )
    if not is_rotation(R):
        raise UserError(
            f"{where} has an R that is not a rotation (R times its transpose is not the identity, "
            "or it mirrors): x_cam = R X + t is expected."
        )
    return Camera(int(width), int(height), K, R, t, np.zeros((0, 2)), np.zeros(0, np.int64))


def read_json(path: Path) -> Model:
    """`cameras.json`: {image name: {"K": 3x3, "R": 3x3, "t": 3, "width": px, "height":
    px}}, pixel centres at whole numbers.

    Raises:
      UserError: if it is no such file, or a camera is impossible.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            name: (
                entry["width"],
                entry["height"],
                *(
                    np.array(entry[field], float).reshape(shape)
                    for field, shape in (("K", (3, 3)), ("R", (3, 3)), ("t", 3))
                ),
            )
            for name, entry in entries.items()
        }
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    # no JSON, no such field, another type or shape
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} does not give a K, R, t, width and height for each image name: {reason}."
        ) from error
    if not rows:
        raise UserError(f"{path} names no image.")
    for name, (_, _, K, _, _) in rows.items():
        if np.abs(K[[1, 2, 2], [0, 0, 1]]).max() > 0 or K[2, 2] != 1:
            raise UserError(
                f"{path}: the K of {name} is not [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]."
            )
    return Model(
        {name: bare(*row, f"{path}: the camera of {name}") for name, row in rows.items()}, {}
    )


def read_img_cam(path: Path) -> Model:
    """`img_cam.txt` of the CAPS release: `name width height fx fy cx cy R (9, row by
    row) t (3)` on each line; # starts a comment.

    The numbers come from COLMAP, so that 0.5 is taken from the principal point.

    Raises:
      UserError: naming the line that is not so.
    """
    cameras = {}
    for number, line in enumerate(lines(path), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            width, height, fx, fy, cx, cy, *pose = map(float, words[1:])
            R, t = np.array(pose[:9]).reshape(3, 3), np.array(pose[9:]).reshape(3)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}, is not a name and the 18 numbers of its size, "
                "calibration, rotation and translation."
            ) from error
        cameras[words[0]] = bare(
            int(width),
            int(height),
            calibration(fx, fy, cx - 0.5, cy - 0.5),
            R,
            t,
            f"{path}, line {number},",
        )
    if not cameras:
        raise UserError(f"{path} names no image.")
    return Model(cameras, {})


def check_calibration(K: np.ndarray, where: str) -> None:
    """
    Raises:
      UserError: K (3, 3) is no [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0 (a
        skew is not spoken of by any file that is read here).
    """
    zeros = K[[0, 1, 2, 2], [1, 0, 0, 1]]
    if not (
        np.isfinite(K).all() and (zeros == 0).all() and K[2, 2] == 1 and K[0, 0] > 0 and K[1, 1] > 0
    ):
        raise UserError(
            f"{where}: K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths."
        )


def check_rotation(R: np.ndarray, where: str) -> None:
    """
    Raises:
      UserError: R (3, 3) is no rotation, see `is_rotation`.
    """
    if not np.isfinite(R).all() or not is_rotation(R):
        raise UserError(f"{where}: R must be a rotation (orthonormal, determinant 1).")


# ---- poses


def centre(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Camera centres c = -R^T t, of (..., 3, 3) and (..., 3)."""
    return -np.einsum("...ji,...j->...i", R, t)


def relative(camera0: Camera, camera1: Camera) -> tuple[np.ndarray, np.ndarray]:
    """R (3, 3) and t (3,) from camera 0's frame into camera 1's: x1 = R x0 + t with R =
    R1 R0^T, t = t1 - R t0.
    """
    R = camera1.R @ camera0.R.T
    return R, camera1.t - R @ camera0.t


def angle_deg(R: np.ndarray) -> float:
    """Angle of a rotation (3, 3) in degrees, 0 to 180.

    From both its cosine (trace - 1) / 2 and its sine, half the length of the skew part:
    the cosine alone loses every angle below a hundredth of a degree.
    """
    skew = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(skew) / 2, (np.trace(R) - 1) / 2)))


def extent(cameras: Iterable[Camera | Pose]) -> float:
    """The greatest distance between two camera centres, in units of the scene: the
    measure of scenes of arbitrary scale. Source: CAPS, supplement, section 7.
    """
    centres = np.array([centre(camera.R, camera.t) for camera in cameras])
    return float(max(np.linalg.norm(centres - c, axis=1).max() for c in centres))
