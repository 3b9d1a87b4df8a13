"""Photographs and warped copies of them: the homography between the two crops is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxdesc.config import option
from jaxdesc.data.builders import embedded, photos
from jaxdesc.data.crops import CropConfig, draw_pairs
from jaxdesc.data.host import Kept, in_turns, mixed, stacked, to_canvas
from jaxdesc.data.kind import Host, Kind, Opened, OpenSource, Scores
from jaxdesc.method import Method
from jaxdesc.ops.geometry import apply_homography
from jaxdesc.ops.matching import reciprocal_nearest
from jaxdesc.ops.metrics import MMA_PX, matching_accuracy
from jaxdesc.ops.sampling import full_size
from jaxdesc.ops.warp import pixel_grid
from jaxdesc.types import Array, Canvas, Correspondences, Pair, RawPair, Variables

STREAM = 0
GRID = 16  # points a side that stand for the correspondences of a photograph with its own warp
CORRECT_PX = 3.0  # of a match that a picture shows as correct


@dataclass(frozen=True)
class HomographyPairs(Kind):
    """Photographs that are paired with a warped copy of themselves."""

    Draw: ClassVar = CropConfig
    known_sources: ClassVar[Mapping[str, OpenSource]] = {
        "embedded": embedded.open_photos,
        "photos": photos.open_photos,
    }
    photographs: ClassVar[int] = 1
    streams: ClassVar = (STREAM,)

    tilt: float = option(
        0.5,
        "perspective skew of the warped copy, of the longer side",
        at_least=0,
        at_most=0.9,
    )

    def open(self, sets: Sequence[photos.PhotoSet], host: Host) -> Opened:
        """Rows are photographs, Canvas."""
        side = host.config.canvas_px
        photographs = mixed(
            [Kept(s.train, host.memory) for s in sets], self.sources, (host.seed, STREAM)
        )

        def row(i: int) -> Canvas:
            return to_canvas(photographs[i]["image"], side)

        def held_out(count: int) -> Canvas:
            chosen = in_turns([s.validation for s in sets], count)
            return stacked([to_canvas(photo["image"], side) for photo in chosen])

        return Opened(row, held_out)

    def draw(
        self, key: Array, raw: Canvas, slot: Array, cfg: CropConfig, step: Array | None = None
    ) -> Pair:
        pairs = jax.vmap(with_itself)(raw)
        return Pair(*draw_pairs(key, pairs, slot, self.tilt, cfg, step), slot=slot)

    @staticmethod
    def scores(
        variables: Variables, pair: Pair, *, method: Method
    ) -> tuple[Scores, Correspondences]:
        """mma@1px, mma@3px, mma@5px of reciprocal nearest neighbours; matches, their number."""
        size_hw = pair.image1.shape[:2]
        maps = method.describe(variables, jnp.stack([pair.image1, pair.image2]))
        desc1, desc2 = full_size(maps, method.grid(*size_hw), size_hw)
        matches = reciprocal_nearest(desc1, desc2)
        accuracy, weight, count = matching_accuracy(matches, pair.H_1to2, desc2.shape[:2])
        scores = {
            f"mma@{t:g}px": (value * weight, weight)
            for t, value in zip(MMA_PX, accuracy, strict=True)
        }
        return {**scores, "matches": (count.astype(jnp.float32), jnp.ones(()))}, matches

    @staticmethod
    def correct(pair: Pair, matches: Correspondences) -> Array:
        """Within 3 px of the truth."""
        there = apply_homography(pair.H_1to2, matches.xy1_px)
        return jnp.linalg.norm(there - matches.xy2_px, axis=-1) <= CORRECT_PX


def with_itself(canvas: Canvas) -> RawPair:
    """A photograph twice; a regular grid of its points corresponds."""
    step = canvas.size_hw[::-1] / GRID
    points = ((pixel_grid(GRID, GRID) + 0.5) * step - 0.5).reshape(-1, 2)
    count = len(points)
    return RawPair(
        canvas1=canvas,
        canvas2=canvas,
        xy12_px=jnp.tile(points, 2),
        log2_scale_1to2=jnp.zeros(count),
        turns_1to2=jnp.zeros(count, jnp.int32),
        valid=jnp.ones(count, bool),
    )
