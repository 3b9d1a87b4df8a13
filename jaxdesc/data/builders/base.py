"""What the datasets share: photographs encoded and stored once, and how a prepared dataset is named, written, found again and reported.

A dataset is prepared by tfds into `<cache>/<label>-<digest>/<builder>/<version>/` as array_record files. The digest covers the names, sizes
and modification times of all files that it is made of, its options and this module's VERSION: a changed folder is prepared anew, an unchanged one
opens at once. tfds writes to a temporary folder that it renames at the end, so what a killed preparation leaves is never taken for complete.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxdesc.config import cache_folder
from jaxdesc.data.images import encode_for_dataset
from jaxdesc.errors import UserError
from jaxdesc.images import UnreadableImage

VERSION = "1.0.0"  # of what is stored and how; part of every digest
MAX_UNREADABLE = 0.05  # share of a folder's images above which something is wrong with the folder
NAMES_TOLD = 10  # skipped files that a message lists


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset made of the user's own files: nothing is ever downloaded. `label` is what messages call it."""

    VERSION = tfds.core.Version(VERSION)
    url_infos = None  # no checksums of downloads; looking for them needs a package that tfds does not declare

    def __init__(self, *, label: str, data_dir: Path):
        self.label = label
        super().__init__(data_dir=data_dir, file_format="array_record")


class PhotoBuilder(LocalBuilder, skip_registration=True):
    """Photographs, encoded; a subclass says in `_split_generators` which go where.

    Features: image (H, W, 3) uint8 RGB with the longer side <= max_side_px; name, the key of `files`; original_hw (2,) int32, upright, before shrinking.
    Metadata: skipped, a list of [name, why].
    """

    def __init__(self, *, files: Mapping[str, Path], max_side_px: int, **kwargs: Any):
        self.files, self.max_side_px = files, max_side_px
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "name": tfds.features.Text(),
            "original_hw": tfds.features.Tensor(shape=(2,), dtype=np.int32),
        }
        # The order of the files is kept: other datasets point here by index.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict(skipped=[]), disable_shuffling=True
        )

    def _generate_examples(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The readable photographs among `names`, in order.

        Raises:
          UserError: at the end, if more than MAX_UNREADABLE of them could not be used.
        """
        skipped = []

        def encode(name: str):
            try:
                return name, encode_for_dataset(self.files[name], self.max_side_px)
            except UnreadableImage as error:
                return name, error

        for index, (name, result) in enumerate(progress(in_threads(encode, names), len(names), f"preparing {self.label}")):
            if isinstance(result, UnreadableImage):
                skipped.append([name, result.reason])
            else:
                yield index, {"image": io.BytesIO(result.data), "name": os.fsencode(name), "original_hw": np.array(result.original_hw, np.int32)}
        if len(skipped) > MAX_UNREADABLE * len(names):
            raise UserError(
                f"{len(skipped)} of {len(names)} images of {self.label} cannot be used, more than {MAX_UNREADABLE:.0%}, so mend or remove them: "
                f"{told(skipped)}."
            )
        self.info.metadata["skipped"] = skipped


def in_threads(function, items: Sequence) -> Iterable:
    """map(function, items), in order, on all cores, without running far ahead of the reader."""
    cores = os.cpu_count() or 1
    return grain.MapDataset.source(items).map(function).to_iter_dataset(grain.ReadOptions(num_threads=cores, prefetch_buffer_size=4 * cores))


def progress(items: Iterable, total: int, what: str) -> Iterable:
    return tqdm(items, total=total, desc=what, bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {remaining} left", mininterval=0.5)


def dataset_name(label: str, files: Mapping[str, Path], *options: Any) -> str:
    """`<label>-<digest>`: the digest changes with any name, size or modification time of `files` and with any option."""
    digest = hashlib.sha256(json.dumps([VERSION, *map(str, options)]).encode())
    for name, path in files.items():
        try:
            stat = path.stat()
            digest.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
        except OSError:  # a dangling link: told as unreadable when it is read
            digest.update(os.fsencode(f"{name}\0"))
    return f"{re.sub(r'[^A-Za-z0-9_]+', '_', label).strip('_') or 'folder'}-{digest.hexdigest()[:12]}"


def prepared(builder_class: type[LocalBuilder], name: str, cache: str, **options: Any) -> LocalBuilder:
    """The dataset `name`, ready to read: opened if it is complete on disk, else prepared now; processes that ask for one dataset wait for one another.

    Args:
      builder_class: called with `options`, a label and the folder.
      name: from `dataset_name`.
      cache: see `cache_folder`.

    Raises:
      UserError: if the images are at fault (see the builders), or if the cache cannot be written.
    """
    place = cache_folder(cache) / name
    build = functools.partial(builder_class, label=name.rpartition("-")[0], data_dir=place, **options)
    try:
        builder = build()
        if builder.data_path.exists():
            return builder
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in place.glob("*/incomplete.*"):  # by a killed preparation: a live one would hold the lock
                shutil.rmtree(left)
            builder = build()
            with _quiet():
                builder.download_and_prepare()
            return builder
    except (OSError, RuntimeError) as error:  # those of the images were turned into UserErrors where they arose
        full = os.strerror(errno.ENOSPC)
        if isinstance(error, RuntimeError) and full not in str(error):  # array_record's way to say that the disk is full
            raise
        why = full if full in str(error) else error.strerror or error
        raise UserError(f"The prepared dataset cannot be written to {place} ({why}): set config.data.cache to a folder with room.") from error


@contextlib.contextmanager
def _quiet():
    """Without tfds's banners on stdout and its several progress bars."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def told(skipped: Sequence[Sequence[str]]) -> str:
    """`a.jpg (why), b.jpg (why) and 3 more`."""
    names = ", ".join(f"{name} ({why})" for name, why in skipped[:NAMES_TOLD])
    return names + (f" and {len(skipped) - NAMES_TOLD} more" if len(skipped) > NAMES_TOLD else "")


def skipped_line(builder: PhotoBuilder) -> list[str]:
    """A line that names the skipped images, if there are any."""
    skipped = builder.info.metadata["skipped"]
    return [f"  {len(skipped)} skipped: {told(skipped)}"] if skipped else []
