"""Plane geometry as 3x3 matrices.

Convention: (x, y) in pixels, the centre of the top-left pixel is (0, 0), so an image of width w covers [-0.5, w - 0.5].
A matrix named `A_1to2` takes points of frame 1 to frame 2; matrices act on columns, so `A_2to3 @ A_1to2` is "first 1 to 2".
"""

import jax.numpy as jnp

from jaxdesc.types import Array


def apply_homography(H: Array, xy: Array) -> Array:
    """Points through a homography: (x', y') = (u / w, v / w) with (u, v, w) = H (x, y, 1).

    Args:
      H: (3, 3).
      xy: (..., 2) pixels.
    Returns:
      (..., 2) pixels. Points on the line that H sends to infinity (w = 0) come back far outside any image, never NaN.
    """
    uvw = jnp.matmul(xy, H[:, :2].T, precision="highest") + H[:, 2]  # a GPU's default precision moves points by pixels
    w = uvw[..., 2:]
    safe = jnp.where(jnp.abs(w) < 1e-8, jnp.where(w < 0, -1e-8, 1e-8), w)
    return uvw[..., :2] / safe


def change_of_area(H: Array, xy: Array) -> Array:
    """|det J| of a homography at points: |det H| / |w|^3 with w = (H (x, y, 1))_3.

    Args:
      H: (3, 3).
      xy: (..., 2) pixels.
    Returns:
      (...), finite; its square root is the local change of length.
    """
    w = jnp.matmul(xy, H[2, :2], precision="highest") + H[2, 2]
    return jnp.abs(jnp.linalg.det(H)) / jnp.maximum(jnp.abs(w), 1e-6) ** 3


def translation(xy: Array) -> Array:
    """Moves points by (x, y)."""
    one, zero = jnp.ones(()), jnp.zeros(())
    x, y = xy
    return jnp.array([[one, zero, x], [zero, one, y], [zero, zero, one]])


def resizing(scale_xy: Array) -> Array:
    """Resizing an image by (sx, sy): x' = (x + 0.5) sx - 0.5, so that the image's outer edges stay edges."""
    sx, sy = scale_xy
    one, zero = jnp.ones(()), jnp.zeros(())
    return jnp.array([[sx, zero, 0.5 * sx - 0.5], [zero, sy, 0.5 * sy - 0.5], [zero, zero, one]])


def rotation(angle: Array, centre_xy: Array) -> Array:
    """Turns points by `angle` radians about a centre, from the x axis towards the y axis (clockwise on a screen)."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    one, zero = jnp.ones(()), jnp.zeros(())
    turn = jnp.array([[c, -s, zero], [s, c, zero], [zero, zero, one]])
    return translation(centre_xy) @ turn @ translation(-centre_xy)


def mirror(width: int) -> Array:
    """Left-right mirror image of a frame: x' = width - 1 - x."""
    return jnp.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def homography_from_points(xy1: Array, xy2: Array) -> Array:
    """The homography through four correspondences, scaled so that H[2, 2] = 1.

    Args:
      xy1, xy2: (4, 2), no three on a line.
    Returns:
      (3, 3) `H_1to2`, from the eight linear equations x2 (h7 x1 + h8 y1 + 1) = h1 x1 + h2 y1 + h3, and the same for y2.
    """
    x1, y1 = xy1[:, 0], xy1[:, 1]
    zero, one = jnp.zeros(4), jnp.ones(4)

    def rows(value, first):
        linear = [x1, y1, one, zero, zero, zero] if first else [zero, zero, zero, x1, y1, one]
        return jnp.stack([*linear, -value * x1, -value * y1], axis=1)

    A = jnp.concatenate([rows(xy2[:, 0], True), rows(xy2[:, 1], False)])
    h = jnp.linalg.solve(A, jnp.concatenate([xy2[:, 0], xy2[:, 1]]))
    return jnp.append(h, 1.0).reshape(3, 3)


def tilting(side: Array, skew: Array, size_wh: Array) -> Array:
    """Perspective tilt: one side of the frame recedes.

    The two corners of that side come from points `skew` pixels beyond the frame's corners, along the side, so that the side
    shows a stretch of length L + 2 skew.

    Args:
      side: () int, 0 left, 1 right, 2 top, 3 bottom.
      skew: () pixels, >= 0.
      size_wh: (2,) pixels.
    Returns:
      (3, 3) homography from the untilted to the tilted frame; the frame's size stays.
    """
    w, h = size_wh[0] - 1.0, size_wh[1] - 1.0
    corners = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) * jnp.stack([w, h])
    outward = jnp.array(  # of the corners, for each side
        [
            [[0, -1], [0, 0], [0, 0], [0, 1]],
            [[0, 0], [0, -1], [0, 1], [0, 0]],
            [[-1, 0], [1, 0], [0, 0], [0, 0]],
            [[0, 0], [0, 0], [1, 0], [-1, 0]],
        ],
        dtype=jnp.float32,
    )[side]
    return homography_from_points(corners + skew * outward, corners)
