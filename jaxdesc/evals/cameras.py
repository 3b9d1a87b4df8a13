"""Known cameras of a scene: where they are read from, and how far one pose is from another.

A pose takes the world into a camera, x_cam = R X + t; its centre is c = -R^T t. Pixels are (x, y), the top-left pixel centre is (0, 0).
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxdesc.data.cameras import has_colmap, is_rotation, read_colmap, read_json
from jaxdesc.errors import UserError
from jaxdesc.store.colmap import Posed


def image_folder(data: Path | str) -> Path:
    """Where a scene's photographs lie: `<data>/images`, or `<data>` itself."""
    data = Path(data)
    return data / "images" if (data / "images").is_dir() else data


def model_folder(data: Path | str) -> Path | None:
    """The COLMAP model of a scene: `<data>/sparse`, `<data>/sparse/0` or `<data>` itself; None if there is none."""
    return next((folder for folder in (Path(data, part) for part in ("sparse", "sparse/0", "")) if has_colmap(folder)), None)


def read_scene(data: Path | str) -> dict[str, Posed]:
    """Name -> camera of a folder with `cameras.json` (name -> K, R, t, width, height) or a COLMAP model of pinhole cameras.

    Raises:
      UserError: there is neither; as `read_json` and `read_colmap`; a camera with skew.
    """
    path, folder = Path(data, "cameras.json"), model_folder(data)
    if path.is_file():
        found = read_json(path).cameras
    elif folder is not None:
        found = read_colmap(folder).cameras
    else:
        raise UserError(f"{data} holds no known cameras: cameras.json (name -> K, R, t, width, height) or a COLMAP model in sparse/ is expected.")
    for name, camera in found.items():
        check_calibration(camera.K, f"{data}, {name}")
    return {name: Posed(camera.K, camera.R, camera.t, camera.width, camera.height) for name, camera in found.items()}


def check_calibration(K: np.ndarray, where: str) -> None:
    """
    Raises:
      UserError: K (3, 3) is no [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0 (a skew is not spoken of by any file that is read here).
    """
    zeros = K[[0, 1, 2, 2], [1, 0, 0, 1]]
    if not (np.isfinite(K).all() and (zeros == 0).all() and K[2, 2] == 1 and K[0, 0] > 0 and K[1, 1] > 0):
        raise UserError(f"{where}: K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths.")


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


def relative(camera0: Posed, camera1: Posed) -> tuple[np.ndarray, np.ndarray]:
    """R (3, 3) and t (3,) from camera 0's frame into camera 1's: x1 = R x0 + t with R = R1 R0^T, t = t1 - R t0."""
    R = camera1.R @ camera0.R.T
    return R, camera1.t - R @ camera0.t


def rotation_angle_deg(R: np.ndarray, R_true: np.ndarray) -> float:
    """Angle of R^T R_true in degrees, 0 to 180.

    From both its cosine (trace - 1) / 2 and its sine, half the length of the skew part: the cosine alone loses every angle below a hundredth of a degree.
    """
    turn = R.T @ R_true
    skew = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    return float(np.degrees(np.arctan2(np.linalg.norm(skew) / 2, (np.trace(turn) - 1) / 2)))


def direction_angle_deg(t: np.ndarray, t_true: np.ndarray) -> float:
    """min(a, 180 - a) of the angle a between two translations whose length and sign are not known, in degrees, 0 to 90.

    Without a direction to find (a true translation of length 0) every answer is right: 0. An answer without a direction is wrong by 90.
    """
    if np.linalg.norm(t_true) == 0:
        return 0.0
    if np.linalg.norm(t) == 0:
        return 90.0
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(t, t_true)), abs(np.dot(t, t_true)))))


def extent(cameras: Iterable[Posed]) -> float:
    """The greatest distance between two camera centres, in units of the scene: the measure of scenes of arbitrary scale. Source: CAPS, supplement, section 7.

    Args:
      cameras: anything with the fields R and t.
    """
    centres = np.array([centre(camera.R, camera.t) for camera in cameras])
    return float(max(np.linalg.norm(centres - c, axis=1).max() for c in centres))
