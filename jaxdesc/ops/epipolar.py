"""Epipolar geometry of two views: F takes a point of image 1 to its line in image 2, x2~' F x1~ = 0 with x~ = (x, y, 1)."""

import jax.numpy as jnp

from jaxdesc.types import Array


def safe_norm(x: Array) -> Array:
    """||x||_2 over the last axis; 0 with a zero gradient at x = 0."""
    squared = jnp.sum(x * x, -1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def epipolar_line(F_1to2: Array, xy1: Array) -> Array:
    """F x1~: (3, 3), (..., 2) -> (..., 3), the line a x + b y + c = 0 of image 2. Written out: a GPU's matrix products would lose it a pixel."""
    return xy1[..., :1] * F_1to2[:, 0] + xy1[..., 1:] * F_1to2[:, 1] + F_1to2[:, 2]


def epipolar_distance(F_1to2: Array, xy1: Array, xy2: Array) -> Array:
    """|x2~' F x1~| / max(||(F x1~)_{1,2}||, 1e-8), pixels of image 2. Source: CAPS, section 3.

    Args:
      F_1to2: (3, 3), of any scale that keeps its lines away from the 1e-8.
      xy1: (..., 2) pixels of image 1. xy2: (..., 2) pixels of image 2.
    Returns:
      (...)
    """
    line = epipolar_line(F_1to2, xy1)
    return jnp.abs(jnp.sum(xy2 * line[..., :2], -1) + line[..., 2]) / jnp.maximum(safe_norm(line[..., :2]), 1e-8)
