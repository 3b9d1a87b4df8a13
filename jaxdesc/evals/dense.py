"""Dense flow scored by true correspondences: end-point errors, shares within some pixels, KITTI's Fl.

Where a predicted flow is unknown it counts as 0.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdesc.errors import UserError
from jaxdesc.evals import Protocol, dense_data, transfers
from jaxdesc.evals.dense_data import DensePair, DenseSet
from jaxdesc.evals.result import Curve, Result

DATASETS = ("eth3d", "hpatches", "megadepth", "middlebury", "kitti", "tss")
PCK_PX = (1, 2, 3, 5, 8, 10, 13, 22, 36)
TSS_ALPHA = 0.05
CIRCLES = 60  # of a figure


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("dense flow")
    group.add_argument("--dataset", required=True, choices=DATASETS, help="what --data is; middlebury needs none: its motorcycle pair comes with scikit-image")
    group.add_argument("--pairs", metavar="FILE.csv", help="megadepth: list of pairs (default: the one in --data)")
    group.add_argument(
        "--square", type=int, metavar="PX", help="hpatches: count with both images squashed to this side, such as 240 (default: original images)"
    )
    group.add_argument("--figures", type=int, default=0, metavar="N", help="draw the first N pairs: the second image warped to the first, errors as circles")
    group.add_argument("--method", choices=("identity",), help="a baseline without weights: positions scaled with the size of the image")
    group.add_argument("--max-side", type=int, metavar="PX", help="with --weights: shrink larger images to this before matching")
    group.add_argument("--max-scale", type=float, metavar="S", help="with --weights of pump: change of scale that is searched, 1/S to S (default: 4)")
    group.add_argument("--max-rot", type=float, metavar="DEG", help="with --weights of pump: rotation that is searched, within +-DEG (default: 0)")


def read(args: argparse.Namespace, merged: bool = False) -> DenseSet:
    """The data set that the flags name.

    Raises:
      UserError: no --data; as the readers.
    """
    if args.square is not None and (args.square < 16 or args.dataset != "hpatches"):
        raise UserError(f"--square {args.square} must be at least 16, and is for --dataset hpatches alone.")
    if args.dataset == "middlebury":
        return dense_data.motorcycle()
    if args.data is None:
        raise UserError("--data DIR is needed: the folder of the data set.")
    root = Path(args.data)
    if args.dataset == "eth3d":
        return dense_data.eth3d(root, merged)
    if args.dataset == "hpatches":
        return dense_data.hpatches_views(root, args.square)
    if args.dataset == "megadepth":
        return dense_data.megadepth(root, Path(args.pairs) if args.pairs else None)
    return dense_data.kitti(root) if args.dataset == "kitti" else dense_data.tss(root)


def predict(args: argparse.Namespace, out: Path) -> Path:
    """`<out>/flow/`: a .flo file for each pair; those that are there already are skipped."""
    from tqdm import tqdm

    from jaxdesc.store.flow import write_flo
    from jaxdesc.store.settings import claim

    if args.method and args.weights:
        raise UserError(f"--method {args.method} needs no weights: leave --weights out, or --method.")
    found, folder = read(args), out / "flow"
    settings, positions_of = ({"method": "identity"}, _identity) if args.method else _trained(args)
    claim(folder, settings)
    todo = {(pair.a, pair.b): pair for pair in found.pairs if args.overwrite or not transfers.flow_path(folder, pair.a, pair.b).exists()}
    for (a, b), pair in tqdm(todo.items(), desc="matching", unit="pair", dynamic_ncols=True, disable=not todo):
        positions = positions_of(found, pair)
        here = dense_data.grid(pair.size_a).reshape(pair.size_a[1], pair.size_a[0], 2)
        known = np.isfinite(positions).all(-1)
        write_flo(transfers.flow_path(folder, a, b), np.where(known[..., None], positions - here, 0), known)
    return folder


def _identity(found: DenseSet, pair: DensePair) -> np.ndarray:
    xy = (dense_data.grid(pair.size_a) + 0.5) * (np.array(pair.size_b) / pair.size_a) - 0.5
    return xy.reshape(pair.size_a[1], pair.size_a[0], 2)


def _trained(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from jaxdesc.predictor import load

    predictor = load(args.weights)
    asked = {"max_scale": args.max_scale, "max_rotation_deg": args.max_rot}
    options = predictor.options(**{name: value for name, value in asked.items() if value is not None})  # the others are the method's own

    def positions_of(found: DenseSet, pair: DensePair) -> np.ndarray:
        a, b = found.load(pair.a), found.load(pair.b)
        matches = predictor.match_with(a, b, options, args.max_side, lambda _: None)
        return predictor.positions(a, b, matches) if len(matches.score) else np.full((*a.shape[:2], 2), np.nan)

    searched = {"max_scale": "max_scale", "max_rot": "max_rotation_deg"}
    settings = {"method": predictor.source, "weights": predictor.digest, "max_side": args.max_side}
    settings |= {name: getattr(options, field) for name, field in searched.items() if hasattr(options, field)}
    return settings, positions_of


# ---- scoring


def measure(pair: DensePair, folder: Path) -> dict[str, float]:
    """Over the points whose truth is known: their number, the mean error in px of the protocol's frame, the shares within PCK_PX, Fl, and the share of the
    points at which the flow is unknown.

    Fl: errors above 3 px and above 5 % of the true vector's length. Source: KITTI 2015.
    """
    flow, known = transfers.read_flow(folder, pair.a, pair.b, pair.size_a)
    xy_a, xy_b = pair.truth()
    if not len(xy_a):
        return {"points": 0}
    error = np.linalg.norm((xy_a + transfers.sample(flow, xy_a) - xy_b) * pair.scale_b, axis=1)
    true_length = np.linalg.norm((xy_b - xy_a) * pair.scale_b, axis=1)
    x, y = np.clip(np.rint(xy_a).astype(int), 0, np.array(pair.size_a) - 1).T
    return {
        "points": len(error),
        "AEPE [px]": float(error.mean()),
        **{f"PCK@{t}": float((error <= t).mean()) for t in PCK_PX},
        "Fl": float(((error > 3) & (error > 0.05 * true_length)).mean()),
        f"alpha {TSS_ALPHA}": float((error <= TSS_ALPHA).mean()),
        "unknown": float((~known[y, x]).mean()),
    }


def mean(rows: Sequence[dict[str, float]], name: str, pooled: bool = False) -> float:
    """Of a figure over pairs, or over all their points."""
    return float(np.average([row[name] for row in rows], weights=[row["points"] for row in rows] if pooled else None))


def score(args: argparse.Namespace, predictions: Path) -> list[Result]:
    if not predictions.is_dir():
        raise UserError(f"{predictions} is no folder: .flo files <a>--<b>.flo are expected, flow on the pixels of a that points to b.")
    if args.figures:
        draw(read(args), predictions, Path(args.out) / "figures", args.figures)
    if args.dataset == "eth3d":
        return [_score(args, predictions, "aepe/eth3d-pump", read(args)), _score(args, predictions, "aepe/eth3d-dm", read(args, merged=True))]
    keys = {"megadepth": "pck/megadepth-480", "middlebury": "aepe/motorcycle", "kitti": "flow/kitti", "tss": "pck/tss"}
    return [_score(args, predictions, keys.get(args.dataset) or f"aepe/hpatches-{args.square or 'original'}", read(args))]


def draw(found: DenseSet, folder: Path, out: Path, count: int) -> None:
    """`<out>/<a>--<b>.png` of the first pairs: image b warped to a by the flow, and the errors at up to CIRCLES true points. Source: PUMP, figure C."""
    from PIL import Image

    from jaxdesc import figures
    from jaxdesc.store.files import atomic

    for pair in found.pairs[:count]:
        flow, _ = transfers.read_flow(folder, pair.a, pair.b, pair.size_a)
        xy_a, xy_b = pair.truth()
        picked = np.random.default_rng(0).permutation(len(xy_a))[:CIRCLES]
        error = np.linalg.norm(xy_a[picked] + transfers.sample(flow, xy_a[picked]) - xy_b[picked], axis=1)
        positions = flow + dense_data.grid(pair.size_a).reshape(flow.shape)
        picture = figures.error_circles(figures.warp(found.load(pair.b), positions), xy_a[picked], error)
        with atomic(out / f"{transfers.arrow(pair.a, pair.b)}.png") as temporary:
            Image.fromarray(picture).save(temporary)


def _score(args: argparse.Namespace, folder: Path, key: str, found: DenseSet) -> Result:
    from tqdm import tqdm

    measured = [(pair, measure(pair, folder)) for pair in tqdm(found.pairs, desc="scoring", unit="pair", dynamic_ncols=True)]
    kept = [(pair, row) for pair, row in measured if row["points"]]
    if not kept:
        raise UserError("No pair has a point whose true place is known.")
    rows = [row for _, row in kept]
    values, curve = SUMMARIES[key.split("-")[0]](kept)
    shown = {"points", "AEPE [px]", *(f"PCK@{t}" for t in (1, 3, 5)), "unknown"} if "tss" not in key else {"points", f"alpha {TSS_ALPHA}", "unknown"}
    items = {_name(pair): {name: v for name, v in row.items() if name in shown} for pair, row in kept}
    if unknown := mean(rows, "unknown", pooled=True):
        values["unknown"] = unknown
    settings = {
        "pairs": len(kept),
        "without truth": [_name(pair) for pair, row in measured if not row["points"]],
        "flow": "on the first image of a pair (target), to the second (source); unknown counts as 0",
        "pixel rule": "top-left pixel centre (0, 0)",
        "frame of errors": FRAMES[key.split("-")[0]] if not args.square else f"both images squashed to {args.square} x {args.square} px",
    }
    return Result(key, "", f"{args.dataset} ({len(kept)} pairs)", args.label, values, curve, items, settings)


def _name(pair: DensePair) -> str:
    return f"{pair.a} {pair.b}" + (f" rate {pair.rate}" if pair.rate else "")


Kept = Sequence[tuple[DensePair, dict[str, float]]]
Summary = tuple[dict[str, float], Curve | None]


def _by_rate(kept: Kept) -> Summary:
    """Mean over the pairs of a scene, then over scenes, for each rate. Source: PUMP, DenseMatching."""
    rates = sorted({pair.rate for pair, _ in kept})
    at = {}
    for rate in rates:
        scenes: dict[str, list] = {}
        for pair, row in kept:
            if pair.rate == rate:
                scenes.setdefault(pair.group, []).append(row)
        at[rate] = float(np.mean([mean(rows, "AEPE [px]") for rows in scenes.values()]))
    values = {f"AEPE@{rate} [px]": value for rate, value in at.items()}
    return values, Curve("rate [frames]", rates, {"AEPE [px]": list(at.values())})


def _by_group(kept: Kept) -> Summary:
    """Mean over pairs, and over those of each group; PCK pooled over all points."""
    rows = [row for _, row in kept]
    values = {"AEPE [px]": mean(rows, "AEPE [px]")} | {f"PCK@{t}": mean(rows, f"PCK@{t}", pooled=True) for t in (1, 3, 5)}
    for group in sorted({pair.group for pair, _ in kept} - {""}):
        values[f"AEPE {group} [px]"] = mean([row for pair, row in kept if pair.group == group], "AEPE [px]")
    return values, Curve("threshold [px]", PCK_PX, {"PCK": [mean(rows, f"PCK@{t}", pooled=True) for t in PCK_PX]})


def _pooled(kept: Kept) -> Summary:
    """PCK over the points of all pairs. Source: RANSAC-Flow, DenseMatching."""
    rows = [row for _, row in kept]
    at = {f"PCK@{t}": mean(rows, f"PCK@{t}", pooled=True) for t in PCK_PX}
    return at, Curve("threshold [px]", PCK_PX, {"PCK": list(at.values())})


def _kitti(kept: Kept) -> Summary:
    """AEPE as the mean over images, Fl over all pixels. Source: KITTI 2015, DenseMatching."""
    rows = [row for _, row in kept]
    return {"AEPE [px]": mean(rows, "AEPE [px]"), "Fl": mean(rows, "Fl", pooled=True)}, None


def _tss(kept: Kept) -> Summary:
    """Share of the object's pixels within 0.05 of the source's longer side, mean over images, by subset. Source: DenseMatching."""
    name, groups = f"alpha {TSS_ALPHA}", sorted({pair.group for pair, _ in kept})
    values = {f"{group} PCK@{TSS_ALPHA}": mean([row for pair, row in kept if pair.group == group], name) for group in groups}
    return {**values, f"PCK@{TSS_ALPHA}": float(np.mean(list(values.values())))}, None


SUMMARIES = {"aepe/eth3d": _by_rate, "aepe/hpatches": _by_group, "aepe/motorcycle": _by_group, "pck/megadepth": _pooled, "flow/kitti": _kitti, "pck/tss": _tss}
FRAMES = {
    "aepe/eth3d": "original images; flow at rounded pixels of the target",
    "aepe/hpatches": "original images",
    "aepe/motorcycle": "the images as scikit-image has them",
    "pck/megadepth": "source image with its shorter side at 480 px, sides multiples of 16",
    "flow/kitti": "original images",
    "pck/tss": "longer side of the source = 1",
}

PROTOCOL = Protocol("dense", "dense flow: ETH3D, HPatches, MegaDepth, Middlebury, KITTI, TSS", add_flags, predict, score)
