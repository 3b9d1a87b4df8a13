"""The papers' pictures, from arrays to pixels."""

import json
from collections.abc import Callable, Sequence
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


def pair_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], width_px: int = 2000) -> np.ndarray:
    """Pairs of images of one size as a sheet, a pair's two beside each other.

    Args:
      pairs: of (H, W, 3) in [0, 1]. width_px: of the sheet at most, but for a single column.
    Returns:
      (H', W', 3) uint8.
    """
    gap, (height, width) = 6, pairs[0][0].shape[:2]
    columns = min(max(1, (width_px + gap) // (2 * width + gap)), len(pairs))
    rows = -(-len(pairs) // columns)
    sheet = np.ones((rows * (height + gap) - gap, columns * (2 * width + gap) - gap, 3))
    for i, pair in enumerate(pairs):
        top, left = i // columns * (height + gap), i % columns * (2 * width + gap)
        sheet[top : top + height, left : left + 2 * width] = np.concatenate(pair, 1)
    return np.uint8(255 * np.clip(sheet, 0, 1) + 0.5)


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


def alignment(source: np.ndarray, target: np.ndarray, warped: np.ndarray, xy1: np.ndarray, xy2: np.ndarray) -> np.ndarray:
    """Source, target and the source warped to the target, above the source and the target with lines between confident matches. Source: GSF, supplementary,
    figures 1 and 2.

    Args:
      source, target, warped: (H, W, 3) in [0, 1] or uint8; the last two of one size. xy1, xy2: (N, 2) matches, px of source and target.
    Returns:
      (H', W', 3) uint8.
    """
    lines = side_by_side(source, target, xy1, xy2)
    width = lines.shape[1]
    gap, height = 8, lines.shape[0]
    row = [image if image.dtype == np.uint8 else (np.clip(image, 0, 1) * 255).round().astype(np.uint8) for image in (source, target, warped)]
    row = [cv2.resize(image, (max(1, round(image.shape[1] * height / image.shape[0])), height), interpolation=cv2.INTER_AREA) for image in row]
    white = np.full((height, gap, 3), 255, np.uint8)
    above = np.concatenate([row[0], white, row[1], white, row[2]], 1)
    above = cv2.resize(above, (width, max(1, round(height * width / above.shape[1]))), interpolation=cv2.INTER_AREA)
    return np.concatenate([above, np.full((gap, width, 3), 255, np.uint8), lines])


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


def distributions(image1: np.ndarray, image2: np.ndarray, xy1: np.ndarray, xy2: np.ndarray | None, found: Any) -> np.ndarray:
    """Where queries may be in image 2, one row a query. Source: CAPS, supplement, figure 1.

    From left to right: the query in image 1; its true place in image 2, where that is known; the coarse and the fine probabilities laid over image 2, the latter
    with the window outside of which they are 0.

    Args:
      image1, image2: (H, W, 3) in [0, 1] or uint8.
      xy1: (N, 2) pixels of image 1; xy2: (N, 2) pixels of image 2, or None.
      found: with the fields coarse (N, h, w) and fine (N, r, c), probabilities on grids whose corners are the centres of the image's, or of the window's, corner
        pixels; window_px (N, 4) the window's left, top, right and bottom.
    Returns:
      (H', W', 3) uint8.
    """
    figure = Figure(figsize=(14, 3.5 * max(image1.shape[0] / image1.shape[1], image2.shape[0] / image2.shape[1]) * len(xy1)), dpi=100, layout="constrained")
    height, width = image2.shape[:2]
    for i, row in enumerate(figure.subplots(len(xy1), 4, squeeze=False)):
        for axes, image in zip(row, (image1, image2, image2, image2), strict=True):
            axes.imshow(image)
        row[0].plot(*xy1[i], "o", color="red", markeredgecolor="white", markersize=6)
        if xy2 is not None:
            row[1].plot(*xy2[i], "o", color="red", markeredgecolor="white", markersize=6)
        left, top, right, bottom = found.window_px[i]
        _heat(row[2], found.coarse[i], (0, 0, width - 1, height - 1))
        _heat(row[3], found.fine[i], (left, top, right, bottom))
        row[3].add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="red", linewidth=1.2))
        for axes, image in zip(row, (image1, image2, image2, image2), strict=True):
            axes.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        if i == 0:
            for axes, title in zip(row, ("query", "true match" if xy2 is not None else "image 2", "coarse", "fine"), strict=True):
                axes.set_title(title)
    return _pixels(figure)


def _heat(axes: Axes, values: np.ndarray, box: Sequence[float]) -> None:
    """Lays values over the axes, the more opaque the greater; the grid's corners are the corners (left, top, right, bottom) of the box."""
    (rows, columns), (left, top, right, bottom) = values.shape, box
    dx, dy = (right - left) / max(columns - 1, 1) / 2, (bottom - top) / max(rows - 1, 1) / 2
    share = values / values.max()
    axes.imshow(share, cmap="jet", alpha=0.25 + 0.6 * share, extent=(left - dx, right + dx, bottom + dy, top - dy), vmin=0, vmax=1, zorder=2)


def dense_correspondence(image1: np.ndarray, image2: np.ndarray, xy1: np.ndarray, xy2: np.ndarray, step_px: float = 50.0) -> np.ndarray:
    """Both images, and again with matches as dots whose colours say which belong together. Source: CAPS, supplement, figure 2.

    Args:
      image1, image2: (H, W, 3) in [0, 1] or uint8.
      xy1, xy2: (N, 2) pixels; of all matches those are drawn that lie at the nodes of a grid of image 1, see `on_grid`.
      step_px: spacing of the grid.
    Returns:
      (H', W', 3) uint8.
    """
    height, width = image1.shape[:2]
    picked = on_grid(xy1, (height, width), step_px)
    x, y = xy1[picked].T / np.array([[max(width - 1, 1)], [max(height - 1, 1)]])
    colours = np.clip(np.stack([x, y, 1 - x], 1), 0, 1)
    figure = Figure(figsize=(16, 4 * max(height / width, image2.shape[0] / image2.shape[1])), dpi=100, layout="constrained")
    panels = figure.subplots(1, 4)
    for i, (image, xy) in enumerate(((image1, xy1), (image2, xy2))):
        panels[i].imshow(image)
        panels[2 + i].imshow(image, alpha=0.4)
        panels[2 + i].scatter(*xy[picked].T, s=40, c=colours, edgecolors="black", linewidths=0.5)
        for axes in (panels[i], panels[2 + i]):
            axes.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    return _pixels(figure)


def on_grid(xy: np.ndarray, size_hw: tuple[int, int], step_px: float) -> np.ndarray:
    """Indices of the points (N, 2) that are nearest to the nodes step/2, 3 step/2, ... of an image, row by row; nodes without any within step/2 are left out."""
    ys, xs = (np.arange(step_px / 2, side, step_px) for side in size_hw)
    picked = []
    for node in np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2):
        distance = np.linalg.norm(np.asarray(xy) - node, axis=1)
        if len(distance) and distance.min() <= step_px / 2:
            picked.append(int(distance.argmin()))
    return np.array(picked, np.int64)


NOT_LOSSES = ("grad_norm", "images_per_s")  # of what a step tells


def training_curve(metrics: Path) -> np.ndarray:
    """A run's metrics.jsonl against steps: the loss and its parts; shares of right matches in training and validation; and, where a validation measured any, mean
    distances in pixels. Source: CAPS, supplement, figure 4."""
    rows = [json.loads(line) for line in Path(metrics).read_text().splitlines()]

    def series(split: str, wanted: Callable[[str], bool]) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["split"] == split:
                for name in sorted(set(row) - {"step", "split"}, key=lambda name: (name != "loss", name)):
                    if wanted(name):
                        found.setdefault(name, []).append((row["step"], row[name]))
        return found

    shares = series("validation", lambda name: "@" in name), series("train", lambda name: "@" in name)
    distances = series("validation", lambda name: name.endswith("_px"))
    panels = [
        ("training loss", {}, series("train", lambda name: "@" not in name and name not in NOT_LOSSES)),
        ("share of matches within so many pixels of the truth", *shares),
        *([("validation: mean distance, pixels", distances, {})] if distances else []),
    ]
    figure = Figure(figsize=(5 * len(panels), 4), dpi=100, layout="constrained")
    for axes, (title, validation, train) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name, points in train.items():
            axes.plot(*zip(*points, strict=True), label=f"{name}, training" if validation else name, linewidth=1)
        for name, points in validation.items():
            axes.plot(*zip(*points, strict=True), label=f"{name}, validation" if train else name, marker=".")
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.axes[1].set_ylim(0, 1)
    return _pixels(figure)


def study_curves(
    x_label: str,
    y_label: str,
    curves: dict[str, tuple[int, str, Sequence[tuple[Any, float]]]],
    points: dict[str, tuple[Any, float]],
    title: str,
) -> np.ndarray:
    """Scores against the values of one field of a configuration.

    Args:
      curves: name -> number of its colour, matplotlib's style of the line, (value, score) in any order. Values that are no numbers are set side by side.
      points: name -> (value, score), to be set apart.
    Returns:
      (H, W, 3) uint8; values that reach over more than a factor of 16 are on a logarithmic axis.
    """
    values = [x for _, _, line in curves.values() for x, _ in line]
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values)
    at = {x: x if numbers else i for i, x in enumerate(dict.fromkeys(values))}
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, (colour, style, line) in curves.items():
        line = sorted((at[x], y) for x, y in line)
        axes.plot(*zip(*line, strict=True), style, color=f"C{colour}", marker="o", markersize=4, label=name)
    for i, (name, (x, y)) in enumerate(points.items()):
        axes.plot(x, y, "sD^vP*X"[i % 7], color="0.4", label=name)
    if numbers and min(values) > 0 and max(values) > 16 * min(values):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    elif not numbers:
        axes.set_xticks(list(at.values()), [str(x) for x in at])
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1))
    axes.set_title(title, fontsize=9, wrap=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _pixels(figure)


def study_grids(fields: Sequence[str], score: str, panels: Sequence[tuple[str, dict[tuple, float]]]) -> np.ndarray:
    """Heat maps of a score with its numbers, side by side, each on its own scale of colours.

    Args:
      fields: names of rows and columns. panels: title, {(row, column): score, NaN where it is missing}.
    Returns:
      (H, W, 3) uint8.
    """
    figure = Figure(figsize=(5.5 * len(panels), 4.8), dpi=100, layout="constrained")
    for axes, (title, cells) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
        values = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
        axes.imshow(values, cmap="viridis")
        middle = np.nanmean([np.nanmin(values), np.nanmax(values)]) if np.isfinite(values).any() else 0.0
        for (i, j), value in np.ndenumerate(values):
            shown = f"{value:.3f}" if np.isfinite(value) else "missing"
            axes.text(j, i, shown, ha="center", va="center", color="white" if np.isfinite(value) and value <= middle else "black")
        axes.set_xticks(range(len(columns)), [str(column) for column in columns])
        axes.set_yticks(range(len(rows)), [str(row) for row in rows])
        axes.set(xlabel=fields[1], ylabel=fields[0])
        axes.set_title(f"{score}\n{title}", fontsize=9, wrap=True)
    return _pixels(figure)
