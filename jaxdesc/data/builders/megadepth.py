"""MegaDepth in the two forms in which posed images of it are handed out.

    <folder>/<scene>/dense*/aligned/{img_cam.txt,pairs.txt,images/}
        the release of CAPS: cameras and pairs as text, no points
    <folder>/<scene>[/dense*]/{images|imgs}/ and sparse/ or sparse-txt/
        undistorted reconstructions (MegaDepth's own, or D2-Net's): COLMAP models

Pairs of the second form are those that see enough common points, see `colmap`; images
that a model lists but the download lacks are passed over.
Source: Li and Snavely, CVPR 2018; CAPS, section 4.
"""

import functools
from pathlib import Path

from jaxdesc.data.builders import base, colmap, pairs, posed
from jaxdesc.datasets.cameras import read_img_cam
from jaxdesc.datasets.scenes import is_scene
from jaxdesc.errors import UserError

CARD = base.Card(
    about="MegaDepth: internet photographs of landmarks with the cameras of their reconstructions.",
    licence="The photographs are internet users', who keep their rights; see the homepage.",
    homepage="https://www.cs.cornell.edu/projects/megadepth/",
    citation="""@inproceedings{li2018megadepth,
  title = {{MegaDepth}: Learning Single-View Depth Prediction from Internet Photos},
  author = {Li, Zhengqi and Snavely, Noah},
  booktitle = {CVPR},
  year = {2018},
}""",
)


def open_posed(path: str, max_side_px: int, cache: str) -> posed.PosedSet:
    """The posed pairs of the folder `path`; raises UserError as `colmap.open_posed`."""
    return posed.prepare(folder(path, max_side_px), max_side_px, cache)


def folder(path: str, max_side_px: int) -> base.Source:
    """The scenes of MegaDepth in the folder `path`; raises UserError if it is not
    MegaDepth.
    """
    root = pairs.existing_folder(path)
    aligned = sorted(file.parent for file in root.glob("*/dense*/aligned/img_cam.txt"))
    if aligned:
        return _aligned(root, aligned, max_side_px)
    folders = sorted(
        folder
        for pattern in ("*", "*/dense*")
        for folder in root.glob(pattern)
        if folder.is_dir() and is_scene(folder)
    )
    if not folders:
        raise UserError(
            f"{root} is not MegaDepth: it has neither <scene>/dense*/aligned/img_cam.txt nor "
            "<scene>/images with a COLMAP model in <scene>/sparse."
        )
    return colmap.source_of(root, folders, max_side_px, CARD, partial=True)


posed.SOURCES["megadepth"] = folder


def _aligned(root: Path, folders: list[Path], max_side_px: int) -> base.Source:
    files = {}
    for folder in folders:
        if not (folder / "pairs.txt").is_file():
            raise UserError(f"{folder} has no pairs.txt (two image names on each line).")
        own = [
            folder / "img_cam.txt",
            folder / "pairs.txt",
            *sorted(file for file in (folder / "images").rglob("*") if file.is_file()),
        ]
        files |= {file.relative_to(root).as_posix(): file for file in own}
    scenes = [functools.partial(_read_aligned, root, folder) for folder in folders]
    return posed.source_of(root.resolve().name, scenes, files, str(root), max_side_px, CARD)


def _read_aligned(root: Path, folder: Path) -> posed.Scene:
    file = folder / "img_cam.txt"
    return colmap.scene_of(
        root,
        read_img_cam(file),
        folder / "images",
        folder / "pairs.txt",
        file,
        partial=True,
    )
