"""Aachen Day-Night for local features, as its benchmark distributes it, and VisualSFM's
models.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from jaxdesc.datasets.cameras import Pose
from jaxdesc.datasets.folders import image_folder
from jaxdesc.datasets.lists import lines
from jaxdesc.datasets.pairs import Pair, among, read_pairs
from jaxdesc.errors import UserError
from jaxdesc.store.colmap import load_model, require_pycolmap

if TYPE_CHECKING:
    import pycolmap as pycolmap_types

PAIRS = "image_pairs_to_match.txt"


class Aachen(NamedTuple):
    """What lies in the folder."""

    images: Path  # folder that image names are relative to
    cameras: "dict[str, pycolmap_types.Camera]"  # of references and queries, in COLMAP's convention
    poses: dict[str, Pose]  # of the references
    queries: list[str]  # those that are in a pair
    pairs: list[Pair]  # whose images have a pose or are queries
    lists: list[str]  # names of the lists of queries


def read(data: Path) -> Aachen:
    """`image_pairs_to_match.txt`, `database.db` (a camera for each image),
    `queries/*_with_intrinsics.txt`, `3D-models/` (an .nvm, or a COLMAP model, with the
    poses of the day-time images) and `images/images_upright/`.

    The cameras of the queries are those of the query lists. The true poses of the
    queries stay with the benchmark's server.

    Raises:
      UserError: a part is missing or damaged; a pair names an image without camera; no
        query is in a pair.
    """
    cameras = database_cameras(data / "database.db")
    lists = sorted((data / "queries").glob("*_with_intrinsics.txt"))
    if not lists:
        raise UserError(
            f"{data / 'queries'} holds no *_with_intrinsics.txt: lines of `name MODEL width "
            "height parameters` are expected."
        )
    calibrated = {
        name: camera
        for path in lists
        for name, camera in read_queries(
            path, first=1 + max(c.camera_id for c in cameras.values())
        ).items()
    }
    cameras |= calibrated
    pairs, _ = read_pairs(data / PAIRS, among(cameras))
    queries = sorted({name for pair in pairs for name in pair} & calibrated.keys())
    if not queries:
        raise UserError(
            f"No pair of {data / PAIRS} names an image of {', '.join(path.name for path in lists)}."
        )
    poses = {
        name: pose
        for name, pose in reference_poses(data / "3D-models").items()
        if name in cameras and name not in calibrated
    }
    posed = [(a, b) for a, b in pairs if {a, b} <= poses.keys() | set(queries)]
    upright = data / "images" / "images_upright"
    images = upright if upright.is_dir() else image_folder(data)
    return Aachen(images, cameras, poses, queries, posed, [path.name for path in lists])


def database_cameras(path: Path) -> "dict[str, pycolmap_types.Camera]":
    """Name -> camera of the images of a COLMAP database.

    Raises:
      UserError: it is missing or none.
    """
    pycolmap = require_pycolmap()
    if not path.is_file():
        raise UserError(f"There is no database {path}: it comes with the benchmark.")
    try:
        with pycolmap.Database.open(path) as database:
            cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
            return {image.name: cameras[image.camera_id] for image in database.read_all_images()}
    except (RuntimeError, ValueError, KeyError) as e:
        raise UserError(f"{path} is no COLMAP database, or it is damaged.") from e


def read_queries(path: Path, first: int = 1) -> "dict[str, pycolmap_types.Camera]":
    """Name -> camera of a list of `name MODEL width height parameters`, numbered from
    `first` on; lines that start with # are passed over.

    Raises:
      UserError: with file and line: an unknown camera model, or another number of
        parameters than it has; a missing file.
    """
    pycolmap = require_pycolmap()
    cameras = {}
    for number, line in enumerate(lines(path), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            name, model, width, height, *parameters = fields
            camera = pycolmap.Camera(
                model=model,
                width=int(width),
                height=int(height),
                params=[float(p) for p in parameters],
                camera_id=first + len(cameras),
            )
            if not camera.verify_params():
                raise ValueError("number of parameters")
        except (ValueError, RuntimeError, TypeError) as e:
            raise UserError(
                f"{path}, line {number}: `name MODEL width height parameters` is expected, with "
                "COLMAP's models and their parameters."
            ) from e
        cameras[name] = camera
    return cameras


def reference_poses(folder: Path) -> dict[str, Pose]:
    """Name -> pose of the first COLMAP model at or below a folder, else of its first
    .nvm.

    Raises:
      UserError: there is neither.
    """
    for path in sorted([*folder.rglob("images.bin"), *folder.rglob("images.txt")]):
        poses = {
            image.name: image.cam_from_world()
            for image in load_model(path.parent).images.values()
            if image.has_pose
        }
        return {
            name: Pose(pose.rotation.matrix(), np.array(pose.translation))
            for name, pose in poses.items()
        }
    for path in sorted(folder.rglob("*.nvm")):
        return read_nvm(path)
    raise UserError(
        f"{folder} holds neither a COLMAP model nor an .nvm: the poses of the reference images "
        "are read from there."
    )


def read_nvm(path: Path) -> dict[str, Pose]:
    """Name -> pose of a VisualSFM model: after the header `NVM_V3` and the number of
    images, a line `name focal qw qx qy qz cx cy cz distortion 0` each, q taking the
    world to the camera and c the camera's centre.

    Raises:
      UserError: another form, fewer images than it says.
    """
    rows = [line.split() for line in lines(path) if line.strip()]
    try:
        if not rows[0][0].startswith("NVM_V3"):
            raise ValueError("header")
        poses = {}
        for fields in rows[2 : 2 + int(rows[1][0])]:
            q, c = np.array(fields[2:6], np.float64), np.array(fields[6:9], np.float64)
            R = Rotation.from_quat(q, scalar_first=True).as_matrix()
            poses[fields[0]] = Pose(R, -R @ c)
        if len(poses) != int(rows[1][0]):
            raise ValueError("count")
    except (ValueError, IndexError) as e:
        raise UserError(f"{path} is no VisualSFM model (NVM_V3), or it is cut short.") from e
    return poses
