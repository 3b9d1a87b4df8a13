"""Data sets of keypoints on objects of one category, on disk: PF-PASCAL, PF-WILLOW,
SPair-71k and Caltech-101.

Keypoints and boxes are kept as the files have them. (The MATLAB annotations of PF count
from 1: both images alike, so that distances do not change.)
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdesc.datasets.folders import image_folder
from jaxdesc.datasets.lists import csv_rows, find_image, joined_points, listed, lists
from jaxdesc.datasets.masks import ObjectMask, voc_label
from jaxdesc.datasets.pairs import read_listing
from jaxdesc.errors import UserError

IMAGE_FOLDERS = ("", "JPEGImages")


class SemanticPair(NamedTuple):
    """Two images of objects of one category; row k is the same part in both."""

    source: str  # image, relative to the root of the data
    target: str
    category: str
    xy_source: np.ndarray  # (K, 2) float64 px
    xy_target: np.ndarray  # (K, 2) float64 px
    box_source: np.ndarray | None = None  # (4,) x0, y0, x1, y1 of the object
    box_target: np.ndarray | None = None
    tags: tuple[str, ...] = ()  # such as "viewpoint_variation=1"
    flip: bool = False  # training: both images, and the keypoints with them, are to be mirrored
    masks: tuple[ObjectMask, ObjectMask] | None = None  # of source and target

    @property
    def key(self) -> str:
        return f"{self.source} {self.target}"


def pf_pascal(root: Path, pairs: Path | None, split: str) -> list[SemanticPair]:
    """PF-PASCAL through NC-Net's list: `<split>_pairs*.csv` with source_image,
    target_image, class, XA, YA, XB, YB, coordinates joined by ";", padded with -1.

    Images lie in JPEGImages/; Annotations/<class>/<image>.mat has boxes (`bbox`), if it
    is there at all, and the keypoints (`kps`, NaN where one lacks) of lists without
    coordinates, as that for training is. A column `flip` of 1 asks for mirrored images.
    Keypoints that one of the images lacks are left out.

    SegmentationClass/<image>.png, those of PASCAL VOC 2012, somewhere below the folder
    are masks: the pixels of the pair's class. Images with masks need no keypoints.
    """
    segmentations = {path.stem: path for path in root.glob("**/SegmentationClass/*.png")}
    annotations = {path.stem: path for path in root.glob("**/Annotations/**/*.mat")}
    made = []
    path = pairs or listed(root, f"*{split}_pairs*.csv")
    rows = csv_rows(path, ("source_image", "target_image"))
    columns = ("XA", "YA", "XB", "YB")
    told = bool(rows) and any(column in rows[0][1] for column in columns)
    if told and (lacking := [column for column in columns if column not in rows[0][1]]):
        raise UserError(f"The list of pairs {path} has no column {lacking[0]!r} in its first line.")
    for where, row in rows:
        names = [
            find_image(root, row[column], where, IMAGE_FOLDERS)
            for column in ("source_image", "target_image")
        ]
        mats = [annotations.get(Path(name).stem) for name in names]
        pictures = [segmentations.get(Path(name).stem) for name in names]
        masks = (
            tuple(
                ObjectMask(picture, voc_label(row.get("class", ""), where)) for picture in pictures
            )
            if all(pictures)
            else None
        )
        if masks and not told and not all(mats):
            a = b = np.zeros((0, 2))
            exists = np.zeros(0, bool)
        elif told:
            a, b = (joined_points(row[f"X{side}"], row[f"Y{side}"], where) for side in "AB")
            exists = (a >= 0).all(1) & (b >= 0).all(1) if len(a) == len(b) else _mismatch(where)
        else:
            a, b = (_mat_points(mat, name, where) for mat, name in zip(mats, names, strict=True))
            exists = (
                np.isfinite(a).all(1) & np.isfinite(b).all(1)
                if len(a) == len(b)
                else _mismatch(where)
            )
        boxes = [_mat_box(mat) for mat in mats]
        made.append(
            SemanticPair(
                *names,
                row.get("class", ""),
                a[exists],
                b[exists],
                *boxes,
                flip=row.get("flip", "").strip() in ("1", "True", "true"),
                masks=masks,
            )
        )
    return made


def pf_willow(root: Path, pairs: Path | None, split: str) -> list[SemanticPair]:
    """PF-WILLOW: a list `<split>_pairs*.csv` (two images, then 10 numbers each of XA,
    YA, XB, YB), or plain files: all ordered pairs within a class of
    `<class>/<name>.jpg` with `<name>.txt`, 10 rows "x y"."""
    if pairs is None and not lists(root, f"*{split}_pairs*.csv"):
        return plain(root)
    made = []
    for where, row in csv_rows(pairs or listed(root, f"*{split}_pairs*.csv"), ()):
        cells = list(row.values())
        try:
            numbers = np.array([float(cell) for cell in cells[2:42]]).reshape(4, 10)
        except ValueError as e:
            raise UserError(f"{where}: two images and 40 numbers are expected.") from e
        names = [find_image(root, cell, where, IMAGE_FOLDERS) for cell in cells[:2]]
        made.append(SemanticPair(*names, Path(names[0]).parent.name, numbers[:2].T, numbers[2:].T))
    return made


def plain(root: Path) -> list[SemanticPair]:
    """All ordered pairs within a class of `<class>/<name>.jpg` (or .png) with
    `<name>.txt`, rows "x y"; row k is the same part in every image of the class.
    """
    made = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        points = {}
        for image in sorted(folder.glob("*.[jp][pn]g")):
            text = image.with_suffix(".txt")
            if not text.is_file():
                raise UserError(f"{image} has no keypoints beside it: {text.name} is missing.")
            points[image.relative_to(root).as_posix()] = rows_xy(text)
        if len({len(xy) for xy in points.values()}) > 1:
            raise UserError(
                f"{folder}: its keypoint files differ in their rows; row k must be the same part "
                "in every image."
            )
        made += [
            SemanticPair(a, b, folder.name, points[a], points[b])
            for a in points
            for b in points
            if a != b
        ]
    return made


def rows_xy(path: Path) -> np.ndarray:
    """(K, 2) of a text file with rows "x y".

    Raises:
      UserError: it cannot be read, or a row is not two numbers.
    """
    try:
        rows = [
            [float(v) for v in line.split()]
            for line in path.read_text().split("\n")
            if line.strip()
        ]
    except (OSError, ValueError):
        rows = [[]]
    if any(len(row) != 2 for row in rows):
        raise UserError(f'{path} is malformed: a row "x y" for each keypoint is expected.')
    return np.array(rows).reshape(-1, 2)


VARIATIONS = ("viewpoint_variation", "scale_variation", "truncation", "occlusion")


def spair(root: Path, pairs: Path | None, split: str) -> list[SemanticPair]:
    """SPair-71k: `Layout/large/<split>.txt` names the files
    `PairAnnotation/<split>/<line>.json`; images lie in JPEGImages/<category>/.
    """
    layout, folder = (
        pairs or root / "Layout" / "large" / f"{split}.txt",
        root / "PairAnnotation" / split,
    )
    try:
        names = layout.read_text(encoding="utf-8").split()
    except OSError as e:
        raise UserError(f"The list of pairs {layout} cannot be read: {e.strerror}.") from e
    made = []
    for name in names:
        path = folder / f"{name}.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            images = [
                f"JPEGImages/{data['category']}/{data[key]}" for key in ("src_imname", "trg_imname")
            ]
            points = [
                np.array(data[key], np.float64).reshape(-1, 2) for key in ("src_kps", "trg_kps")
            ]
            boxes = [
                np.array(data[key], np.float64).reshape(4) for key in ("src_bndbox", "trg_bndbox")
            ]
            tags = tuple(f"{key}={data[key]}" for key in VARIATIONS if key in data)
        except OSError as e:
            raise UserError(f"The annotation {path} cannot be read: {e.strerror}.") from e
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"The annotation {path} is malformed: {type(e).__name__}: {e}.") from e
        if len(points[0]) != len(points[1]):
            _mismatch(str(path))
        made.append(SemanticPair(*images, data["category"], *points, *boxes, tags))
    return made


def caltech(root: Path, pairs: Path | None, split: str) -> list[SemanticPair]:
    """Caltech-101: `<split>_pairs*.csv` as PF-PASCAL's; A and B are polygons around the
    objects, not of equal numbers of points.
    """
    made = []
    for where, row in csv_rows(
        pairs or listed(root, f"*{split}_pairs*.csv"),
        ("source_image", "target_image", "XA", "YA", "XB", "YB"),
    ):
        names = [
            find_image(root, row[column], where, IMAGE_FOLDERS)
            for column in ("source_image", "target_image")
        ]
        a, b = (joined_points(row[f"X{side}"], row[f"Y{side}"], where) for side in "AB")
        made.append(
            SemanticPair(*names, row.get("class", ""), a[(a >= 0).all(1)], b[(b >= 0).all(1)])
        )
    return made


DATASETS: dict[str, Callable[[Path, Path | None, str], list[SemanticPair]]] = {
    "pf-pascal": pf_pascal,
    "pf-willow": pf_willow,
    "spair": spair,
    "caltech": caltech,
}


def read(dataset: str, root: Path, pairs: Path | None, split: str) -> list[SemanticPair]:
    """The pairs of a data set.

    Raises:
      UserError: lists or annotations are missing or malformed; images are missing;
        there is no pair, or one without keypoints.
    """
    found = DATASETS[dataset](root, pairs, split)
    if not found:
        raise UserError(f"{root} holds no pair of {dataset}.")
    names = {name for pair in found for name in (pair.source, pair.target)}
    if lacking := sorted(name for name in names if not (root / name).is_file()):
        raise UserError(
            f"{root} lacks {len(lacking)} of {len(names)} images, such as {lacking[0]}."
        )
    if empty := next(
        (pair.key for pair in found if not (len(pair.xy_source) and len(pair.xy_target))), None
    ):
        raise UserError(f"The pair {empty} has no keypoints.")
    return found


# ---- for training


# Of a category's images, where a data set names no pairs for validation.
VALIDATION_SHARE, LEAST_HELD_OUT, LEAST_IMAGES = 0.3, 2, 4


class Split(NamedTuple):
    """What a data set says."""

    train: list[SemanticPair]
    validation: list[SemanticPair]
    dropped: Mapping[str, int]  # why -> pairs


def split_by_images(pairs: Sequence[SemanticPair]) -> Split:
    """Holds out pairs of photographs that no training pair shows: of each category of
    at least 4, the 30 % (at least 2) whose names have the least hashes.

    Pairs of a held-out photograph with another one are dropped. If nothing can be held
    out all pairs serve for both.
    """
    images: dict[str, set[str]] = {}
    for pair in pairs:
        images.setdefault(pair.category, set()).update((pair.source, pair.target))
    held_out = set()
    for names in images.values():
        least = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
        held_out |= set(
            least[: max(LEAST_HELD_OUT, round(VALIDATION_SHARE * len(names)))]
            if len(names) >= LEAST_IMAGES
            else []
        )
    seen = [(pair.source in held_out) + (pair.target in held_out) for pair in pairs]
    train, validation = (
        [pair for pair, count in zip(pairs, seen, strict=True) if count == wanted]
        for wanted in (0, 2)
    )
    if not train or not validation:
        return Split(list(pairs), list(pairs), {})
    return Split(train, validation, {"of a held-out photograph with another": seen.count(1)})


def _two_lists(
    read: Callable[[Path, Path | None, str], list[SemanticPair]],
    root: Path,
    train: str,
    validation: str,
) -> Split:
    return Split(read(root, None, train), read(root, None, validation), {})


def with_masks(root: Path) -> Split:
    """A folder of images, masks and pairs:

        <folder>/pairs.txt          name1 name2 on each line, see `pairs`; both directions
        <folder>/images/<name>      or <folder>/<name>; names may have folders, categories
        <folder>/masks/<name>.png   <name> without its suffix; one number a pixel, 0 where
                                    the object is not
        <name>.txt                  optional, beside an image: rows "x y", row k the same
                                    part in every image; for scores

    Raises:
      UserError: as `read_listing`; keypoint files that do not agree.
    """
    place = image_folder(root)
    listed = read_listing(root, root / "pairs.txt", place, root)
    texts = {name: file.with_suffix(".txt") for name, file in listed.files.items()}
    points = {name: rows_xy(text) for name, text in texts.items() if text.is_file()}
    masks = {
        name: ObjectMask((root / "masks" / file.relative_to(place)).with_suffix(".png"), None)
        for name, file in listed.files.items()
    }
    none, made = np.zeros((0, 2)), []
    for a, b in (ends for pair in listed.pairs for ends in (pair, pair[::-1])):
        both = (points[a], points[b]) if a in points and b in points else (none, none)
        if len(both[0]) != len(both[1]):
            raise UserError(
                f"{texts[a]} and {texts[b]} have {len(both[0])} and {len(both[1])} rows: row k "
                "must be the same part in both images."
            )
        made.append(
            SemanticPair(a, b, Path(a).parent.as_posix(), *both, masks=(masks[a], masks[b]))
        )
    found = split_by_images(made)
    return found._replace(dropped=Counter(found.dropped) + Counter(listed.dropped))


TRAINING: dict[str, Callable[[Path], Split]] = {
    "keypoints": lambda root: split_by_images(plain(root)),
    "masks": with_masks,
    "pf-pascal": lambda root: _two_lists(pf_pascal, root, "train", "val"),
    "pf-willow": lambda root: split_by_images(pf_willow(root, None, "")),
    "spair": lambda root: _two_lists(spair, root, "trn", "val"),
}


# ---- parts


def _mismatch(where: str) -> None:
    raise UserError(f"{where}: the images have different numbers of keypoints.")


def _mat_box(path: Path | None) -> np.ndarray | None:
    return None if path is None else _mat(path, "bbox", (4,), "a bbox of four numbers")


def _mat_points(path: Path | None, image: str, where: str) -> np.ndarray:
    if path is None:
        raise UserError(
            f"{where}: the list has no columns XA, YA, XB, YB, and there are no keypoints "
            f"Annotations/<class>/{Path(image).stem}.mat either."
        )
    return _mat(path, "kps", (-1, 2), "kps of two columns")


def _mat(path: Path, field: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)[field], np.float64).reshape(shape)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as e:
        raise UserError(
            f"The annotation {path} cannot be read: a MATLAB file with {what} is expected."
        ) from e
