"""Folders of photographs, nested or not."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxdesc.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm")


def find_images(folder: str | os.PathLike) -> list[str]:
    """Names of all images below `folder`, relative, with forward slashes, sorted.

    Nested folders are searched, extensions are compared without case; hidden files and
    folders and `__MACOSX` are passed over.

    Raises:
      UserError: if the folder is missing, is a file, or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(
            f"{root} is a file, not a folder of images."
            if root.exists()
            else f"There is no folder {root}."
        )
    names = []
    for place, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__MACOSX"]
        names += [
            (Path(place) / f).relative_to(root).as_posix()
            for f in files
            if not f.startswith(".") and f.lower().endswith(EXTENSIONS)
        ]
    if not names:
        raise UserError(
            f"{root} holds no image; files ending in {', '.join(EXTENSIONS)} are looked for, in "
            "sub-folders too."
        )
    return sorted(names)


def image_folder(folder: Path | str, names: Sequence[str] = ("images",)) -> Path:
    """What names of images are relative to: the first of these folders that is there,
    else the folder itself.
    """
    folder = Path(folder)
    return next((folder / name for name in names if (folder / name).is_dir()), folder)
