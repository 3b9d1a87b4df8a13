"""Pictures of flat, textured rectangles in space, by casting rays: exact depth and exact correspondences, for training without photographs of places.

A rectangle r is o + s e1 + t e2 with 0 <= s, t <= 1, e1 and e2 orthogonal. In a camera x_cam = R X + t with calibration K its points project as
z x~ = A (s, t, 1) with A = K [R e1, R e2, R o + t], so h = A^-1 x~ holds all that a ray meets: 1 / z = h3, s = h1 / h3, t = h2 / h3. The nearest rectangle
is that with the greatest h3. Everything is written for one view.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdesc.ops.warp import LEVELS, bilinear, halvings, pixel_grid
from jaxdesc.types import Array

SUPERSAMPLES = 2  # rays a side of a pixel


class Rectangles(NamedTuple):
    """P rectangles and what is painted on them."""

    origin: Array  # (P, 3)
    edge1: Array  # (P, 3)
    edge2: Array  # (P, 3)
    texture: Array  # (P,) int32 which texture
    window: Array  # (P, 4) x, y of the part of the texture that is shown, its width and height, texture pixels


def homographies(rectangles: Rectangles, K: Array, R: Array, t: Array) -> Array:
    """A^-1 of every rectangle, (P, 3, 3), from pixels to (s, t, 1) / z."""
    columns = [jnp.matmul(edge, R.T, precision="highest") for edge in (rectangles.edge1, rectangles.edge2, rectangles.origin)]
    A = jnp.matmul(K, jnp.stack([columns[0], columns[1], columns[2] + t], -1), precision="highest")
    return jnp.linalg.inv(A)


def cast(H: Array, xy: Array) -> tuple[Array, Array]:
    """What the rays through pixels meet first.

    Args:
      H: (P, 3, 3) from `homographies`.
      xy: (..., 2) pixels.
    Returns:
      inverse depth (...), 0 where a ray meets nothing, and the rectangle's number (...) int32, -1 there.
    """
    x, y = xy[..., 0], xy[..., 1]

    def one(nearest, inputs):
        H, number = inputs
        h1, h2, h3 = (row[0] * x + row[1] * y + row[2] for row in H)
        hit = (h3 > nearest[0]) & (h1 >= 0) & (h2 >= 0) & (h1 <= h3) & (h2 <= h3)
        return (jnp.where(hit, h3, nearest[0]), jnp.where(hit, number, nearest[1])), None

    nothing = jnp.zeros(x.shape), jnp.full(x.shape, -1, jnp.int32)
    return lax.scan(one, nothing, (H, jnp.arange(len(H), dtype=jnp.int32)))[0]


def render(rectangles: Rectangles, textures: Array, shade: Array, K: Array, R: Array, t: Array, hw: tuple[int, int]) -> tuple[Array, Array]:
    """A picture, and the depth at the centre of every pixel.

    Textures are sampled as by `ops.warp`: bilinear, in the two halved copies next to the local change of scale; SUPERSAMPLES^2 rays a pixel smooth the edges.

    Args:
      textures: (T, C, C, 3) uint8, C a multiple of 8.
      shade: (P,) brightness of each rectangle.
      K, R, t: (3, 3), (3, 3), (3,).
    Returns:
      (H, W, 3) float32 in [0, 1] and (H, W) float32 depth, 0 where there is nothing.
    """
    H = homographies(rectangles, K, R, t)
    pixels, starts = jax.vmap(halvings)(textures)[0], halvings(textures[0])[1]
    per_texture, side = pixels.shape[1], textures.shape[1]
    pixels, starts = pixels.reshape(-1, 3), jnp.asarray(starts)
    determinant = jnp.abs(jnp.linalg.det(H)) * rectangles.window[:, 2] * rectangles.window[:, 3]
    grid = pixel_grid(*hw)

    def sample(offset):
        xy = (grid + offset).reshape(-1, 2)
        inverse_depth, number = cast(H, xy)
        hit, number = number >= 0, jnp.maximum(number, 0)
        h = H[number]
        st = (h[:, :2, 0] * xy[:, :1] + h[:, :2, 1] * xy[:, 1:] + h[:, :2, 2]) / jnp.where(hit, inverse_depth, 1.0)[:, None]
        window = rectangles.window[number]
        uv = window[:, :2] + jnp.clip(st, 0, 1) * window[:, 2:]
        jacobian = determinant[number] / jnp.where(hit, inverse_depth, 1.0) ** 3 / SUPERSAMPLES**2  # texture pixels to a ray's share of the picture
        detail = jnp.clip(0.5 * jnp.log2(jnp.maximum(jacobian, 1e-6)), 0, LEVELS - 1)
        lower = jnp.minimum(jnp.floor(detail).astype(jnp.int32), LEVELS - 2)

        def level(n):
            shrink = 2.0**n
            start = rectangles.texture[number] * per_texture + starts[n]
            size = jnp.full((2,), side) / shrink[..., None]
            return bilinear(pixels, start, side / shrink, size, (uv + 0.5) / shrink[..., None] - 0.5)

        mix = (detail - lower)[:, None]
        colour = ((1 - mix) * level(lower) + mix * level(lower + 1)) * shade[number][:, None] / 255
        return jnp.where(hit[:, None], jnp.clip(colour, 0, 1), 0.0)

    steps = (jnp.arange(SUPERSAMPLES) + 0.5) / SUPERSAMPLES - 0.5
    offsets = jnp.stack(jnp.meshgrid(steps, steps), -1).reshape(-1, 2)
    picture = lax.map(sample, offsets).mean(0).reshape(*hw, 3)
    inverse_depth = cast(H, grid)[0]
    return picture, jnp.where(inverse_depth > 0, 1 / jnp.where(inverse_depth > 0, inverse_depth, 1), 0.0)
