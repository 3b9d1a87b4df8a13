"""Correlation of patches with all pixels, max-pooled before it leaves the cache.

The correlation of P patches with H x W pixels is the largest array of PUMP, and only its 3x3, stride 2, padding 1 max-pool is needed: a quarter of it.
Strips of patches are correlated and pooled one after the other, so that the whole never exists. The pixels are first sorted into their four phases, even
and odd rows x even and odd columns; the matrix product then yields the phases of the correlation, each a contiguous (h, w) map with
h = ceil(H / 2), w = ceil(W / 2), and window (i, j), which covers rows 2i-1, 2i, 2i+1 and columns 2j-1, 2j, 2j+1, becomes a maximum of unit-stride slices:

    e = max(EO[., j-1], EE[., j], EO[., j]),   o = max(OO[., j-1], OE[., j], OO[., j]),   pooled = max(o[i-1], e[i], o[i]).

An arg-max code 0..8 counts the window's cells in row-major order, 3 * (row + 1) + (column + 1) relative to (2i, 2j). Of equal cells the first wins, and
it alone receives the gradient.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from jaxdesc.methods.pump.backends import default_strip_bytes
from jaxdesc.types import Array


def correlate_and_pool(desc1: Array, desc2: Array, *, strip_bytes: int | None = None, with_argmax: bool = False) -> Array | tuple[Array, Array]:
    """max over the 3x3 windows, at stride 2, of C[p, q] = <desc1[p], desc2[q]>, without holding C.

    Args:
      desc1: (P, D) descriptors of the patches of image 1.
      desc2: (H, W, D) descriptors of the pixels of image 2; products accumulate in float32 at least, whatever the type.
      strip_bytes: bytes of C that may exist at once; by default what suits the backend.
      with_argmax: return the arg-max codes too (then nothing is differentiable).

    Returns:
      (P, ceil(H / 2), ceil(W / 2)) float32 (float64 of float64), and with `with_argmax` the codes, uint8 in 0..8 of the same shape.
    """
    H, W, _ = desc2.shape
    strips = _strip_count(desc1.shape[0], 4 * (H + H % 2) * (W + W % 2), strip_bytes)
    return _correlate(desc1, desc2, strips, True) if with_argmax else _correlate_and_pool(desc1, desc2, strips)


def maxpool3x3s2(x: Array, *, strip_bytes: int | None = None, with_argmax: bool = False) -> Array | tuple[Array, Array]:
    """Max-pools (N, H, W) to (N, ceil(H / 2), ceil(W / 2)) with 3x3 windows, stride 2 and padding 1; arguments as in `correlate_and_pool`."""
    strips = _strip_count(x.shape[0], 8 * x.dtype.itemsize * math.prod(x.shape[1:]), strip_bytes)  # 8: what pooling reads and writes beside x
    return _pool(x, strips, True) if with_argmax else _maxpool(x, strips)


def _strip_count(rows: int, row_bytes: int, strip_bytes: int | None) -> int:
    strip_bytes = strip_bytes or default_strip_bytes()
    least = min(rows, -(-rows * row_bytes // strip_bytes))
    return next((n for n in range(least, min(rows, 4 * least) + 1) if rows % n == 0), least)  # equal strips save a copy


def _strips(x: Array, strips: int) -> Array:
    """(N, ...) -> (strips, ceil(N / strips), ...), the last strip filled up with zeros."""
    size = -(-x.shape[0] // strips)
    return jnp.pad(x, [(0, strips * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)).reshape(strips, size, *x.shape[1:])


def _unstrip(x: Array, rows: int) -> Array:
    return x.reshape(-1, *x.shape[2:])[:rows]


# Phases: a map (..., H, W) as the tuple EE, EO, OE, OO of (..., h, w) maps. Cells that an odd H or W lacks hold -inf and never win.


def split_phases(x: Array) -> tuple[Array, ...]:
    H, W = x.shape[-2:]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, H % 2), (0, W % 2)], constant_values=-jnp.inf)
    return tuple(x[..., row::2, column::2] for row in (0, 1) for column in (0, 1))


def merge_phases(phases: tuple[Array, ...], H: int, W: int) -> Array:
    ee, eo, oe, oo = phases
    *batch, h, w = ee.shape
    rows = [jnp.stack(pair, -1).reshape(*batch, h, 2 * w) for pair in ((ee, eo), (oe, oo))]
    return jnp.stack(rows, -2).reshape(*batch, 2 * h, 2 * w)[..., :H, :W]


def _from_previous(x: Array, axis: int, fill: float) -> Array:
    """y[i] = x[i - 1] along the axis, y[0] = fill."""
    pad = [(0, 0, 0)] * x.ndim
    pad[axis] = (1, -1, 0)
    return lax.pad(x, jnp.array(fill, x.dtype), pad)


def pool_phases(phases: tuple[Array, ...], with_argmax: bool) -> Array | tuple[Array, Array]:
    ee, eo, oe, oo = phases
    shift_x, shift_y = functools.partial(_from_previous, axis=ee.ndim - 1), functools.partial(_from_previous, axis=ee.ndim - 2)
    if not with_argmax:
        e, o = (jnp.maximum(jnp.maximum(shift_x(right, fill=-jnp.inf), middle), right) for middle, right in ((ee, eo), (oe, oo)))
        return jnp.maximum(jnp.maximum(shift_y(o, fill=-jnp.inf), e), o)
    (e, code_e), (o, code_o) = (_first_max(((shift_x(right, fill=-jnp.inf), 0), (middle, 1), (right, 2))) for middle, right in ((ee, eo), (oe, oo)))
    return _first_max(((shift_y(o, fill=-jnp.inf), shift_y(code_o, fill=0)), (e, code_e + jnp.uint8(3)), (o, code_o + jnp.uint8(6))))


def _first_max(candidates) -> tuple[Array, Array]:
    """The largest of (value, code) candidates, cell by cell; the first of equals."""
    (value, code), *rest = candidates
    for other, other_code in rest:
        code = jnp.where(other > value, jnp.uint8(other_code), jnp.uint8(code))
        value = jnp.maximum(value, other)
    return value, code


def unpool_phases(x: Array, codes: Array, combine=operator.add) -> tuple[Array, ...]:
    """Every cell of x (..., h, w) put at the phase and place that its code names, where several meet combined; 0 where none is.

    With `combine` = add this is the transpose of pooling.
    """
    h, w = x.shape[-2:]
    pad = [(0, 0)] * (x.ndim - 2) + [(0, 1), (0, 1)]
    x, codes = jnp.pad(x, pad), jnp.pad(codes, pad)

    def won(code, i=0, j=0):  # what window (. + i, . + j) gives to the cell that it calls `code`
        window = (..., slice(i, i + h), slice(j, j + w))
        return jnp.where(codes[window] == code, x[window], 0)

    oo = functools.reduce(combine, (won(8), won(6, j=1), won(2, i=1), won(0, i=1, j=1)))
    return won(4), combine(won(5), won(3, j=1)), combine(won(7), won(1, i=1)), oo


def _pool(x: Array, strips: int, with_argmax: bool):
    # Strips here too: a loop also keeps XLA from fusing what made x into the pooling, which would compute x once per window that reads it.
    pooled = lax.map(lambda strip: pool_phases(split_phases(strip), with_argmax), _strips(x, strips))
    return jax.tree.map(lambda y: _unstrip(y, x.shape[0]), pooled)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _maxpool(x: Array, strips: int) -> Array:
    return _pool(x, strips, False)


def _maxpool_forward(x, strips):
    pooled, codes = _pool(x, strips, True)
    return pooled, (codes, jnp.zeros((*x.shape[1:], 0)))  # an empty array carries the static shape


def _maxpool_backward(strips, residuals, gradient):
    codes, like = residuals
    return (merge_phases(unpool_phases(gradient, codes), *like.shape[:2]),)


_maxpool.defvjp(_maxpool_forward, _maxpool_backward)


def sort_pixels(desc2: Array) -> Array:
    """(H, W, D) -> (4 * h * w, D): the pixels phase by phase, zeros where an odd H or W lacks them."""
    H, W, D = desc2.shape
    padded = jnp.pad(desc2, ((0, H % 2), (0, W % 2), (0, 0)))
    return padded.reshape(-(-H // 2), 2, -(-W // 2), 2, D).transpose(1, 3, 0, 2, 4).reshape(-1, D)


def _unsort_pixels(pixels: Array, H: int, W: int) -> Array:
    h, w = -(-H // 2), -(-W // 2)
    return pixels.reshape(2, 2, h, w, -1).transpose(2, 0, 3, 1, 4).reshape(2 * h, 2 * w, -1)[:H, :W]


def _accumulator(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _correlate(desc1: Array, desc2: Array, strips: int, with_argmax: bool):
    H, W = desc2.shape[:2]
    h, w = -(-H // 2), -(-W // 2)
    pixels = sort_pixels(desc2)
    rows, columns = (lax.broadcasted_iota(jnp.int32, (h, w), axis) for axis in (0, 1))
    exists = tuple((2 * rows + row < H) & (2 * columns + column < W) for row in (0, 1) for column in (0, 1))

    def strip(patches):
        correlation = lax.dot_general(patches, pixels, (((1,), (1,)), ((), ())), preferred_element_type=_accumulator(desc1)).reshape(-1, 4, h, w)
        phases = tuple(correlation[:, i] for i in range(4))
        if H % 2 or W % 2:
            phases = tuple(jnp.where(here, phase, -jnp.inf) for here, phase in zip(exists, phases, strict=True))
        return pool_phases(phases, with_argmax)

    return jax.tree.map(lambda x: _unstrip(x, desc1.shape[0]), lax.map(strip, _strips(desc1, strips)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _correlate_and_pool(desc1: Array, desc2: Array, strips: int) -> Array:
    return _correlate(desc1, desc2, strips, False)


def _correlate_and_pool_forward(desc1, desc2, strips):
    pooled, codes = _correlate(desc1, desc2, strips, True)
    return pooled, (desc1, desc2, codes)


def _correlate_and_pool_backward(strips, residuals, gradient):
    desc1, desc2, codes = residuals
    pixels = sort_pixels(desc2)

    def strip(total, inputs):
        patches, gradient, codes = inputs
        dC = jnp.concatenate([phase.reshape(patches.shape[0], -1) for phase in unpool_phases(gradient, codes)], 1).astype(desc1.dtype)
        d_patches = lax.dot_general(dC, pixels, (((1,), (0,)), ((), ())), preferred_element_type=total.dtype)
        return total + lax.dot_general(dC, patches, (((0,), (0,)), ((), ())), preferred_element_type=total.dtype), d_patches

    inputs = tuple(_strips(x, strips) for x in (desc1, gradient, codes))
    d_pixels, d_patches = lax.scan(strip, jnp.zeros(pixels.shape, _accumulator(desc1)), inputs)
    return _unstrip(d_patches, desc1.shape[0]).astype(desc1.dtype), _unsort_pixels(d_pixels, *desc2.shape[:2]).astype(desc2.dtype)


_correlate_and_pool.defvjp(_correlate_and_pool_forward, _correlate_and_pool_backward)
