"""Any folder of photographs, nested or not."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdesc.data.builders import base
from jaxdesc.data.images import find_images

VALIDATION_SHARE, MAX_VALIDATION = 0.05, 32


class PhotoSet(NamedTuple):
    """Photographs to read: sequences of {"image": (H, W, 3) uint8, "name": bytes, "original_hw": (2,) int32}."""

    train: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]]  # held out
    report: list[str]  # what was read and skipped


class Photos(base.PhotoBuilder):
    """Splits `validation`, the first `held_out` readable files, and `train`, the others; a single file is in both."""

    def __init__(self, *, held_out: int, **kwargs: Any):
        self.held_out = held_out
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        del dl_manager
        names = list(self.files)
        if len(names) == 1:
            return {"validation": self._generate_examples(names), "train": self._generate_examples(names)}
        examples = self._generate_examples(names)  # one pass through the files: tfds runs the splits in this order
        return {"validation": itertools.islice(examples, self.held_out), "train": examples}


def open_photos(path: str, max_side_px: int, cache: str) -> PhotoSet:
    """All images below the folder `path`, prepared if they are not yet.

    Held out are those whose names have the least hashes: 5 %, at least 1, at most 32.

    Raises:
      UserError: if the folder is missing, is a file or holds no image, if more than 5 % of its images cannot be used, or if the cache cannot be written.
    """
    root = Path(path).expanduser()
    names = sorted(find_images(root), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    held_out = min(max(1, round(VALIDATION_SHARE * len(names))), MAX_VALIDATION)
    return prepare(root.resolve().name, {name: root / name for name in names}, held_out, str(root), max_side_px, cache)


def prepare(label: str, files: dict[str, Path], held_out: int, where: str, max_side_px: int, cache: str) -> PhotoSet:
    """The dataset of `files`, of which the first `held_out` readable ones are for validation; see `base.prepared` for errors."""
    name = base.dataset_name(label, files, held_out, max_side_px)
    builder = base.prepared(Photos, name, cache, files=files, held_out=held_out, max_side_px=max_side_px)
    train, validation = (builder.as_data_source(split) for split in ("train", "validation"))
    return PhotoSet(train, validation, [f"{where}: {len(train)} photographs, {len(validation)} held out", *base.skipped_line(builder)])
