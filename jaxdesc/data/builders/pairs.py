"""Pairs of photographs of one place, unlabelled: a folder with `pairs.txt`.

    <folder>/pairs.txt                  name1 name2 on each line; blank lines and lines that start with # are passed over
    <folder>/images/<name> or <folder>/<name>
    <folder>/corres/<stem1>_<stem2>.npy optional: (N, 4+) rows [x1, y1, x2, y2, ...] in pixels of the original, upright images

Pairs without such a file are aligned by SIFT and RANSAC when the dataset is prepared (`jaxdesc.data.align`). A folder without `pairs.txt` whose
sub-folders have one is the set of them all.
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
from jaxdesc.errors import UserError
from jaxdesc.ops import frames

FEATURES_KEPT = 2000  # images whose SIFT features stay in memory (0.2 MB each)


class Listing(NamedTuple):
    """What a folder says: images, and which of them show one place."""

    label: str
    files: dict[str, Path]  # name -> image file
    pairs: dict[tuple[str, str], Path | None]  # two names -> file of correspondences, or None
    dropped: Mapping[str, int]  # why -> lines of the list


class PairSet(NamedTuple):
    """Pairs to read: {"index1": (), "index2": (), "xy12_px": (K, 4) float32 [x1, y1, x2, y2]} point into `images` and are in pixels of these."""

    pairs: Sequence[dict[str, Any]]
    images: Sequence[dict[str, Any]]  # as in PhotoSet
    report: list[str]


class PairImages(base.PhotoBuilder):
    """The photographs of a set of pairs, each once; split `images`."""

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"images": self._generate_examples(list(self.files))}


class Pairs(base.LocalBuilder):
    """Indices into PairImages and correspondences; split `pairs`. Metadata: dropped, {why: count}."""

    def __init__(self, *, listing: Listing, images: PairImages, **kwargs: Any):
        self.listing, self.images = listing, images
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"index1": np.int32, "index2": np.int32, "xy12_px": tfds.features.Tensor(shape=(None, 4), dtype=np.float32)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict(dropped={}), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"pairs": self._generate_examples()}

    def _generate_examples(self):
        """The pairs with enough correspondences; raises UserError if there is none, or for a file of correspondences that is no such thing."""
        listing = self.listing
        images = self.images.as_data_source("images")
        names = self.images.as_data_source("images", decoders={"image": tfds.decode.SkipDecoding()})
        index = {os.fsdecode(example["name"]): (i, tuple(example["original_hw"])) for i, example in enumerate(names)}
        dropped = Counter(listing.dropped)

        @functools.lru_cache(FEATURES_KEPT)
        def features(i: int) -> align.Features:
            return align.features(images[i]["image"])

        def correspondences(pair):
            (i1, hw1), (i2, hw2) = (index[name] for name in pair)
            file = listing.pairs[pair]
            if file is None:
                return i1, i2, align.align(features(i1), features(i2))
            return i1, i2, read_correspondences(file, (hw1, hw2), self.images.max_side_px)

        readable = [pair for pair in listing.pairs if all(name in index for name in pair)]
        dropped["with a skipped image"] += len(listing.pairs) - len(readable)
        kept = 0
        for i1, i2, xy12 in base.progress(base.in_threads(correspondences, readable), len(readable), f"aligning {listing.label}"):
            if len(xy12) < align.MIN_INLIERS:
                dropped["without common points"] += 1
                continue
            yield kept, {"index1": i1, "index2": i2, "xy12_px": xy12}
            kept += 1
        if not kept:
            raise UserError(f"None of the {len(listing.pairs)} pairs of {listing.label} can be used: {_counts(dropped)}.")
        self.info.metadata["dropped"] = dict(dropped)


def open_pairs(path: str, max_side_px: int, cache: str) -> PairSet:
    """The pairs of the folder `path`, prepared if they are not yet.

    Raises:
      UserError: if the folder or `pairs.txt` is missing, a line is not two names of existing images, more than 5 % of the images cannot be used,
        no pair can be, a file of correspondences is malformed, or the cache cannot be written.
    """
    root = existing_folder(path)
    folders = [root] if (root / "pairs.txt").is_file() else sorted(f.parent for f in root.glob("*/pairs.txt"))
    if not folders:
        raise UserError(f"{root} has no pairs.txt (two image names on each line), nor has any folder in it.")
    listings = [read_listing(root, f / "pairs.txt", f / "images" if (f / "images").is_dir() else f, f / "corres") for f in folders]
    merged = Listing(
        label=root.resolve().name,
        files={name: file for listing in listings for name, file in listing.files.items()},
        pairs={pair: file for listing in listings for pair, file in listing.pairs.items()},
        dropped=sum((Counter(listing.dropped) for listing in listings), Counter()),
    )
    return prepare(merged, str(root), max_side_px, cache)


def existing_folder(path: str) -> Path:
    """The folder of a source; raises UserError if it is none, or if none is named, as in the published recipes, to which data has to be brought."""
    if not path:
        raise UserError("A source of config.data names no folder: write it as kind:FOLDER, such as colmap:MY_SCENE.")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is a file, not a folder." if root.exists() else f"There is no folder {root}.")
    return root


def read_listing(root: Path, list_file: Path, images: Path, corres: Path, locate: Callable[[Path, str], Path] = Path.joinpath) -> Listing:
    """What `list_file` lists: images at `locate(images, name)`, named relative to `root`; a pair listed twice in any order, or with itself, is dropped.

    Raises:
      UserError: naming the line that is not two names of existing images.
    """
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{list_file} cannot be read as a text file in UTF-8: {getattr(error, 'strerror', None) or error}.") from error
    files, pairs, dropped = {}, {}, Counter()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise UserError(f"{list_file}, line {number}, has {len(words)} words where two image names belong; names with blanks cannot be listed.")
        located = [locate(images, word) for word in words]
        name1, name2 = names = tuple(os.path.relpath(file, root) for file in located)
        for name, file in zip(names, located, strict=True):
            if name not in files and not file.is_file():
                raise UserError(f"{list_file}, line {number}, names an image that does not exist: {file}.")
            files[name] = file
        if name1 == name2:
            dropped["of an image with itself"] += 1
        elif names in pairs or (name2, name1) in pairs:
            dropped["listed twice"] += 1
        else:
            file = corres / f"{Path(words[0]).stem}_{Path(words[1]).stem}.npy"
            pairs[names] = file if file.is_file() else None
    if not pairs:
        raise UserError(f"{list_file} lists no pair of two different images.")
    return Listing(list_file.parent.name, files, pairs, dropped)


def read_correspondences(file: Path, original_hws: Sequence[tuple[int, int]], max_side_px: int) -> np.ndarray:
    """(K, 4) float32 [x1, y1, x2, y2] of a .npy file, scaled from the original images to the stored ones; points outside the images are dropped.

    Raises:
      UserError: if the file does not hold (N, 4+) finite numbers.
    """
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is not a NumPy array: {error}.") from error
    if rows.ndim != 2 or rows.shape[1] < 4 or not np.issubdtype(rows.dtype, np.number) or not np.isfinite(rows[:, :4]).all():
        raise UserError(f"{file} holds {rows.dtype} of shape {rows.shape} where rows of finite numbers x1 y1 x2 y2 belong.")
    stored = [frames.fitted(hw, max_side_px) for hw in original_hws]
    xy12 = np.concatenate([frames.rescaled(rows[:, 2 * i : 2 * i + 2], original_hws[i], stored[i]) for i in range(2)], axis=1)
    limit = np.array([stored[0][1], stored[0][0], stored[1][1], stored[1][0]]) - 0.5
    return xy12[((xy12 >= -0.5) & (xy12 <= limit)).all(axis=1)]


def prepare(listing: Listing, where: str, max_side_px: int, cache: str) -> PairSet:
    """Both datasets of a listing; see `base.prepared` for errors."""
    corres = {f"corres {number}": file for number, file in enumerate(listing.pairs.values()) if file}
    name = base.dataset_name(listing.label, listing.files | corres, max_side_px, list(listing.pairs), listing.dropped)
    images = base.prepared(PairImages, name, cache, files=listing.files, max_side_px=max_side_px)
    builder = base.prepared(Pairs, name, cache, listing=listing, images=images)
    photographs, pairs = images.as_data_source("images"), builder.as_data_source("pairs")
    dropped = builder.info.metadata["dropped"]
    report = [f"{where}: {len(pairs)} pairs of {len(photographs)} photographs", *base.skipped_line(images)]
    return PairSet(pairs, photographs, report + ([f"  pairs dropped: {_counts(dropped)}"] if any(dropped.values()) else []))


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in dropped.items() if count)
