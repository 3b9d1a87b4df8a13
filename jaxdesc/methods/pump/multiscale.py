"""Matching two photographs at several scales and rotations, merged in their own frames."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdesc.matching.views import Crop, View, bucket, canvas_size, factors, poses, view
from jaxdesc.method import Progress
from jaxdesc.methods.pump.matching_pyramid import patch_count
from jaxdesc.methods.pump.single import MatchOptions, fields
from jaxdesc.ops.matching import CELL, encode_pose, patch_centres
from jaxdesc.types import Array, Size

GRID = 2  # pixels: of the matches in a square of this side, in either image, the best is kept
SMALLEST_SIDE = 16  # pixels: below this nothing is matched

Describe = Callable[[Array], Array]  # (B, H, W, 3) float32 RGB in [0, 1] -> (B, H, W, D)


class Run(NamedTuple):
    """What one pair of views gave."""

    rows: np.ndarray  # (N, 6) float32 reciprocal matches x1, y1, x2, y2, score, code in pixels of the whole images
    patches: np.ndarray  # (h1, w1) scores of view 1's patches
    cells: np.ndarray  # (h2, w2) scores of view 2's cells
    view1: View
    view2: View


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
