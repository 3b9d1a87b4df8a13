"""Resampling photographs on the device: bilinear in a pyramid of halved copies, so that shrinking does not alias."""

import jax.numpy as jnp
import numpy as np

from jaxdesc.ops.geometry import apply_homography, change_of_area
from jaxdesc.types import Array

LEVELS = 4  # full size, 1/2, 1/4, 1/8


def pixel_grid(height: int, width: int) -> Array:
    """(height, width, 2) float32: the (x, y) of every pixel."""
    y, x = jnp.meshgrid(jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij")
    return jnp.stack([x, y], axis=-1)


def halvings(image: Array) -> tuple[Array, np.ndarray]:
    """The image and its halved copies (means of 2x2 pixels) as one flat list of pixels.

    Args:
      image: (C, C, 3) uint8, C a multiple of 2^(LEVELS - 1).
    Returns:
      pixels (N, 3) uint8 and the index of each level's first pixel, (LEVELS,).
    """
    levels = [image]
    while len(levels) < LEVELS:
        side = levels[-1].shape[0] // 2
        quads = levels[-1].reshape(side, 2, side, 2, 3).astype(jnp.int32)
        levels.append(((quads.sum((1, 3)) + 2) // 4).astype(jnp.uint8))
    pixels = [level.reshape(-1, 3) for level in levels]
    return jnp.concatenate(pixels), np.cumsum([0, *map(len, pixels[:-1])])


def bilinear(pixels: Array, start: Array, side: Array, size_hw: Array, xy: Array) -> Array:
    """Bilinear samples of one level per point; pixels beyond `size_hw` are black."""
    corner = jnp.floor(xy)
    fraction = xy - corner
    out = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = corner[..., 0] + dx, corner[..., 1] + dy
            inside = (x >= 0) & (y >= 0) & (x < size_hw[..., 1]) & (y < size_hw[..., 0])
            index = jnp.where(inside, start + (y * side + x).astype(jnp.int32), 0)
            weight = jnp.where(dx, fraction[..., 0], 1 - fraction[..., 0]) * jnp.where(dy, fraction[..., 1], 1 - fraction[..., 1])
            out += jnp.where(inside, weight, 0.0)[..., None] * pixels[index].astype(jnp.float32)
    return out


def warp_homography(image: Array, size_hw: Array, H_out_to_in: Array, out_hw: tuple[int, int]) -> Array:
    """The image seen through a homography; outside the photograph it is black.

    The level of detail is log2 of the local change of length, the root of the change of
    area, and the two nearest levels of the halved copies are mixed linearly.

    Args:
      image: (C, C, 3) uint8 canvas with the photograph at its top left, C a multiple of 8.
      size_hw: (2,) rows and columns of the photograph.
      H_out_to_in: (3, 3) pixel homography from the output to the canvas.
      out_hw: rows and columns of the output.
    Returns:
      (*out_hw, 3) float32 in [0, 1].
    """
    pixels, starts = halvings(image)
    grid = pixel_grid(*out_hw)
    xy = apply_homography(H_out_to_in, grid)
    w = grid @ H_out_to_in[2, :2] + H_out_to_in[2, 2]
    area = change_of_area(H_out_to_in, grid)
    detail = jnp.clip(0.5 * jnp.log2(jnp.maximum(area, 1e-6)), 0, LEVELS - 1)
    lower = jnp.minimum(jnp.floor(detail).astype(jnp.int32), LEVELS - 2)

    def sample(level):
        shrink = 2.0**level
        side = image.shape[0] / shrink
        size = jnp.ceil(size_hw / shrink[..., None])
        return bilinear(pixels, jnp.asarray(starts)[level], side, size, (xy + 0.5) / shrink[..., None] - 0.5)

    mix = (detail - lower)[..., None]
    out = (1 - mix) * sample(lower) + mix * sample(lower + 1)
    return jnp.where((w > 0)[..., None], out, 0.0) / 255.0
