"""Posed pairs drawn on the device: two views cut to size, their cameras with them, and the query points that CAPS asks for.

Every draw comes from fold_in(step key, slot), as in `draw`. Source: CAPS, section 4 and supplementary section 7.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxdesc.config import DrawConfig
from jaxdesc.data.jitter import COLOUR, colour_jitter, log_between
from jaxdesc.ops import geometry
from jaxdesc.ops.warp import warp_homography
from jaxdesc.types import Array, Canvas, PosedPair

NEAREST = 1e-3  # of the largest distance of two cameras: depths that queries are pruned by begin
SIFT_SHARE = 0.9  # of the queries; the others are uniform over image 1
WINDOW = 3  # uniform numbers that a window uses up
TINY = 1e-4  # of the norm of F: a smaller F33 is not divided by


@struct.dataclass
class RawPosedPair:
    """Two views as the host delivers them; pixels are those of the canvases."""

    canvas1: Canvas
    canvas2: Canvas
    K1: Array  # (..., 3, 3) float32
    K2: Array  # (..., 3, 3) float32
    R_1to2: Array  # (..., 3, 3) float32: x_cam2 = R x_cam1 + t
    t_1to2: Array  # (..., 3) float32, unit length
    spread: Array  # (...) float32 largest distance of two cameras of the reconstruction, by |t|
    point_depth: Array  # (...) float32 that 99 % of the known points are nearer than; 0: none is
    xy1_px: Array  # (..., K, 2) float32 keypoints of image 1, in random order
    valid: Array  # (..., K) bool
    xy2_px: Array  # (..., K, 2) float32 where they lie in image 2
    known: Array  # (..., K) bool: where that is known


def inverse_upper(A: Array) -> Array:
    """Inverse of [[a, b, c], [0, d, e], [0, 0, 1]], as calibrations and windows are; far quicker to compile than a general one."""
    (a, b, c), (d, e), zero, one = A[0], A[1, 1:], jnp.zeros(()), jnp.ones(())
    return jnp.array([[1 / a, -b / (a * d), (b * e / d - c) / a], [zero, 1 / d, -e / d], [zero, zero, one]])


def essential(R_1to2: Array, t_1to2: Array) -> Array:
    """E = [t]x R, (3, 3): y2' E y1 = 0 for the directions y = K^-1 x~ of one point."""
    x, y, z = t_1to2
    zero = jnp.zeros(())
    return jnp.matmul(jnp.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), R_1to2, precision="highest")


def fundamental(K1: Array, K2: Array, R_1to2: Array, t_1to2: Array) -> Array:
    """F = K2^-T [t]x R K1^-1, (3, 3), scaled so that F33 = 1, or to norm 1 where F33 is next to nothing, as for a rectified pair. Source: CAPS, section 3."""
    F = jnp.linalg.multi_dot([inverse_upper(K2).T, essential(R_1to2, t_1to2), inverse_upper(K1)], precision="highest")
    norm = jnp.sqrt(jnp.sum(F * F))
    return F / jnp.where(jnp.abs(F[2, 2]) > TINY * norm, F[2, 2], norm)


def depth_range(spread: Array, point_depth: Array, prune_depth: str) -> Array:
    """(2,) least and greatest depth that a query may have, from the fields of `RawPosedPair`.

    "cameras": 1e-3 and 1 times the largest distance of two cameras of the reconstruction
    (CAPS, supplementary, section 7). "points" is ours, for where cameras see further than
    they go: up to the depth of 99 % of the known points, if there are any.
    """
    far = jnp.where(point_depth > 0, point_depth, spread) if prune_depth == "points" else spread
    return jnp.stack([NEAREST * spread, far])


def seen_within(xy1: Array, K1: Array, K2: Array, R_1to2: Array, t_1to2: Array, depth_range: Array, size2_wh: Array) -> Array:
    """Whether a point of image 1, at some depth of the range, would be seen in image 2.

    At depth d the point lies at p(d) = d a + b in image 2, with a = K2 R K1^-1 x1~ and b = K2 t, homogeneous. "Inside the four edges" are inequalities that
    are linear in d, so each leaves a half-line of depths, and the point is kept if they and [d_min, d_max] have a depth in common. That it is left of the
    right and right of the left edge also puts it before the camera; and a query whose whole epipolar line misses image 2 is refused, since the segment is
    part of the line. Source: CAPS, supplementary section 7.

    Args:
      xy1: (N, 2) pixels.
    Returns:
      (N,) bool.
    """
    directions = jnp.append(xy1, jnp.ones((len(xy1), 1)), 1)
    a = jnp.linalg.multi_dot([directions, inverse_upper(K1).T, R_1to2.T, K2.T], precision="highest")
    b = jnp.matmul(K2, t_1to2, precision="highest")
    width, height = size2_wh
    edges = jnp.array([[1, 0, 0.5], [-1, 0, width - 0.5], [0, 1, 0.5], [0, -1, height - 0.5]])  # rows c of c.p >= 0: left, right, top, bottom
    slope, offset = jnp.matmul(a, edges.T, precision="highest"), jnp.matmul(edges, b, precision="highest")  # (N, 4), (4,): slope d + offset >= 0
    at = -offset / jnp.where(slope == 0, 1.0, slope)
    low = jnp.where(slope > 0, at, depth_range[0]).max(1)
    high = jnp.where(slope < 0, at, depth_range[1]).min(1)
    never = ((slope == 0) & (offset < 0)).any(1)
    return (jnp.maximum(low, depth_range[0]) <= jnp.minimum(high, depth_range[1])) & ~never


def into_window(u: Array, size_hw: Array, out_hw: tuple[int, int], cfg: DrawConfig) -> Array:
    """(3, 3) from a photograph to a random window of it, of the output's shape: the largest that fits, over up to `crop_scale`, anywhere inside.

    Args:
      u: (WINDOW,) uniform numbers.
    """
    size_wh, out_wh = size_hw[::-1].astype(jnp.float32), jnp.array(out_hw[::-1], jnp.float32)
    window_wh = out_wh * (size_wh / out_wh).min() / log_between(u[0], 1.0, cfg.crop_scale)
    corner = u[1:] * jnp.maximum(size_wh - window_wh, 0)  # of the window's outer edge, counted from the photograph's
    return geometry.resizing(out_wh / window_wh) @ geometry.translation(-corner)


def take_queries(keypoints: Array, uniform: Array, count: int) -> Array:
    """Which candidates become queries: SIFT_SHARE of `count` from the keypoints that are allowed, in their order, the others from the uniform points, which
    also stand in for keypoints that lack.

    Args:
      keypoints: (K,) bool, uniform: (U,) bool: the candidates that may be asked for.
    Returns:
      (count,) int32 places in the concatenation of both; K + U where there are not enough.
    """
    most = round(SIFT_SHARE * count)
    rank1, rank2 = jnp.cumsum(keypoints), jnp.cumsum(uniform)
    first = jnp.minimum(rank1[-1], most)
    slot1 = jnp.where(keypoints & (rank1 <= most), rank1 - 1, count)
    slot2 = jnp.where(uniform, first + rank2 - 1, count)
    slots, total = jnp.concatenate([slot1, slot2]), len(keypoints) + len(uniform)
    return jnp.full(count, total, jnp.int32).at[slots].set(jnp.arange(total, dtype=jnp.int32), mode="drop")


def draw_posed_pair(key: Array, raw: RawPosedPair, cfg: DrawConfig) -> dict[str, Array]:
    """One pair: the fields of PosedPair but `slot`. Of `cfg` counts posed_hw, queries, prune,
    prune_depth, crop_scale, flip_probability and the colours.

    Both images are cut and resized, and mirrored together; K follows as K' = M K, and F from the
    cameras as they are then. Queries are SIFT keypoints and as many uniform candidates as there
    are queries, kept where they lie on image 1 and, if cfg.prune, where their line of sight,
    within `depth_range`, crosses image 2.
    """
    count, out_hw = cfg.queries, cfg.posed_hw
    u = jax.random.uniform(key, (2 * WINDOW + 2 * COLOUR + 1 + 2 * count,))
    u_windows, u_colours, u_flip, u_points = jnp.split(u, np.cumsum([2 * WINDOW, 2 * COLOUR, 1]))
    flip = jnp.where(u_flip[0] < cfg.flip_probability, geometry.mirror(out_hw[1]), jnp.eye(3))

    def cut(canvas, K, u_window, u_colour):
        M = jnp.matmul(flip, into_window(u_window, canvas.size_hw, out_hw, cfg), precision="highest")
        image = warp_homography(canvas.image, canvas.size_hw, inverse_upper(M), out_hw)
        return colour_jitter(u_colour, image, cfg), jnp.matmul(M, K, precision="highest"), M

    views = jax.tree.map(lambda one, two: jnp.stack([one, two]), (raw.canvas1, raw.K1), (raw.canvas2, raw.K2))
    (image1, image2), (K1, K2), (M1, M2) = jax.vmap(cut)(*views, u_windows.reshape(2, WINDOW), u_colours.reshape(2, COLOUR))

    def inside(xy):
        return ((xy >= 0) & (xy <= limit)).all(-1)

    limit = jnp.array([out_hw[1] - 1.0, out_hw[0] - 1.0])  # pixel centres: a descriptor can be sampled there
    uniform = u_points.reshape(count, 2) * limit
    xy1 = jnp.concatenate([geometry.apply_homography(M1, raw.xy1_px), uniform])
    xy2 = jnp.append(geometry.apply_homography(M2, raw.xy2_px), jnp.zeros((count, 2)), 0)
    size = limit + 1
    allowed = inside(xy1)
    if cfg.prune:
        depths = depth_range(raw.spread, raw.point_depth, cfg.prune_depth)
        allowed &= seen_within(xy1, K1, K2, raw.R_1to2, raw.t_1to2, depths, size)
    keypoints = len(raw.xy1_px)
    chosen = take_queries(allowed[:keypoints] & raw.valid, allowed[keypoints:], count)
    valid = chosen < len(xy1)
    known = jnp.append(raw.known, jnp.zeros(count, bool)) & inside(xy2)
    return {
        **{"image1": image1, "image2": image2, "F_1to2": fundamental(K1, K2, raw.R_1to2, raw.t_1to2)},
        **{"xy1_px": jnp.where(valid[:, None], xy1.at[chosen].get(mode="clip"), 0.0), "valid": valid},
        **{"xy2_px": xy2.at[chosen].get(mode="clip"), "known": known.at[chosen].get(mode="clip") & valid},
    }


def draw_posed(key: Array, raw: RawPosedPair, slot: Array, cfg: DrawConfig) -> PosedPair:
    """A batch of pairs, leading axis B; example i is drawn from fold_in(key, slot[i])."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slot)
    return PosedPair(**jax.vmap(lambda k, r: draw_posed_pair(k, r, cfg))(keys, raw), slot=slot)
