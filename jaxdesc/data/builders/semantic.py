"""Pairs with common keypoints: data sets of objects of one category, any folder of images with keypoint files, and photographs that are to be warped.

Data sets are read by `jaxdesc.data.semantic` and stored as two aligned datasets: photographs, and pairs of them with the keypoints that both have and with
masks of their objects, where there are any. A folder of images with masks needs no keypoints:

    <folder>/pairs.txt                          name1 name2 on each line, see `builders.pairs`; every pair is used in both directions
    <folder>/images/<name> or <folder>/<name>   names may have folders, categories
    <folder>/masks/<name>.png                   <name> without its suffix; one number a pixel, 0 where the object is not
    <name>.txt                                  optional, beside an image: rows "x y", row k the same part in every image; for scores
"""

import functools
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdesc.data import semantic
from jaxdesc.data.builders import base, embedded, photos
from jaxdesc.data.builders.pairs import existing_folder, read_listing
from jaxdesc.data.builders.posed import counts
from jaxdesc.data.images import find_images
from jaxdesc.data.semantic import ObjectMask, SemanticPair
from jaxdesc.errors import UserError
from jaxdesc.images import fit, rescale

ANNOTATIONS = (".csv", ".txt", ".mat", ".json")
VALIDATION_SHARE, LEAST_HELD_OUT, LEAST_IMAGES = 0.3, 2, 4  # of a category's images, where a data set names no pairs for validation
STORED = "masks"  # what pairs are stored with since masks are read; part of the digest
TOLERANCE_PX = 1.5  # beyond an image's edge, in pixels of the file: annotations that count from 1 may lie one pixel too far


class SemanticSet(NamedTuple):
    """Keypoint pairs to read: sequences of {"image1", "image2": (H, W, 3) uint8, "xy1_px", "xy2_px": (K, 2) float32, "flip", "warped": bool,
    "mask1", "mask2": (H, W) bool or None}.

    With `warped` both images are the same, and the keypoints are left to `kinds.keypoints`. Pixels are those of the stored images."""

    train: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]]  # held out: no photograph of it is in `train`, unless the data set's own lists have it so
    report: list[str]
    masked: bool = False  # whether any pair has masks


class Listing(NamedTuple):
    """What a data set says."""

    train: list[SemanticPair]
    validation: list[SemanticPair]
    dropped: Mapping[str, int]  # why -> pairs


# ---- photographs alone


class _Alone(Sequence):
    """Photographs as pairs with themselves."""

    def __init__(self, photographs: Sequence[dict[str, Any]]):
        self._photos = photographs

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image, none = self._photos[i]["image"], np.zeros((0, 2), np.float32)
        return {"image1": image, "image2": image, "xy1_px": none, "xy2_px": none, "flip": False, "warped": True, "mask1": None, "mask2": None}


def _alone(found: photos.PhotoSet) -> SemanticSet:
    return SemanticSet(_Alone(found.train), _Alone(found.validation), [f"{found.report[0]}, to be warped", *found.report[1:]])


def open_embedded(path: str, max_side_px: int, cache: str) -> SemanticSet:
    """The embedded photographs; raises UserError as `embedded.open_photos`."""
    return _alone(embedded.open_photos(path, max_side_px, cache))


def open_photos(path: str, max_side_px: int, cache: str) -> SemanticSet:
    """Any folder of photographs; raises UserError as `photos.open_photos`."""
    return _alone(photos.open_photos(path, max_side_px, cache))


# ---- annotated pairs


def split_by_images(pairs: Sequence[SemanticPair]) -> Listing:
    """Holds out pairs of photographs that no training pair shows: of each category of at least 4, the 30 % (at least 2) whose names have the least hashes.

    Pairs of a held-out photograph with another one are dropped. If nothing can be held out all pairs serve for both.
    """
    images: dict[str, set[str]] = {}
    for pair in pairs:
        images.setdefault(pair.category, set()).update((pair.source, pair.target))
    held_out = set()
    for names in images.values():
        least = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
        held_out |= set(least[: max(LEAST_HELD_OUT, round(VALIDATION_SHARE * len(names)))] if len(names) >= LEAST_IMAGES else [])
    seen = [(pair.source in held_out) + (pair.target in held_out) for pair in pairs]
    train, validation = ([pair for pair, count in zip(pairs, seen, strict=True) if count == wanted] for wanted in (0, 2))
    if not train or not validation:
        return Listing(list(pairs), list(pairs), {})
    return Listing(train, validation, {"of a held-out photograph with another": seen.count(1)})


def _two_lists(read: Callable[[Path, Path | None, str], list[SemanticPair]], root: Path, train: str, validation: str) -> Listing:
    return Listing(read(root, None, train), read(root, None, validation), {})


def with_masks(root: Path) -> Listing:
    """A folder of images, masks and pairs, see the head of this module; raises UserError as `read_listing`, and for keypoint files that do not agree."""
    place = root / "images" if (root / "images").is_dir() else root
    listed = read_listing(root, root / "pairs.txt", place, root)
    texts = {name: file.with_suffix(".txt") for name, file in listed.files.items()}
    points = {name: semantic.rows_xy(text) for name, text in texts.items() if text.is_file()}
    masks = {name: ObjectMask((root / "masks" / file.relative_to(place)).with_suffix(".png"), None) for name, file in listed.files.items()}
    none, made = np.zeros((0, 2)), []
    for a, b in (ends for pair in listed.pairs for ends in (pair, pair[::-1])):
        both = (points[a], points[b]) if a in points and b in points else (none, none)
        if len(both[0]) != len(both[1]):
            raise UserError(f"{texts[a]} and {texts[b]} have {len(both[0])} and {len(both[1])} rows: row k must be the same part in both images.")
        made.append(SemanticPair(a, b, Path(a).parent.as_posix(), *both, masks=(masks[a], masks[b])))
    found = split_by_images(made)
    return found._replace(dropped=Counter(found.dropped) + Counter(listed.dropped))


READERS: dict[str, Callable[[Path], Listing]] = {
    "keypoints": lambda root: split_by_images(semantic.plain(root)),
    "masks": with_masks,
    "pf-pascal": lambda root: _two_lists(semantic.pf_pascal, root, "train", "val"),
    "pf-willow": lambda root: split_by_images(semantic.pf_willow(root, None, "")),
    "spair": lambda root: _two_lists(semantic.spair, root, "trn", "val"),
}


class SemanticImages(base.PhotoBuilder):
    """The photographs of the pairs, each once; split `images`. `listing` is only called to prepare them."""

    def __init__(self, *, root: Path, listing: Callable[[], Listing], **kwargs: Any):
        self.root, self.listing = root, listing
        super().__init__(files={}, **kwargs)

    def _split_generators(self, dl_manager):
        del dl_manager
        listing = self.listing()
        names = dict.fromkeys(name for pair in [*listing.train, *listing.validation] for name in (pair.source, pair.target))
        if not names:
            raise UserError(f"{self.root} holds no pair of images with keypoints or masks.")
        self.files = {name: self.root / name for name in names}
        return {"images": self._generate_examples(list(names))}


class SemanticPairs(base.LocalBuilder):
    """Indices into SemanticImages, common keypoints and masks as PNG, empty where a pair has none; splits `train` and `validation`. Metadata: dropped,
    {why: count}; outside, a count of keypoints; masked, of pairs with masks."""

    def __init__(self, *, listing: Callable[[], Listing], images: SemanticImages, **kwargs: Any):
        self.listing, self.images = listing, images
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        points = tfds.features.Tensor(shape=(None, 2), dtype=np.float32)
        features = {"index1": np.int32, "index2": np.int32, "flip": np.bool_, "xy1_px": points, "xy2_px": points}
        features |= {name: tfds.features.Text() for name in ("mask1", "mask2")}
        metadata = tfds.core.MetadataDict(dropped={}, outside=0, masked=0)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), metadata=metadata, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        """Raises UserError if a split has no pair with common keypoints or masks, and as `ObjectMask.read`."""
        del dl_manager
        listing = self.listing()
        stored = self.images.as_data_source("images", decoders={"image": tfds.decode.SkipDecoding()})
        index = {os.fsdecode(example["name"]): (i, tuple(example["original_hw"])) for i, example in enumerate(stored)}
        dropped, outside, masked, splits = Counter(listing.dropped), 0, 0, {}

        @functools.cache
        def mask_of(mask: ObjectMask, hw: tuple[int, int]) -> bytes:
            return encoded_mask(mask.read(hw), fit(hw, self.images.max_side_px))

        for split, pairs in (("train", listing.train), ("validation", listing.validation)):
            kept = []
            for pair in pairs:
                if pair.source not in index or pair.target not in index:
                    dropped["with a skipped image"] += 1
                    continue
                row, lost = common_keypoints(pair, index, self.images.max_side_px)
                outside += lost
                if pair.masks or len(row["xy1_px"]):
                    masks = zip(pair.masks, (pair.source, pair.target), strict=True) if pair.masks else ()
                    stored_masks = [mask_of(mask, index[name][1]) for mask, name in masks] or [b"", b""]
                    kept.append(row | dict(zip(("mask1", "mask2"), stored_masks, strict=True)))
                    masked += bool(pair.masks)
                else:
                    dropped["without common keypoints"] += 1
            if not kept:
                raise UserError(f"None of the {len(pairs)} {split} pairs of {self.label} can be used: {counts(dropped) or 'there is none'}.")
            splits[split] = self._generate_examples(kept)
        self.info.metadata.update(dropped=dict(dropped), outside=outside, masked=masked)
        return splits

    def _generate_examples(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows)


def common_keypoints(pair: SemanticPair, index: Mapping[str, tuple[int, tuple[int, int]]], max_side_px: int) -> tuple[dict[str, Any], int]:
    """A row of SemanticPairs, and how many keypoints were left out because they lie outside their image; those within TOLERANCE_PX are moved to its edge."""
    (i1, hw1), (i2, hw2) = index[pair.source], index[pair.target]
    sides = [(xy, np.array(hw[::-1]) - 1) for xy, hw in ((pair.xy_source, hw1), (pair.xy_target, hw2))]
    inside = np.logical_and(*(((xy >= -TOLERANCE_PX) & (xy <= last + TOLERANCE_PX)).all(1) for xy, last in sides))
    found = [
        rescale(np.clip(xy[inside], 0, last), hw, fit(hw, max_side_px)) for (xy, last), hw in zip(sides, (hw1, hw2), strict=True)
    ]
    return {"index1": i1, "index2": i2, "flip": pair.flip, "xy1_px": found[0], "xy2_px": found[1]}, int((~inside).sum())


def encoded_mask(mask: np.ndarray, hw: tuple[int, int]) -> bytes:
    """(H, W) bool -> a PNG of (h, w): 255 for pixels at least half of which are of the object."""
    buffer = io.BytesIO()
    small = Image.fromarray(mask).convert("L").resize(hw[::-1], Image.Resampling.BOX)
    small.point(lambda share: 255 * (share >= 128)).save(buffer, "PNG")
    return buffer.getvalue()


def _decoded_mask(stored: bytes) -> np.ndarray | None:
    return np.asarray(Image.open(io.BytesIO(stored))) > 0 if stored else None


class _Annotated(Sequence):
    """Annotated pairs with their photographs looked up."""

    def __init__(self, pairs: Sequence[dict[str, Any]], photographs: Sequence[dict[str, Any]]):
        self._pairs, self._photos = pairs, photographs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pair = self._pairs[i]
        images = {f"image{k}": self._photos[pair[f"index{k}"]]["image"] for k in (1, 2)}
        masks = {name: _decoded_mask(pair[name]) for name in ("mask1", "mask2")}
        return {**images, "xy1_px": pair["xy1_px"], "xy2_px": pair["xy2_px"], "flip": bool(pair["flip"]), "warped": False, **masks}


def open_annotated(kind: str, path: str, max_side_px: int, cache: str) -> SemanticSet:
    """A data set of `READERS`, prepared if it is not yet.

    Raises:
      UserError: the folder or a list is missing, an annotation is malformed, a mask is missing, malformed, empty or of another size than its image, more than 5 % of the images cannot be used, no pair can be, or the cache cannot be
        written.
    """
    root = existing_folder(path)
    listing = functools.cache(lambda: READERS[kind](root))
    annotations = sorted(file for file in root.rglob("*") if file.suffix.lower() in ANNOTATIONS and file.is_file())
    files = {file.relative_to(root).as_posix(): file for file in annotations} | {name: root / name for name in find_images(root)}
    name = base.dataset_name(f"{root.resolve().name}_{kind}", files, max_side_px, STORED)
    images = base.prepared(SemanticImages, name, cache, root=root, listing=listing, max_side_px=max_side_px)
    builder = base.prepared(SemanticPairs, name, cache, listing=listing, images=images)
    photographs = images.as_data_source("images")
    train, validation = (_Annotated(builder.as_data_source(split), photographs) for split in ("train", "validation"))
    metadata = builder.info.metadata
    report = [f"{root}: {len(train)} keypoint pairs of {len(photographs)} photographs, {len(validation)} held out", *base.skipped_line(images)]
    report += [f"  {metadata['masked']} of the {len(train) + len(validation)} pairs have masks"] if metadata["masked"] else []
    report += [f"  pairs dropped: {counts(metadata['dropped'])}"] if any(metadata["dropped"].values()) else []
    report += [f"  {metadata['outside']} keypoints lie outside their images and are left out"] if metadata["outside"] else []
    return SemanticSet(train, validation, report, masked=metadata["masked"] > 0)


def open_caltech(path: str, max_side_px: int, cache: str) -> SemanticSet:
    """Raises UserError: nothing can be learnt from it."""
    raise UserError(f"caltech:{path} has outlines of objects, not common keypoints: it is for evaluation (jaxdesc evaluate), not for training.")


# photographs that are paired with warps of themselves
ALONE: dict[str, Callable[[str, int, str], SemanticSet]] = {
    "embedded": open_embedded,
    "photos": open_photos,
}
OPEN: dict[str, Callable[[str, int, str], SemanticSet]] = {
    **ALONE,
    **{kind: functools.partial(open_annotated, kind) for kind in READERS},
    "caltech": open_caltech,
}
