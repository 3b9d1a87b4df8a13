"""Photographs on their canvases seen through any smooth map of the plane; through homographies see `ops.warp`."""

import jax.numpy as jnp

from jaxdesc.ops.warp import LEVELS, bilinear, halvings
from jaxdesc.types import Array


def detail_of(xy: Array) -> Array:
    """(H, W, 2) positions px -> (H, W): log2 of the local change of length, sqrt(|det J|), from differences of neighbouring positions."""
    down, across = jnp.gradient(xy, axis=(0, 1))
    area = jnp.abs(across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0])
    return 0.5 * jnp.log2(jnp.maximum(area, 1e-6))


def resample(image: Array, size_hw: Array, xy: Array, detail: Array) -> Array:
    """Bilinear samples, between the two halved copies that are nearest in detail; positions beyond the photograph take the value at its border.

    Args:
      image: (C, C, 3) uint8 canvas with the photograph at its top left, C a multiple of 8. size_hw: (2,) rows and columns of the photograph.
      xy: (..., 2) positions on the canvas, px. detail: (...) log2 of how many pixels of the photograph a sample stands for, a side.
    Returns:
      (..., 3) float32 in [0, 1].
    """
    pixels, starts = halvings(image)
    detail = jnp.clip(detail, 0, LEVELS - 1)
    lower = jnp.minimum(jnp.floor(detail).astype(jnp.int32), LEVELS - 2)

    def sample(level):
        shrink = 2.0**level
        last = jnp.maximum(jnp.floor(size_hw[::-1] / shrink[..., None]) - 1, 0)  # the last pixel that the photograph covers wholly
        at = jnp.clip((xy + 0.5) / shrink[..., None] - 0.5, 0, last)
        return bilinear(pixels, jnp.asarray(starts)[level], image.shape[0] / shrink, jnp.ceil(size_hw / shrink[..., None]), at)

    mix = (detail - lower)[..., None]
    return ((1 - mix) * sample(lower) + mix * sample(lower + 1)) / 255.0
