"""Dense flow scored by true correspondences: end-point errors, shares within some pixels, KITTI's Fl.

Where a predicted flow is unknown it counts as 0.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdesc.config import option
from jaxdesc.datasets import dense_pairs
from jaxdesc.datasets.dense_pairs import DensePair, DenseSet
from jaxdesc.errors import UserError
from jaxdesc.evals import Protocol, features, transfers
from jaxdesc.evals.result import Curve, Result

DATASETS = ("eth3d", "hpatches", "megadepth", "middlebury", "kitti", "tss")
PCK_PX = (1, 2, 3, 5, 8, 10, 13, 22, 36)
TSS_ALPHA = 0.05
CIRCLES = 60  # of a figure


@dataclass(frozen=True, kw_only=True)
class Options(transfers.TransferOptions):
    """Dense flow."""

    dataset: str = option(
        MISSING,
        "what --data is; middlebury needs none: its motorcycle pair comes with scikit-image",
        choices=DATASETS,
    )
    pairs: str | Path = option(
        "", "megadepth: list of pairs (default: the one in --data)", unit="FILE.csv"
    )
    square: int | None = option(
        None,
        "hpatches: count with both images squashed to this side, such as 240 (default: original "
        "images)",
        at_least=16,
        unit="PX",
    )
    figures: int = option(
        0,
        "draw the first N pairs: the second image warped to the first, errors as circles",
        at_least=0,
    )
    max_side: int | None = option(
        None,
        "with --weights: shrink larger images to this before matching",
        at_least=32,
        unit="PX",
    )
    matching: Mapping | None = option(
        None, "with --weights: fields of the method's MatchOptions", flag=None
    )

    def __post_init__(self):
        super().__post_init__()
        if self.square is not None and self.dataset != "hpatches":
            raise UserError(f"--square {self.square} is for --dataset hpatches alone.")


def read(options: Options, merged: bool = False) -> DenseSet:
    """The data set that the options name.

    Raises:
      UserError: no --data; as the readers.
    """
    if options.dataset == "middlebury":
        return dense_pairs.motorcycle()
    root = options.folder()
    if options.dataset == "eth3d":
        return dense_pairs.eth3d(root, merged)
    if options.dataset == "hpatches":
        return dense_pairs.hpatches_views(root, options.square)
    if options.dataset == "megadepth":
        return dense_pairs.megadepth(root, Path(options.pairs) if options.pairs else None)
    return dense_pairs.kitti(root) if options.dataset == "kitti" else dense_pairs.tss(root)


def predict(options: Options, out: Path) -> Path:
    """`<out>/flow/`: a .flo file for each pair; those that are there already are skipped."""
    from tqdm import tqdm

    from jaxdesc.store.flow import write_flo
    from jaxdesc.store.settings import claim

    found, folder = read(options), out / "flow"
    settings, positions_of = (
        ({"method": "identity"}, _identity) if options.method else _trained(options)
    )
    claim(folder, settings)
    todo = {
        (pair.a, pair.b): pair
        for pair in found.pairs
        if options.overwrite or not transfers.flow_path(folder, pair.a, pair.b).exists()
    }
    for (a, b), pair in tqdm(todo.items(), desc="matching", unit="pair", dynamic_ncols=True, disable=not todo):
        positions = positions_of(found, pair)
        here = dense_pairs.grid(pair.size_a).reshape(pair.size_a[1], pair.size_a[0], 2)
        known = np.isfinite(positions).all(-1)
        write_flo(transfers.flow_path(folder, a, b), np.where(known[..., None], positions - here, 0), known)
    return folder


def _identity(found: DenseSet, pair: DensePair) -> np.ndarray:
    xy = (dense_pairs.grid(pair.size_a) + 0.5) * (np.array(pair.size_b) / pair.size_a) - 0.5
    return xy.reshape(pair.size_a[1], pair.size_a[0], 2)


def _trained(options: Options) -> tuple[dict[str, Any], Any]:
    from jaxdesc.predict.predictor import load

    predictor = load(options.weights)
    matching = predictor.options(**(options.matching or {}))

    def positions_of(found: DenseSet, pair: DensePair) -> np.ndarray:
        a, b = found.load(pair.a), found.load(pair.b)
        matches = predictor.match_with(a, b, matching, options.max_side, lambda _: None)
        return predictor.positions(a, b, matches) if len(matches.score) else np.full((*a.shape[:2], 2), np.nan)

    settings = {"method": predictor.source, "weights": predictor.digest}
    settings |= {"max_side": options.max_side, **dataclasses.asdict(matching)}
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


def score(options: Options, predictions: Path | str) -> list[Result]:
    """One result; two of ETH3D, which is counted in two ways."""
    predictions = Path(predictions)
    if not predictions.is_dir():
        raise UserError(f"{predictions} is no folder: .flo files <a>--<b>.flo are expected, flow on the pixels of a that points to b.")
    if options.figures:
        draw(read(options), predictions, Path(options.out) / "figures", options.figures)
    if options.dataset == "eth3d":
        keys = {"aepe/eth3d-pump": False, "aepe/eth3d-dm": True}
        return [_score(options, predictions, k, read(options, v)) for k, v in keys.items()]
    keys = {"megadepth": "pck/megadepth-480", "middlebury": "aepe/motorcycle", "kitti": "flow/kitti", "tss": "pck/tss"}
    key = keys.get(options.dataset) or f"aepe/hpatches-{options.square or 'original'}"
    return [_score(options, predictions, key, read(options))]


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
        positions = flow + dense_pairs.grid(pair.size_a).reshape(flow.shape)
        picture = figures.error_circles(figures.warp(found.load(pair.b), positions), xy_a[picked], error)
        with atomic(out / f"{transfers.arrow(pair.a, pair.b)}.png") as temporary:
            Image.fromarray(picture).save(temporary)


def _score(options: Options, folder: Path, key: str, found: DenseSet) -> Result:
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
    squashed = f"both images squashed to {options.square} x {options.square} px"
    settings = {
        "pairs": len(kept),
        "without truth": [_name(pair) for pair, row in measured if not row["points"]],
        "flow": "on the first image of a pair (target), to the second (source); unknown counts as 0",
        "pixel rule": "top-left pixel centre (0, 0)",
        "frame of errors": squashed if options.square else FRAMES[key.split("-")[0]],
    }
    dataset, label = f"{options.dataset} ({len(kept)} pairs)", features.label_of(options, folder)
    return Result(key, "", dataset, label, values, curve, items, settings)


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

PROTOCOL = Protocol(
    "dense",
    "dense flow: ETH3D, HPatches, MegaDepth, Middlebury, KITTI, TSS",
    Options,
    predict,
    score,
    matches=True,
)
