"""Predictions of the protocols that need cameras: features, and matches of them that a file lists or that their descriptors choose."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdesc.config import option
from jaxdesc.data.nearest import mutual_nearest
from jaxdesc.errors import UserError
from jaxdesc.evals import features
from jaxdesc.store import matches as match_files
from jaxdesc.store.features import Features, read_hdf5


@dataclass(frozen=True, kw_only=True)
class MatchedOptions(features.FeatureOptions):
    """Matches of the features."""

    matches: str | Path = option(
        "",
        "hloc matches of the features (default: mutual nearest neighbours of their descriptors)",
        unit="FILE.h5",
    )


class Matched(NamedTuple):
    """Two functions of image names, and how they find their answers."""

    features: Callable[[str], Features]
    matches: Callable[[str, str], np.ndarray]  # (name0, name1) -> (M, 2) indices of keypoints
    settings: dict[str, Any]


class Lazy(Mapping):
    """A mapping whose values are made when they are looked up, and not kept."""

    def __init__(self, keys: Iterable, make: Callable[[Any], Any]):
        self.known = dict.fromkeys(keys)
        self.make = make

    def __getitem__(self, key: Any) -> Any:
        if key not in self.known:
            raise KeyError(key)
        return self.make(key)

    def __iter__(self) -> Iterator:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def matched(
    options: MatchedOptions, predictions: Path, sizes: Mapping[str, tuple[int, int] | None]
) -> Matched:
    """The features of an hloc file (or of npz files, see `features.reader`), and their matches from --matches or by mutual nearest neighbours.

    Args:
      sizes: of the images that will be asked for: name -> width and height that its camera belongs to, None where they are not known.
    Raises:
      UserError: a file is missing or none; images are not in it. Later, of an image or a pair: as the readers; the features belong to an image of another
        size; matches that point beyond the keypoints.
    """
    read, lacking = features.available(predictions, options.suffix, sizes)
    if lacking:
        raise UserError(f"{predictions} holds no features of {len(lacking)} of the {len(sizes)} images, such as {lacking[0]}: extract them first.")
    if options.matches and not Path(options.matches).is_file():
        raise UserError(f"There is no file --matches {options.matches}.")
    if options.matches and predictions.is_file():  # which may do without descriptors

        def read(name: str) -> Features:
            return read_hdf5(predictions, name)

    def features_of(name: str) -> Features:
        found = read(name)
        if None not in (sizes[name], found.image_size) and tuple(sizes[name]) != tuple(found.image_size):
            raise UserError(
                f"{predictions}: the features of {name} belong to an image of {found.image_size[0]} x {found.image_size[1]} px, but its camera to one of "
                f"{sizes[name][0]} x {sizes[name][1]} px: describe the images as they lie on disk."
            )
        return found

    def nearest(a: str, b: str) -> np.ndarray:
        return mutual_nearest(features_of(a).descriptors, features_of(b).descriptors)[0]

    def listed(a: str, b: str) -> np.ndarray:
        counts = len(features_of(a)), len(features_of(b))
        return match_files.read_hdf5(options.matches, a, b, counts)[0]

    if options.matches:
        return Matched(features_of, listed, {"matches": f"of {Path(options.matches).name}"})
    return Matched(features_of, nearest, {"matches": "mutual nearest neighbours"})
