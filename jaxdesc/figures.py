"""The papers' pictures, from arrays to pixels."""

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

GREEN, RED = "#2ca02c", "#d62728"


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def side_by_side(image1: np.ndarray, image2: np.ndarray, xy1: np.ndarray, xy2: np.ndarray, good: np.ndarray | None = None, most: int = 80) -> np.ndarray:
    """Two images beside each other with lines between matches: green where good, red where not, by position where unknown.

    Args:
      image1, image2: (H, W, 3) in [0, 1] or uint8.
      xy1, xy2: (N, 2) pixels; at most `most` of them, evenly picked, are drawn.
      good: (N,) bool, or None if the truth is unknown.
    Returns:
      (H', W', 3) uint8.
    """
    h = max(image1.shape[0], image2.shape[0])
    scale = max(1.0, 480 / h)
    gap = 8
    w = image1.shape[1] + gap + image2.shape[1]
    figure = Figure(figsize=(w * scale / 100, h * scale / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(-0.5, w - 0.5)
    axes.set_ylim(h - 0.5, -0.5)
    shift = image1.shape[1] + gap
    axes.imshow(image1, extent=(-0.5, image1.shape[1] - 0.5, image1.shape[0] - 0.5, -0.5), aspect="auto")
    axes.imshow(image2, extent=(shift - 0.5, w - 0.5, image2.shape[0] - 0.5, -0.5), aspect="auto")
    axes.set_xlim(-0.5, w - 0.5)
    axes.set_ylim(h - 0.5, -0.5)
    picked = np.unique(np.linspace(0, len(xy1) - 1, min(most, len(xy1))).round().astype(int)) if len(xy1) else np.zeros(0, int)
    a, b = np.asarray(xy1)[picked], np.asarray(xy2)[picked] + [shift, 0]
    if good is not None:
        colours = [GREEN if g else RED for g in np.asarray(good)[picked]]
    else:
        import matplotlib

        colours = matplotlib.colormaps["turbo"](a[:, 0] / max(image1.shape[1], 1)) if len(a) else []
    axes.add_collection(LineCollection(np.stack([a, b], axis=1), colors=colours, linewidths=0.8, alpha=0.8))
    axes.scatter(*np.concatenate([a, b]).T, s=6, c=np.concatenate([colours, colours]) if len(a) else None)
    return _pixels(figure)


def training_curve(metrics: Path) -> np.ndarray:
    """Loss (left) and validation MMA (right) against steps, from a run's metrics.jsonl."""
    rows = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, split, names in ((left, "train", ("loss", "L_AP", "L_uniq")), (right, "validation", ("mma@1px", "mma@3px", "mma@5px"))):
        chosen = [row for row in rows if row["split"] == split]
        for name in names:
            points = [(row["step"], row[name]) for row in chosen if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if split == "validation" else None)
        axes.set_xlabel("step")
        axes.set_title("training loss" if split == "train" else "validation: share of matches within 1, 3, 5 px")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    right.set_ylim(0, 1)
    return _pixels(figure)
