"""Pairs of views whose cameras are known, with the points of view 1 that are asked for.

Source: CAPS, section 4 and supplementary section 7.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy.spatial.transform import Rotation

from jaxdesc.config import DrawConfig, Source, option
from jaxdesc.data.builders import colmap, embedded, megadepth, posed, rendered
from jaxdesc.data.host import canvases, in_turns, mixed, padded, stacked
from jaxdesc.data.jitter import COLOUR, colour_jitter, log_between
from jaxdesc.data.kind import Host, Kind, Opened, OpenSource, Scores
from jaxdesc.data.look_up import look_up, mean_of
from jaxdesc.data.sight import depth_range, fundamental, inverse_upper, seen_within
from jaxdesc.errors import UserError
from jaxdesc.method import Method
from jaxdesc.ops import geometry
from jaxdesc.ops.epipolar import epipolar_distance
from jaxdesc.ops.metrics import PCK_PX
from jaxdesc.ops.warp import warp_homography
from jaxdesc.types import Array, Canvas, Correspondences, PosedPair, Variables

STREAM, NOISE_STREAM, CURRICULUM_STREAM = 2, 3, 4
LEAST_SIDE = 32  # of a view, pixels
SIFT_FRACTION = 0.9  # of the queries; the others are uniform over image 1
WINDOW = 3  # uniform numbers that a window uses up


@struct.dataclass
class RawPosedPair:
    """Two views as the host delivers them; pixels are those of the canvases."""

    canvas1: Canvas
    canvas2: Canvas
    K1: Array  # (..., 3, 3) float32
    K2: Array  # (..., 3, 3) float32
    R_1to2: Array  # (..., 3, 3) float32: x_cam2 = R x_cam1 + t
    t_1to2: Array  # (..., 3) float32, unit length
    spread: Array  # (...) float32 largest distance of two cameras of the reconstruction, by |t|
    point_depth: Array  # (...) float32 that 99 % of the known points are nearer than; 0: none is
    xy1_px: Array  # (..., K, 2) float32 keypoints of image 1, in random order
    valid: Array  # (..., K) bool
    xy2_px: Array  # (..., K, 2) float32 where they lie in image 2
    known: Array  # (..., K) bool: where that is known


@dataclass(frozen=True)
class PosedPairs(Kind):
    """Pairs of views with known cameras."""

    known_sources: ClassVar[Mapping[str, OpenSource]] = {
        "embedded": embedded.open_posed,
        "rendered": rendered.open_posed,
        "colmap": colmap.open_posed,
        "megadepth": megadepth.open_posed,
    }
    streams: ClassVar = (STREAM, NOISE_STREAM, CURRICULUM_STREAM)

    sources: tuple[Source, ...] = option(
        (Source("rendered", weight=15.0), Source()), "where the pairs come from"
    )
    hw: tuple[int, int] = option(
        (480, 640),
        "rows and columns of the views; photographs are cut to this shape and resized, not "
        "rotated or tilted",
    )
    zoom: float = option(
        1.5,
        "a view is cut from a window up to this factor smaller than the photograph",
        at_least=1,
    )
    queries: int = option(
        500, "points of view 1 that are asked for, 9 of 10 SIFT keypoints", at_least=1
    )
    candidates: int = option(
        4500, "keypoints of image 1 that travel as candidates for its queries", at_least=1
    )
    prune: bool = option(True, "only candidates are asked for that some depth shows in view 2")
    prune_depth: str = option(
        "cameras",
        "depths up to which pruning looks: cameras, the largest distance of two cameras of the "
        "reconstruction; points, the depth that 99 % of what is known of the scene is nearer than",
        choices=("cameras", "points"),
    )
    pose_noise: tuple[float, float] = option(
        (0.0, 0.0),
        "errors added to relative poses: rotation within +- degrees, translation within +- percent",
    )
    curriculum: int = option(
        0,
        "batches during which pairs of ever larger rotation are let in; 0: all from the start",
        at_least=0,
    )

    def check(self, where: str) -> None:
        if min(self.pose_noise) < 0:
            raise UserError(
                f"{where}.pose_noise = {self.pose_noise} must be at least 0, degrees and percent."
            )
        if min(self.hw) < LEAST_SIDE:
            raise UserError(
                f"{where}.hw = {self.hw} must be at least {LEAST_SIDE} rows and columns."
            )

    def open(self, sets: Sequence[posed.PosedSet], host: Host) -> Opened:
        """Rows are RawPosedPair; poses of held-out pairs are without noise."""
        side, seed = host.config.canvas_px, host.seed
        pairs = _endless(sets, self, seed)

        def row(i: int) -> RawPosedPair:
            return self._raw(pairs[i], np.random.default_rng((seed, STREAM, i)), side)

        def held_out(count: int) -> RawPosedPair:
            views = [Views(s.validation, s, (0.0, 0.0), (0,)) for s in sets]
            chosen = in_turns(views, count, 2)  # image 1 first
            rngs = (np.random.default_rng((STREAM, i)) for i in range(count))
            return stacked([self._raw(p, rng, side) for p, rng in zip(chosen, rngs, strict=True)])

        return Opened(row, held_out)

    def _raw(self, pair: dict[str, Any], rng: np.random.Generator, side: int) -> RawPosedPair:
        """A random choice of `candidates` of image 1's keypoints, in random order."""
        count = self.candidates
        chosen = rng.permutation(len(pair["xy1_px"]))[:count]
        points = {n: padded(pair[n], chosen, count) for n in ("xy1_px", "xy2_px", "known")}
        names = ("K1", "K2", "R_1to2", "t_1to2", "spread", "point_depth")
        cameras = {name: pair[name] for name in names}
        valid = np.arange(count) < len(chosen)
        return RawPosedPair(**canvases(pair, side), **cameras, **points, valid=valid)

    def draw(
        self,
        key: Array,
        raw: RawPosedPair,
        slot: Array,
        cfg: DrawConfig,
        step: Array | None = None,
    ) -> PosedPair:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slot)
        fields = jax.vmap(lambda k, r: draw_posed_pair(k, r, self, cfg))(keys, raw)
        return PosedPair(**fields, slot=slot)

    def to_score(self, pairs: PosedPair, raw: RawPosedPair) -> PosedPair:
        """Without true positions where none is known.

        Raises:
          UserError: no point is asked for at all.
        """
        if not pairs.valid.any():
            raise UserError(
                "config.data.posed.prune_depth: pruning leaves no query of the held-out posed "
                "pairs, whose cameras stand too close together; set it to points, or "
                "config.data.posed.prune to false."
            )
        return pairs if pairs.known.any() else pairs.replace(xy2_px=None, known=None)

    @staticmethod
    def scores(
        variables: Variables, pair: PosedPair, *, method: Method
    ) -> tuple[Scores, Correspondences]:
        """Each query looked for by `look_up`:

            pck@5px      fraction of the queries with known true positions found within 5 px of them
            epipolar_px  mean distance of what is found to the queries' epipolar lines

        A pair without such queries has the weight 0. Source: CAPS, supplementary section 7 (PCK
        of a pair, at 5 px, on reconstructed keypoints).
        """
        matches = look_up(variables, pair, method)
        distance = epipolar_distance(pair.F_1to2, pair.xy1_px, matches.xy2_px)
        scores = {"epipolar_px": mean_of(distance, pair.valid)}
        if pair.xy2_px is not None:
            found = mean_of(PosedPairs.correct(pair, matches), pair.known & pair.valid)
            scores = {f"pck@{PCK_PX:g}px": found, **scores}
        return scores, matches

    @staticmethod
    def correct(pair: PosedPair, matches: Correspondences) -> Array:
        """Within 5 px of the true position, or, where that is not known, of the epipolar line."""
        distance = epipolar_distance(pair.F_1to2, matches.xy1_px, matches.xy2_px)
        if pair.xy2_px is None:
            return distance <= PCK_PX
        error = jnp.linalg.norm(pair.xy2_px - matches.xy2_px, axis=-1)
        return jnp.where(pair.known, error <= PCK_PX, distance <= PCK_PX)


# ---- on the host


class Views(Sequence):
    """Posed pairs with their views looked up, in both directions: 2 i is pair i, 2 i + 1 the same
    from image 2 to image 1.

    An element has image1, image2, K1, K2, R_1to2, t_1to2 (unit length, with the pair's own noise),
    spread, point_depth, xy1_px (N, 2), xy2_px (N, 2), known (N,).
    """

    def __init__(
        self,
        pairs: Sequence[dict[str, Any]],
        views: posed.PosedSet,
        noise: tuple[float, float],
        seed: tuple[int, ...],
    ):
        self._pairs, self._set, self._noise, self._seed = pairs, views, noise, seed

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pair, R, t = self._pairs[i // 2], *self._pose(i // 2)
        first, second = (pair["index1"], pair["index2"])[:: -1 if i % 2 else 1]
        view1, view2 = (self._set.views[index] for index in (first, second))
        way = "2to1" if i % 2 else "1to2"
        xy1 = view1["xy_px"]
        xy2, known = np.zeros_like(xy1), np.zeros(len(xy1), bool)
        xy2[pair[f"known_{way}"]], known[pair[f"known_{way}"]] = pair[f"xy_{way}"], True
        return {
            "image1": self._set.images[first]["image"],
            "image2": self._set.images[second]["image"],
            "K1": view1["K"],
            "K2": view2["K"],
            "R_1to2": R.T if i % 2 else R,
            "t_1to2": -R.T @ t if i % 2 else t,
            "spread": pair["spread"],
            "point_depth": pair["point_depth"],
            "xy1_px": xy1,
            "xy2_px": xy2,
            "known": known,
        }

    def _pose(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Pair i's pose with errors that are its own, the same at every visit.

        A turn about a random axis by an angle uniform within +- noise[0] degrees, and in each
        component of t an error uniform within +- noise[1] percent of its length. Source: CAPS,
        supplementary table 2; axis and reading ours.
        """
        pair = self._pairs[i]
        R, t = pair["R_1to2"], pair["t_1to2"]
        if not any(self._noise):
            return R, t
        rng = np.random.default_rng((*self._seed, i))
        axis = rng.normal(size=3)
        angle = np.radians(rng.uniform(-self._noise[0], self._noise[0]))
        turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
        noisy = t + self._noise[1] / 100 * rng.uniform(-1, 1, 3)
        return (turn @ R).astype(np.float32), (noisy / np.linalg.norm(noisy)).astype(np.float32)


def _endless(sets: Sequence[posed.PosedSet], cfg: PosedPairs, seed: int) -> Sequence:
    """Endless posed pairs.

    While the curriculum lasts, example j of J comes from the fraction (j + 1) / J of its source's
    pairs that turn least [CAPS, supplementary section 7: easy pairs first; how, is ours]; then as
    every source.
    """
    views = [Views(s.train, s, cfg.pose_noise, (seed, NOISE_STREAM, k)) for k, s in enumerate(sets)]
    endless = mixed(views, cfg.sources, (seed, STREAM))
    length = cfg.curriculum * cfg.per_batch
    if not length:
        return endless
    orders = [np.argsort(s.angles_deg, kind="stable") for s in sets]
    weights = np.array([source.weight for source in cfg.sources])

    def example(j: int) -> dict[str, Any]:
        if j >= length:
            return endless[j - length]
        rng = np.random.default_rng((seed, CURRICULUM_STREAM, j))
        k = rng.choice(len(views), p=weights / weights.sum())
        rank = rng.integers(math.ceil(len(orders[k]) * (j + 1) / length))
        return views[k][2 * int(orders[k][rank]) + int(rng.integers(2))]

    return grain.MapDataset.range(sys.maxsize).map(example)


# ---- on the device


def into_window(u: Array, size_hw: Array, out_hw: tuple[int, int], zoom: float) -> Array:
    """(3, 3) from a photograph to a random window of it, of the output's shape: the largest that
    fits, over up to `zoom`, anywhere inside.

    Args:
      u: (WINDOW,) uniform numbers.
    """
    size_wh, out_wh = size_hw[::-1].astype(jnp.float32), jnp.array(out_hw[::-1], jnp.float32)
    window_wh = out_wh * (size_wh / out_wh).min() / log_between(u[0], 1.0, zoom)
    corner = u[1:] * jnp.maximum(size_wh - window_wh, 0)  # of the outer edges, not pixel centres
    return geometry.resizing(out_wh / window_wh) @ geometry.translation(-corner)


def take_queries(keypoints: Array, uniform: Array, count: int) -> Array:
    """Which candidates become queries: SIFT_FRACTION of `count` from the keypoints that are
    allowed, in their order, the others from the uniform points, which also stand in for keypoints
    that lack.

    Args:
      keypoints: (K,) bool, uniform: (U,) bool: the candidates that may be asked for.
    Returns:
      (count,) int32 places in the concatenation of both; K + U where there are not enough.
    """
    most = round(SIFT_FRACTION * count)
    rank1, rank2 = jnp.cumsum(keypoints), jnp.cumsum(uniform)
    first = jnp.minimum(rank1[-1], most)
    slot1 = jnp.where(keypoints & (rank1 <= most), rank1 - 1, count)
    slot2 = jnp.where(uniform, first + rank2 - 1, count)
    slots, total = jnp.concatenate([slot1, slot2]), len(keypoints) + len(uniform)
    places = jnp.arange(total, dtype=jnp.int32)
    return jnp.full(count, total, jnp.int32).at[slots].set(places, mode="drop")


def draw_posed_pair(
    key: Array, raw: RawPosedPair, pairs: PosedPairs, cfg: DrawConfig
) -> dict[str, Array]:
    """One pair: the fields of PosedPair but `slot`.

    Both images are cut and resized, and mirrored together; K follows as K' = M K, and F from the
    cameras as they are then. Queries are SIFT keypoints and as many uniform candidates as there
    are queries, kept where they lie on image 1 and, if pairs.prune, where their line of sight,
    within `depth_range`, crosses image 2.
    """
    count, out_hw = pairs.queries, pairs.hw
    u = jax.random.uniform(key, (2 * WINDOW + 2 * COLOUR + 1 + 2 * count,))
    u_windows, u_colours, u_flip, u_points = jnp.split(u, np.cumsum([2 * WINDOW, 2 * COLOUR, 1]))
    mirror = geometry.mirror(out_hw[1])
    flip = jnp.where(u_flip[0] < cfg.flip_probability, mirror, jnp.eye(3))

    def cut(canvas, K, u_window, u_colour):
        into = into_window(u_window, canvas.size_hw, out_hw, pairs.zoom)
        M = jnp.matmul(flip, into, precision="highest")
        image = warp_homography(canvas.image, canvas.size_hw, inverse_upper(M), out_hw)
        return colour_jitter(u_colour, image, cfg), jnp.matmul(M, K, precision="highest"), M

    both = jax.tree.map(
        lambda one, two: jnp.stack([one, two]), (raw.canvas1, raw.K1), (raw.canvas2, raw.K2)
    )
    numbers = u_windows.reshape(2, WINDOW), u_colours.reshape(2, COLOUR)
    (image1, image2), (K1, K2), (M1, M2) = jax.vmap(cut)(*both, *numbers)

    # pixel centres: a descriptor can be sampled there
    limit = jnp.array([out_hw[1] - 1.0, out_hw[0] - 1.0])

    def inside(xy):
        return ((xy >= 0) & (xy <= limit)).all(-1)

    uniform = u_points.reshape(count, 2) * limit
    xy1 = jnp.concatenate([geometry.apply_homography(M1, raw.xy1_px), uniform])
    xy2 = jnp.append(geometry.apply_homography(M2, raw.xy2_px), jnp.zeros((count, 2)), 0)
    allowed = inside(xy1)
    if pairs.prune:
        depths = depth_range(raw.spread, raw.point_depth, pairs.prune_depth)
        allowed &= seen_within(xy1, K1, K2, raw.R_1to2, raw.t_1to2, depths, limit + 1)
    keypoints = len(raw.xy1_px)
    chosen = take_queries(allowed[:keypoints] & raw.valid, allowed[keypoints:], count)
    valid = chosen < len(xy1)
    known = jnp.append(raw.known, jnp.zeros(count, bool)) & inside(xy2)
    return {
        "image1": image1,
        "image2": image2,
        "F_1to2": fundamental(K1, K2, raw.R_1to2, raw.t_1to2),
        "xy1_px": jnp.where(valid[:, None], xy1.at[chosen].get(mode="clip"), 0.0),
        "valid": valid,
        "xy2_px": xy2.at[chosen].get(mode="clip"),
        "known": known.at[chosen].get(mode="clip") & valid,
    }
