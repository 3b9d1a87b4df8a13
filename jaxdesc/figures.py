"""The papers' pictures, from arrays to pixels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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


def warp(image2: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Image 2 as image 1 sees it; black where it does not reach.

    Args:
      image2: (H2, W2, 3) in [0, 1] or uint8.
      positions: (H1, W1, 2) the place (x, y) in image 2 of every pixel of image 1.
    Returns:
      (H1, W1, 3) uint8, bilinear.
    """
    pixels = image2 if image2.dtype == np.uint8 else (np.clip(image2, 0, 1) * 255).round().astype(np.uint8)
    return cv2.remap(pixels, positions.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


# KITTI's colours of errors: up to 3/16 px, 3/8, 3/4, 1.5, 3 (blue, right) and 6, 12, 24, 48 px, more (red, wrong)
KITTI = np.array(
    [
        (49, 54, 149),
        (69, 117, 180),
        (116, 173, 209),
        (171, 217, 233),
        (224, 243, 248),
        (254, 224, 144),
        (253, 174, 97),
        (244, 109, 67),
        (215, 48, 39),
        (165, 0, 38),
    ]
)
KITTI_PX = 3 * 2.0 ** np.arange(-4, 5)


def error_circles(image: np.ndarray, xy: np.ndarray, error_px: np.ndarray, area_px: float = 30.0) -> np.ndarray:
    """Errors at control points as filled circles whose area is proportional to the error, in KITTI's colours. Source: PUMP, figure C.

    Args:
      image: (H, W, 3) in [0, 1] or uint8, such as `warp` gives.
      xy: (N, 2) pixels; error_px: (N,) pixels.
      area_px: of the circle of an error of one pixel; a circle is never smaller than a dot that can be seen.
    Returns:
      (H', W', 3) uint8, enlarged if it is small.
    """
    figure, axes = _on_image(image)
    order = np.argsort(-error_px)  # small ones on top
    scale = figure.bbox.width / image.shape[1]
    points = np.maximum(
        area_px * scale**2 * (72 / figure.dpi) ** 2 * error_px, 4.0
    )  # matplotlib's unit: the square of a disc's diameter in points, 4 / pi areas
    colours = KITTI[np.searchsorted(KITTI_PX, error_px)] / 255
    axes.scatter(*xy[order].T, s=points[order] * 4 / np.pi, c=colours[order], edgecolors="black", linewidths=0.5)
    return _pixels(figure)


def _on_image(image: np.ndarray) -> tuple[Figure, Axes]:
    """A figure that is the image, at least 480 pixels high, with axes in its pixels."""
    height, width = image.shape[:2]
    scale = max(1.0, 480 / height)
    figure = Figure(figsize=(width * scale / 100, height * scale / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(image, aspect="auto")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), autoscale_on=False)
    return figure, axes


def mma_curve(curves: dict[str, tuple[np.ndarray, np.ndarray]], marks: dict[str, tuple[float, float]] | None = None, threshold_px: float = 5) -> np.ndarray:
    """MMA against the number of matches per image, one line per descriptor as its matching threshold moves. Source: PUMP, figure A.

    Args:
      curves: name -> numbers of matches (T,), MMA (T,) in [0, 1].
      marks: name -> (number, MMA), points to set apart, such as where a detector's own threshold lies.
    Returns:
      (H, W, 3) uint8.
    """
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, (numbers, mma) in curves.items():
        order = np.argsort(numbers)
        axes.plot(np.asarray(numbers)[order], np.asarray(mma)[order], label=name)
    for name, point in (marks or {}).items():
        axes.plot(*point, "o", label=name)
    axes.set(xlabel="matches per image", ylabel=f"MMA@{threshold_px:g}", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    return _pixels(figure)


def heat_maps(image1: np.ndarray, image2: np.ndarray, levels: Sequence[Any]) -> np.ndarray:
    """A query's way up the pyramid, one row a level. Source: PUMP, figures D and E.

    Left: image 1 with the query's patch, whose side doubles from level to level. Middle: image 2 with the three greatest local maxima of its map, in red, green
    and blue, the best on top. Right: the map.

    Args:
      image1, image2: (H, W, 3) in [0, 1] or uint8.
      levels: with the fields centre_xy, side_px (of the patch), step_px, responses (h, w), position (i, j) being pixel (step_px j, step_px i) of image 2.
    Returns:
      (H', W', 3) uint8.
    """
    heights = 2.2 * len(levels)
    figure = Figure(figsize=(9, heights), dpi=100, layout="constrained")
    for row, level in zip(figure.subplots(len(levels), 3, squeeze=False), levels, strict=True):
        for axes, image in zip(row[:2], (image1, image2), strict=True):
            axes.imshow(image)
            axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        (x, y), half = level.centre_xy, level.side_px / 2
        row[0].add_patch(Rectangle((x - half, y - half), level.side_px, level.side_px, fill=False, edgecolor="red", linewidth=1.5))
        row[0].plot(x, y, ".", color="red", markersize=4)
        for i, (j_row, j_column) in reversed(list(enumerate(peaks(level.responses, 3)))):
            corner = level.step_px * j_column - half, level.step_px * j_row - half
            row[1].add_patch(Rectangle(corner, level.side_px, level.side_px, fill=False, edgecolor=("red", "lime", "blue")[i], linewidth=1.5))
            row[1].plot(corner[0] + half, corner[1] + half, ".", color=("red", "lime", "blue")[i], markersize=4)
        edge = level.step_px / 2
        height, width = level.responses.shape
        row[2].imshow(level.responses, cmap="magma", extent=(-edge, level.step_px * width - edge, level.step_px * height - edge, -edge))
        row[2].set(xlim=row[1].get_xlim(), ylim=row[1].get_ylim())
        row[0].set_ylabel(f"patch of {level.side_px} px")
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return _pixels(figure)


def peaks(responses: np.ndarray, count: int) -> np.ndarray:
    """(count or fewer, 2) (row, column) of the greatest local maxima among 3x3 neighbours, best first; nothing below or at 0 counts."""
    around = np.pad(responses, 1, constant_values=-np.inf)
    neighbours = np.lib.stride_tricks.sliding_window_view(around, (3, 3)).max((2, 3))
    rows, columns = np.nonzero((responses == neighbours) & (responses > 0))
    best = np.argsort(-responses[rows, columns], kind="stable")[:count]
    return np.column_stack([rows, columns])[best]


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
