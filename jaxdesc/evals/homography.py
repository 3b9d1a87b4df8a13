"""Keypoints and matches scored by known homographies.

MMA as D2-Net counts it, MMA at a given number of matches (PUMP), homographies estimated from the
matches, and how many keypoints are found again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdesc.config import option
from jaxdesc.data.nearest import mutual_nearest
from jaxdesc.errors import UserError
from jaxdesc.evals import Protocol, features
from jaxdesc.evals.hpatches import HomographyPair, dataset_name, read_cache, read_pairs
from jaxdesc.evals.matched import MatchedOptions
from jaxdesc.evals.plane import (
    ESTIMATORS,
    Measured,
    above,
    accuracy,
    against_count,
    measure,
    repeatability,
    threshold_for,
)
from jaxdesc.evals.result import Curve, Result
from jaxdesc.evals.two_view import error_auc
from jaxdesc.store import matches as match_files
from jaxdesc.store.features import top

MMA_PX = tuple(range(1, 11))
REPORTED_PX = (1, 3, 5, 10)
CORNER_PX = (1, 3, 5)
AUC_PX = (3, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Options(MatchedOptions):
    """Homography."""

    top: int | None = option(
        None,
        "match only the K best-scored keypoints of an image (default: all)",
        at_least=1,
        unit="K",
    )
    match_count: str | Path | float = option(
        "",
        "matches per pair, to which the threshold of similarity is tuned; FILE.h5: as many as "
        "these features give, such as the detector's own descriptors",
        unit="N|FILE.h5",
    )
    estimator: str = option("cv2-ransac", "of homographies", choices=tuple(ESTIMATORS))
    ransac_px: float = option(3.0, "its inlier threshold", above=0, unit="PX")
    allow_missing: bool = option(
        False,
        "score what there is where images, homographies or features are missing; the result says "
        "so",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.matches and self.top:
            raise UserError("--matches point at all keypoints of the features: leave --top out.")


def predict(options: Options, out: Path) -> Path:
    pairs, _ = pairs_of(options)
    return features.predict(options, Path(options.data), _names(pairs), out)


def _names(pairs: Sequence[HomographyPair]) -> list[str]:
    return [name for pair in pairs for name in (pair.name1, pair.name2)]


def pairs_of(options: Options) -> tuple[list[HomographyPair], list[str]]:
    """The pairs to score and what is missing for others.

    Raises:
      UserError: no --data; something is missing and --allow-missing is not given; as `read_pairs`.
    """
    pairs, missing = read_pairs(
        options.folder("--data DIR is needed: the folder of the sequences.")
    )
    if missing and not options.allow_missing:
        raise UserError(
            f"{options.data} lacks {named(missing)}: complete it, or score without them "
            "(--allow-missing)."
        )
    return pairs, missing


def named(missing: Sequence[str], most: int = 8) -> str:
    return ", ".join(missing[:most]) + (f" and {len(missing) - most} more" if len(missing) > most else "")


# ---- all pairs


def score(options: Options, predictions: Path | str) -> list[Result]:
    from tqdm import tqdm

    predictions = Path(predictions)
    pairs, missing = pairs_of(options)
    read, absent = features.available(predictions, options.suffix, _names(pairs))
    if absent and not options.allow_missing:
        raise UserError(f"{predictions} holds no features of {named(absent)}: extract them, or score without them (--allow-missing).")
    pairs = [pair for pair in pairs if pair.name1 not in absent and pair.name2 not in absent]
    if not pairs:
        raise UserError(
            f"{predictions} holds features of no pair in {options.data}: are its image names "
            "relative to that folder?"
        )
    target = _target(options, pairs)
    root, measured, repeated, sizes = Path(options.data), [], [], {}
    estimator = ESTIMATORS[options.estimator], options.ransac_px
    start = time.perf_counter()
    for pair in tqdm(pairs, desc="scoring", unit="pair", dynamic_ncols=True):
        f1, f2 = (top(read(name), options.top) for name in (pair.name1, pair.name2))
        size1, size2 = (
            f.image_size or sizes.setdefault(name, features.size_of(root / name))
            for f, name in ((f1, pair.name1), (f2, pair.name2))
        )
        if options.matches:
            matches = match_files.read_hdf5(
                options.matches, pair.name1, pair.name2, (len(f1), len(f2))
            )
        else:
            matches = mutual_nearest(f1.descriptors, f2.descriptors)
        measured.append(measure(pair, f1, f2, matches, size1, estimator))
        ends = f1.keypoints, f2.keypoints
        repeated.append(repeatability(pair.H_1to2, ends, (size1, size2), CORNER_PX))
    seconds = time.perf_counter() - start
    nearest = "mutual nearest neighbours, cosine"
    settings = {
        "pairs": len(pairs),
        "left out": "as D2-Net",
        "missing": missing + absent,
        "resize rule": "none, original images",
        "pixel rule": "top-left pixel centre (0, 0)",
        "matching": f"of {Path(options.matches).name}" if options.matches else nearest,
        "keypoints": f"top {options.top} by score" if options.top else "all",
    }
    about = {
        "dataset": dataset_name(root, pairs),
        "method": features.label_of(options, predictions),
        "timings": {"pairs_s": seconds},
    }
    with_target = {**settings, "target": str(options.match_count) or "all matches"}
    return [
        mma(pairs, measured, options.top, settings, about),
        at_count(pairs, measured, target, with_target, about),
        homographies(pairs, measured, (options.estimator, options.ransac_px), settings, about),
        repeatabilities(pairs, repeated, settings, about),
    ]


def _target(options: Options, pairs: Sequence[HomographyPair]) -> float | None:
    """Matches per pair that --match-count asks for; None: all."""
    asked = str(options.match_count)
    if not asked:
        return None
    try:
        count = float(asked)
    except ValueError:
        read, absent = features.available(Path(asked), options.suffix, _names(pairs))
        if absent:
            raise UserError(
                f"--match-count {asked} holds no features of {named(absent)}."
            ) from None
        matched = (
            mutual_nearest(
                *(top(read(name), options.top).descriptors for name in (pair.name1, pair.name2))
            )
            for pair in pairs
        )
        count = float(np.mean([len(similarity) for _, similarity in matched]))
    if not 0 < count < np.inf:
        raise UserError(
            f"--match-count {asked} must be above 0: a number of matches per pair, or a file of "
            "features that match."
        )
    return count


def _lines(pairs: Sequence[HomographyPair], shares: np.ndarray) -> dict[str, np.ndarray]:
    """Means (T,) over all pairs and over those of either kind, by name."""
    kinds = np.array([pair.kind for pair in pairs])
    return {"overall": shares.mean(0), **{kind: shares[kinds == kind].mean(0) for kind in ("i", "v") if (kinds == kind).any()}}


def _values(lines: dict[str, np.ndarray], thresholds_px: Sequence[float], reported: Sequence[float]) -> dict[str, float]:
    at = [list(thresholds_px).index(t) for t in reported]
    return {("" if line == "overall" else f"{line} ") + f"MMA@{thresholds_px[k]:g}": float(y[k]) for line, y in lines.items() for k in at}


def mma(pairs: Sequence[HomographyPair], measured: Sequence[Measured], top: int | None, settings: dict[str, Any], about: dict[str, Any]) -> Result:
    """Mean over pairs of the share of matches within 1..10 px. Source: D2-Net, HPatches-Sequences-Matching-Benchmark."""
    shares = accuracy([m.error_px for m in measured], MMA_PX)
    lines = _lines(pairs, shares)
    counts = {
        "features": float(np.mean([m.counts for m in measured])),
        "matches": float(np.mean([len(m.error_px) for m in measured])),
        "right@3": float(np.mean([np.sum(m.error_px <= 3) for m in measured])),
    }
    items = {
        pair.key: {**{f"MMA@{t}": float(row[MMA_PX.index(t)]) for t in REPORTED_PX}, "matches": len(m.error_px)}
        for pair, row, m in zip(pairs, shares, measured, strict=True)
    }
    return Result(
        protocol=f"mma/d2@top{top}" if top else "mma/d2",
        estimator="",
        values=_values(lines, MMA_PX, REPORTED_PX) | counts,
        curve=Curve("threshold [px]", MMA_PX, lines),
        per_item=items,
        settings=settings | {"thresholds_px": MMA_PX},
        **about,
    )


def at_count(pairs: Sequence[HomographyPair], measured: Sequence[Measured], target: float | None, settings: dict[str, Any], about: dict[str, Any]) -> Result:
    """MMA of the matches with similarity >= tau, which is tuned to `target` matches per pair, and the curve of all tau. Source: PUMP, supplementary B, figure A."""
    tau = -np.inf if target is None else threshold_for([m.similarity for m in measured], target)
    errors = above(measured, tau)
    thresholds = CORNER_PX
    values = _values(_lines(pairs, accuracy(errors, thresholds)), thresholds, thresholds)
    counts, shares = against_count(measured, thresholds)
    matches = float(np.mean([len(e) for e in errors]))
    marks = {} if target is None else {f"tau = {tau:.3f}": (matches, values[f"MMA@{thresholds[-1]}"])}
    return Result(
        protocol="mma/pump-count",
        estimator="",
        values=values | {"matches": matches, "tau": tau},
        curve=Curve("matches per pair", counts, {f"MMA@{t}": shares[:, k] for k, t in reversed(list(enumerate(thresholds)))}, marks),
        settings=settings | {"thresholds_px": thresholds},
        **about,
    )


def homographies(
    pairs: Sequence[HomographyPair], measured: Sequence[Measured], estimator: tuple[str, float], settings: dict[str, Any], about: dict[str, Any]
) -> Result:
    """Share of pairs whose estimated homography moves the corners of image 1 by at most 1, 3, 5 px on average, and the area under the recall of that error."""
    errors = np.array([m.corner_px for m in measured])
    shares = _lines(pairs, errors[:, None] <= np.array(CORNER_PX))
    values = {("" if line == "overall" else f"{line} ") + f"accuracy@{t}": float(y[k]) for line, y in shares.items() for k, t in enumerate(CORNER_PX)}
    values |= {f"AUC@{t}": float(a) for t, a in zip(AUC_PX, error_auc(errors, AUC_PX), strict=True)}
    name, px = estimator
    return Result(
        protocol=f"homography/{name}@{px:g}px",
        estimator=f"cv2.findHomography, {name.removeprefix('cv2-').upper()}, {px:g} px",
        values=values | {"failed": float(np.isinf(errors).mean())},
        curve=Curve("mean corner error [px]", MMA_PX, _lines(pairs, errors[:, None] <= np.array(MMA_PX))),
        per_item={pair.key: {"corner_px": m.corner_px} for pair, m in zip(pairs, measured, strict=True)},
        settings=settings | {"corners": "(0, 0), (W-1, 0), (0, H-1), (W-1, H-1) of image 1, measured in image 2", "failure": "infinite error"},
        **about,
    )


def repeatabilities(
    pairs: Sequence[HomographyPair],
    repeated: Sequence[np.ndarray],
    settings: dict[str, Any],
    about: dict[str, Any],
) -> Result:
    """Mean over pairs of `plane.repeatability` within 1, 3, 5 px; descriptors play no part."""
    shares = np.array(repeated)
    names = [f"repeatability@{t}" for t in CORNER_PX]
    values = {
        ("" if line == "overall" else f"{line} ") + name: float(value)
        for line, row in _lines(pairs, shares).items()
        for name, value in zip(names, row, strict=True)
    }
    items = {
        pair.key: dict(zip(names, map(float, row), strict=True))
        for pair, row in zip(pairs, shares, strict=True)
    }
    settings = {k: v for k, v in settings.items() if k != "matching"}
    return Result(
        protocol="repeatability/superpoint",
        estimator="",
        values=values,
        per_item=items,
        settings=settings | {"thresholds_px": CORNER_PX, "distances": "in image 2"},
        **about,
    )


def cached(path: Path) -> Result:
    """A result file of D2-Net's or R2D2's notebook as a result of the same protocol."""
    lines = {line: y[: len(MMA_PX)] for line, y in read_cache(path).items()}
    values = _values(lines, MMA_PX, REPORTED_PX)
    return Result("mma/d2", "", "HPatches", path.stem, values, Curve("threshold [px]", MMA_PX, lines), settings={"file": path.name}, versions={})


PROTOCOL = Protocol(
    "homography",
    "HPatches or Oxford: MMA, MMA against the number of matches, homography accuracy, repeatability",
    Options,
    predict,
    score,
)
