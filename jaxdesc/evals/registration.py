"""What localisation and structure from motion ask of pycolmap. COLMAP's pixels are ours plus 0.5, in cameras and in points: it is added here, on the way in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdesc.datasets.cameras import Camera, Pose
from jaxdesc.store.colmap import require_pycolmap

if TYPE_CHECKING:
    import pycolmap as pycolmap_types

MIN_POINTS = 4  # three fix a pose up to four answers, the fourth chooses


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps COLMAP's running commentary off stderr; its errors still come as exceptions."""
    logging = require_pycolmap().logging
    before = logging.minloglevel
    logging.minloglevel = logging.FATAL.value
    try:
        yield
    finally:
        logging.minloglevel = before


def pinhole(camera: Camera, camera_id: int) -> "pycolmap_types.Camera":
    """A camera of ours as COLMAP's PINHOLE."""
    K = camera.K
    return require_pycolmap().Camera(
        model="PINHOLE", width=camera.width, height=camera.height, params=[K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5], camera_id=camera_id
    )


def write_model(folder: Path, cameras: Mapping[str, "pycolmap_types.Camera"], poses: Mapping[str, Pose]) -> None:
    """A COLMAP model without points of the images that have a pose; cameras of one camera_id are one."""
    pycolmap = require_pycolmap()
    model = pycolmap.Reconstruction()
    for number, (name, pose) in enumerate(poses.items(), 1):
        camera = cameras[name]
        if not model.exists_camera(camera.camera_id):
            model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=number)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(pose.R), pose.t))
    folder.mkdir(parents=True, exist_ok=True)
    model.write(folder)


def keypoints_to_points(model: "pycolmap_types.Reconstruction") -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
    """Name -> (N,) int64 identifier of each keypoint's 3D point, -1 without one; identifier -> (3,) position."""
    ids = {
        image.name: np.array([point.point3D_id if point.has_point3D() else -1 for point in image.points2D], np.int64).reshape(-1)
        for image in model.images.values()
    }
    return ids, {key: np.array(point.xyz) for key, point in model.points3D.items()}


def absolute_pose(camera: "pycolmap_types.Camera", xy: np.ndarray, xyz: np.ndarray, threshold_px: float) -> tuple[Pose, int] | None:
    """A camera's pose from points seen at pixels, by LO-RANSAC with a fixed seed and refinement on its inliers; and their number.

    Args:
      camera: COLMAP's, in its convention; xy: (N, 2) pixels in ours; xyz: (N, 3).
    Returns:
      None if there are fewer than four points or no pose was found.
    """
    if len(xy) < MIN_POINTS:
        return None
    options = {"ransac": {"max_error": threshold_px, "random_seed": 0}}
    found = require_pycolmap().estimate_and_refine_absolute_pose(np.asarray(xy, np.float64) + 0.5, np.asarray(xyz, np.float64), camera, options, {})
    if found is None:
        return None
    pose = found["cam_from_world"]
    R, t = pose.rotation.matrix(), np.array(pose.translation)
    return (Pose(R, t), int(found["num_inliers"])) if np.isfinite(R).all() and np.isfinite(t).all() else None
