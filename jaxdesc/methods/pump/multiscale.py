"""Matching two photographs at several scales and rotations, merged in the photographs' own frames.

Scale and rotation say how image 2 shows what image 1 shows: a small displacement d1 in image 1 is d2 = scale * R(rotation) d1 in image 2, R turning the x axis
towards the y axis (clockwise on a screen). At scale s image 1 is shrunk by min(s, 1) and image 2 by min(1 / s, 1), so that nothing is enlarged; then image 2 is
turned by -rotation about its centre on a canvas that holds it all. Its corners are black and never match.

Sides are filled up to multiples of BUCKET pixels: by reflection, so that the network sees no edge, or black where the canvas is turned.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates

from jaxdesc.methods.pump.single import MatchOptions, Size, fields
from jaxdesc.ops.matching import CELL, encode_pose, patch_centres
from jaxdesc.ops.matching_pyramid import patch_count
from jaxdesc.types import Array

BUCKET = 64  # pixels
GRID = 2  # pixels: of the matches in a square of this side, in either image, the best is kept
SMALLEST_SIDE = 16  # pixels: below this nothing is matched

Describe = Callable[[Array], Array]  # (B, H, W, 3) float32 RGB in [0, 1] -> (B, H, W, D)
Progress = Callable[[int, int], None]  # (correlations done, correlations in all)


class View(NamedTuple):
    """An image, or a part of it, as the network gets to see it."""

    image: np.ndarray  # (H, W, 3) float32, sides multiples of BUCKET
    size_hw: Size  # that exist
    mask: np.ndarray | None  # (H, W) bool: photograph, not canvas; None: no canvas
    to_image: np.ndarray  # (2, 3) affine: pixels of the view -> pixels of the whole image

    def locate(self, xy: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of the view -> of the image."""
        return xy @ self.to_image[:, :2].T + self.to_image[:, 2]

    def find(self, xy: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of the image -> of the view."""
        return np.linalg.solve(self.to_image[:, :2], (xy - self.to_image[:, 2]).T).T


class Run(NamedTuple):
    """What one pair of views gave."""

    rows: np.ndarray  # (N, 6) float32 reciprocal matches x1, y1, x2, y2, score, code in pixels of the whole images
    patches: np.ndarray  # (h1, w1) scores of view 1's patches
    cells: np.ndarray  # (h2, w2) scores of view 2's cells
    view1: View
    view2: View


class Crop(NamedTuple):
    """A part of an image."""

    pixels: np.ndarray  # (H, W, 3) float32
    corner_xy: tuple[int, int] = (0, 0)
    shrink: float = 1.0  # before everything else


def poses(options: MatchOptions) -> list[tuple[float, float]]:
    """(scale, rotation in degrees): 2^(i / 2) within 1 / max_scale and max_scale, and multiples of 45 within +- max_rotation_deg; 180 once."""
    steps, turns = math.floor(2 * math.log2(options.max_scale) + 1e-6), math.floor(options.max_rotation_deg / 45 + 1e-6)
    rotations = [45.0 * k for k in range(-turns, turns + 1) if k > -4]
    return [(2 ** (i / 2), rotation) for rotation in rotations for i in range(-steps, steps + 1)]


def factors(scale: float) -> tuple[float, float]:
    """By what the two images are shrunk."""
    return min(scale, 1.0), min(1 / scale, 1.0)


def bucket(size_hw: Size) -> Size:
    return tuple(-(-n // BUCKET) * BUCKET for n in size_hw)


def _shrunk(n: int, factor: float) -> int:
    return max(1, round(n * factor))


def canvas_size(size_hw: Size, factor: float, rotation_deg: float) -> Size:
    """Rows and columns that hold an image after shrinking and turning."""
    h, w = (_shrunk(n, factor) for n in size_hw)
    c, s = abs(math.cos(math.radians(rotation_deg))), abs(math.sin(math.radians(rotation_deg)))
    return math.ceil(w * s + h * c - 1e-6), math.ceil(w * c + h * s - 1e-6)


def _resampling(old: int, new: int, room: int) -> np.ndarray:
    """(room, old) weights of resizing along an axis: triangles as wide as a new pixel, at the centres (x' + .5) old / new - .5; the rest by reflection."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(old) - centres[:, None]) * min(1, new / old))
    weights /= weights.sum(1, keepdims=True)
    return weights[np.pad(np.arange(new), (0, room - new), mode="reflect")].astype(np.float32)


def views(size1_hw: Size, size2_hw: Size, options: MatchOptions) -> list[tuple[Size, Size]]:
    """Rows and columns of the two arrays that are matched, scale by scale and rotation by rotation."""
    shrunk = [(*factors(scale), rotation) for scale, rotation in poses(options)]
    return [(bucket(canvas_size(size1_hw, shrink1, 0)), bucket(canvas_size(size2_hw, shrink2, rotation))) for shrink1, shrink2, rotation in shrunk]


def work(size1_hw: Size, size2_hw: Size, options: MatchOptions) -> int:
    """Correlations of pixels that matching two images of these sizes takes, up to a factor: what time is proportional to."""
    return sum(math.prod(size1) * math.prod(size2) for size1, size2 in views(size1_hw, size2_hw, options))


def followed(found: Iterable[Run], done: int, todo: int, progress: Progress | None) -> Iterator[Run]:
    """The same runs; `progress` hears of each, `done` of `todo` correlations being behind before the first."""
    for run in found:
        done += math.prod(run.view1.image.shape[:2]) * math.prod(run.view2.image.shape[:2])
        if progress:
            progress(min(done, todo), todo)
        yield run


def view(crop: Crop, factor: float, rotation_deg: float = 0.0) -> View:
    """A crop shrunk by `factor` and turned by -`rotation_deg`, in a bucket."""
    size, factor = crop.pixels.shape[:2], crop.shrink * factor
    h, w = (_shrunk(n, factor) for n in size)
    room = bucket((h, w)) if rotation_deg == 0 else (h, w)
    rows, columns = (_resampling(*lengths) for lengths in zip(size, (h, w), room, strict=True))
    image = np.einsum("yh,hwc,xw->yxc", rows, crop.pixels, columns, optimize=True)
    sx, sy = size[1] / w, size[0] / h
    enlarge = np.array([[sx, 0, 0.5 * sx - 0.5 + crop.corner_xy[0]], [0, sy, 0.5 * sy - 0.5 + crop.corner_xy[1]], [0, 0, 1]])
    if rotation_deg == 0:
        return View(image, (h, w), None, enlarge[:2])
    H, W = canvas_size(size, factor, rotation_deg)
    t = math.radians(rotation_deg)
    turn = np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
    corner = np.array([(w - 1) / 2, (h - 1) / 2]) - turn @ np.array([(W - 1) / 2, (H - 1) / 2])
    to_shrunk = np.vstack([np.column_stack([turn, corner]), [0, 0, 1]])
    y, x = np.mgrid[: bucket((H, W))[0], : bucket((H, W))[1]].astype(np.float64)
    xs, ys = (to_shrunk[i, 0] * x + to_shrunk[i, 1] * y + to_shrunk[i, 2] for i in (0, 1))
    mask = (xs > -1e-3) & (xs < w - 1 + 1e-3) & (ys > -1e-3) & (ys < h - 1 + 1e-3) & (x < W) & (y < H)
    where = np.stack([ys.clip(0, h - 1), xs.clip(0, w - 1)])
    turned = np.stack([map_coordinates(image[..., c], where, order=1) for c in range(3)], -1) * mask[..., None]
    return View(turned.astype(np.float32), (H, W), mask, (enlarge @ to_shrunk)[:2])


def runs(describe: Describe, crop1: Crop, crop2: Crop, options: MatchOptions) -> Iterator[Run]:
    """Matches two crops at every scale and rotation that both survive."""
    seen: dict = {}

    def described(crop: Crop, image: int, factor: float, rotation: float):
        key = (image, factor, rotation)
        if key not in seen:
            looked = view(crop, factor, rotation)
            seen[key] = looked, describe(jnp.asarray(looked.image)[None])[0]
        return seen[key]

    for rotation, group in itertools.groupby(poses(options), key=lambda pose: pose[1]):
        for scale, _ in group:
            shrink1, shrink2 = factors(scale)
            if min(n * crop.shrink * factor for crop, factor in ((crop1, shrink1), (crop2, shrink2)) for n in crop.pixels.shape[:2]) < SMALLEST_SIDE:
                continue
            (view1, desc1), (view2, desc2) = described(crop1, 1, shrink1, 0.0), described(crop2, 2, shrink2, rotation)
            mask = None if view2.mask is None else jnp.asarray(view2.mask)
            yield _run(view1, view2, fields(desc1, desc2, options, view1.size_hw, view2.size_hw, mask), encode_pose(scale, rotation))
        seen = {key: value for key, value in seen.items() if key[0] == 1}  # image 2 turned is not needed again


def _run(view1: View, view2: View, found, code: int) -> Run:
    found = type(found)(*map(np.asarray, found))
    h1, w1 = map(patch_count, view1.size_hw)
    mutual = found.mutual.ravel()
    xy1, xy2 = np.asarray(patch_centres(*view1.image.shape[:2]))[mutual], found.xy2_px.reshape(-1, 2)[mutual]
    score = found.score.ravel()[mutual]
    rows = np.column_stack([view1.locate(xy1), view2.locate(xy2), score, np.full(len(score), code)]).astype(np.float32)
    cells = tuple(-(-n // CELL) for n in view2.size_hw)
    return Run(rows, found.score[:h1, :w1], found.cell_score[: cells[0], : cells[1]], view1, view2)


def merge(all_runs: list[Run]) -> np.ndarray:
    """Reciprocal matches of all runs together: (N, 6), best first.

    A run's field is constant on each patch of its view 1, and on each cell of its view 2; the merged field is the greatest of the runs' fields. A match
    counts if it is the best at its own place in both merged fields, and of several in a GRID x GRID square the best is kept.
    """
    rows = np.concatenate([run.rows for run in all_runs]) if all_runs else np.zeros((0, 6), np.float32)
    best = np.ones(len(rows), bool)
    for run in all_runs:
        for scores, looked, xy in ((run.patches, run.view1, rows[:, :2]), (run.cells, run.view2, rows[:, 2:4])):
            x, y = (np.floor((looked.find(xy.astype(np.float64)).T + 0.5) / CELL)).astype(int)
            inside = (x >= 0) & (y >= 0) & (x < scores.shape[1]) & (y < scores.shape[0])
            there = np.where(inside, scores[np.where(inside, y, 0), np.where(inside, x, 0)], 0)
            best &= rows[:, 4] >= there
    rows = rows[best]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    for xy in (slice(0, 2), slice(2, 4)):
        _, first = np.unique(np.floor((rows[:, xy] + 0.5) / GRID), axis=0, return_index=True)
        rows = rows[np.sort(first)]
    return rows
