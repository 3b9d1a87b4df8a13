"""Keypoint pairs drawn on the device: two images of objects as they are, or a photograph and a random warp of it, squashed to a square.

Every draw comes from fold_in(step key, slot), as in `draw`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdesc.config import DrawConfig
from jaxdesc.data.jitter import COLOUR, colour_jitter
from jaxdesc.data.warped_draw import random_warp, squashed_view
from jaxdesc.images import resize, to_float
from jaxdesc.ops import tps
from jaxdesc.types import Array, Canvas, KeypointPair


@struct.dataclass
class RawKeypointPair:
    """Two photographs as the host delivers them; pixels are those of the canvases."""

    canvas1: Canvas
    canvas2: Canvas
    xy1_px: Array  # (..., K, 2) float32
    xy2_px: Array  # (..., K, 2) float32
    valid: Array  # (..., K) bool
    flip: Array  # (...,) bool: both images, and the keypoints with them, are to be mirrored
    warped: Array  # (...,) bool: canvas2 is canvas1 again, image 1 is to be a warp of it, and the keypoints are still to be made
    mask1: Array | None = None  # (..., C, C) bool on canvas1: of the object; None where no pair of the run has masks
    mask2: Array | None = None


def keypoint_grid(count: int) -> Array:
    """(count, 2) unit positions: the centres of the cells of the largest square grid of no more than `count`, row by row, then padding of zeros."""
    side = math.isqrt(count)
    return jnp.zeros((count, 2)).at[: side**2].set(tps.unit_grid(side, side).reshape(-1, 2))


def _gray(mask: Array) -> Array:
    return jnp.repeat(jnp.where(mask, 255, 0).astype(jnp.uint8)[..., None], 3, -1)


def draw_keypoint_pair(key: Array, raw: RawKeypointPair, cfg: DrawConfig) -> dict[str, Array]:
    """One pair: the fields of KeypointPair but `slot`. Of `cfg` count crop_px, warp, flip_probability and the colours.

    A photograph on its own becomes image 2; image 1 is the warp T of it, image1(u) = image2(T(u)), so that grid points u of image 1 lie at T(u); those for which
    that is outside image 2 are not valid. Beyond its edges the photograph is mirrored.
    """
    side, count = (cfg.crop_px, cfg.crop_px), raw.xy1_px.shape[0]
    k_warp, k_rest = jax.random.split(key)
    u = jax.random.uniform(k_rest, (2 * COLOUR + 1,))
    A, moved = random_warp(k_warp, cfg.warp)
    A, moved = jnp.where(raw.warped, A, jnp.eye(2, 3)), jnp.where(raw.warped, moved, 0.0)
    flip = raw.flip ^ (u[-1] < cfg.flip_probability)

    def mirrored(uv):  # its own inverse
        return jnp.where(flip, jnp.array([1.0, 0.0]) + uv * jnp.array([-1.0, 1.0]), uv)

    grid, points = tps.unit_grid(*side), keypoint_grid(count)
    image1 = squashed_view(raw.canvas1, mirrored(tps.warp(grid, A, moved)))
    image2 = squashed_view(raw.canvas2, mirrored(grid))
    masks = {}
    if raw.mask1 is not None:
        views = ((raw.canvas1, raw.mask1, tps.warp(grid, A, moved)), (raw.canvas2, raw.mask2, grid))
        masks = {f"mask{i}": squashed_view(canvas.replace(image=_gray(mask)), mirrored(uv))[..., 0] for i, (canvas, mask, uv) in enumerate(views, 1)}
    given1, given2 = (mirrored(tps.unit_from_px(xy, c.size_hw)) for xy, c in ((raw.xy1_px, raw.canvas1), (raw.xy2_px, raw.canvas2)))
    there = tps.warp(points, A, moved)
    made = tps.inside(there) & (jnp.arange(count) < math.isqrt(count) ** 2)
    valid = jnp.where(raw.warped, made, raw.valid)
    uv1, uv2 = jnp.where(raw.warped, points, given1), jnp.where(raw.warped, there, given2)
    return {
        **{"image1": colour_jitter(u[:COLOUR], image1, cfg), "image2": colour_jitter(u[COLOUR : 2 * COLOUR], image2, cfg)},
        **{f"xy{i}_px": jnp.where(valid[:, None], tps.px_from_unit(uv, side), 0.0) for i, uv in ((1, uv1), (2, uv2))},
        "valid": valid,
        **masks,
    }


def draw_keypoint_pairs(key: Array, raw: RawKeypointPair, slot: Array, cfg: DrawConfig) -> KeypointPair:
    """A batch of pairs, leading axis B; example i is drawn from fold_in(key, slot[i])."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slot)
    return KeypointPair(**jax.vmap(lambda k, r: draw_keypoint_pair(k, r, cfg))(keys, raw), slot=slot)


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
