"""Pairs of photographs of one place, unlabelled: a folder with `pairs.txt`, see
`jaxdesc.datasets.pairs`.

    <folder>/corres/<stem1>_<stem2>.npy optional: (N, 4) rows [x1, y1, x2, y2] or (N,
    6+)
        rows [x1, y1, x2, y2, score, code] in pixels of the original, upright images

Pairs without such a file are aligned by SIFT and RANSAC when the dataset is prepared
(`jaxdesc.data.align`). Where no code says how image 2 is scaled and turned,
neighbouring correspondences do. A folder without `pairs.txt` whose sub-folders have one
is the set of them all.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxdesc.data import align
from jaxdesc.data.builders import base
from jaxdesc.datasets.pairs import Listing, read_folder
from jaxdesc.errors import UserError
from jaxdesc.images import fit, rescale
from jaxdesc.ops.matching import decode_pose

FEATURES_KEPT = 2000  # images whose SIFT features stay in memory (0.2 MB each)
MAX_CODE = 128  # 8 rint(2 log2 scale): no image shows another 256 times as large


class PairSet(NamedTuple):
    """Pairs to read; they point into `images` and are in pixels of these.

    A pair is {"index1": (), "index2": ()} with the fields of `Correspondences`.
    """

    pairs: Sequence[dict[str, Any]]
    images: Sequence[dict[str, Any]]  # as in PhotoSet
    report: list[str]


class Correspondences(NamedTuple):
    """K correspondences of two stored images, and how image 2 shows what is around
    them.
    """

    xy12_px: np.ndarray  # (K, 4) float32 [x1, y1, x2, y2]
    log2_scale_1to2: np.ndarray  # (K,) float32: of the local change of length
    turns_1to2: np.ndarray  # (K,) int32: quarter turns, clockwise as seen


SOURCES: dict[str, Callable[[str, int], base.Source]] = {}


class PairImages(base.PhotoBuilder):
    """The photographs of a set of pairs, each once; split `images`."""

    name = "jaxdesc_pair_images"
    SOURCES = SOURCES

    def _split_generators(self, dl_manager):
        del dl_manager
        self.files = self.contents.files
        return {"images": self._generate_examples(list(self.files))}


class Pairs(base.LocalBuilder):
    """Indices into PairImages and correspondences; split `pairs`. Metadata: dropped,
    {why: count}.
    """

    VERSION = tfds.core.Version("1.1.0")  # 1.0.0 had no scale and no turns
    name = "jaxdesc_pairs"
    SOURCES = SOURCES
    ABOUT = (
        "Pairs of photographs of one place, and K correspondences of each by SIFT and RANSAC or "
        "from files: they aim crops. Pixels are those of the photographs in jaxdesc_pair_images, "
        "the top-left pixel centre is (0, 0)."
    )

    def needs(self) -> Sequence[base.LocalBuilder]:
        return (self.images,)

    @functools.cached_property
    def images(self) -> PairImages:
        return PairImages(
            source=self.source, max_side_px=self.max_side_px, data_dir=self.data_dir_root.parent
        )

    def _info(self) -> tfds.core.DatasetInfo:
        scale = "(K,) of how much larger image 2 shows what is around a correspondence"
        features = {
            "index1": base.numbers((), np.int32, "of image 1 in jaxdesc_pair_images"),
            "index2": base.numbers((), np.int32, "of image 2 in jaxdesc_pair_images"),
            "xy12_px": base.numbers((None, 4), np.float32, "(K, 4) x1, y1, x2, y2"),
            "log2_scale_1to2": base.numbers((None,), np.float32, scale),
            "turns_1to2": base.numbers((None,), np.int32, "(K,) quarter turns, clockwise as seen"),
        }
        return self._described(features, dropped={})

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"pairs": self._generate_examples()}

    def _generate_examples(self):
        """The pairs with enough correspondences; raises UserError if there is none, or
        for a file of correspondences that is no such thing.
        """
        listing = self.contents
        images = self.images.as_data_source("images")
        names = self.images.as_data_source("images", decoders={"image": tfds.decode.SkipDecoding()})
        index = {
            os.fsdecode(example["name"]): (i, tuple(example["original_hw"]))
            for i, example in enumerate(names)
        }
        dropped = Counter(listing.dropped)

        @functools.lru_cache(FEATURES_KEPT)
        def features(i: int) -> align.Features:
            return align.features(images[i]["image"])

        def correspondences(pair):
            (i1, hw1), (i2, hw2) = (index[name] for name in pair)
            file = listing.pairs[pair]
            if file is None:
                return i1, i2, without_codes(align.align(features(i1), features(i2)))
            return i1, i2, read_correspondences(file, (hw1, hw2), self.images.max_side_px)

        readable = [pair for pair in listing.pairs if all(name in index for name in pair)]
        dropped["with a skipped image"] += len(listing.pairs) - len(readable)
        kept = 0
        found = base.in_threads(correspondences, readable)
        for i1, i2, common in base.progress(found, len(readable), f"aligning {listing.label}"):
            if len(common.xy12_px) < align.MIN_INLIERS:
                dropped["without common points"] += 1
                continue
            yield kept, {"index1": i1, "index2": i2, **common._asdict()}
            kept += 1
        if not kept:
            raise UserError(
                f"None of the {len(listing.pairs)} pairs of {listing.label} can be used: "
                f"{_counts(dropped)}."
            )
        self.info.metadata["dropped"] = dict(dropped)


def folder(path: str, max_side_px: int) -> base.Source:
    """The pairs of the folder `path`, or of its sub-folders.

    Raises:
      UserError: if the folder or `pairs.txt` is missing, or a line is not two names of
        existing images.
    """
    root = existing_folder(path)
    return source_of(read_folder(root), str(root), max_side_px, base.own_files(root))


SOURCES["pairs"] = folder


def open_pairs(path: str, max_side_px: int, cache: str) -> PairSet:
    """The pairs of the folder `path`, prepared if they are not yet.

    Raises:
      UserError: as `folder`, if more than 5 % of the images cannot be used, no pair can
        be, a file of correspondences is malformed, or the cache cannot be written.
    """
    return prepare(folder(path, max_side_px), max_side_px, cache)


def existing_folder(path: str) -> Path:
    """The folder of a source; raises UserError if it is none, or if none is named, as
    in the published recipes, to which data has to be brought.
    """
    if not path:
        raise UserError(
            "A source of config.data names no folder: write it as kind:FOLDER, such as "
            "colmap:MY_SCENE."
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{root} is a file, not a folder." if root.exists() else f"There is no folder {root}."
        )
    return root


def without_codes(xy12: np.ndarray) -> Correspondences:
    """Correspondences (K, 4), scaled and turned as their neighbours say."""
    return Correspondences(xy12, *align.local_similarity(xy12))


def read_code(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log2 scale and quarter turns (clockwise as seen) of image 2 in PUMP's codes (K,).

    See `ops.matching.encode_pose`. An odd multiple of 45 degrees goes to the nearest
    half turn, so that codes that mirror one another get turns that do.
    """
    scale, rotation_deg = decode_pose(code)
    return np.log2(scale), np.rint(rotation_deg / 90) % 4


def read_correspondences(
    file: Path, original_hws: Sequence[tuple[int, int]], max_side_px: int
) -> Correspondences:
    """A .npy file, scaled from the original images to the stored ones.

    Points outside the images are dropped.

    Raises:
      UserError: if the file does not hold (N, 4+) finite numbers, or the codes in its
        column 6 are not whole.
    """
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is not a NumPy array: {error}.") from error
    if (
        rows.ndim != 2
        or rows.shape[1] < 4
        or not np.issubdtype(rows.dtype, np.number)
        or not np.isfinite(rows[:, :4]).all()
    ):
        raise UserError(
            f"{file} holds {rows.dtype} of shape {rows.shape} where rows of finite numbers x1 y1 "
            "x2 y2 belong."
        )
    stored = [fit(hw, max_side_px) for hw in original_hws]
    xy12 = np.concatenate(
        [rescale(rows[:, 2 * i : 2 * i + 2], original_hws[i], stored[i]) for i in range(2)], axis=1
    )
    limit = np.array([stored[0][1], stored[0][0], stored[1][1], stored[1][0]]) - 0.5
    inside = ((xy12 >= -0.5) & (xy12 <= limit)).all(axis=1)
    if rows.shape[1] < 6:
        return without_codes(xy12[inside])
    code = rows[inside, 5]
    if not (np.abs(code) < MAX_CODE).all() or (code != np.rint(code)).any():
        raise UserError(
            f"{file} holds in column 6 what is no code of scale and rotation: "
            f"whole numbers between {-MAX_CODE} and {MAX_CODE} belong there."
        )
    shrunk1, shrunk2 = (
        0.5 * np.log2(np.prod(s) / np.prod(o)) for s, o in zip(stored, original_hws, strict=True)
    )
    log2_scale, turns = read_code(code)
    log2_scale += shrunk2 - shrunk1
    return Correspondences(xy12[inside], log2_scale.astype(np.float32), turns.astype(np.int32))


def source_of(listing: Listing, where: str, max_side_px: int, card: base.Card) -> base.Source:
    corres = {
        f"corres {number}": file for number, file in enumerate(listing.pairs.values()) if file
    }
    name = base.dataset_name(
        listing.label, listing.files | corres, max_side_px, list(listing.pairs), listing.dropped
    )
    return base.Source(name, where, listing, card)


def prepare(source: base.Source, max_side_px: int, cache: str) -> PairSet:
    """Both datasets of a source of pairs; see `base.prepared` for errors."""
    images = base.prepared(PairImages, source, max_side_px, cache)
    builder = base.prepared(Pairs, source, max_side_px, cache)
    photographs, pairs = images.as_data_source("images"), builder.as_data_source("pairs")
    dropped = builder.info.metadata["dropped"]
    report = [
        f"{source.where}: {len(pairs)} pairs of {len(photographs)} photographs",
        *base.skipped_line(images),
    ]
    return PairSet(
        pairs,
        photographs,
        report + ([f"  pairs dropped: {_counts(dropped)}"] if any(dropped.values()) else []),
    )


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in dropped.items() if count)
