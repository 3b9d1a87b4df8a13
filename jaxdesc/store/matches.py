"""Matches in the files that other tools read: hloc's HDF5, PUMP's corres npz, kapture, IMC, the ETH local-feature benchmark.

Sparse matches are `indices` (M, 2), rows of the two images' keypoints, and `scores` (M,), higher is better. Writers return False and leave the file alone
where the pair, in either order, is there already. Coordinates are (x, y) in px, top-left pixel centre = (0, 0).
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from scipy.spatial import KDTree

from jaxdesc.errors import UserError
from jaxdesc.store.files import atomic
from jaxdesc.store.hdf5 import append_hdf5, open_hdf5

Pair = tuple[str, str]
HALF_MAX = float(np.finfo(np.float16).max)


# ---- hloc


def names_to_pair(name0: str, name1: str, separator: str = "/") -> str:
    """hloc's key of a pair; `_` between the names is its old form."""
    return separator.join(name.replace("/", "-") for name in (name0, name1))


def _find(file: h5py.File, name0: str, name1: str) -> tuple[str, bool] | None:
    """Key of the pair's group and whether the file has the images in the other order; None: it has no such pair."""
    for separator in "/_":
        for flipped, names in enumerate(((name0, name1), (name1, name0))):
            key = names_to_pair(*names, separator)
            if key in file:
                return key, bool(flipped)
    return None


def write_hdf5(path: Path | str, name0: str, name1: str, indices: np.ndarray, scores: np.ndarray, count0: int) -> bool:
    """Adds a pair to an hloc match file: matches0 (N0,) int32, -1 where none, and matching_scores0 (N0,) float16, N0 = `count0` keypoints of the first image.

    Of several matches of one keypoint of the first image the best-scored is kept: the format holds one.

    Raises:
      UserError: as `append_hdf5`.
    """
    with append_hdf5(path) as file:
        if _find(file, name0, name1):
            return False
        _assign(file.create_group(names_to_pair(name0, name1)), indices, scores, count0)
    return True


def _assign(group: h5py.Group, indices: np.ndarray, scores: np.ndarray, count0: int) -> None:
    matches0, scores0 = np.full(count0, -1, np.int32), np.zeros(count0, np.float16)
    rising = np.argsort(scores, kind="stable")  # of equal indices NumPy keeps the last assigned
    i0, i1 = indices[rising].T
    matches0[i0], scores0[i0] = i1, np.clip(scores[rising], -HALF_MAX, HALF_MAX)
    for key, values in {"matches0": matches0, "matching_scores0": scores0}.items():
        if key in group:
            del group[key]
        group[key] = values


def write_dense_hdf5(path: Path | str, name0: str, name1: str, xy0: np.ndarray, xy1: np.ndarray, scores: np.ndarray) -> bool:
    """Adds a pair's dense matches as hloc's match_dense does: keypoints0 (M, 2), keypoints1 (M, 2), scores (M,) float32; `write_aggregated` adds the indices.

    Raises:
      UserError: as `append_hdf5`.
    """
    with append_hdf5(path) as file:
        if _find(file, name0, name1):
            return False
        group = file.create_group(names_to_pair(name0, name1))
        for key, values in {"keypoints0": xy0, "keypoints1": xy1, "scores": scores}.items():
            group[key] = values.astype(np.float32)
    return True


def read_hdf5(path: Path | str, name0: str, name1: str, counts: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """indices (M, 2) int64 and scores (M,) float32 of a pair, under any of hloc's four keys.

    Args:
      counts: keypoints that the two images have; None: not known.
    Raises:
      UserError: as `open_hdf5`; there is no such pair, or it has dense matches alone; a match points beyond the keypoints.
    """
    with open_hdf5(path) as file:
        group, flipped = _group(path, file, name0, name1, "matches0")
        matches0, scores0 = group["matches0"][()], group["matching_scores0"][()]
    first = np.flatnonzero(matches0 > -1)
    indices = np.column_stack([first, matches0[first].astype(np.int64)])[:, :: -1 if flipped else 1]
    for name, count, column in zip((name0, name1), counts or (), indices.T, strict=False):
        if len(column) and column.max() >= count:
            raise UserError(f"{path}: the matches of {name0} {name1} point beyond the {count} keypoints of {name}: they belong to other features.")
    return indices, scores0[first].astype(np.float32)


def read_dense_hdf5(path: Path | str, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """xy0 (M, 2), xy1 (M, 2), scores (M,) of a pair's dense matches, float32.

    Raises:
      UserError: as `open_hdf5`; there is no such pair, or it has indices alone.
    """
    with open_hdf5(path) as file:
        group, flipped = _group(path, file, name0, name1, "keypoints0")
        xy0, xy1, scores = (group[key][()].astype(np.float32) for key in ("keypoints0", "keypoints1", "scores"))
    return (xy1, xy0, scores) if flipped else (xy0, xy1, scores)


def _group(path: Path | str, file: h5py.File, name0: str, name1: str, needed: str) -> tuple[h5py.Group, bool]:
    found = _find(file, name0, name1)
    if not found or needed not in file[found[0]]:
        raise UserError(f"{path} holds no `{needed}` of the pair {name0} {name1}: match this pair first.")
    return file[found[0]], found[1]


def unfinished(path: Path | str, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that an hloc match file does not hold yet, each once, whichever order it is listed in."""
    first: dict[frozenset, Pair] = {}
    for pair in pairs:
        first.setdefault(frozenset(pair), pair)
    once = list(first.values())
    if not Path(path).exists():
        return once
    with open_hdf5(path) as file:
        return [pair for pair in once if not _find(file, *pair)]


# ---- dense matches for structure from motion


def aggregate_dense(
    matches: Mapping[Pair, tuple[np.ndarray, np.ndarray, np.ndarray]], cell_px: float = 8.0, max_error_px: float = 2.0, max_keypoints: int = 8192
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[Pair, tuple[np.ndarray, np.ndarray]]]:
    """Keypoints that many pairs share, from matches that each pair has for itself; hloc's match_dense with its settings for large scenes as defaults.

    Positions are rounded to bins, round((k + .5) / s) s - .5 with s = max_error_px, and bins to cells (the same with s = cell_px, where that is greater).
    In each cell the bin of the greatest sum of scores, over all pairs of the image, is the keypoint, and that sum its score; the `max_keypoints` best are
    kept. Each end of a match then goes to the nearest keypoint, or the match is dropped if that is further than `max_error_px`; a keypoint keeps its best
    match in a pair. (hloc takes the cell from the position, not from the bin: a bin on the border of two cells then becomes two keypoints at one place.)

    Args:
      matches: pair -> xy0 (M, 2), xy1 (M, 2), scores (M,).

    Returns:
      image -> keypoints (K, 2) float32 and scores (K,) float32, best first; pair -> indices (M', 2) int64 and scores (M',).
    """
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for (name0, name1), (xy0, xy1, scores) in matches.items():
        seen.setdefault(name0, []).append((xy0, scores))
        seen.setdefault(name1, []).append((xy1, scores))
    keypoints = {name: _vote(*map(np.concatenate, zip(*parts, strict=True)), cell_px, max_error_px, max_keypoints) for name, parts in seen.items()}
    trees = {name: KDTree(xy) for name, (xy, _) in keypoints.items() if len(xy)}

    def nearest(name: str, xy: np.ndarray) -> np.ndarray:
        if not len(xy):
            return np.zeros(0, np.int64)
        distance, index = trees[name].query(xy)
        return np.where(distance <= max_error_px, index, -1)

    indices = {}
    for (name0, name1), (xy0, xy1, scores) in matches.items():
        i0, i1 = nearest(name0, xy0), nearest(name1, xy1)
        falling = np.argsort(-scores, kind="stable")
        falling = falling[(i0[falling] >= 0) & (i1[falling] >= 0)]
        best = [np.unique(i[falling], return_index=True)[1] for i in (i0, i1)]
        keep = falling[np.intersect1d(*best)]
        indices[name0, name1] = np.column_stack([i0[keep], i1[keep]]), scores[keep]
    return keypoints, indices


def _vote(xy: np.ndarray, scores: np.ndarray, cell_px: float, max_error_px: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The bin of the greatest sum of scores of each cell: positions (K, 2) and sums (K,), best first."""
    bins, owner = np.unique(np.rint((xy.astype(np.float64) + 0.5) / max_error_px), axis=0, return_inverse=True)
    votes = np.bincount(owner.ravel(), scores, len(bins))
    falling = np.argsort(-votes, kind="stable")
    cells = np.rint(bins * max_error_px / max(cell_px, max_error_px))
    first_of_cell = np.unique(cells[falling], axis=0, return_index=True)[1]
    best = falling[np.sort(first_of_cell)][:most]
    return (bins[best] * max_error_px - 0.5).astype(np.float32), votes[best].astype(np.float32)


def write_aggregated(
    features: Path | str,
    matches: Path | str,
    keypoints: Mapping[str, tuple[np.ndarray, np.ndarray]],
    indices: Mapping[Pair, tuple[np.ndarray, np.ndarray]],
) -> None:
    """What `aggregate_dense` found as hloc's match_dense leaves it: a feature file (keypoints, score) and the indices in the pairs' groups of the match file.

    Both are replaced if they are there: one more pair moves every index.

    Raises:
      UserError: as `append_hdf5`; a pair that the match file does not hold.
    """
    with append_hdf5(matches) as file:
        for (name0, name1), (pair_indices, scores) in indices.items():
            group, flipped = _group(matches, file, name0, name1, "keypoints0")
            first = name1 if flipped else name0
            _assign(group, pair_indices[:, ::-1] if flipped else pair_indices, scores, len(keypoints[first][0]))
    with atomic(features) as temporary, append_hdf5(temporary) as file:
        for name, (xy, score) in keypoints.items():
            group = file.require_group(name)
            group["keypoints"], group["score"] = xy.astype(np.float32), score.astype(np.float32)


# ---- PUMP's corres

SENSE = "clockwise"  # what a file's `rotation` says of its codes; files without it may be mirrored


def write_corres(path: Path | str, xy0: np.ndarray, xy1: np.ndarray, scores: np.ndarray, code: np.ndarray) -> None:
    """npz with `corres` (M, 6) float32: x1, y1, x2, y2, score, code; and `rotation`, SENSE.

    Raises:
      UserError: as `atomic`.
    """
    rows = np.column_stack([xy0, xy1, scores, code]).astype(np.float32)
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, corres=rows, rotation=SENSE)


def read_corres(path: Path | str) -> np.ndarray:
    """Rows (M, 6) as written, or (M, 4) x1, y1, x2, y2 of densified matches, float32; the content is npz whatever the file's ending.

    Raises:
      UserError: the file is missing, or is not such an npz; images turned by neither 0 nor 180
        degrees, in a file that does not say in which sense its codes turn.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            rows, sense = file["corres"], str(file.get("rotation", ""))
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as e:
        raise UserError(f"{path} cannot be read as matches: an npz with the array `corres` is expected.") from e
    if rows.ndim != 2 or rows.shape[1] not in (4, 6):
        raise UserError(f"{path}: `corres` has the shape {rows.shape}, where (M, 6) or (M, 4) is expected.")
    turned = rows.shape[1] == 6 and (rows[:, 5] % 4 != 0).any()  # 0 and 4 mirror to themselves
    if turned and sense != SENSE:
        raise UserError(
            f"{path} holds matches of turned images and does not say `rotation` = {SENSE!r}, as "
            "files of an earlier jaxdesc, whose turns are mirrored: match the images again."
        )
    return rows.astype(np.float32)


# ---- kapture, Image Matching Challenge, ETH local-feature benchmark


def write_kapture(root: Path | str, name0: str, name1: str, indices: np.ndarray, scores: np.ndarray, kind: str = "jaxdesc") -> bool:
    """`<root>/reconstruction/matches/<kind>/<a>.overlapping/<b>.matches`, a < b: raw little-endian float64 (M, 3) index of a, index of b, score.

    Raises:
      UserError: a comma in a name; as `atomic`.
    """
    for name in (name0, name1):
        if "," in name:
            raise UserError(f"The image name {name!r} holds a comma, which the kapture format forbids: rename the image.")
    (a, b), indices = _ordered(name0, name1, indices)
    path = Path(root, "reconstruction", "matches", kind, f"{a}.overlapping", f"{b}.matches")
    return _write_once(path, np.column_stack([indices, scores]).astype("<f8").tobytes())


def write_imc(folder: Path | str, name0: str, name1: str, indices: np.ndarray) -> bool:
    """`<folder>/matches.h5`, key `a-b` of the stems with a > b: (2, M) int32. The challenge wants every pair of a scene, be it with no match.

    Raises:
      UserError: as `append_hdf5`.
    """
    (b, a), indices = _ordered(*(PurePosixPath(name).stem for name in (name0, name1)), indices)
    with append_hdf5(Path(folder, "matches.h5")) as file:
        if f"{a}-{b}" in file:
            return False
        file[f"{a}-{b}"] = indices[:, ::-1].T.astype(np.int32)
    return True


def write_eth(root: Path | str, name0: str, name1: str, indices: np.ndarray) -> bool:
    """`<root>/matches/<a>---<b>.bin`, a < b since the benchmark's importer does not turn columns round: int32 M, int32 2, uint32 (M, 2).

    Raises:
      UserError: a name with a folder in it; as `atomic`.
    """
    for name in (name0, name1):
        if "/" in name:
            raise UserError(f"The image name {name!r} lies in a folder, but the local-feature benchmark reads flat folders alone.")
    (a, b), indices = _ordered(name0, name1, indices)
    return _write_once(Path(root, "matches", f"{a}---{b}.bin"), np.asarray(indices.shape, "<i4").tobytes() + indices.astype("<u4").tobytes())


def _ordered(name0: str, name1: str, indices: np.ndarray) -> tuple[Pair, np.ndarray]:
    """Names in lexicographic order, the columns with them."""
    return ((name0, name1), indices) if name0 <= name1 else ((name1, name0), indices[:, ::-1])


def _write_once(path: Path, data: bytes) -> bool:
    if path.exists():
        return False
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return True
