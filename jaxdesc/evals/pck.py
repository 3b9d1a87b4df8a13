"""Semantic keypoint transfer: PCK as each paper counts it, named by its rule, label transfer on Caltech-101, and dense PCK on TSS."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdesc.config import option
from jaxdesc.datasets import semantic
from jaxdesc.datasets.semantic import SemanticPair
from jaxdesc.errors import UserError
from jaxdesc.evals import Protocol, transfers
from jaxdesc.evals.features import label_of, source_of
from jaxdesc.evals.published import BYTES
from jaxdesc.evals.result import Curve, Result
from jaxdesc.images import fit, rescale, resize
from jaxdesc.images import size_of as image_size
from jaxdesc.store.features import STORAGES

ALPHAS = tuple(k / 100 for k in range(1, 21))
REPORTED = (0.05, 0.1, 0.15)
GREEN_PX = 20.0  # a transfer that is drawn green is right within this. Source: COLD, supplementary, figure 3


class Rule(NamedTuple):
    """One way to count; the table is in evaluation.md, C.6."""

    help: str
    backward: bool  # target to source, not source to target
    square: int | None  # both images are squashed to this side; None: any scale that keeps the aspect, which PCK does not see
    length: str  # L, of the image that points are moved to: "image" its longer side, "box" that of the object's box, "keypoints" of theirs, "square" the square
    rounded: bool = False  # points that are moved are rounded to pixels (of the square)
    merged: bool = False  # those rounded to one pixel count once, as the last of them


RULES = {
    "hpf-img": Rule("HPF, tau_img; GSF on PF-PASCAL", False, None, "image"),
    "hpf-bbox": Rule("HPF, tau_bbox; SPair-71k", False, None, "box"),
    "kp-extent": Rule("HPF on PF-WILLOW: extent of the target's keypoints", False, None, "keypoints"),
    "ncnet-scnet": Rule("NC-Net: target to source in 224 x 224 px", True, 224, "square"),
    "sfnet-288": Rule("SFNet: target to source in 288 x 288 px, rounded", True, 288, "square", True),
    "dm-img": Rule("DenseMatching: target to source, source's longer side", True, None, "image", True, True),
    "dm-bbox": Rule("DenseMatching with the source's box", True, None, "box", True, True),
    "dm-kp": Rule("DenseMatching with the extent of the source's keypoints", True, None, "keypoints", True, True),
    "dhpf-240": Rule("DHPF, COLD: images squashed to 240 x 240 px", False, 240, "square"),
}
DEFAULT_RULES = {
    "pf-pascal": ("hpf-img", "hpf-bbox", "dhpf-240"),
    "pf-willow": ("kp-extent", "hpf-img"),
    "spair": ("hpf-bbox", "hpf-img"),
}


# ---- scoring one pair


def length(kind: str, square: int | None, size: tuple[int, int], box: np.ndarray | None, xy: np.ndarray) -> float:
    """L in pixels of the frame that is scored in.

    Raises:
      UserError: the pair has no box.
    """
    if kind == "square":
        return float(square)
    if kind == "image":
        return float(max(size))
    if kind == "box":
        if box is None:
            raise UserError("There are no boxes of the objects in this data set: choose another --rule.")
        return float(max(box[2] - box[0], box[3] - box[1]))
    return float(np.ptp(xy, axis=0).max())


def distances(rule: Rule, pair: SemanticPair, size_of: dict[str, tuple[int, int]], transfer: transfers.Transfer, free: bool) -> np.ndarray:
    """(K,) distance of each moved keypoint from its true place, over L: right at alpha if at most alpha.

    Args:
      free: the transfer takes any points, so that points can be rounded first; else they are the data set's own, and only merging is as the rule says.
    """
    ends = [(pair.source, pair.xy_source, pair.box_source), (pair.target, pair.xy_target, pair.box_target)]
    (a, xy_a, _), (b, xy_b, box_b) = reversed(ends) if rule.backward else ends
    scale_a, scale_b = (np.array([rule.square / w, rule.square / h]) if rule.square else np.ones(2) for w, h in (size_of[a], size_of[b]))
    asked, truth = xy_a, xy_b * scale_b
    if rule.rounded:
        pixels = np.rint(xy_a * scale_a)
        if rule.merged:
            last = {tuple(pixel): k for k, pixel in enumerate(pixels.tolist())}
            kept = np.array(sorted(last.values()))
        else:
            kept = np.arange(len(xy_a))
        asked = pixels / scale_a if free else xy_a
    moved = transfer(a, b, asked, size_of[a]) * scale_b
    error = np.linalg.norm(moved - truth, axis=1)
    L = length(rule.length, rule.square, size_of[b], box_b, xy_b)
    if rule.rounded:
        error = error[kept]
    return error / L if L > 0 else np.where(error == 0, 0.0, np.inf)


def pck(pairs: Sequence[SemanticPair], errors: Sequence[np.ndarray], name: str, about: dict[str, Any]) -> Result:
    """Mean over pairs of the share of keypoints within alpha L, and "pooled" over all keypoints; classes and variations are rows of per_item."""
    shares = np.array([(e[:, None] <= np.array(ALPHAS)).mean(0) for e in errors])
    at = {alpha: ALPHAS.index(alpha) for alpha in REPORTED}
    pooled = (np.concatenate(errors)[:, None] <= np.array(ALPHAS)).mean(0)
    overall = shares.mean(0)
    values = {f"PCK@{alpha:g}": float(overall[k]) for alpha, k in at.items()} | {f"pooled PCK@{alpha:g}": float(pooled[k]) for alpha, k in at.items()}
    groups: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        for group in ((f"class {pair.category}",) if pair.category else ()) + pair.tags:
            groups.setdefault(group, []).append(i)
    rows = {group: shares[rows] for group, rows in sorted(groups.items())} | {pair.key: shares[i : i + 1] for i, pair in enumerate(pairs)}
    items = {key: {f"PCK@{alpha:g}": float(found[:, k].mean()) for alpha, k in at.items()} | {"pairs": len(found)} for key, found in rows.items()}
    rule = RULES[name]
    settings = {
        "pairs": len(pairs),
        "direction": "target to source" if rule.backward else "source to target",
        "resize rule": f"squashed to {rule.square} x {rule.square} px" if rule.square else "none; PCK does not depend on a scale that keeps the aspect",
        "pixel rule": "coordinates as in the data set's files" + (", rounded to pixels" if rule.rounded else ""),
        "L": rule.length,
        "correct": "distance <= alpha L",
    }
    return Result(f"pck/{name}", rule.help, values=values, curve=Curve("alpha", ALPHAS, {"PCK": overall}), per_item=items, settings=settings, **about)


def labels(pairs: Sequence[SemanticPair], masks: Sequence[tuple[np.ndarray, np.ndarray]], about: dict[str, Any]) -> Result:
    """Label-transfer accuracy and intersection over union of moved and true masks. Source: HPF, `eval_caltech`."""
    rows = []
    for moved, truth in masks:
        union = (moved | truth).sum()
        rows.append({"LT-ACC": float((moved == truth).mean()), "IoU": float((moved & truth).sum() / union) if union else 0.0})
    values = {name: float(np.mean([row[name] for row in rows])) for name in ("LT-ACC", "IoU")}
    items = {pair.key: row for pair, row in zip(pairs, rows, strict=True)}
    settings = {"pairs": len(pairs), "direction": "source to target, points of the polygon", "resize rule": "none, original images"}
    return Result("labels/hpf-caltech", "", values=values, per_item=items, settings=settings, **about)


def mask(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels inside a polygon (K, 2) of (x, y)."""
    from skimage.draw import polygon as inside

    made = np.zeros((size[1], size[0]), bool)
    made[inside(polygon[:, 1], polygon[:, 0], made.shape)] = True
    return made


# ---- the protocol


@dataclass(frozen=True, kw_only=True)
class Options(transfers.TransferOptions):
    """Semantic keypoint transfer."""

    dataset: str = option(MISSING, "what --data is", choices=tuple(semantic.DATASETS))
    split: str = option("test", "of the lists of pairs", unit="NAME")
    pairs: str | Path = option(
        "",
        "list of pairs in the data set's own form (default: the one in --data)",
        unit="FILE",
    )
    rule: tuple[str, ...] = option(
        (),
        f"how PCK is counted, of {', '.join(RULES)} (default: the data set's usual ones)",
        choices=tuple(RULES),
        unit="RULE",
    )
    transfer: str = option(
        "nearest",
        "with --weights: nearest descriptor of all pixels; the flow of quasi-dense matches; or "
        "own, how the method itself moves keypoints (COLD, GSF)",
        choices=("nearest", "match", "own"),
    )
    storage: str = option(
        "float32", "--transfer nearest: descriptors are kept so in between", choices=STORAGES
    )
    held_out: bool = option(
        False,
        "only pairs that training on such a folder never saw: of a data set without lists of its "
        "own",
    )
    max_side: int = option(
        320, "larger images are shrunk to it before they are described", at_least=32, unit="PX"
    )
    figures: int = option(
        0, "draw the first N pairs, transfers within 20 px green, others red", at_least=0
    )

    def __post_init__(self):
        super().__post_init__()
        if self.storage != "float32" and self.transfer != "nearest":
            raise UserError(
                f"--storage {self.storage} is for --transfer nearest: --transfer {self.transfer} "
                "keeps no descriptors."
            )
        if self.held_out and (self.dataset != "pf-willow" or self.pairs):
            raise UserError(
                "--held-out is for --dataset pf-willow without --pairs: lists say themselves what "
                "is held out, see --split."
            )


def _read(options: Options) -> list[SemanticPair]:
    listed = Path(options.pairs) if options.pairs else None
    pairs = semantic.read(options.dataset, options.folder(), listed, options.split)
    return semantic.split_by_images(pairs).validation if options.held_out else pairs


def sizes(root: Path, pairs: Sequence[SemanticPair]) -> dict[str, tuple[int, int]]:
    """(width, height) of every image."""
    return {name: image_size(root / name) for pair in pairs for name in (pair.source, pair.target)}


def predict(options: Options, out: Path) -> Path:
    """`<out>/transfers.h5`: every pair's keypoints moved both ways; pairs that are in it already are skipped."""
    from tqdm import tqdm

    from jaxdesc.store.settings import claim

    pairs, root, path = _read(options), Path(options.data), out / "transfers.h5"
    settings, move = ({"method": "identity"}, scaled) if options.method else trained(options)
    claim(path, settings, options.overwrite)
    known, size_of = transfers.written(path), sizes(root, pairs)
    todo = [pair for pair in pairs if not {transfers.arrow(pair.source, pair.target), transfers.arrow(pair.target, pair.source)} <= known]
    for pair in tqdm(todo, desc="transferring", unit="pair", dynamic_ncols=True, disable=not todo):
        for a, b, xy in ((pair.source, pair.target, pair.xy_source), (pair.target, pair.source, pair.xy_target)):
            transfers.write_points(path, a, b, move(root / a, root / b, xy, size_of[a], size_of[b]))
    return path


Move = Callable[[Path, Path, np.ndarray, tuple[int, int], tuple[int, int]], np.ndarray]


def scaled(a: Path, b: Path, xy: np.ndarray, size_a: tuple[int, int], size_b: tuple[int, int]) -> np.ndarray:
    """The same place relative to the image: x' = (x + .5) s - .5."""
    return (xy + 0.5) * (np.array(size_b) / size_a) - 0.5


def trained(options: Options) -> tuple[dict[str, Any], Move]:
    """By --weights: a keypoint moves to the pixel whose descriptor has the highest dot product with its own, or along densified matches."""
    from jaxdesc.images import read_rgb
    from jaxdesc.predict.predictor import densified, load
    from jaxdesc.store.features import descriptor_bytes, packed, unpacked

    predictor = load(options.weights)

    @functools.lru_cache(maxsize=8)
    def shrunk(path: Path) -> tuple[np.ndarray, tuple[int, int]]:
        rgb = read_rgb(path)
        return resize(rgb, fit(rgb.shape[:2], options.max_side)), rgb.shape[:2]

    @functools.lru_cache(maxsize=8)
    def described(path: Path) -> np.ndarray:
        found = predictor.describe(shrunk(path)[0])
        stored = packed(found.reshape(-1, found.shape[2]), options.storage)
        return unpacked(*stored).reshape(found.shape)

    def nearest(a: Path, b: Path, xy: np.ndarray, size_a: tuple[int, int], size_b: tuple[int, int]) -> np.ndarray:
        small_a, small_b = described(a), described(b)
        own = transfers.sample(small_a, rescale(xy, size_a[::-1], small_a.shape[:2])).astype(np.float32)
        best = (own @ small_b.reshape(-1, small_b.shape[2]).T).argmax(1)
        found = np.column_stack([best % small_b.shape[1], best // small_b.shape[1]])
        return rescale(found, small_b.shape[:2], size_b[::-1])

    def match(a: Path, b: Path, xy: np.ndarray, size_a: tuple[int, int], size_b: tuple[int, int]) -> np.ndarray:
        (small_a, _), (small_b, _) = shrunk(a), shrunk(b)
        try:
            positions = densified(predictor.match(small_a, small_b, say=lambda _: None), small_a.shape[:2], small_b.shape[:2])
        except UserError:  # no match at all
            return scaled(a, b, xy, size_a, size_b)
        return rescale(transfers.sample(positions, rescale(xy, size_a[::-1], small_a.shape[:2])), small_b.shape[:2], size_b[::-1])

    def own(a: Path, b: Path, xy: np.ndarray, size_a: tuple[int, int], size_b: tuple[int, int]) -> np.ndarray:
        return predictor.transfer(read(a), read(b), np.clip(xy, 0, np.array(size_a) - 1))  # annotations that count from 1 may lie a pixel outside

    read = functools.lru_cache(maxsize=8)(read_rgb)
    stored = f", {options.storage}" if options.transfer == "nearest" else ""
    settings = {
        "method": f"{predictor.source}, {options.transfer}{stored}",
        "weights": predictor.digest,
        "transfer": options.transfer,
        "max_side": options.max_side,
        "storage": options.storage,
    }
    if options.transfer != "match":
        settings["descriptor_bytes"] = descriptor_bytes(predictor.dim, options.storage)
    return settings, {"nearest": nearest, "match": match, "own": own}[options.transfer]


def score(options: Options, predictions: Path | str) -> list[Result]:
    pairs, root, predictions = _read(options), Path(options.data), Path(predictions)
    size_of = sizes(root, pairs)
    transfer, free = transfers.reader(predictions)
    split = "held out" if options.held_out else options.split
    about = {
        "dataset": f"{options.dataset} {split} ({len(pairs)} pairs)",
        "method": label_of(options, predictions),
    }
    if options.figures:
        draw(pairs[: options.figures], root, size_of, transfer, Path(options.out) / "figures")
    if options.dataset == "caltech":
        moved = [transfer(pair.source, pair.target, pair.xy_source, size_of[pair.source]) for pair in pairs]
        masks = [(mask(xy, size_of[pair.target]), mask(pair.xy_target, size_of[pair.target])) for pair, xy in zip(pairs, moved, strict=True)]
        return [labels(pairs, masks, about)]
    size = source_of(predictions).get("descriptor_bytes")
    rules = options.rule or [
        name
        for name in DEFAULT_RULES[options.dataset]
        if RULES[name].length != "box" or all(pair.box_target is not None for pair in pairs)
    ]
    found = [pck(pairs, [distances(RULES[name], pair, size_of, transfer, free) for pair in pairs], name, about) for name in dict.fromkeys(rules)]
    return [dataclasses.replace(one, values={**one.values, BYTES: float(size)}) if size else one for one in found]


def draw(pairs: Sequence[SemanticPair], root: Path, size_of: dict[str, tuple[int, int]], transfer: transfers.Transfer, folder: Path) -> None:
    """One PNG a pair: lines from the source's keypoints to where they are moved, green within 20 px of the truth, else red. Source: COLD, figures 3 and 4."""
    from PIL import Image

    from jaxdesc import figures
    from jaxdesc.images import read_rgb
    from jaxdesc.store.files import atomic

    for pair in pairs:
        moved = transfer(pair.source, pair.target, pair.xy_source, size_of[pair.source])
        good = np.linalg.norm(moved - pair.xy_target, axis=1) <= GREEN_PX if len(moved) == len(pair.xy_target) else None
        picture = figures.side_by_side(read_rgb(root / pair.source), read_rgb(root / pair.target), pair.xy_source, moved, good)
        with atomic(folder / f"{transfers.arrow(pair.source, pair.target)}.png") as temporary:
            Image.fromarray(picture).save(temporary)


PROTOCOL = Protocol(
    "pck",
    "semantic keypoint transfer: PCK on PF-PASCAL, PF-WILLOW, SPair-71k; labels on Caltech-101",
    Options,
    predict,
    score,
)
