"""PUMP's pyramid of correlation maps: small patches vote for larger ones (Revaud et al., CVPR 2022, section 3).

A level is a map C[p, q] of shape (h1, w1, h2, w2): patch p of image 1 against position q of image 2. Going up, q is max-pooled and a parent patch averages
its four children p + s g, s in {-1, +1}^2, each read at q + s. Children outside either grid are absent. A parent of weight k = sum of its children's
weights, of which m are present at q, responds

    C'[p, q] = sum_s weight(p + s g) C[p + s g, q + s] / n,    n = k^0.1 m^0.9.

Level 0 weighs 1 everywhere, and presence is a product of one factor along y and one along x; so then are k, m, n and every later weight. Aggregation is
therefore done one axis at a time with (h1, h2) and (w1, w2) coefficients, known from the shapes alone.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdesc.methods.pump.correlation import correlate_and_pool, maxpool3x3s2
from jaxdesc.types import Array, UserError

PATCH_SPACING = 4  # positions of image 2 from one patch to the next: what makes a spacing of g patches one step of the pooled q grid, g * 4 = 2^level


class Axis(NamedTuple):
    """One axis (y or x) of the step from children to parents; parent i has the children i + offsets[0] and i + offsets[1], read at q - 1 and q + 1."""

    offsets: tuple[int, int]
    coefficients: np.ndarray  # (2, parents, positions) float64: the weight of either child over n; 0 where it is absent
    weight: np.ndarray  # (parents,) float64: k


class Level(NamedTuple):
    """Geometry of the step to one level."""

    rows: Axis
    columns: Axis


def levels(shape: tuple[int, int, int, int], *, smallest: int = 10, limit: int | None = None) -> tuple[Level, ...]:
    """The steps above level 0 of shape (h1, w1, h2, w2).

    Ends before a level whose parents would have no children, after the first level with min(h2, w2) < smallest, or after `limit` levels.
    """
    *patches, h2, w2 = shape
    weights = [np.ones(n) for n in patches]
    steps: list[Level] = []
    while min(h2, w2) >= smallest and (limit is None or len(steps) < limit):
        h2, w2 = -(-h2 // 2), -(-w2 // 2)
        step = Level(*(axis_step(weight, len(steps) + 1, size) for weight, size in zip(weights, (h2, w2), strict=True)))
        weights = [axis.weight for axis in step]
        if not all(weight.any() for weight in weights):
            break
        steps.append(step)
    return tuple(steps)


def child_offsets(level: int) -> tuple[int, int]:
    """Where the children of a parent of `level` lie along an axis; at level 1 parents lie between patches, and there is one more of them."""
    return (-1, 0) if level == 1 else (-(2 ** (level - 2)), 2 ** (level - 2))


def axis_step(weight: np.ndarray, level: int, positions: int) -> Axis:
    """The step to `level` along an axis, from the weights (children,) of the level below and the number of positions above."""
    offsets = child_offsets(level)
    parents, q = np.arange(len(weight) + (level == 1)), np.arange(positions)
    reach = max(map(abs, offsets))
    padded = np.pad(weight, reach)
    children = np.stack([padded[parents + offset + reach] for offset in offsets])  # 0 where there is no child
    inside = np.stack([q - 1 >= 0, q + 1 < positions])
    present = children[:, :, None] * inside[:, None, :]
    k, m = children.sum(0), present.sum(0)
    n = k[:, None] ** 0.1 * m**0.9
    return Axis(offsets, np.divide(present, n, out=np.zeros_like(present), where=n > 0), k)


def aggregate(children: Array, step: Level) -> Array:
    """Parents (h1', w1', h2, w2) from max-pooled children (h1, w1, h2, w2)."""
    for dimension, axis in enumerate(step):
        parents, positions = axis.coefficients.shape[1:]
        broadcast = tuple(slice(None) if d in (dimension, dimension + 2) else None for d in range(4))
        children = sum(
            jnp.asarray(coefficients, children.dtype)[broadcast] * shift(children, {dimension: (offset, parents), dimension + 2: (s, positions)})
            for coefficients, offset, s in zip(axis.coefficients, axis.offsets, (-1, 1), strict=True)
        )
    return children


def shift(x: Array, moves: dict[int, tuple[int, int]]) -> Array:
    """y[i] = x[i + offset] for 0 <= i < size along each of the dimensions {dimension: (offset, size)}; 0 where x has no such entry."""
    pad = [(0, 0, 0)] * x.ndim
    for dimension, (offset, size) in moves.items():
        pad[dimension] = (-offset, size + offset - x.shape[dimension], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), pad)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rectify(x: Array, power: float = 1.5) -> Array:
    """max(x, 0)^power with the slope power * max(x, 0)^(power - 1), which is 0 for x <= 0 (autodiff through a root gives NaN there)."""
    positive = jnp.maximum(x, 0)
    return positive * _root(positive, power - 1)


@rectify.defjvp
def _rectify_jvp(power, primals, tangents):
    (x,), (dx,) = primals, tangents
    root = _root(jnp.maximum(x, 0), power - 1)
    return jnp.maximum(x, 0) * root, power * root * dx


def _root(x: Array, exponent: float) -> Array:
    return jnp.sqrt(x) if exponent == 0.5 else x**exponent  # a square root is several times cheaper than a power


def pyramid(patches: Array, pixels: Array, *, power: float = 1.5, strip_bytes: int | None = None) -> Array:
    """The top level of the training pyramid of one pair of images, not yet rectified.

    Args:
      patches: (h1, w1, D) descriptors of image 1 at the patch centres.
      pixels: (H2, W2, D) descriptors of image 2, PATCH_SPACING times as dense.

    Returns:
      (h1 + 1, w1 + 1, h2, w2) float32 responses with min(h2, w2) < 10, unless image 1 ended the pyramid earlier.

    Raises:
      UserError: if the images are too small for a single level.
    """
    h1, w1, D = patches.shape
    steps = levels((h1, w1, *pixels.shape[:2]))
    if not steps:
        raise UserError(f"A correlation of {h1}x{w1} patches with {pixels.shape[0]}x{pixels.shape[1]} positions has no pyramid; use larger crops.")
    pooled = correlate_and_pool(patches.reshape(-1, D), pixels, strip_bytes=strip_bytes).reshape(h1, w1, -(-pixels.shape[0] // 2), -(-pixels.shape[1] // 2))
    C = aggregate(rectify(pooled, power), steps[0])
    for step in steps[1:]:
        pooled = maxpool3x3s2(C.reshape(-1, *C.shape[2:]), strip_bytes=strip_bytes)
        C = aggregate(rectify(pooled, power).reshape(*C.shape[:2], *pooled.shape[1:]), step)
    return C
