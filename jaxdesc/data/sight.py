"""What two cameras see of each other's views: epipolar geometry and lines of sight, on the device.

Source: CAPS, section 3 and supplementary section 7.
"""

import jax.numpy as jnp

from jaxdesc.types import Array

NEAREST = 1e-3  # of the largest distance of two cameras: depths that queries are pruned by begin
TINY = 1e-4  # of the norm of F: a smaller F33 is not divided by


def inverse_upper(A: Array) -> Array:
    """Inverse of [[a, b, c], [0, d, e], [0, 0, 1]], as calibrations and windows are.

    Far quicker to compile than a general one.
    """
    (a, b, c), (d, e), zero, one = A[0], A[1, 1:], jnp.zeros(()), jnp.ones(())
    return jnp.array(
        [[1 / a, -b / (a * d), (b * e / d - c) / a], [zero, 1 / d, -e / d], [zero, zero, one]]
    )


def essential(R_1to2: Array, t_1to2: Array) -> Array:
    """E = [t]x R, (3, 3): y2' E y1 = 0 for the directions y = K^-1 x~ of one point."""
    x, y, z = t_1to2
    zero = jnp.zeros(())
    return jnp.matmul(
        jnp.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), R_1to2, precision="highest"
    )


def fundamental(K1: Array, K2: Array, R_1to2: Array, t_1to2: Array) -> Array:
    """F = K2^-T [t]x R K1^-1, (3, 3), scaled so that F33 = 1.

    Or to norm 1 where F33 is next to nothing, as for a rectified pair. Source: CAPS, section 3.
    """
    F = jnp.linalg.multi_dot(
        [inverse_upper(K2).T, essential(R_1to2, t_1to2), inverse_upper(K1)], precision="highest"
    )
    norm = jnp.sqrt(jnp.sum(F * F))
    return F / jnp.where(jnp.abs(F[2, 2]) > TINY * norm, F[2, 2], norm)


def depth_range(spread: Array, point_depth: Array, prune_depth: str) -> Array:
    """(2,) least and greatest depth of a query, from the fields of `kinds.posed.RawPosedPair`.

    "cameras": 1e-3 and 1 times the largest distance of two cameras of the reconstruction
    (CAPS, supplementary, section 7). "points" is ours, for where cameras see further than
    they go: up to the depth of 99 % of the known points, if there are any.
    """
    far = jnp.where(point_depth > 0, point_depth, spread) if prune_depth == "points" else spread
    return jnp.stack([NEAREST * spread, far])


def seen_within(
    xy1: Array,
    K1: Array,
    K2: Array,
    R_1to2: Array,
    t_1to2: Array,
    depth_range: Array,
    size2_wh: Array,
) -> Array:
    """Whether a point of image 1, at some depth of the range, would be seen in image 2.

    At depth d the point lies at p(d) = d a + b in image 2, with a = K2 R K1^-1 x1~ and b = K2 t,
    homogeneous. "Inside the four edges" are inequalities that are linear in d, so each leaves a
    half-line of depths, and the point is kept if they and [d_min, d_max] have a depth in common.
    That it is left of the right and right of the left edge also puts it before the camera; and a
    query whose whole epipolar line misses image 2 is refused, since the segment is part of the
    line. Source: CAPS, supplementary section 7.

    Args:
      xy1: (N, 2) pixels.
    Returns:
      (N,) bool.
    """
    directions = jnp.append(xy1, jnp.ones((len(xy1), 1)), 1)
    a = jnp.linalg.multi_dot([directions, inverse_upper(K1).T, R_1to2.T, K2.T], precision="highest")
    b = jnp.matmul(K2, t_1to2, precision="highest")
    width, height = size2_wh
    edges = jnp.array(
        [[1, 0, 0.5], [-1, 0, width - 0.5], [0, 1, 0.5], [0, -1, height - 0.5]]
    )  # rows c of c.p >= 0: left, right, top, bottom
    slope, offset = (
        jnp.matmul(a, edges.T, precision="highest"),
        jnp.matmul(edges, b, precision="highest"),
    )  # (N, 4), (4,): slope d + offset >= 0
    at = -offset / jnp.where(slope == 0, 1.0, slope)
    low = jnp.where(slope > 0, at, depth_range[0]).max(1)
    high = jnp.where(slope < 0, at, depth_range[1]).min(1)
    never = ((slope == 0) & (offset < 0)).any(1)
    return (jnp.maximum(low, depth_range[0]) <= jnp.minimum(high, depth_range[1])) & ~never
