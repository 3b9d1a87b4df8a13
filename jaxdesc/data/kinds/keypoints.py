"""Pairs with common keypoints: two images of objects of one category, or a photograph and a random
warp of it, squashed to a square."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdesc.config import DrawConfig, option
from jaxdesc.data.builders import semantic
from jaxdesc.data.host import canvases, in_turns, mixed, padded, stacked
from jaxdesc.data.jitter import COLOUR, colour_jitter
from jaxdesc.data.kind import Host, Kind, Opened, OpenSource, Scores
from jaxdesc.data.look_up import look_up, mean_of
from jaxdesc.data.warps import WarpConfig, random_warp, squashed_view
from jaxdesc.images import resize, to_float
from jaxdesc.method import Method
from jaxdesc.ops import tps
from jaxdesc.ops.metrics import PCK_ALPHA, PCK_ALPHAS
from jaxdesc.types import Array, Canvas, Correspondences, KeypointPair, Variables

NAME = "keypoints"  # in a batch
STREAM = 5


@struct.dataclass
class RawKeypointPair:
    """Two photographs as the host delivers them; pixels are those of the canvases."""

    canvas1: Canvas
    canvas2: Canvas
    xy1_px: Array  # (..., K, 2) float32
    xy2_px: Array  # (..., K, 2) float32
    valid: Array  # (..., K) bool
    flip: Array  # (...,) bool: both images, and the keypoints with them, are to be mirrored
    # (...,) bool: canvas2 is canvas1 again, image 1 is to be a warp of it, and the keypoints are
    # still to be made
    warped: Array
    # (..., C, C) bool on the canvases: of the object; None where no pair of the run has masks
    mask1: Array | None = None
    mask2: Array | None = None


@dataclass(frozen=True)
class KeypointPairs(Kind):
    """Images of objects with common keypoints or masks, or photographs to be warped."""

    known_sources: ClassVar[Mapping[str, OpenSource]] = semantic.OPEN
    streams: ClassVar = (STREAM,)

    image_px: int = option(256, "side of the squares that images are squashed to", at_least=32)
    common_keypoints: int = option(
        40,
        "keypoints of a pair that travel; of a warped photograph, the largest square grid of no "
        "more",
        at_least=1,
    )
    warp: WarpConfig = WarpConfig()

    def check(self, where: str) -> None:
        self.warp.check(f"{where}.warp")

    def photographs_alone(self) -> "KeypointPairs":
        """With those sources whose photographs are paired with warps of themselves."""
        return self._with(lambda kind: kind in semantic.ALONE)

    def of_objects(self) -> "KeypointPairs":
        """With those sources whose pairs show two objects."""
        return self._with(lambda kind: kind not in semantic.ALONE)

    def _with(self, wanted) -> "KeypointPairs":
        sources = tuple(source for source in self.sources if wanted(source.kind))
        return dataclasses.replace(self, sources=sources)

    def open(self, sets: Sequence[semantic.SemanticSet], host: Host) -> Opened:
        """Rows are RawKeypointPair."""
        side, seed = host.config.canvas_px, (host.seed, STREAM)
        pairs = mixed([s.train for s in sets], self.sources, seed)
        masked = any(s.masked for s in sets)

        def raw(pair: dict[str, Any], rng: np.random.Generator) -> RawKeypointPair:
            """All keypoints in their order, or a random choice of `common_keypoints` of them."""
            count, have = self.common_keypoints, len(pair["xy1_px"])
            chosen = np.arange(have)
            if have > count:
                chosen = np.sort(rng.choice(have, count, replace=False))
            fields = {name: np.bool_(pair[name]) for name in ("flip", "warped")}
            for name in ("xy1_px", "xy2_px"):
                fields[name] = padded(pair[name].astype(np.float32), chosen, count)
            if masked:
                fields |= {f"mask{i}": mask_canvas(pair[f"mask{i}"], side) for i in (1, 2)}
            valid = np.arange(count) < len(chosen)
            return RawKeypointPair(**canvases(pair, side), **fields, valid=valid)

        def row(i: int) -> RawKeypointPair:
            return raw(pairs[i], np.random.default_rng((*seed, i)))

        def held_out(count: int) -> RawKeypointPair:
            chosen = in_turns([s.validation for s in sets], count)
            rngs = (np.random.default_rng((STREAM, i)) for i in range(count))
            return stacked([raw(pair, rng) for pair, rng in zip(chosen, rngs, strict=True)])

        return Opened(row, held_out)

    def draw(
        self,
        key: Array,
        raw: RawKeypointPair,
        slot: Array,
        cfg: DrawConfig,
        step: Array | None = None,
    ) -> KeypointPair:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slot)
        fields = jax.vmap(lambda k, r: draw_keypoint_pair(k, r, self, cfg))(keys, raw)
        return KeypointPair(**fields, slot=slot)

    def to_score(self, pairs: KeypointPair, raw: RawKeypointPair) -> KeypointPair:
        """Two images of objects squashed as `Predictor.transfer` squashes them, so that a
        checkpoint scores the same here and in `evaluate pck --rule dhpf-240 --transfer own`; only
        photographs longer than config.data.canvas_px, which were shrunk when they were prepared,
        differ. Without true positions where none is known."""
        pairs = as_in_use(pairs, raw)
        return pairs if pairs.valid.any() else pairs.replace(xy2_px=None)

    @staticmethod
    def scores(
        variables: Variables, pair: KeypointPair, *, method: Method
    ) -> tuple[Scores, Correspondences]:
        """pck@0.05, pck@0.1, pck@0.15: the fraction of the keypoints that are moved to within so
        much of image 2's longer side of their true positions; the method's loss and its parts.
        Without true positions: the loss and its parts.

        Keypoints are moved by `Method.transfer` where the method has its own way, else by
        `look_up`.
        """
        if method.transfer is None:
            matches = look_up(variables, pair, method)
        else:
            xy2, score = method.transfer(variables, pair.image1, pair.image2, pair.xy1_px)
            code = jnp.zeros(len(score), jnp.int32)
            matches = Correspondences(pair.xy1_px, xy2, score, code, pair.valid)
        batch = {NAME: jax.tree.map(lambda x: x[None], pair)}
        per_example, (parts, _) = method.loss(variables, batch, jax.random.key(0), False)
        losses = {"loss": per_example, **parts}
        scores = {name: (value[0], jnp.ones(())) for name, value in losses.items()}
        if pair.xy2_px is not None:
            for alpha in PCK_ALPHAS:
                scores[f"pck@{alpha:g}"] = mean_of(near(pair, matches, alpha), pair.valid)
        return scores, matches

    @staticmethod
    def correct(pair: KeypointPair, matches: Correspondences) -> Array:
        """Within 0.1 of image 2's longer side, or all, where true positions are not known."""
        return matches.valid if pair.xy2_px is None else near(pair, matches, PCK_ALPHA)


def near(pair: KeypointPair, matches: Correspondences, alpha: float) -> Array:
    """(N,) bool: the matches of one pair that lie within `alpha` of image 2's longer side of the
    truth."""
    error = jnp.linalg.norm(pair.xy2_px - matches.xy2_px, axis=-1)
    return error <= alpha * max(pair.image2.shape[:2])


def mask_canvas(mask: np.ndarray | None, side: int) -> np.ndarray:
    """A mask (h, w) bool at the top left of (side, side), True all over where there is no mask:
    nothing is known not to be of the object."""
    square = np.ones((side, side), bool)
    if mask is not None:
        square[: mask.shape[0], : mask.shape[1]] = mask
    return square


# ---- on the device


def keypoint_grid(count: int) -> Array:
    """(count, 2) unit positions: the centres of the cells of the largest square grid of no more
    than `count`, row by row, then padding of zeros."""
    side = math.isqrt(count)
    return jnp.zeros((count, 2)).at[: side**2].set(tps.unit_grid(side, side).reshape(-1, 2))


def _gray(mask: Array) -> Array:
    return jnp.repeat(jnp.where(mask, 255, 0).astype(jnp.uint8)[..., None], 3, -1)


def draw_keypoint_pair(
    key: Array, raw: RawKeypointPair, pairs: KeypointPairs, cfg: DrawConfig
) -> dict[str, Array]:
    """One pair: the fields of KeypointPair but `slot`.

    A photograph on its own becomes image 2; image 1 is the warp T of it, image1(u) = image2(T(u)),
    so that grid points u of image 1 lie at T(u); those for which that is outside image 2 are not
    valid. Beyond its edges the photograph is mirrored.
    """
    side, count = (pairs.image_px, pairs.image_px), raw.xy1_px.shape[0]
    k_warp, k_rest = jax.random.split(key)
    u = jax.random.uniform(k_rest, (2 * COLOUR + 1,))
    A, moved = random_warp(k_warp, pairs.warp)
    A, moved = jnp.where(raw.warped, A, jnp.eye(2, 3)), jnp.where(raw.warped, moved, 0.0)
    flip = raw.flip ^ (u[-1] < cfg.flip_probability)

    def mirrored(uv):  # its own inverse
        return jnp.where(flip, jnp.array([1.0, 0.0]) + uv * jnp.array([-1.0, 1.0]), uv)

    grid, points = tps.unit_grid(*side), keypoint_grid(count)
    image1 = squashed_view(raw.canvas1, mirrored(tps.warp(grid, A, moved)))
    image2 = squashed_view(raw.canvas2, mirrored(grid))
    masks = {}
    if raw.mask1 is not None:
        views = (
            (raw.canvas1, raw.mask1, tps.warp(grid, A, moved)),
            (raw.canvas2, raw.mask2, grid),
        )
        for i, (canvas, mask, uv) in enumerate(views, 1):
            shown = squashed_view(canvas.replace(image=_gray(mask)), mirrored(uv))
            masks[f"mask{i}"] = shown[..., 0]
    given1 = mirrored(tps.unit_from_px(raw.xy1_px, raw.canvas1.size_hw))
    given2 = mirrored(tps.unit_from_px(raw.xy2_px, raw.canvas2.size_hw))
    there = tps.warp(points, A, moved)
    made = tps.inside(there) & (jnp.arange(count) < math.isqrt(count) ** 2)
    valid = jnp.where(raw.warped, made, raw.valid)
    uv1, uv2 = jnp.where(raw.warped, points, given1), jnp.where(raw.warped, there, given2)
    return {
        "image1": colour_jitter(u[:COLOUR], image1, cfg),
        "image2": colour_jitter(u[COLOUR : 2 * COLOUR], image2, cfg),
        "xy1_px": jnp.where(valid[:, None], tps.px_from_unit(uv1, side), 0.0),
        "xy2_px": jnp.where(valid[:, None], tps.px_from_unit(uv2, side), 0.0),
        "valid": valid,
        **masks,
    }


def as_in_use(pairs: KeypointPair, raw: RawKeypointPair) -> KeypointPair:
    """A batch drawn without changes of colour, its photographs squashed on the host.

    The device shrinks through halved copies, the predictor by averaging over areas
    (`images.resize`), which gives the descriptors of a trained network other numbers.
    Warped photographs stay as they were drawn.

    Args:
      raw: what the batch was drawn from, leading axis B, on the host.
    """
    images = [np.array(image) for image in (pairs.image1, pairs.image2)]
    for made, canvas in zip(images, (raw.canvas1, raw.canvas2), strict=True):
        for i in np.flatnonzero(~raw.warped):
            h, w = canvas.size_hw[i]
            square = resize(to_float(canvas.image[i, :h, :w]), made.shape[1:3])
            made[i] = square[:, ::-1] if raw.flip[i] else square
    return pairs.replace(image1=images[0], image2=images[1])
