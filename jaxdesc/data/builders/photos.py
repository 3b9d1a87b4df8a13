"""Any folder of photographs, nested or not."""

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdesc.data.builders import base
from jaxdesc.datasets.folders import find_images

VALIDATION_SHARE, MAX_VALIDATION = 0.05, 32


class PhotoSet(NamedTuple):
    """Photographs to read: sequences of {"image": (H, W, 3) uint8, "name": bytes,
    "original_hw": (2,) int32}.
    """

    train: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]]  # held out
    report: list[str]  # what was read and skipped


class Photographs(NamedTuple):
    """Files, of which the first `held_out` readable ones are for validation."""

    files: dict[str, Path]
    held_out: int


SOURCES: dict[str, Callable[[str, int], base.Source]] = {}


class Photos(base.PhotoBuilder):
    """Splits `validation`, the first `held_out` readable files, and `train`, the
    others; a single file is in both.
    """

    name = "jaxdesc_photos"
    SOURCES = SOURCES

    def _split_generators(self, dl_manager):
        del dl_manager
        self.files = self.contents.files
        names = list(self.files)
        if len(names) == 1:
            return {
                "validation": self._generate_examples(names),
                "train": self._generate_examples(names),
            }
        # one pass through the files: tfds runs the splits in this order
        examples = self._generate_examples(names)
        return {"validation": itertools.islice(examples, self.contents.held_out), "train": examples}


def source_of(
    label: str, photographs: Photographs, where: str, max_side_px: int, card: base.Card
) -> base.Source:
    name = base.dataset_name(label, photographs.files, photographs.held_out, max_side_px)
    return base.Source(name, where, photographs, card)


def folder(path: str, max_side_px: int) -> base.Source:
    """All images below the folder `path`.

    Held out are those whose names have the least hashes: 5 %, at least 1, at most 32.

    Raises:
      UserError: if the folder is missing, is a file or holds no image.
    """
    root = Path(path).expanduser()
    names = sorted(find_images(root), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    held_out = min(max(1, round(VALIDATION_SHARE * len(names))), MAX_VALIDATION)
    found = Photographs({name: root / name for name in names}, held_out)
    return source_of(root.resolve().name, found, str(root), max_side_px, base.own_files(root))


SOURCES["photos"] = folder


def open_photos(path: str, max_side_px: int, cache: str) -> PhotoSet:
    """All images below the folder `path`, prepared if they are not yet.

    Raises:
      UserError: as `folder`, if more than 5 % of its images cannot be used, or if the
        cache cannot be written.
    """
    return prepare(folder(path, max_side_px), max_side_px, cache)


def prepare(source: base.Source, max_side_px: int, cache: str) -> PhotoSet:
    """The dataset of a source; see `base.prepared` for errors."""
    builder = base.prepared(Photos, source, max_side_px, cache)
    train, validation = (builder.as_data_source(split) for split in ("train", "validation"))
    told = f"{source.where}: {len(train)} photographs, {len(validation)} held out"
    return PhotoSet(train, validation, [told, *base.skipped_line(builder)])
