"""Pairs of images with dense or many true correspondences, on disk: ETH3D, HPatches,
MegaDepth, KITTI, TSS, and the Middlebury pair inside scikit-image.

Flow is defined on the pixels of image `a` and points to image `b`: in the papers' words
a is the target and b the source.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdesc.datasets import embedded, hpatches
from jaxdesc.datasets.lists import csv_rows, find_image, joined_points, listed
from jaxdesc.errors import UserError, named
from jaxdesc.images import read_rgb, size_of
from jaxdesc.store import pickles
from jaxdesc.store.flow import read_flo, read_kitti

Truth = tuple[np.ndarray, np.ndarray]  # (N, 2) px of a, (N, 2) true places in px of b


class DensePair(NamedTuple):
    """Two images and where points of the first lie in the second."""

    a: str  # image on whose pixels the flow is
    b: str
    size_a: tuple[int, int]  # width, height
    size_b: tuple[int, int]
    group: str  # that its figures are averaged in: scene, subset, number of the view
    truth: Callable[[], Truth]
    scale_b: np.ndarray  # (2,) of errors: px of b to px of the frame that the protocol counts in
    rate: int = 0  # ETH3D: frames between the images


class DenseSet(NamedTuple):
    pairs: list[DensePair]
    load: Callable[[str], np.ndarray]  # name of an image -> (H, W, 3) uint8


# ---- points on disk


ETH3D_SCENES = (
    *("lakeside", "sand_box", "storage_room", "storage_room_2", "tunnel"),
    *("delivery_area", "electro", "forest", "playground", "terrains"),
)
ETH3D_RATES = tuple(range(3, 16, 2))


def eth3d(root: Path, merged: bool) -> DenseSet:
    """`info_ETH3D_files/<scene>_every_5_rate_of_<r>`: a list of {source_image,
    target_image, Xs, Ys, Xt, Yt}; flow at (Xt, Yt) rounded is to be (Xs - Xt, Ys - Yt).

    Args:
      merged: of points that round to one pixel the last alone counts, as in
        DenseMatching; else all count, as in PUMP.
    Raises:
      UserError: no such file; one that is damaged or holds more than arrays and
        strings; an image is missing.
    """
    pairs = []
    files = [
        (s, r, root / "info_ETH3D_files" / f"{s}_every_5_rate_of_{r}")
        for s in ETH3D_SCENES
        for r in ETH3D_RATES
    ]
    present = [(scene, rate, path) for scene, rate, path in files if path.is_file()]
    if not present:
        raise UserError(
            f"{root} holds no info_ETH3D_files/<scene>_every_5_rate_of_<rate>: download them with "
            "ETH3D's evaluation files."
        )
    for scene, rate, path in present:
        content = pickles.load(path)
        for number, entry in enumerate(content if isinstance(content, list) else [None]):
            where = f"{path}, entry {number}"
            try:
                points = [
                    np.asarray(entry[key], np.float64).ravel() for key in ("Xs", "Ys", "Xt", "Yt")
                ]
                if len({len(p) for p in points}) != 1:
                    raise ValueError("Xs, Ys, Xt, Yt differ in length")
                b, a = (
                    find_image(root, str(entry[key]), where)
                    for key in ("source_image", "target_image")
                )
            except (TypeError, KeyError, ValueError) as e:
                raise UserError(
                    f"{where}: source_image, target_image, Xs, Ys, Xt and Yt are expected ({e})."
                ) from e
            truth = functools.partial(
                _rounded,
                np.column_stack(points[:2]),
                np.column_stack(points[2:]),
                size_of(root / a),
                merged,
            )
            pairs.append(
                DensePair(
                    a, b, size_of(root / a), size_of(root / b), scene, truth, np.ones(2), rate
                )
            )
    return DenseSet(pairs, _loader(root))


def _rounded(xy_b: np.ndarray, xy_a: np.ndarray, size_a: tuple[int, int], merged: bool) -> Truth:
    pixels = np.rint(xy_a)
    kept = np.nonzero(((pixels >= 0) & (pixels <= np.array(size_a) - 1)).all(1))[0]
    if merged:
        kept = np.array(sorted({tuple(pixels[k]): k for k in kept}.values()), int)
    return pixels[kept], pixels[kept] + xy_b[kept] - xy_a[kept]


MEGADEPTH_SIDE = 480


def megadepth(root: Path, pairs_file: Path | None) -> DenseSet:
    """RANSAC-Flow's list (`test1600Pairs.csv`: source_image, target_image, XA, YA, XB,
    YB, numbers joined by ";", A the source) in px of the original images [unverified].
    Errors count in the source image resized so that its shorter side is 480 px and both
    are multiples of 16."""
    made = []
    for where, row in csv_rows(
        pairs_file or listed(root, "*1600Pairs*.csv"),
        ("source_image", "target_image", "XA", "YA", "XB", "YB"),
    ):
        b, a = (find_image(root, row[key], where) for key in ("source_image", "target_image"))
        xy_b, xy_a = (joined_points(row[f"X{side}"], row[f"Y{side}"], where) for side in "AB")
        if len(xy_a) != len(xy_b):
            raise UserError(f"{where}: the images have different numbers of points.")
        size_a, size_b = size_of(root / a), size_of(root / b)
        inside = _strictly(xy_a, size_a) & _strictly(xy_b, size_b)
        ratio = MEGADEPTH_SIDE / min(size_b)
        resized = np.maximum(np.rint(np.array(size_b) * ratio / 16) * 16, 16)
        made.append(
            DensePair(
                a,
                b,
                size_a,
                size_b,
                "",
                functools.partial(_pair, xy_a[inside], xy_b[inside]),
                resized / size_b,
            )
        )
    return DenseSet(made, _loader(root))


def _pair(xy_a: np.ndarray, xy_b: np.ndarray) -> Truth:
    return xy_a, xy_b


def _strictly(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return ((xy > 0) & (xy < np.array(size) - 1)).all(1)


# ---- dense truth


def grid(size: tuple[int, int]) -> np.ndarray:
    """(H W, 2) all pixels (x, y) of an image (width, height), row by row."""
    y, x = np.mgrid[: size[1], : size[0]]
    return np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)


def hpatches_views(root: Path, square: int | None) -> DenseSet:
    """The v_ sequences of HPatches: flow from image 1 to image k. Counted at the
    original size, or with both images squashed to `square` px, at whose pixels' centres
    the truth is then taken; positions outside image k do not count. (DGC-Net, GLU-Net:
    59 sequences, 295 pairs, 240 px.)"""
    pairs, missing = hpatches.read_pairs(root, left_out=())
    if missing:
        raise UserError(f"{root} lacks {named(missing)}: complete it.")
    made = []
    for pair in pairs:
        if pair.kind == "v":
            size_a, size_b = size_of(root / pair.name1), size_of(root / pair.name2)
            truth = functools.partial(_warped, pair.H_1to2, size_a, size_b, square)
            scale = np.array([square, square]) / size_b if square else np.ones(2)
            made.append(
                DensePair(
                    pair.name1,
                    pair.name2,
                    size_a,
                    size_b,
                    f"view {Path(pair.name2).stem.removeprefix('img')}",
                    truth,
                    scale,
                )
            )
    if not made:
        raise UserError(
            f"{root} holds no sequence of changing viewpoint: folders v_... are expected."
        )
    return DenseSet(made, _loader(root))


def _warped(
    H_1to2: np.ndarray, size_a: tuple[int, int], size_b: tuple[int, int], square: int | None
) -> Truth:
    xy_a = (
        grid(size_a)
        if square is None
        else (grid((square, square)) + 0.5) * (np.array(size_a) / square) - 0.5
    )
    xy_b = hpatches.project(H_1to2, xy_a)
    inside = ((xy_b >= 0) & (xy_b <= np.array(size_b) - 1)).all(1)
    return xy_a[inside], xy_b[inside]


def motorcycle() -> DenseSet:
    """Middlebury 2014's motorcycle pair, left to right, which comes inside
    scikit-image: the place of (x, y) is (x - disparity, y).
    """
    files = embedded.files(embedded.PAIR)
    pictures = {
        name: read_rgb(file) for name, file in zip(("left", "right"), files.values(), strict=True)
    }
    size = (pictures["left"].shape[1], pictures["left"].shape[0])

    def truth() -> Truth:
        disparity = embedded.disparity().ravel()
        known = np.isfinite(disparity)
        xy = grid(size)[known]
        return xy, xy - np.column_stack([disparity[known], np.zeros(known.sum())])

    return DenseSet(
        [DensePair("left", "right", size, size, "", truth, np.ones(2))], pictures.__getitem__
    )


def kitti(root: Path) -> DenseSet:
    """KITTI 2012 or 2015, training half: `image_2` (or `colored_0`) and `flow_occ`,
    `<number>_10.png` to `<number>_11.png`.
    """
    root = root / "training" if (root / "training").is_dir() else root
    images = next(
        (name for name in ("image_2", "colored_0", "image_0") if (root / name).is_dir()), "image_2"
    )
    files = sorted((root / "flow_occ").glob("*_10.png"))
    if not files:
        raise UserError(
            f"{root} holds no flow_occ/*_10.png: the training half of KITTI's flow benchmark is "
            "expected."
        )
    made = []
    for path in files:
        a, b = (f"{images}/{path.name.replace('_10.png', end)}" for end in ("_10.png", "_11.png"))
        made.append(
            DensePair(
                a,
                b,
                size_of(root / a),
                size_of(root / b),
                "",
                functools.partial(_known, read_kitti, path),
                np.ones(2),
            )
        )
    return DenseSet(made, _loader(root))


def _known(
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]], path: Path, mask: Path | None = None
) -> Truth:
    flow, known = read(path)
    if mask is not None:
        part = read_rgb(mask)[..., 0] > 127  # masks are 0 and 255
        if part.shape != known.shape:
            raise UserError(f"{mask} has another size than {path}.")
        known = known & part
    xy = grid((flow.shape[1], flow.shape[0]))[known.ravel()]
    return xy, xy + flow[known]


TSS_SUBSETS = ("FG3DCar", "JODS", "PASCAL")


def tss(root: Path) -> DenseSet:
    """Taniai's pairs: `<subset>/<pair>/` with image1.png, image2.png, flow1.flo,
    flow2.flo, mask1.png, mask2.png; flowK on image K, where maskK is white.
    """
    made = []
    for subset in TSS_SUBSETS:
        for folder in sorted(path.parent for path in (root / subset).glob("*/flow1.flo")):
            names = [(folder / f"image{k}.png").relative_to(root).as_posix() for k in (1, 2)]
            for k, (a, b) in ((2, reversed(names)), (1, names)):
                size_a, size_b = size_of(root / a), size_of(root / b)
                truth = functools.partial(
                    _known, read_flo, folder / f"flow{k}.flo", folder / f"mask{k}.png"
                )
                made.append(
                    DensePair(a, b, size_a, size_b, subset, truth, np.ones(2) / max(size_b))
                )
    if not made:
        raise UserError(f"{root} holds no {'/, '.join(TSS_SUBSETS)}/ with <pair>/flow1.flo.")
    return DenseSet(made, _loader(root))


def _loader(root: Path) -> Callable[[str], np.ndarray]:
    return lambda name: read_rgb(root / name)
