"""Posed images: a scene as `jaxdesc.datasets.scenes` reads it, or a folder of such
folders.

Without `pairs.txt` all pairs are taken that see MIN_COMMON points in common, or,
without points, all that look towards a common part.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from scipy import sparse

from jaxdesc.data.builders import base, pairs, posed
from jaxdesc.datasets import scenes
from jaxdesc.datasets.cameras import Camera, Model
from jaxdesc.datasets.colmap_models import files_of
from jaxdesc.datasets.folders import find_images
from jaxdesc.datasets.pairs import read_listing
from jaxdesc.errors import UserError

# points that two views of a pair must see, where no list says which belong together
MIN_COMMON = 30


def open_posed(path: str, max_side_px: int, cache: str) -> posed.PosedSet:
    """The posed pairs of the folder `path`, prepared if they are not yet.

    Raises:
      UserError: as `folder`; a model or a list is wrong, an image is missing, no pair
        can be used, or as `base.prepared`.
    """
    return posed.prepare(folder(path, max_side_px), max_side_px, cache)


def folder(path: str, max_side_px: int) -> base.Source:
    """The scenes of the folder `path`; raises UserError if there is no such folder or
    no scene in it.
    """
    root = pairs.existing_folder(path)
    folders = (
        [root]
        if scenes.camera_file(root)
        else sorted(
            folder for folder in root.iterdir() if folder.is_dir() and scenes.is_scene(folder)
        )
    )
    if not folders:
        raise UserError(
            f"{root} has neither images/ with a COLMAP model in sparse/ or a cameras.json, nor "
            "has any folder in it."
        )
    return source_of(root, folders, max_side_px, base.own_files(root), partial=False)


posed.SOURCES["colmap"] = folder


def source_of(
    root: Path, folders: list[Path], max_side_px: int, card: base.Card, partial: bool
) -> base.Source:
    """Several scene folders below `root`; `partial`: images that a model lists may be
    missing.
    """
    files = {}
    for folder in folders:
        known, images = scenes.camera_file(folder), scenes.image_folder(folder)
        own = [known] if known.is_file() else files_of(known)
        own += [file for file in [folder / "pairs.txt"] if file.is_file()]
        if images == folder:
            own += [folder / name for name in find_images(folder)]
        else:
            own += sorted(file for file in images.rglob("*") if file.is_file())
        files |= {file.relative_to(root).as_posix(): file for file in own}
    readers = [functools.partial(read_scene, root, folder, partial) for folder in folders]
    return posed.source_of(root.resolve().name, readers, files, str(root), max_side_px, card)


def read_scene(root: Path, folder: Path, partial: bool) -> posed.Scene:
    """One folder; its images are named relative to `root`."""
    model, images = scenes.read_model(folder), scenes.image_folder(folder)
    return scene_of(root, model, images, folder / "pairs.txt", scenes.camera_file(folder), partial)


def scene_of(
    root: Path, model: Model, images: Path, list_file: Path, where: Path, partial: bool
) -> posed.Scene:
    """A scene of the cameras that have an image in `images`, with the pairs of
    `list_file` if that exists.

    Raises:
      UserError: if an image is missing and `partial` is not set, if none is there, if
        the list is wrong, or as `in_front`.
    """
    files, seen = {}, {}
    for name, camera in model.cameras.items():
        file = images / name
        if file.is_file():
            key = file.relative_to(root).as_posix()
            files[key], seen[key] = file, in_front(camera, model.points, f"{where}: {name}")
        elif not partial:
            raise UserError(f"{where} lists the image {name}, but there is no {file}.")
    if not files:
        raise UserError(
            f"None of the {len(model.cameras)} images that {where} lists is in {images}."
        )
    dropped: Counter = Counter()
    if list_file.is_file():
        listing = read_listing(root, list_file, images, images)
        named = [tuple(Path(name).as_posix() for name in pair) for pair in listing.pairs]
        chosen = [pair for pair in named if all(name in seen for name in pair)]
        dropped = Counter(listing.dropped) + Counter(
            {"of an image without a pose": len(named) - len(chosen)}
        )
    elif model.points:
        chosen = covisible(seen)
        dropped[f"with fewer than {MIN_COMMON} common points"] = len(seen) * (
            len(seen) - 1
        ) // 2 - len(chosen)
    else:
        chosen = list(itertools.combinations(sorted(seen), 2))
    return posed.Scene(
        files=files,
        cameras=seen,
        pairs=chosen,
        point_depth=posed.far_depth(depths(seen.values(), model.points)),
        match=functools.partial(common_points, seen),
        detect=True,
        guess=not (list_file.is_file() or model.points),
        dropped=dropped,
    )


def in_front(camera: Camera, points: Mapping[int, np.ndarray], what: str) -> Camera:
    """The camera without the points that it cannot see, because they lie behind it.

    Raises:
      UserError: beginning with `what`, if these are the most: then it is the pose that
        is wrong.
    """
    if not len(camera.point) or not points:
        return camera
    front = np.array([points[int(p)] for p in camera.point]) @ camera.R[2] + camera.t[2] > 0
    if 2 * front.sum() < len(front):
        raise UserError(
            f"{what} sees {len(front)} points, of which {len(front) - front.sum()} lie behind its "
            "camera: poses must be x_cam = R X + t."
        )
    return camera._replace(xy_px=camera.xy_px[front], point=camera.point[front])


def covisible(seen: Mapping[str, Camera]) -> list[posed.Pair]:
    """All pairs of cameras that see MIN_COMMON points in common, by name."""
    names = sorted(seen)
    points = [seen[name].point for name in names]
    _, column = np.unique(np.concatenate(points), return_inverse=True)
    row = np.repeat(np.arange(len(names)), [len(p) for p in points])
    sees = sparse.csr_array(
        (np.ones(len(row), np.int32), (row, column)),
        shape=(len(names), int(column.max(initial=0)) + 1),
    )
    common = sparse.triu(sees @ sees.T, k=1).tocoo()
    order = np.lexsort((common.col, common.row))
    return [
        (names[common.row[i]], names[common.col[i]]) for i in order if common.data[i] >= MIN_COMMON
    ]


def depths(seen: Iterable[Camera], points: Mapping[int, np.ndarray]) -> np.ndarray:
    """(N,) depths at which cameras see points of the model, each camera's one after the
    other.
    """
    found = [
        np.array([points[int(p)] for p in camera.point]) @ camera.R[2] + camera.t[2]
        for camera in seen
        if len(camera.point) and points
    ]
    return np.concatenate([np.zeros(0), *found])


def common_points(
    seen: Mapping[str, Camera], name1: str, name2: str
) -> tuple[np.ndarray, np.ndarray]:
    """Where view 2 saw the points that view 1 saw too: see `posed.Match`."""
    _, index1, index2 = np.intersect1d(
        seen[name1].point, seen[name2].point, assume_unique=True, return_indices=True
    )
    return index1, seen[name2].xy_px[index2]
