"""Cells of a descriptor map on its image, keypoints on cells, and what a keypoint's row of the correlation says. Written for one pair of images.

Convention: cell (row v, column u) of a map of h x w cells has its centre at (4 u, 4 v) px and the box of `box_px` around it; cells are counted row by row.
Source: COLD, 2.4 and 2.5 of its page; the geometry is Dynamic Hyperpixel Flow's.
"""

import jax
import jax.numpy as jnp

from jaxdesc.ops.sampling import cell_centres
from jaxdesc.types import Array, Grid

CELL_PX = 4  # spacing of the centres
CELLS = Grid((0.0, 0.0), (float(CELL_PX), float(CELL_PX)))
TINY = 1e-30  # keeps logarithms and quotients finite


def map_shape(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the cells of an image: those whose centres lie on it."""
    return -(-height // CELL_PX), -(-width // CELL_PX)


def _nearest(xy: Array, map_hw: tuple[int, int]) -> Array:
    """(..., 2) int32 column and row of the nearest centre, the first of two as near."""
    return jnp.clip(jnp.ceil(xy / CELL_PX - 0.5), 0, jnp.array(map_hw[::-1]) - 1).astype(jnp.int32)


def nearest_cell(xy: Array, map_hw: tuple[int, int]) -> Array:
    """(...,) int32: the cell whose centre is nearest to points (..., 2) px."""
    uv = _nearest(xy, map_hw)
    return uv[..., 1] * map_hw[1] + uv[..., 0]


def cells_around(xy: Array, map_hw: tuple[int, int], box_px: int) -> tuple[Array, Array]:
    """The cells whose boxes contain a point, and in any case the nearest one.

    Args:
      xy: (N, 2) px. box_px: odd side of the boxes: a point is in a box if it is at most (box_px - 1) / 2 from the centre along both axes.
    Returns:
      (N, M) int32 cells and (N, M) bool, which of them it is; M = 9 for boxes of 11 px.
    """
    half = (box_px - 1) / 2
    reach = int(half / CELL_PX + 0.5)
    y, x = jnp.meshgrid(*[jnp.arange(-reach, reach + 1)] * 2, indexing="ij")
    offsets = jnp.stack([x, y], -1).reshape(-1, 2)
    uv = _nearest(xy, map_hw)[:, None] + offsets
    on_map = ((uv >= 0) & (uv < jnp.array(map_hw[::-1]))).all(-1)
    holds = (jnp.abs(xy[:, None] - CELL_PX * uv) <= half).all(-1) | (offsets == 0).all(-1)
    return jnp.where(on_map, uv[..., 1] * map_hw[1] + uv[..., 0], 0), on_map & holds


def correlation(desc1: Array, desc2: Array) -> Array:
    """A = max(0, d1 . d2)^2: (N, D), (Q, D) unit descriptors -> (N, Q) float32."""
    return jnp.maximum(jnp.einsum("nd,qd->nq", desc1, desc2, preferred_element_type=jnp.float32), 0) ** 2


def best_cells(desc1: Array, desc2: Array, cells: Array, mutual: bool = False, strip: int = 512) -> Array:
    """(N,) int32: for each of `cells` (N,) of image 1 the cell of image 2 of the greatest A, or with `mutual` of the greatest A A^2 / (rowmax colmax).

    The rows that are not asked for are only needed, strip by strip, for the greatest of each column with `mutual`: memory stays at (N + strip) * Q.

    Args:
      desc1: (P, D), desc2: (Q, D): all cells of both images.
    """
    A = correlation(desc1[cells], desc2)
    if mutual:
        strips = jnp.pad(desc1, ((0, -len(desc1) % strip), (0, 0))).reshape(-1, strip, desc1.shape[1])
        column, _ = jax.lax.scan(lambda best, rows: (jnp.maximum(best, correlation(rows, desc2).max(0)), None), jnp.zeros(len(desc2)), strips)
        A = A * (A / jnp.maximum(A.max(1, keepdims=True), TINY)) * (A / jnp.maximum(column, TINY))
    return A.argmax(1).astype(jnp.int32)


def transfer(
    xy1: Array, desc1: Array, desc2: Array, map1_hw: tuple[int, int], map2_hw: tuple[int, int], box_px: int = 11, mutual: bool = False
) -> tuple[Array, Array]:
    """Points of image 1 in image 2: x2 = x1 + mean_n (centre(nn(n)) - centre(n)) over the cells n whose boxes contain x1.

    Args:
      xy1: (N, 2) px. desc1: (h1 w1, D), desc2: (h2 w2, D).
    Returns:
      (N, 2) px, and (N,) the greatest cosine of the nearest cell's descriptor with one of image 2.
    """
    cells, holds = cells_around(xy1, map1_hw, box_px)
    found = best_cells(desc1, desc2, cells.reshape(-1), mutual).reshape(cells.shape)
    moved = cell_centres(map2_hw, CELLS)[found] - cell_centres(map1_hw, CELLS)[cells]
    xy2 = xy1 + jnp.sum(jnp.where(holds[..., None], moved, 0), 1) / jnp.sum(holds, 1)[:, None]
    own = desc1[nearest_cell(xy1, map1_hw)]
    return xy2, jnp.einsum("nd,qd->nq", own, desc2, preferred_element_type=jnp.float32).max(1)


def standardised(rows: Array, deviation_gradient: bool = True) -> Array:
    """z = (r - mean r) / sd r of each row (N, Q); sd is the population's, 1 where it is 0, so that a flat row gives zeros.

    No z exceeds sqrt(Q - 1), so that a softmax of z needs no temperature.

    Args:
      deviation_gradient: the gradient is that of z. Without, sd counts as a constant, after Dynamic Hyperpixel Flow: such steps also raise sd, and with it lower z,
        so that they need not lower a loss of z.
    """
    deviations = rows - rows.mean(1, keepdims=True)
    variance = jnp.mean(deviations**2, 1, keepdims=True)
    if not deviation_gradient:
        variance = jax.lax.stop_gradient(variance)
    return deviations * jax.lax.rsqrt(jnp.where(variance > 0, variance, 1))


def cross_entropy(rows: Array, target: Array, deviation_gradient: bool = True) -> Array:
    """-log(p[target] + 1e-30) with p = softmax(standardised(row)): (N, Q), (N,) int -> (N,)."""
    p = jax.nn.softmax(standardised(rows, deviation_gradient), 1)
    return -jnp.log(jnp.take_along_axis(p, target[:, None], 1)[:, 0] + TINY)


def difficulty(distance: Array, limit: float) -> Array:
    """Weights of keypoints (N,): 1 where the prediction is further than `limit` from the truth (hard), else (distance / limit)^2 (easy); no gradient."""
    return jax.lax.stop_gradient(jnp.where(distance > limit, 1.0, (distance / limit) ** 2))
