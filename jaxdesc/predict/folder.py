"""The pairs of a folder matched into hloc files, one after the other, so that an interrupted run goes on."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxdesc.data.images import find_images
from jaxdesc.errors import UserError
from jaxdesc.images import UnreadableImage, read_rgb
from jaxdesc.matching import keypoints
from jaxdesc.method import Say
from jaxdesc.predict import sparse
from jaxdesc.predict.predictor import Predictor
from jaxdesc.store import features as feature_files
from jaxdesc.store import matches as files
from jaxdesc.store.files import atomic
from jaxdesc.store.pairs import exhaustive_pairs, read_pairs
from jaxdesc.store.settings import claim


class Dense(NamedTuple):
    """Quasi-dense matches, whose ends are joined to keypoints at last."""

    max_side: int | None = None  # images are shrunk to it
    cell_px: float = 8.0  # see `aggregate_dense`
    max_error_px: float = 2.0


class Sparse(NamedTuple):
    """Matches of keypoints."""

    source: str = keypoints.DEFAULT  # of keypoints, see `sparse.check_source`
    most: int = 2000  # of an image


def match_folder(
    predictor: Predictor, folder: Path, out: Path, features: Path, options: Any, how: Dense | Sparse, pairs_file: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Matches the pairs of a folder into an hloc match file, each as soon as it is known; the keypoints are in a feature file.

    `<out>.pairs.txt` lists the matched pairs, as hloc's next steps want it; `<out>.json` the settings, without which a file is not added to.

    Args:
      options: the method's MatchOptions.
    Returns:
      {"pairs": matched, "skipped": matched before, "dropped": lines of the list, "unreadable": {image: why}, "keypoints": mean per image}.
    Raises:
      UserError: as `find_images`, `read_pairs`, `claim`, `sparse.check_source`; no pair is left.
    """
    pairs, dropped = _pairs(folder, pairs_file)
    if isinstance(how, Sparse):
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        sparse.check_source(predictor, how.source, names)
    settings = {"weights": predictor.digest, **_settings(how), **dataclasses.asdict(options)}
    for what_changes_no_match in ("memory_bytes", "cell_px", "max_error_px"):
        settings.pop(what_changes_no_match, None)
    if not overwrite and not out.exists() and features.exists():
        raise UserError(f"{features} exists already: choose another name (--features) or ask for it to be overwritten.")
    claim(out, settings, overwrite)
    claim(features, settings, overwrite)
    listed = out.with_name(f"{out.name}.pairs.txt")
    if out.exists() and listed.exists():  # keypoints are shared: all pairs of the file get new indices
        pairs = list(dict.fromkeys([*read_pairs(listed, lambda name: True)[0], *pairs]))
    todo = files.unfinished(out, pairs)
    skipped = len({frozenset(pair) for pair in pairs}) - len(todo)

    told, unreadable = set(), {}
    read = functools.lru_cache(maxsize=16)(lambda name: read_rgb(folder / name))
    with tqdm(todo, unit="pair", dynamic_ncols=True, disable=not todo) as bar:

        def say(sentence):
            if sentence not in told:  # once for images of one size
                told.add(sentence)
                bar.write(f"jaxdesc: {sentence}")

        match = _dense(predictor, read, out, options, how, say) if isinstance(how, Dense) else _sparse(predictor, read, out, features, options, how, say)
        for name1, name2 in bar:
            for name in {name1, name2} - unreadable.keys():
                try:
                    read(name)
                except UnreadableImage as e:
                    unreadable[name] = e.reason
            if unreadable.keys() & {name1, name2}:
                continue
            bar.set_postfix_str(f"{match(name1, name2)} matches", refresh=False)

    left = {frozenset(pair) for pair in files.unfinished(out, pairs)}
    done = [pair for pair in dict.fromkeys(pairs) if frozenset(pair) not in left]
    if not done:
        raise UserError(f"No pair could be matched: {', '.join(f'{name} ({why})' for name, why in unreadable.items())}.")
    with atomic(listed) as temporary:
        temporary.write_text("".join(f"{a} {b}\n" for a, b in done))
    if isinstance(how, Dense):
        read_pair = functools.partial(files.read_dense_hdf5, out)
        matches = {pair: read_pair(*pair) for pair in done}
        joined = files.aggregate_dense(matches, how.cell_px, how.max_error_px)
        files.write_aggregated(features, out, *joined)
    counts = [len(feature_files.read_hdf5(features, name)) for name in {name for pair in done for name in pair}]
    return {"pairs": len(done) - skipped, "skipped": skipped, "dropped": dropped, "unreadable": unreadable, "keypoints": float(np.mean(counts))}


def _settings(how: Dense | Sparse) -> dict[str, Any]:
    if isinstance(how, Dense):
        return how._asdict()
    return {"most": how.most, **keypoints.settings(how.source)}


def _pairs(folder: Path, pairs_file: Path | None) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Pairs of image names, and how many lines of the list were dropped, by reason."""
    if pairs_file:
        return read_pairs(pairs_file, lambda name: (folder / name).is_file())
    names = find_images(folder)
    if blank := next((name for name in names if len(name.split()) != 1), None):
        raise UserError(f"The image name {blank!r} in {folder} holds a blank, which lists of pairs cannot: rename the image.")
    if len(names) < 2:
        raise UserError(f"{folder} holds one image, {names[0]}: at least two are needed.")
    return exhaustive_pairs(names), {}


def _dense(predictor: Predictor, read: Callable, out: Path, options: Any, how: Dense, say: Say) -> Callable[[str, str], int]:
    def match(name1: str, name2: str) -> int:
        found = predictor.match_with(read(name1), read(name2), options, how.max_side, say)
        files.write_dense_hdf5(out, name1, name2, found.xy1, found.xy2, found.score)
        return len(found.score)

    return match


def _sparse(predictor: Predictor, read: Callable, out: Path, features: Path, options: Any, how: Sparse, say: Say) -> Callable[[str, str], int]:
    known = set(feature_files.list_names(features))

    @functools.lru_cache(maxsize=16)
    def features_of(name: str) -> feature_files.Features:
        if name not in known:
            found, outside = sparse.features_of(
                predictor, how.source, name, read(name), how.most
            )
            if outside:
                say(f"{outside} keypoints of {name} outside the image dropped.")
            feature_files.write_hdf5(features, name, found)
        return feature_files.read_hdf5(features, name)

    def match(name1: str, name2: str) -> int:
        ends = [features_of(name) for name in (name1, name2)]
        indices, similarity = sparse.matched(predictor, read(name1), ends[0], read(name2), ends[1], options)
        files.write_hdf5(out, name1, name2, indices, similarity, len(ends[0]))
        return len(indices)

    return match
