"""COLMAP through pycolmap: its database from our keypoints and matches, verification, triangulation, mapping.

COLMAP calls the centre of the top-left pixel (0.5, 0.5), the library (0, 0): 0.5 is added to what is written and taken from what is read, here alone.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdesc.errors import UserError
from jaxdesc.store.files import atomic, refuse_existing

if TYPE_CHECKING:
    import pycolmap as pycolmap_types

Pair = tuple[str, str]


def require_pycolmap():
    """The module pycolmap; raises UserError if it is not installed."""
    try:
        import pycolmap
    except ImportError as e:
        raise UserError("COLMAP files need the package pycolmap: run `pip install jaxdesc[colmap]`.") from e
    return pycolmap


def write_database(
    path: Path | str,
    images: Mapping[str, "tuple[int, int] | pycolmap_types.Camera"],
    keypoints: Mapping[str, np.ndarray],
    matches: Mapping[Pair, np.ndarray],
    overwrite: bool = False,
) -> None:
    """A COLMAP database of images, keypoints (N, 2) in the library's convention and unverified matches, rows (M, 2) of keypoint indices.

    Args:
      images: name -> (width, height), for a camera of its own, SIMPLE_RADIAL with the focal length 1.2 max(width, height); or name -> a camera, which images
        share that name one camera_id (as the cameras of a model do, see `model_cameras`).
      keypoints, matches: may be lazy; each entry is looked up once.

    Raises:
      UserError: pycolmap is missing; the database exists; a match names an image or keypoint that is not there; as `atomic`.
    """
    pycolmap = require_pycolmap()
    refuse_existing(path, overwrite)
    with atomic(path) as temporary, pycolmap.Database.open(temporary) as database, pycolmap.DatabaseTransaction(database):  # one commit
        ids, counts, cameras = {}, {}, {}
        for name, given in images.items():
            camera = _guessed(pycolmap, *given) if isinstance(given, tuple) else given
            key = name if camera.camera_id == pycolmap.INVALID_CAMERA_ID else camera.camera_id
            if key not in cameras:
                cameras[key] = _add_camera(pycolmap, database, camera)
            ids[name] = _add_image(pycolmap, database, name, *cameras[key])
            xy = np.asarray(keypoints[name], np.float32)
            counts[name] = len(xy)
            database.write_keypoints(ids[name], xy + np.float32(0.5))
        for name0, name1 in matches:
            indices = np.asarray(matches[name0, name1])
            for column, name in enumerate((name0, name1)):
                if name not in ids:
                    raise UserError(f"The matches of {name0} {name1} name an image that {path} does not hold: {name}.")
                if len(indices) and not 0 <= indices[:, column].min() <= indices[:, column].max() < counts[name]:
                    raise UserError(f"The matches of {name0} {name1} point beyond the {counts[name]} keypoints of {name}: they belong to other features.")
            database.write_matches(ids[name0], ids[name1], indices.astype(np.uint32))


def _guessed(pycolmap, width: int, height: int):
    return pycolmap.Camera.create_from_model_name(pycolmap.INVALID_CAMERA_ID, "SIMPLE_RADIAL", 1.2 * max(width, height), width, height)


def _add_camera(pycolmap, database, camera) -> tuple[int, int]:
    """Camera and rig identifiers: each camera is the one sensor of a rig."""
    camera = pycolmap.Camera(camera.todict())  # the caller's camera keeps its identifier
    camera.camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    return camera.camera_id, database.write_rig(rig)


def _add_image(pycolmap, database, name: str, camera_id: int, rig_id: int) -> int:
    """Image identifier: each image is the one of its frame."""
    image = pycolmap.Image(name=name, camera_id=camera_id)
    image.image_id = database.write_image(image)
    frame = pycolmap.Frame()
    frame.rig_id = rig_id
    frame.add_data_id(image.data_id)
    database.write_frame(frame)
    return image.image_id


def verify(database: Path | str, pairs: Iterable[Pair]) -> None:
    """Geometric verification of these pairs' matches, with hloc's settings and a fixed seed."""
    pycolmap = require_pycolmap()
    ransac = {"max_num_trials": 20000, "min_inlier_ratio": 0.1, "random_seed": 0}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.writelines(f"{name0} {name1}\n" for name0, name1 in pairs)
        file.flush()
        pycolmap.verify_matches(database, file.name, options=pycolmap.TwoViewGeometryOptions(ransac=ransac))


def triangulate(database: Path | str, model: Path | str, image_dir: Path | str, out: Path | str):
    """Triangulates the verified matches of the images that `model` knows, with its poses and cameras; writes the result to `out` and returns it.

    Raises:
      UserError: there is no model; it knows none of the database's images, or its cameras are of another kind.
    """
    pycolmap = require_pycolmap()
    known = {image.name: image for image in load_model(model).images.values() if image.has_pose}
    reference = pycolmap.Reconstruction()  # the model's numbers for images and frames are its own: poses are looked up by name
    with pycolmap.Database.open(database) as opened:
        images = [image for image in opened.read_all_images() if image.name in known]
        if not images:
            raise UserError(f"The model {model} knows none of the images of {database}: image names must be the same in both.")
        cameras = {image.camera_id: known[image.name].camera for image in images}
        for camera_id, camera in cameras.items():
            if opened.read_camera(camera_id).model != camera.model:
                raise UserError(f"{database} has other cameras than the model {model}: write it with the model's cameras (model_cameras).")
            reference.add_camera(pycolmap.Camera({**camera.todict(), "camera_id": camera_id}))
        for rig in opened.read_all_rigs():
            if rig.ref_sensor_id.id in cameras:
                reference.add_rig(rig)
        for image in images:
            frame = opened.read_frame(image.frame_id)
            frame.rig_from_world = known[image.name].cam_from_world()
            reference.add_frame(frame)
            reference.add_image(image)
            reference.register_frame(frame.frame_id)
    Path(out).mkdir(parents=True, exist_ok=True)
    return pycolmap.triangulate_points(reference, database, image_dir, out, options=pycolmap.IncrementalPipelineOptions(random_seed=0))


def mapping(database: Path | str, image_dir: Path | str, out: Path | str):
    """Incremental mapping of the verified matches into numbered folders of `out`; returns the Reconstruction of the most images.

    Raises:
      UserError: nothing could be reconstructed.
    """
    pycolmap = require_pycolmap()
    Path(out).mkdir(parents=True, exist_ok=True)
    models = pycolmap.incremental_mapping(database, image_dir, out, options=pycolmap.IncrementalPipelineOptions(random_seed=0))
    if not models:
        raise UserError(f"No image pair of {database} was good enough to begin a reconstruction: match more pairs or keep more keypoints.")
    return max(models.values(), key=lambda model: model.num_reg_images())


def load_model(path: Path | str):
    pycolmap = require_pycolmap()
    try:
        return pycolmap.Reconstruction(path)
    except (ValueError, RuntimeError, OSError) as e:
        raise UserError(f"{path} holds no COLMAP model: a folder with cameras, images and points3D (.bin or .txt) is expected.") from e


def model_cameras(path: Path | str) -> "dict[str, pycolmap_types.Camera]":
    """Name -> camera of a model's images, as `write_database` takes them.

    Raises:
      UserError: pycolmap is missing; there is no model.
    """
    model = load_model(path)
    return {image.name: model.cameras[image.camera_id] for image in model.images.values()}
