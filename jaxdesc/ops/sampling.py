"""Feature maps between their pixels, and from one grid to another.

Convention: `uv` are normalised coordinates with aligned corners, -1 at the centre of the first and 1 at the centre of the last pixel of an axis, so that one
point has one (u, v) on an image and on all of its maps. u = 2 x / (W - 1) - 1; an axis of one pixel has u = -1 alone.
"""

import jax.numpy as jnp
import numpy as np

from jaxdesc.ops.normalise import l2_normalise
from jaxdesc.types import Array, Grid


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


def take_linear(maps: Array, at: Array, axis: int) -> Array:
    """Maps read at real positions `at` (n,) along an axis, linear between cells.

    What lies beyond the first and the last cell is theirs.
    """
    last = maps.shape[axis] - 1
    at = jnp.clip(at, 0, last)
    lower = jnp.clip(jnp.floor(at), 0, max(last - 1, 0)).astype(jnp.int32)
    mix = (at - lower).astype(maps.dtype)
    mix = jnp.expand_dims(mix, [i for i in range(maps.ndim) if i != axis % maps.ndim])
    upper = jnp.minimum(lower + 1, last)
    return jnp.take(maps, lower, axis) * (1 - mix) + jnp.take(maps, upper, axis) * mix


def resize_aligned(maps: Array, size_hw: tuple[int, int]) -> Array:
    """Bilinear resizing with aligned corners: (..., H, W, D) -> (..., h, w, D).

    Row i of the result lies at row i (H - 1) / (h - 1); an axis that has its size already is unchanged.
    """
    for axis, n in ((-3, size_hw[0]), (-2, size_hw[1])):
        if maps.shape[axis] != n:
            maps = take_linear(maps, jnp.linspace(0.0, maps.shape[axis] - 1.0, n), axis)
    return maps


# ---- maps whose cells lie on a grid

PIXELS = Grid((0.0, 0.0), (1.0, 1.0))  # a cell on every pixel


def aligned_grid(size_hw: tuple[int, int], map_hw: tuple[int, int]) -> Grid:
    """Of a map of h x w cells whose corners are the corners of an image of H x W pixels."""
    rows, columns = ((n - 1) / max(cells - 1, 1) for n, cells in zip(size_hw, map_hw, strict=True))
    return Grid((0.0, 0.0), (columns or 1.0, rows or 1.0))


def _pair(values: tuple[float, float]) -> np.ndarray:
    return np.array(values, np.float32)


def px_from_cells(cells: Array, grid: Grid) -> Array:
    """Columns and rows (..., 2), which may be fractions -> pixels (..., 2) of the image;
    NumPy gives NumPy."""
    return _pair(grid.origin_xy) + _pair(grid.stride_xy) * cells


def cells_from_px(xy: Array, grid: Grid) -> Array:
    """The inverse of `px_from_cells`."""
    return (xy - _pair(grid.origin_xy)) / _pair(grid.stride_xy)


def cell_centres(map_hw: tuple[int, int], grid: Grid) -> Array:
    """(h w, 2) float32: the pixel that every cell is centred on, row by row."""
    y, x = jnp.meshgrid(jnp.arange(map_hw[0]), jnp.arange(map_hw[1]), indexing="ij")
    return px_from_cells(jnp.stack([x, y], -1).reshape(-1, 2), grid).astype(jnp.float32)


def descriptors_at(maps: Array, xy: Array, grid: Grid) -> Array:
    """Unit descriptors (N, D) at pixels xy (N, 2) of the image of a map (h, w, D).

    Bilinear between cells; what lies beyond the outermost cells is theirs.
    """
    last = jnp.array([maps.shape[1] - 1, maps.shape[0] - 1])
    return l2_normalise(bilinear(maps, jnp.clip(cells_from_px(xy, grid), 0, last)))


def regrid(maps: Array, grid: Grid, to: Grid, size_hw: tuple[int, int]) -> Array:
    """A map (..., h, w, D) read at the cells of another grid: (..., H, W, D), size_hw = (H, W).

    Bilinear between cells; what lies beyond the outermost cells is theirs.
    """
    for axis, n, k in ((-3, size_hw[0], 1), (-2, size_hw[1], 0)):
        px = to.origin_xy[k] + to.stride_xy[k] * jnp.arange(n)
        maps = take_linear(maps, (px - grid.origin_xy[k]) / grid.stride_xy[k], axis)
    return maps


def full_size(maps: Array, grid: Grid, size_hw: tuple[int, int]) -> Array:
    """Unit descriptors (..., H, W, D) of every pixel of an image, as `descriptors_at`.

    A map (..., h, w, D) with a cell on every pixel is returned as it is.
    """
    if grid == PIXELS and maps.shape[-3:-1] == tuple(size_hw):
        return maps
    return l2_normalise(regrid(maps, grid, PIXELS, size_hw))
