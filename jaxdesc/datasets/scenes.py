"""A posed scene: photographs of one place with known cameras, in a folder.

    <folder>/images/<name>, <folder>/imgs/<name> or <folder>/<name>
    <folder>/cameras.json      {name: {"K", "R", "t", "width", "height"}}, see `cameras`; else
    <folder>/sparse/           a COLMAP model of pinhole cameras; or sparse/0/, sparse-txt/, or
                               the folder itself
    <folder>/pairs.txt         optional, see `pairs`: which images belong together

Where there are both, `cameras.json` counts: somebody wrote down what is known, while a
model may be what came of matching.
"""

from collections.abc import Iterable
from pathlib import Path

from jaxdesc.datasets import cameras, colmap_models, folders, pairs
from jaxdesc.datasets.cameras import Camera, Model
from jaxdesc.errors import UserError

MODEL_FOLDERS = ("sparse", "sparse/0", "sparse-txt", "")
IMAGE_FOLDERS = ("images", "imgs")


def image_folder(folder: Path | str) -> Path:
    """What image names are relative to."""
    return folders.image_folder(folder, IMAGE_FOLDERS)


def camera_file(folder: Path | str) -> Path | None:
    """`cameras.json`, or the folder of the COLMAP model, or None."""
    path = Path(folder, "cameras.json")
    if path.is_file():
        return path
    return next(
        (
            Path(folder, name)
            for name in MODEL_FOLDERS
            if colmap_models.is_model(Path(folder, name))
        ),
        None,
    )


def is_scene(folder: Path) -> bool:
    """Whether there are cameras, and photographs that they may be of."""
    if camera_file(folder) is None:
        return False
    return image_folder(folder) != folder or any(
        file.suffix.lower() in folders.EXTENSIONS for file in folder.iterdir()
    )


def read_model(folder: Path | str) -> Model:
    """Cameras by name, and points where they come from a COLMAP model.

    Raises:
      UserError: there are none; as `cameras.read_json` and `colmap_models.read_model`.
    """
    found = camera_file(folder)
    if found is None:
        raise UserError(
            f"{folder} holds no known cameras: cameras.json (name -> K, R, t, width, height) or a "
            "COLMAP model in sparse/ is expected."
        )
    return cameras.read_json(found) if found.is_file() else colmap_models.read_model(found)


def read_cameras(folder: Path | str) -> dict[str, Camera]:
    """Cameras by name for estimators of poses, which know no skew.

    Raises:
      UserError: as `read_model`; a camera with skew.
    """
    found = read_model(folder).cameras
    for name, camera in found.items():
        cameras.check_calibration(camera.K, f"{folder}, {name}")
    return found


def read_pairs(folder: Path, names: Iterable[str]) -> tuple[list[pairs.Pair], bool]:
    """The pairs of `pairs.txt`, or all of these names; and whether they are listed.

    Raises:
      UserError: as `pairs.read_pairs`.
    """
    listed = folder / "pairs.txt"
    if not listed.is_file():
        return pairs.exhaustive_pairs(names), False
    return pairs.read_pairs(listed, pairs.among(names))[0], True
