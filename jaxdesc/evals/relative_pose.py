"""Relative pose from matches: the angles between estimated and true rotation and translation, and the area under their recall.

A pair's error is max(rotation, translation) in degrees, a pair without a pose has an infinite one. All pairs count, none is left out.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdesc.config import option
from jaxdesc.datasets.pose_pairs import PosePair, read_pose_pairs
from jaxdesc.datasets.scenes import image_folder
from jaxdesc.errors import UserError
from jaxdesc.evals import Protocol, features
from jaxdesc.evals.matched import Matched, MatchedOptions, matched
from jaxdesc.evals.result import Curve, Result
from jaxdesc.evals.two_view import ESTIMATORS, Estimator, error_auc, estimator, pose_error, symmetric_epipolar

AUC_DEG = (5.0, 10.0, 20.0)
ACCURACY_DEG = (5.0, 10.0)  # CAPS
CURVE_DEG = tuple(np.arange(0, 20.5, 0.5).tolist())


@dataclass(frozen=True, kw_only=True)
class Options(MatchedOptions):
    """Relative pose."""

    pairs: str | Path = option(
        "",
        "pairs with ground truth: SuperGlue's .txt, LoFTR's .npz or a folder of them, names "
        "relative to --data (default: the cameras of --data, cameras.json or a COLMAP model in "
        "sparse/, and its pairs.txt or all pairs)",
        unit="LIST",
    )
    estimator: tuple[str, ...] = option(
        ("cv2-ransac",), "of the pose, one or several", choices=ESTIMATORS
    )
    threshold: float = option(1.0, "inlier threshold of the estimator", above=0, unit="PX")
    long_side: int | None = option(
        None,
        "count --threshold in images resized to this longer side (LoFTR: 0.5 px at 840)",
        above=0,
        unit="PX",
    )
    epipolar: float = option(
        5e-4, "squared symmetric epipolar distance of a right match", above=0, unit="D2"
    )


def _pairs(options: Options) -> list[PosePair]:
    missing = (
        "The pairs and their true poses are missing: name a folder with --data or a list with "
        "--pairs."
    )
    return read_pose_pairs(options.pairs or options.folder(missing))


def predict(options: Options, out: Path) -> Path:
    data = options.folder(
        "Name the folder of the images with --data, or features that are there already with "
        "--features."
    )
    names = dict.fromkeys(name for pair in _pairs(options) for name in (pair.name0, pair.name1))
    root = data if options.pairs else image_folder(data)
    return features.predict(options, root, list(names), out)


def score(options: Options, predictions: Path | str) -> list[Result]:
    pairs, predictions = _pairs(options), Path(predictions)
    ends = [((pair.name0, pair.size0), (pair.name1, pair.size1)) for pair in pairs]
    source = matched(options, predictions, {name: size for pair in ends for name, size in pair})
    estimators = {
        name: estimator(name, options.threshold) for name in dict.fromkeys(options.estimator)
    }
    rows, seconds = measure(pairs, source, estimators, options.epipolar, options.long_side)
    label = features.label_of(options, predictions)
    return summarise(rows, seconds, _about(options, label, source, len(pairs)))


def _about(options: Options, label: str, source: Matched, count: int) -> dict[str, Any]:
    """Fields that all results of a run share, and the parts of their keys."""
    dataset = Path(options.pairs).stem if options.pairs else Path(options.data).resolve().name
    where = f"-{options.long_side}" if options.long_side else ""
    images = f"images of longer side {options.long_side}" if where else "the original images"
    settings = {
        **source.settings,
        "pairs": count,
        "pixel rule": "top-left pixel centre (0, 0)",
        "resize rule": f"threshold in px of {images}",
        "failure": "infinite error",
    }
    return {
        "dataset": dataset,
        "method": label,
        "settings": settings,
        "threshold": f"{options.threshold:g}px{where}",
        "threshold_px": options.threshold,
        "epipolar": options.epipolar,
    }


def at_long_side(xy: np.ndarray, K: np.ndarray, size: tuple[int, int] | None, long_side: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) and calibration as in the image resized to a longer side: x' = (x + 0.5) s - 0.5, f' = s f; unchanged for None.

    Raises:
      UserError: the size of the image is not known.
    """
    if long_side is None:
        return xy, K
    if size is None:
        raise UserError("--long-side needs the sizes of the images, which the file of features does not hold (image_size).")
    s = long_side / max(size)
    return (xy + 0.5) * s - 0.5, np.diag([s, s, 1]) @ K + np.array([[0, 0, 0.5 * s - 0.5]] * 2 + [[0, 0, 0]])


def measure(
    pairs: list[PosePair], source: Matched, estimators: dict[str, Estimator], epipolar: float, long_side: int | None = None
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """What each pair gives, by estimator.

    Returns:
      {estimator: {"name0 name1": {rotation_deg, translation_deg (infinite without a pose), matches, right: matches within `epipolar`, precision: their share,
      0 without a match, matching_score: their share of image 0's keypoints}}}; seconds by estimator and for "matching".
    """
    from tqdm import tqdm

    rows = {name: {} for name in estimators}
    seconds = dict.fromkeys(["matching", *estimators], 0.0)
    for pair in tqdm(pairs, desc="relative pose", unit="pair", dynamic_ncols=True):
        start = time.perf_counter()
        features0, features1 = source.features(pair.name0), source.features(pair.name1)
        i0, i1 = source.matches(pair.name0, pair.name1).T
        seconds["matching"] += time.perf_counter() - start
        xy0, K0 = at_long_side(features0.keypoints[i0], pair.K0, features0.image_size, long_side)
        xy1, K1 = at_long_side(features1.keypoints[i1], pair.K1, features1.image_size, long_side)
        right = int(np.sum(symmetric_epipolar(xy0, xy1, K0, K1, pair.R, pair.t) < epipolar))
        shares = {"matches": len(i0), "right": right, "precision": right / max(len(i0), 1), "matching_score": right / max(len(features0), 1)}
        for name, estimate in estimators.items():
            start = time.perf_counter()
            error = pose_error(estimate(xy0, xy1, K0, K1), pair.R, pair.t)
            seconds[name] += time.perf_counter() - start
            rows[name][f"{pair.name0} {pair.name1}"] = {**error._asdict(), **shares}
    return rows, seconds


def summarise(rows: dict[str, dict[str, dict[str, float]]], seconds: dict[str, float], about: dict[str, Any]) -> list[Result]:
    """For each estimator the area under the recall of the pose error and the accuracies; once the precision of the matches, which needs none."""
    common = {key: about[key] for key in ("dataset", "method")}
    results = []
    for name, items in rows.items():
        rotation, translation = (np.array([row[key] for row in items.values()]) for key in ("rotation_deg", "translation_deg"))
        worst = np.maximum(rotation, translation)
        key = f"{name}@{about['threshold']}"
        shared = {
            **common,
            "estimator": f"{name}, threshold {about['threshold_px']:g} px",
            "per_item": items,
            "settings": about["settings"],
            "timings": {"matching_s": seconds["matching"], "estimation_s": seconds[name]},
        }
        auc = {f"auc@{t:g}": value for t, value in zip(AUC_DEG, error_auc(worst, AUC_DEG), strict=True)}
        curve = Curve("max(rotation, translation) error [deg]", CURVE_DEG, {"recall": [float(np.mean(worst <= t)) for t in CURVE_DEG]})
        results.append(Result(f"auc/{key}", values=auc | {"failed": float(np.mean(np.isinf(worst)))}, curve=curve, **shared))
        accuracy = {f"{what}@{t:g}": float(np.mean(e <= t)) for what, e in (("rotation", rotation), ("translation", translation)) for t in ACCURACY_DEG}
        medians = {"median_rotation_deg": float(np.median(rotation)), "median_translation_deg": float(np.median(translation))}
        results.append(Result(f"pose-accuracy/{key}", values=accuracy | medians, **shared))
    items = {pair: {k: row[k] for k in ("matches", "right", "precision", "matching_score")} for pair, row in next(iter(rows.values())).items()}
    values = {k: float(np.mean([row[k] for row in items.values()])) for k in ("precision", "matching_score", "matches")}
    settings = {**about["settings"], "matching_score": "right matches over keypoints of the first image"}
    settings.pop("resize rule")
    results.append(Result(f"precision/sym-epipolar2@{about['epipolar']:g}", estimator="", values=values, per_item=items, settings=settings, **common))
    return results


PROTOCOL = Protocol(
    "relative_pose",
    "angles of the relative pose from matches: AUC@5/10/20, accuracy, precision",
    Options,
    predict,
    score,
)
