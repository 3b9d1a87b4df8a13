"""What the datasets share: photographs encoded and stored once, and how a prepared
dataset is named, written, found again and reported.

A dataset is prepared by tfds into `<cache>/<label>-<digest>/<builder>/<version>/` as
array_record files. The digest covers the names, sizes and modification times of all
files that it is made of, its options and this module's VERSION: a changed folder is
prepared anew, an unchanged one opens at once. tfds writes to a temporary folder that it
renames at the end, so what a killed preparation leaves is never taken for complete.

Every builder is registered as `jaxdesc_<builder>`, with one argument more than tfds's own:

    builder = tfds.builder("jaxdesc_photos", source="photos:MY_PHOTOS", max_side_px=512)
    builder.download_and_prepare()  # of files that lie here; nothing is downloaded
    builder.as_data_source("train")[0]["image"]
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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
MAX_SIDE_PX = 1024  # of stored photographs, as `config.data.canvas_px`
PREFIX = "jaxdesc_"  # of registered names


class Card(NamedTuple):
    """What a reader should know of the files that a dataset is made of."""

    about: str
    licence: str
    homepage: str
    citation: str = ""  # BibTeX


def own_files(root: Path) -> Card:
    """The card of a folder of which nothing is known; its homepage is the folder."""
    return Card(
        about="The files are those of a folder on this machine.",
        licence=(
            "That of the files in the folder: the dataset holds copies of them and adds no terms."
        ),
        homepage=root.resolve().as_uri(),
    )


class Source(NamedTuple):
    """What datasets are made of, and how they are named on disk."""

    name: str  # see `dataset_name`
    where: str  # for reports
    contents: Any  # what the builders of its kind take
    card: Card


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset made of files that lie here: nothing is ever downloaded.

    Args:
      source: `kind:PATH` of `SOURCES`, as in a configuration; or what one of these made
        of it.
      max_side_px: longer side of the stored photographs.
      data_dir: where prepared datasets lie, each in a folder `<label>-<digest>` of its own; None:
        see `cache_folder`.
    Raises:
      UserError: an unknown kind; as the source.
    """

    VERSION = tfds.core.Version(VERSION)
    # No checksums of downloads: looking for them needs a package that tfds does not declare.
    url_infos = None
    ABOUT: ClassVar[str]  # first part of the card: what an example is
    SOURCES: ClassVar[Mapping[str, Callable[[str, int], Source]]]  # kind -> of (path, max_side_px)

    def __init__(
        self,
        *,
        source: str | Source,
        max_side_px: int = MAX_SIDE_PX,
        data_dir: str | os.PathLike | None = None,
    ):
        self.source = source if isinstance(source, Source) else self._read(source, max_side_px)
        self.contents, self.max_side_px = self.source.contents, max_side_px
        self.label = self.source.name.rpartition("-")[0]  # what messages call it
        self.name = type(self).name.removeprefix(PREFIX)  # on disk, where its folder is ours
        given = {"source": source, "max_side_px": max_side_px, "data_dir": data_dir}
        place = cache_folder(os.fspath(data_dir or "")) / self.source.name
        super().__init__(data_dir=place, file_format="array_record")
        self._original_state = given  # what is pickled for the processes of a loader

    @classmethod
    def _read(cls, source: str, max_side_px: int) -> Source:
        kind, _, path = source.partition(":")
        if kind not in cls.SOURCES:
            raise UserError(
                f"{cls.name} knows no source {source!r}: write kind:PATH with a kind of "
                f"{', '.join(cls.SOURCES)}."
            )
        return cls.SOURCES[kind](path, max_side_px)

    def needs(self) -> Sequence["LocalBuilder"]:
        """The datasets that this one points into."""
        return ()

    def download_and_prepare(self, **kwargs: Any) -> None:
        """tfds's, of `needs` first; processes that prepare one dataset wait for one
        another.

        Raises:
          UserError: the files are at fault.
        """
        for other in self.needs():
            other.download_and_prepare(**kwargs)
        if self.data_path.exists() and not kwargs:
            return
        place = self.data_dir_root
        place.mkdir(parents=True, exist_ok=True)
        with open(place / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # by a killed preparation: a live one would hold the lock
            for left in place.glob("*/incomplete.*"):
                shutil.rmtree(left)
            if self.data_path.exists() and not kwargs:  # another process was first
                self.info.read_from_directory(self.data_dir)
            else:
                super().download_and_prepare(**kwargs)

    def _described(self, features: Mapping[str, Any], **metadata: Any) -> tfds.core.DatasetInfo:
        """The card. The order of examples is kept: other datasets point here by index."""
        card = self.source.card
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.ABOUT}\n\n{card.about}",
            features=tfds.features.FeaturesDict(features),
            homepage=card.homepage,
            citation=card.citation or None,
            license=card.licence,
            metadata=tfds.core.MetadataDict(**metadata) if metadata else None,
            disable_shuffling=True,
        )


def numbers(shape: tuple[int | None, ...], dtype: type, doc: str) -> tfds.features.Tensor:
    """A documented feature."""
    return tfds.features.Tensor(shape=shape, dtype=dtype, doc=doc)


class PhotoBuilder(LocalBuilder, skip_registration=True):
    """Photographs, encoded; a subclass says in `_split_generators` which go where.

    Metadata: skipped, a list of [name, why].
    """

    ABOUT = (
        "Photographs, upright, 8-bit RGB, shrunk to a longer side of at most max_side_px; JPEG "
        "files that were so already keep their bytes."
    )
    files: Mapping[str, Path]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(
                shape=(None, None, 3), doc="RGB, longer side <= max_side_px"
            ),
            "name": tfds.features.Text(doc="of the file, relative to the source's folder"),
            "original_hw": numbers(
                (2,), np.int32, "height, width in px, upright, before shrinking"
            ),
        }
        return self._described(features, skipped=[])

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

        for index, (name, result) in enumerate(
            progress(in_threads(encode, names), len(names), f"preparing {self.label}")
        ):
            if isinstance(result, UnreadableImage):
                skipped.append([name, result.reason])
            else:
                yield (
                    index,
                    {
                        "image": io.BytesIO(result.data),
                        "name": os.fsencode(name),
                        "original_hw": np.array(result.original_hw, np.int32),
                    },
                )
        if len(skipped) > MAX_UNREADABLE * len(names):
            raise UserError(
                f"{len(skipped)} of {len(names)} images of {self.label} cannot be used, more than "
                f"{MAX_UNREADABLE:.0%}, so mend or remove them: "
                f"{told(skipped)}."
            )
        self.info.metadata["skipped"] = skipped


def in_threads(function, items: Sequence) -> Iterable:
    """map(function, items), in order, on all cores, without running far ahead of the
    reader.
    """
    cores = os.cpu_count() or 1
    return (
        grain.MapDataset.source(items)
        .map(function)
        .to_iter_dataset(grain.ReadOptions(num_threads=cores, prefetch_buffer_size=4 * cores))
    )


def progress(items: Iterable, total: int, what: str) -> Iterable:
    return tqdm(
        items,
        total=total,
        desc=what,
        bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {remaining} left",
        mininterval=0.5,
    )


def dataset_name(label: str, files: Mapping[str, Path], *options: Any) -> str:
    """`<label>-<digest>`: the digest changes with any name, size or modification time
    of `files` and with any option.
    """
    digest = hashlib.sha256(json.dumps([VERSION, *map(str, options)]).encode())
    for name, path in files.items():
        try:
            stat = path.stat()
            digest.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
        except OSError:  # a dangling link: told as unreadable when it is read
            digest.update(os.fsencode(f"{name}\0"))
    return (
        f"{re.sub(r'[^A-Za-z0-9_]+', '_', label).strip('_') or 'folder'}-{digest.hexdigest()[:12]}"
    )


def prepared(
    builder_class: type[LocalBuilder], source: Source, max_side_px: int, cache: str
) -> LocalBuilder:
    """The dataset, ready to read: opened if it is complete on disk, else prepared now.

    Args:
      builder_class: called with the other arguments.
      cache: see `cache_folder`.

    Raises:
      UserError: if the images are at fault (see the builders), or if the cache cannot
        be written.
    """
    try:
        builder = builder_class(source=source, max_side_px=max_side_px, data_dir=cache)
        if not builder.data_path.exists():
            with _quiet():
                builder.download_and_prepare()
        return builder
    except (
        OSError,
        RuntimeError,
    ) as error:  # those of the images were turned into UserErrors where they arose
        full = os.strerror(errno.ENOSPC)
        if isinstance(error, RuntimeError) and full not in str(
            error
        ):  # array_record's way to say that the disk is full
            raise
        why = full if full in str(error) else error.strerror or error
        place = cache_folder(cache) / source.name
        raise UserError(
            f"The prepared dataset cannot be written to {place} ({why}): set config.data.cache to "
            "a folder with room."
        ) from error


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
