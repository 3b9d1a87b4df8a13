"""Feature maps between their pixels, and from one grid to another.

Convention: `uv` are normalised coordinates with aligned corners, -1 at the centre of the first and 1 at the centre of the last pixel of an axis, so that one
point has one (u, v) on an image and on all of its maps. u = 2 x / (W - 1) - 1; an axis of one pixel has u = -1 alone.
"""

import jax.numpy as jnp

from jaxdesc.types import Array


def uv_from_px(xy: Array, size_hw: tuple[int, int]) -> Array:
    """Pixels (..., 2) of a frame of H rows and W columns -> normalised (..., 2)."""
    h, w = size_hw
    return 2 * xy / jnp.array([max(w - 1, 1), max(h - 1, 1)], jnp.float32) - 1


def px_from_uv(uv: Array, size_hw: tuple[int, int]) -> Array:
    """Normalised (..., 2) -> pixels (..., 2) of a frame of H rows and W columns."""
    h, w = size_hw
    return (uv + 1) / 2 * jnp.array([w - 1, h - 1], jnp.float32)


def uv_grid(h: int, w: int) -> Array:
    """(h, w, 2) float32: the normalised (u, v) of every pixel."""
    v, u = jnp.meshgrid(jnp.linspace(-1.0, 1.0, h), jnp.linspace(-1.0, 1.0, w), indexing="ij")
    return jnp.stack([u, v], -1)


def bilinear(maps: Array, xy: Array) -> Array:
    """Bilinear samples: maps (H, W, D) at pixels xy (..., 2) -> (..., D); pixels outside count as zeros.

    Differentiable in both; the gradient in xy is that of the cell [floor(xy), floor(xy) + 1).
    """
    h, w, d = maps.shape
    corner = jnp.floor(xy)
    fraction = xy - corner
    flat, out = maps.reshape(-1, d), 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = corner[..., 0] + dx, corner[..., 1] + dy
            inside = (x >= 0) & (y >= 0) & (x < w) & (y < h)
            index = jnp.where(inside, y * w + x, 0).astype(jnp.int32)
            weight = (fraction[..., 0] if dx else 1 - fraction[..., 0]) * (fraction[..., 1] if dy else 1 - fraction[..., 1])
            out += jnp.where(inside, weight, 0)[..., None] * flat[index]
    return out


def sample(maps: Array, uv: Array) -> Array:
    """`bilinear` at normalised positions: maps (H, W, D), uv (..., 2) -> (..., D)."""
    return bilinear(maps, px_from_uv(uv, maps.shape[:2]))


def resize_aligned(maps: Array, size_hw: tuple[int, int]) -> Array:
    """Bilinear resizing with aligned corners: (..., H, W, D) -> (..., h, w, D), row i of the result at row i (H - 1) / (h - 1); unchanged if the size is."""
    for axis, n in ((-3, size_hw[0]), (-2, size_hw[1])):
        have = maps.shape[axis]
        if have == n:
            continue
        at = jnp.linspace(0.0, have - 1.0, n)
        lower = jnp.clip(jnp.floor(at), 0, max(have - 2, 0)).astype(jnp.int32)
        shape = [1] * maps.ndim
        shape[axis] = n
        mix = (at - lower).astype(maps.dtype).reshape(shape)
        maps = jnp.take(maps, lower, axis) * (1 - mix) + jnp.take(maps, jnp.minimum(lower + 1, have - 1), axis) * mix
    return maps
