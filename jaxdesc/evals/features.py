"""Keypoints and descriptors for the protocols that match sparse features: RootSIFT or a trained method into an hloc file, and out of files."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdesc.config import option
from jaxdesc.errors import UserError
from jaxdesc.evals.options import EvalOptions
from jaxdesc.store.features import Features, list_names, read_hdf5, read_npz, write_hdf5


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(EvalOptions):
    """Features that are extracted here."""

    method: str | None = option(
        None,
        "a baseline without weights: OpenCV's SIFT on gray, square roots of its histograms",
        choices=("rootsift",),
    )
    keypoints: str | Path = option(
        "hessian",
        "where --weights describe: hessian, or hessian:1.2,1.7 at these scales in pixels; sift; "
        "grid; own, the method's detector; FILE.h5: keypoints of any detector, as hloc keeps them",
        unit="hessian|sift|grid|own|FILE.h5",
    )
    max_keypoints: int = option(2000, "the best-scored of an image", at_least=1)
    suffix: str = option(
        "",
        "--features FOLDER: its files are <image><.EXT>, npz as D2-Net, R2D2 and CAPS leave them",
        unit=".EXT",
    )


# ---- writing


def predict(options: FeatureOptions, root: Path, names: Sequence[str], out: Path) -> Path:
    """`<out>/features.h5`: features of the images `names` below `root`; those that are in it
    already are skipped.

    Raises:
      UserError: an image cannot be read; the file was made with other settings; the file of
        keypoints lacks an image.
    """
    from tqdm import tqdm

    from jaxdesc.images import read_rgb
    from jaxdesc.store.settings import claim

    settings, features_of = (
        _rootsift(options.max_keypoints) if options.method else _trained(options, names)
    )
    path = out / "features.h5"
    claim(path, {**settings, "max_keypoints": options.max_keypoints}, options.overwrite)
    known = list_names(path)
    todo = [name for name in dict.fromkeys(names) if name not in known]
    for name in tqdm(todo, desc="describing", unit="image", dynamic_ncols=True, disable=not todo):
        write_hdf5(path, name, features_of(name, read_rgb(root / name)))
    return path


def _rootsift(most: int) -> tuple[dict[str, Any], Callable[[str, np.ndarray], Features]]:
    from jaxdesc.matching.keypoints import root_sift

    def features_of(name: str, rgb: np.ndarray) -> Features:
        found, descriptors = root_sift(rgb, most)
        return Features(found.xy_px, descriptors, found.score, found.scale_px, (rgb.shape[1], rgb.shape[0]))

    return {"method": "rootsift"}, features_of


def _trained(
    options: FeatureOptions, names: Sequence[str]
) -> tuple[dict[str, Any], Callable[[str, np.ndarray], Features]]:
    from jaxdesc.matching import keypoints
    from jaxdesc.predict import sparse
    from jaxdesc.predict.predictor import load, tell

    source = str(options.keypoints)
    predictor = load(options.weights)
    sparse.check_source(predictor, source, names)

    def features_of(name: str, rgb: np.ndarray) -> Features:
        found, outside = sparse.features_of(predictor, source, name, rgb, options.max_keypoints)
        if outside:
            tell(f"{outside} keypoints of {name} outside the image dropped.")
        return found

    settings = {"method": f"{predictor.source} on {source}", "weights": predictor.digest}
    return {**settings, **keypoints.settings(source)}, features_of


# ---- reading


def source_of(path: Path) -> dict[str, Any]:
    """What a file or folder of predictions was made with, as far as the note of `store.settings.claim` says; {} without a note."""
    try:
        note = json.loads((path / "jaxdesc.json" if path.is_dir() else path.with_name(f"{path.name}.json")).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def label_of(options: EvalOptions, predictions: Path) -> str:
    """The method's name in results."""
    return options.label or source_of(predictions).get("method") or predictions.stem


def reader(path: Path, suffix: str = "") -> Callable[[str], Features]:
    """A function from an image's name to its features, descriptors scaled to unit length; the last 16 are kept in memory.

    Args:
      path: an hloc HDF5 file, or a folder of npz files, one an image (see `npz_of`).
    Raises:
      UserError: nothing is there; later, of an image: as `read_hdf5` and `read_npz`, it has no descriptors, or they are not finite.
    """
    if path.is_dir() and not suffix:
        raise UserError(f"{path} is a folder: say with --suffix how its files are called after their image, such as .r2d2.")
    if not path.exists():
        raise UserError(f"There is no file of features {path}.")

    @functools.lru_cache(maxsize=16)
    def features_of(name: str) -> Features:
        found = read_npz(npz_of(path, name, suffix)) if path.is_dir() else read_hdf5(path, name)
        if len(found) and not found.descriptors.shape[1]:
            raise UserError(f"{path} has keypoints of {name!r} but no descriptors: describe them first (jaxdesc extract --keypoints).")
        if not (np.isfinite(found.descriptors).all() and np.isfinite(found.keypoints).all()):
            raise UserError(f"{path}: the keypoints or descriptors of {name!r} hold NaN or infinity.")
        lengths = np.linalg.norm(found.descriptors, axis=1, keepdims=True)
        return dataclasses.replace(found, descriptors=found.descriptors / np.maximum(lengths, 1e-12))

    return features_of


def npz_of(folder: Path, name: str, suffix: str) -> Path:
    """`<folder>/<name><suffix>`, or CAPS's flat `<sequence>-<n>.ppm.caps` where that exists instead. Source: formats.md, B.5."""
    nested, flat = folder / f"{name}{suffix}", folder / f"{name.replace('/', '-')}{suffix}"
    return flat if flat.exists() and not nested.exists() else nested


def available(path: Path, suffix: str, names: Iterable[str]) -> tuple[Callable[[str], Features], list[str]]:
    """`reader`, and those of the images that it has no features of."""
    read, known = reader(path, suffix), None if path.is_dir() else list_names(path)
    return read, [name for name in dict.fromkeys(names) if not (npz_of(path, name, suffix).exists() if known is None else name in known)]
