"""Pairs with common keypoints: data sets of objects of one category, any folder of
images with keypoint files, and photographs that are to be warped.

Data sets are read by `jaxdesc.datasets.semantic` and stored as two aligned datasets:
photographs, and pairs of them with the keypoints that both have and with masks of their
objects, where there are any.
"""

import functools
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxdesc.data.builders import base, embedded, photos
from jaxdesc.data.builders.pairs import existing_folder
from jaxdesc.data.builders.posed import counts
from jaxdesc.datasets.folders import find_images
from jaxdesc.datasets.masks import ObjectMask
from jaxdesc.datasets.semantic import TRAINING, SemanticPair, Split
from jaxdesc.errors import UserError
from jaxdesc.images import fit, rescale

ANNOTATIONS = (".csv", ".txt", ".mat", ".json")
STORED = "masks"  # what pairs are stored with since masks are read; part of the digest
# beyond an image's edge, in pixels of the file: annotations that count from 1 may lie one
# pixel too far
TOLERANCE_PX = 1.5


class SemanticSet(NamedTuple):
    """Keypoint pairs to read: sequences of {"image1", "image2": (H, W, 3) uint8,
    "xy1_px", "xy2_px": (K, 2) float32, "flip", "warped": bool, "mask1", "mask2": (H, W)
    bool or None}.

    With `warped` both images are the same, and the keypoints are left to
    `kinds.keypoints`. Pixels are those of the stored images."""

    train: Sequence[dict[str, Any]]
    # held out: no photograph of it is in `train`, unless the data set's own lists have it so
    validation: Sequence[dict[str, Any]]
    report: list[str]
    masked: bool = False  # whether any pair has masks


# ---- photographs alone


class _Alone(Sequence):
    """Photographs as pairs with themselves."""

    def __init__(self, photographs: Sequence[dict[str, Any]]):
        self._photos = photographs

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image, none = self._photos[i]["image"], np.zeros((0, 2), np.float32)
        return {
            "image1": image,
            "image2": image,
            "xy1_px": none,
            "xy2_px": none,
            "flip": False,
            "warped": True,
            "mask1": None,
            "mask2": None,
        }


def _alone(found: photos.PhotoSet) -> SemanticSet:
    return SemanticSet(
        _Alone(found.train),
        _Alone(found.validation),
        [f"{found.report[0]}, to be warped", *found.report[1:]],
    )


def open_embedded(path: str, max_side_px: int, cache: str) -> SemanticSet:
    """The embedded photographs; raises UserError as `embedded.open_photos`."""
    return _alone(embedded.open_photos(path, max_side_px, cache))


def open_photos(path: str, max_side_px: int, cache: str) -> SemanticSet:
    """Any folder of photographs; raises UserError as `photos.open_photos`."""
    return _alone(photos.open_photos(path, max_side_px, cache))


class Annotated(NamedTuple):
    """A data set on disk; `listing` is only called to prepare it."""

    root: Path
    listing: Callable[[], Split]


SOURCES: dict[str, Callable[[str, int], base.Source]] = {}


class SemanticImages(base.PhotoBuilder):
    """The photographs of the pairs, each once; split `images`."""

    name = "jaxdesc_semantic_images"
    SOURCES = SOURCES

    def _split_generators(self, dl_manager):
        del dl_manager
        listing = self.contents.listing()
        names = dict.fromkeys(
            name
            for pair in [*listing.train, *listing.validation]
            for name in (pair.source, pair.target)
        )
        if not names:
            raise UserError(
                f"{self.contents.root} holds no pair of images with keypoints or masks."
            )
        self.files = {name: self.contents.root / name for name in names}
        return {"images": self._generate_examples(list(names))}


class SemanticPairs(base.LocalBuilder):
    """Indices into SemanticImages, common keypoints and masks as PNG, empty where a
    pair has none; splits `train` and `validation`. Metadata: dropped, {why: count};
    outside, a count of keypoints; masked, of pairs with masks."""

    name = "jaxdesc_semantic_pairs"
    SOURCES = SOURCES
    ABOUT = (
        "Pairs of objects of one category with the K keypoints that both show, row k the same "
        "part, and with masks of the objects, where there are any. Pixels are those of the "
        "photographs in jaxdesc_semantic_images, the top-left pixel centre is (0, 0)."
    )

    def needs(self) -> Sequence[base.LocalBuilder]:
        return (self.images,)

    @functools.cached_property
    def images(self) -> SemanticImages:
        return SemanticImages(
            source=self.source, max_side_px=self.max_side_px, data_dir=self.data_dir_root.parent
        )

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"flip": base.numbers((), np.bool_, "both images are to be mirrored")}
        for k in "12":
            features |= {
                f"index{k}": base.numbers((), np.int32, f"of image {k} in jaxdesc_semantic_images"),
                f"xy{k}_px": base.numbers((None, 2), np.float32, "(K, 2) x, y of the keypoints"),
                f"mask{k}": tfds.features.Text(doc="PNG, 255 where the object is; empty: no mask"),
            }
        return self._described(features, dropped={}, outside=0, masked=0)

    def _split_generators(self, dl_manager):
        """Raises UserError if a split has no pair with common keypoints or masks, and
        as `ObjectMask.read`.
        """
        del dl_manager
        listing = self.contents.listing()
        stored = self.images.as_data_source(
            "images", decoders={"image": tfds.decode.SkipDecoding()}
        )
        index = {
            os.fsdecode(example["name"]): (i, tuple(example["original_hw"]))
            for i, example in enumerate(stored)
        }
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
                    masks = (
                        zip(pair.masks, (pair.source, pair.target), strict=True)
                        if pair.masks
                        else ()
                    )
                    stored_masks = [mask_of(mask, index[name][1]) for mask, name in masks] or [
                        b"",
                        b"",
                    ]
                    kept.append(row | dict(zip(("mask1", "mask2"), stored_masks, strict=True)))
                    masked += bool(pair.masks)
                else:
                    dropped["without common keypoints"] += 1
            if not kept:
                raise UserError(
                    f"None of the {len(pairs)} {split} pairs of {self.label} can be used: "
                    f"{counts(dropped) or 'there is none'}."
                )
            splits[split] = self._generate_examples(kept)
        self.info.metadata.update(dropped=dict(dropped), outside=outside, masked=masked)
        return splits

    def _generate_examples(
        self, rows: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows)


def common_keypoints(
    pair: SemanticPair, index: Mapping[str, tuple[int, tuple[int, int]]], max_side_px: int
) -> tuple[dict[str, Any], int]:
    """A row of SemanticPairs, and how many keypoints were left out because they lie
    outside their image; those within TOLERANCE_PX are moved to its edge.
    """
    (i1, hw1), (i2, hw2) = index[pair.source], index[pair.target]
    sides = [
        (xy, np.array(hw[::-1]) - 1) for xy, hw in ((pair.xy_source, hw1), (pair.xy_target, hw2))
    ]
    inside = np.logical_and(
        *(((xy >= -TOLERANCE_PX) & (xy <= last + TOLERANCE_PX)).all(1) for xy, last in sides)
    )
    found = [
        rescale(np.clip(xy[inside], 0, last), hw, fit(hw, max_side_px))
        for (xy, last), hw in zip(sides, (hw1, hw2), strict=True)
    ]
    return {
        "index1": i1,
        "index2": i2,
        "flip": pair.flip,
        "xy1_px": found[0],
        "xy2_px": found[1],
    }, int((~inside).sum())


def encoded_mask(mask: np.ndarray, hw: tuple[int, int]) -> bytes:
    """(H, W) bool -> a PNG of (h, w): 255 for pixels at least half of which are of the
    object.
    """
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
        return {
            **images,
            "xy1_px": pair["xy1_px"],
            "xy2_px": pair["xy2_px"],
            "flip": bool(pair["flip"]),
            "warped": False,
            **masks,
        }


PROPOSAL_FLOW = """@article{ham2018proposal,
  title = {Proposal Flow: Semantic Correspondences from Object Proposals},
  author = {Ham, Bumsub and Cho, Minsu and Schmid, Cordelia and Ponce, Jean},
  journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year = {2018},
}"""
OF_FLICKR = (
    "The photographs are of PASCAL VOC, taken from Flickr: see VOC's terms and the homepage."
)
CARDS = {
    "pf-pascal": base.Card(
        about="PF-PASCAL: pairs of PASCAL VOC's objects with keypoints, by NC-Net's lists.",
        licence=OF_FLICKR,
        homepage="https://www.di.ens.fr/willow/research/proposalflow/",
        citation=PROPOSAL_FLOW,
    ),
    "pf-willow": base.Card(
        about="PF-WILLOW: objects of five categories with ten keypoints each.",
        licence=(
            "The terms of the photographs are not known here: see the homepage, and ask its "
            "authors before you hand on a prepared dataset."
        ),
        homepage="https://www.di.ens.fr/willow/research/proposalflow/",
        citation=PROPOSAL_FLOW,
    ),
    "spair": base.Card(
        about="SPair-71k: pairs of PASCAL VOC's objects with keypoints and variations.",
        licence=OF_FLICKR,
        homepage="http://cvlab.postech.ac.kr/research/SPair-71k/",
        citation="""@article{min2019spair,
  title = {{SPair-71k}: A Large-scale Benchmark for Semantic Correspondence},
  author = {Min, Juhong and Lee, Jongmin and Ponce, Jean and Cho, Minsu},
  journal = {arXiv preprint arXiv:1908.10543},
  year = {2019},
}""",
    ),
}


def folder(kind: str, path: str, max_side_px: int) -> base.Source:
    """A data set of `datasets.semantic.TRAINING`; raises UserError if there is no such
    folder, or no image in it.
    """
    root = existing_folder(path)
    annotations = sorted(
        file for file in root.rglob("*") if file.suffix.lower() in ANNOTATIONS and file.is_file()
    )
    files = {file.relative_to(root).as_posix(): file for file in annotations} | {
        name: root / name for name in find_images(root)
    }
    name = base.dataset_name(f"{root.resolve().name}_{kind}", files, max_side_px, STORED)
    contents = Annotated(root, functools.cache(lambda: TRAINING[kind](root)))
    return base.Source(name, str(root), contents, CARDS.get(kind) or base.own_files(root))


SOURCES |= {kind: functools.partial(folder, kind) for kind in TRAINING}


def open_annotated(kind: str, path: str, max_side_px: int, cache: str) -> SemanticSet:
    """A data set of `datasets.semantic.TRAINING`, prepared if it is not yet.

    Raises:
      UserError: the folder or a list is missing, an annotation is malformed, a mask is
        missing, malformed, empty or of another size than its image, more than 5 % of
        the images cannot be used, no pair can be, or the cache cannot be written.
    """
    source = folder(kind, path, max_side_px)
    images = base.prepared(SemanticImages, source, max_side_px, cache)
    builder = base.prepared(SemanticPairs, source, max_side_px, cache)
    photographs = images.as_data_source("images")
    train, validation = (
        _Annotated(builder.as_data_source(split), photographs) for split in ("train", "validation")
    )
    metadata = builder.info.metadata
    report = [
        f"{source.where}: {len(train)} keypoint pairs of {len(photographs)} photographs, "
        f"{len(validation)} held out",
        *base.skipped_line(images),
    ]
    report += (
        [f"  {metadata['masked']} of the {len(train) + len(validation)} pairs have masks"]
        if metadata["masked"]
        else []
    )
    report += (
        [f"  pairs dropped: {counts(metadata['dropped'])}"]
        if any(metadata["dropped"].values())
        else []
    )
    report += (
        [f"  {metadata['outside']} keypoints lie outside their images and are left out"]
        if metadata["outside"]
        else []
    )
    return SemanticSet(train, validation, report, masked=metadata["masked"] > 0)


def open_caltech(path: str, max_side_px: int, cache: str) -> SemanticSet:
    """Raises UserError: nothing can be learnt from it."""
    raise UserError(
        f"caltech:{path} has outlines of objects, not common keypoints: it is for evaluation "
        "(jaxdesc evaluate), not for training."
    )


# photographs that are paired with warps of themselves
ALONE: dict[str, Callable[[str, int, str], SemanticSet]] = {
    "embedded": open_embedded,
    "photos": open_photos,
}
OPEN: dict[str, Callable[[str, int, str], SemanticSet]] = {
    **ALONE,
    **{kind: functools.partial(open_annotated, kind) for kind in TRAINING},
    "caltech": open_caltech,
}
