"""Thin-plate splines and affine maps of the plane, for random warps of photographs.

Convention: `unit` coordinates, (u, v) = ((x + 0.5) / W, (y + 0.5) / H) of a frame of H rows and W columns: its outer edges are 0 and 1, so that a
displacement of 0.1 is a tenth of the side whatever the resolution. On a frame that is not square a rotation in `unit` coordinates shears pixels.

A warp T = affine after spline maps a frame to the photograph that it shows: warped(u) = photograph(T(u)). So T is at once what an image is sampled with and the
true position, in the photograph, of every point of the warped image; no inverse is needed.
"""

import jax.numpy as jnp
import numpy as np

from jaxdesc.types import Array


def unit_from_px(xy: Array, size_hw: tuple[int, int] | Array) -> Array:
    """Pixels (..., 2) of a frame of (H, W) -> unit (..., 2)."""
    return (xy + 0.5) / _size_wh(size_hw)


def px_from_unit(uv: Array, size_hw: tuple[int, int] | Array) -> Array:
    """Unit (..., 2) -> pixels (..., 2) of a frame of (H, W)."""
    return uv * _size_wh(size_hw) - 0.5


def _size_wh(size_hw: tuple[int, int] | Array) -> Array:
    return jnp.asarray(size_hw, jnp.float32)[::-1]


def unit_grid(height: int, width: int) -> Array:
    """(height, width, 2) float32: the unit (u, v) of every pixel."""
    v, u = jnp.meshgrid((jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width, indexing="ij")
    return jnp.stack([u, v], -1)


def control_grid(side: int = 3) -> np.ndarray:
    """(side^2, 2) unit positions of a regular grid that reaches from edge to edge, row by row."""
    v, u = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
    return np.stack([u, v], -1).reshape(-1, 2)


def _kernel(squared, np):
    """U(r) = r^2 log r^2, 0 at 0; `np` is numpy or jax.numpy."""
    return squared * np.log(np.where(squared > 0, squared, 1.0))


def spline_basis(uv: Array, control: np.ndarray) -> Array:
    """Cardinal thin-plate splines: `spline_basis(uv, control) @ values` is the surface of least bending through values (K, n) at the control points.

    f(u) = sum_k w_k U(|u - c_k|) + a . (1, u), with f(c_k) = values_k and sum_k w_k (1, c_k) = 0: linear in the values, solved once, when traced.
    Affine values are reproduced everywhere. Source: Bookstein, TPAMI 1989.

    Args:
      uv: (..., 2), in any frame. control: (K, 2) NumPy, of the same frame, not all on a line.
    Returns:
      (..., K) float32, summing to 1.
    """
    control = np.asarray(control, np.float64)
    count = len(control)
    affine = np.concatenate([np.ones((count, 1)), control], 1)
    system = np.block([[_kernel(((control[:, None] - control) ** 2).sum(-1), np), affine], [affine.T, np.zeros((3, 3))]])
    solution = jnp.asarray(np.linalg.inv(system)[:, :count], jnp.float32)  # values -> (w, a)
    squared = jnp.sum((uv[..., None, :] - jnp.asarray(control, jnp.float32)) ** 2, -1)
    rows = jnp.concatenate([_kernel(squared, jnp), jnp.ones_like(uv[..., :1]), uv], -1)
    return jnp.matmul(rows, solution, precision="highest")


def spline_warp(uv: Array, moved: Array) -> Array:
    """uv + d(uv), the spline d through the displacements `moved` (side^2, 2) of `control_grid(side)`, row by row; unit coordinates, (..., 2) -> (..., 2)."""
    side = round(moved.shape[0] ** 0.5)
    return uv + jnp.matmul(spline_basis(uv, control_grid(side)), moved, precision="highest")


def similarity(angle: Array, scale: Array, shift: Array) -> Array:
    """(2, 3) affine matrix: u' = scale R(angle) (u - c) + c + shift, c = (0.5, 0.5) the centre; from the u axis towards the v axis, radians."""
    cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
    turn = jnp.array([[cos, -sin], [sin, cos]])
    centre = jnp.array([0.5, 0.5])
    return jnp.concatenate([turn, (centre + shift - turn @ centre)[:, None]], 1)


def affine_warp(uv: Array, A: Array) -> Array:
    """A (u, v, 1): unit (..., 2) through a (2, 3) matrix."""
    return jnp.matmul(uv, A[:, :2].T, precision="highest") + A[:, 2]


def warp(uv: Array, A: Array, moved: Array) -> Array:
    """T(u) = A (u + d(u)), unit coordinates: an image resampled with A, and what came out of that with the spline. See `affine_warp`, `spline_warp`."""
    return affine_warp(spline_warp(uv, moved), A)


def inside(uv: Array) -> Array:
    """(...,) bool: whether unit positions (..., 2) lie on the frame."""
    return ((uv >= 0) & (uv <= 1)).all(-1)


def reflect(uv: Array) -> Array:
    """Unit positions (..., 2) folded back onto the frame at its outer edges, as pixels mirrored around it would be read."""
    period = jnp.mod(uv, 2.0)
    return jnp.minimum(period, 2.0 - period)
