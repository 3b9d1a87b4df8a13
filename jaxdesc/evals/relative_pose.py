"""Relative pose from matches: the angles between estimated and true rotation and translation, and the area under their recall.

A pair's error is max(rotation, translation) in degrees, a pair without a pose has an infinite one. All pairs count, none is left out.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxdesc.errors import UserError
from jaxdesc.evals import Protocol
from jaxdesc.evals.cameras import image_folder
from jaxdesc.evals.features import predict as predict_features
from jaxdesc.evals.matched import Matched, add_flags, matched
from jaxdesc.evals.pose_pairs import PosePair, read_pose_pairs
from jaxdesc.evals.result import Curve, Result
from jaxdesc.evals.two_view import ESTIMATORS, Estimator, error_auc, estimator, pose_error, symmetric_epipolar

AUC_DEG = (5.0, 10.0, 20.0)
ACCURACY_DEG = (5.0, 10.0)  # CAPS
CURVE_DEG = tuple(np.arange(0, 20.5, 0.5).tolist())


def _flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    group = parser.add_argument_group("relative pose")
    group.add_argument(
        "--pairs",
        metavar="LIST",
        help="pairs with ground truth: SuperGlue's .txt, LoFTR's .npz or a folder of them, names relative to --data "
        "(default: the cameras of --data, cameras.json or a COLMAP model in sparse/, and its pairs.txt or all pairs)",
    )
    group.add_argument("--estimator", nargs="+", choices=ESTIMATORS, default=["cv2-ransac"], help="of the pose, one or several (default: cv2-ransac)")
    group.add_argument("--threshold", type=float, default=1.0, metavar="PX", help="inlier threshold of the estimator (default: 1)")
    group.add_argument("--long-side", type=int, metavar="PX", help="count --threshold in images resized to this longer side (LoFTR: 0.5 px at 840)")
    group.add_argument("--epipolar", type=float, default=5e-4, metavar="D2", help="squared symmetric epipolar distance of a right match (default: 5e-4)")


def _pairs(args: argparse.Namespace) -> list[PosePair]:
    if not (args.pairs or args.data):
        raise UserError("The pairs and their true poses are missing: name a folder with --data or a list with --pairs.")
    return read_pose_pairs(args.pairs or args.data)


def _predict(args: argparse.Namespace, out: Path) -> Path:
    if not args.data:
        raise UserError("Name the folder of the images with --data, or features that are there already with --features.")
    root = Path(args.data) if args.pairs else image_folder(args.data)
    return predict_features(args, root, list(dict.fromkeys(name for pair in _pairs(args) for name in (pair.name0, pair.name1))), out)


def _score(args: argparse.Namespace, predictions: Path) -> list[Result]:
    if not (args.threshold > 0 and args.epipolar > 0 and (args.long_side is None or args.long_side > 0)):
        raise UserError("--threshold, --long-side and --epipolar must be above 0.")
    pairs = _pairs(args)
    source = matched(args, predictions, {name: size for pair in pairs for name, size in ((pair.name0, pair.size0), (pair.name1, pair.size1))})
    estimators = {name: estimator(name, args.threshold) for name in dict.fromkeys(args.estimator)}
    rows, seconds = measure(pairs, source, estimators, args.epipolar, args.long_side)
    return summarise(rows, seconds, _about(args, source, len(pairs)))


def _about(args: argparse.Namespace, source: Matched, count: int) -> dict[str, Any]:
    """Fields that all results of a run share, and the parts of their keys."""
    dataset = Path(args.pairs).stem if args.pairs else Path(args.data).resolve().name
    where = f"-{args.long_side}" if args.long_side else ""
    settings = {
        **source.settings,
        "pairs": count,
        "pixel rule": "top-left pixel centre (0, 0)",
        "resize rule": f"threshold in px of images of longer side {args.long_side}" if args.long_side else "threshold in px of the original images",
        "failure": "infinite error",
    }
    return {
        "dataset": dataset,
        "method": args.label,
        "settings": settings,
        "threshold": f"{args.threshold:g}px{where}",
        "threshold_px": args.threshold,
        "epipolar": args.epipolar,
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


PROTOCOL = Protocol("relative_pose", "angles of the relative pose from matches: AUC@5/10/20, accuracy, precision", _flags, _predict, _score)
