"""Quasi-dense matching of two descriptor maps through PUMP's pyramid (Revaud et al., CVPR 2022, section 3), up and down again.

Up: C_0[p, q] = rectify(<d1(p), d2(q)>) for the patches p = 4i + 2 of image 1 and all pixels q of image 2; C_l = rectify(aggregate(maxpool(C_{l-1}))).
Down: a child hears the greatest of its parents' consolidated maps A_{l+1}, each shifted
back. That message is un-pooled to the arg-max cells of the 3x3 windows and added:
A_l = C_l + unpool(message). Where windows meet in a cell the greatest counts.

The border is the published program's. Arg-maxima are sought among inner cells: all but
the last row and column of C_l, which hear nothing. Where a level stands above level 0, the
last row and column of its pixels are not matched at all; nor is a 4x4 cell of image 2 that
the border cuts.

Level 0 is never held. A pixel that is the arg-max of no window gets no message and is
dominated by the arg-max of any window around it, so the best pixel of a patch is

    max over windows w of C_0(arg-max of w) + message(w),    found at the arg-max of w,

and of a 4x4 cell of image 2 it suffices to know the greatest such sum that falls into it
and its greatest raw C_0. Arg-maxima of level 0 are those of the correlation before
rectification, so that they mean something in a window that is negative throughout.

Images may be smaller than their arrays: what lies beyond is absent from pooling, weights, messages and cells, and the answer is that of the cut arrays.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdesc.methods.pump.backends import default_strip_bytes, on_cpu
from jaxdesc.methods.pump.correlation import merge_phases, pool_phases, sort_pixels, split_phases, unpool_phases
from jaxdesc.methods.pump.pyramid import child_offsets, levels, rectify, shift
from jaxdesc.ops.matching import CELL
from jaxdesc.types import Array, Size

SMALLEST = 6  # the pyramid ends with the level at which a side of image 2's maps falls below this
STRIP_PATCHES = 40  # below 20 a matrix product is several times slower than it need be


class Fields(NamedTuple):
    """What two images think of each other."""

    score: Array  # (h1, w1) float32 consolidated score of each patch's best pixel; 0 where there is none
    xy2_px: Array  # (h1, w1, 2) int32 (x, y) of that pixel
    mutual: Array  # (h1, w1) bool: and the patch is the best of the pixel's 4x4 cell
    cell_score: Array  # (ceil(H2 / 4), ceil(W2 / 4)) float32 greatest score of each whole cell


class Geometry(NamedTuple):
    """A pyramid within its arrays: arrays made beforehand, in NumPy, so that images of many sizes share a compiled program. Pairs belong to y and x."""

    patches: tuple[tuple[np.ndarray, np.ndarray], ...]  # of levels 0..L, (rows,), (columns,) bool: which there are
    pixels: tuple[np.ndarray, np.ndarray]  # (H2,), (W2,) bool: which there are
    coefficients: tuple[tuple[np.ndarray, np.ndarray], ...]  # of levels 1..L, (2, parents, positions) float32, see `pyramid.Axis`
    inner: tuple[tuple[np.ndarray, np.ndarray], ...]  # levels 0..L-1: (h2,), (w2,), all but last


def patch_count(size):
    """Number of patches 4i + 2 along a side."""
    return (size + 1) // CELL


def geometry(size1_hw: Size, size2_hw: Size, limit: int | None = None, room1_hw: Size | None = None, room2_hw: Size | None = None) -> Geometry:
    """The pyramid of two images in arrays of room1_hw and room2_hw pixels, by default just large enough.

    It ends with the level at which min(h2, w2) <= 5, before one whose parents have no children, or after `limit` levels.
    """
    counts, rooms = [patch_count(n) for n in size1_hw], [patch_count(n) for n in room1_hw or size1_hw]
    steps = levels((*counts, *size2_hw), smallest=SMALLEST, limit=limit)
    room2_hw = room2_hw or size2_hw

    def present(sizes, rooms):
        return tuple(np.arange(room) < size for size, room in zip(sizes, rooms, strict=True))

    patches, coefficients, inner, below = [present(counts, rooms)], [], [], (size2_hw, room2_hw)
    for step in steps:
        inner.append(present([n - 1 for n in below[0]], below[1]))
        below = tuple([-(-n // 2) for n in sizes] for sizes in below)
        parents, positions = [n + 1 for n in rooms], below[1]
        patches.append(present([n + 1 for n in counts], parents))
        coefficients.append(
            tuple(
                np.pad(axis.coefficients, [(0, 0)] + [(0, n - have) for n, have in zip(room, axis.coefficients.shape[1:], strict=True)]).astype(np.float32)
                for axis, *room in zip(step, parents, positions, strict=True)
            )
        )
    return Geometry(tuple(patches), present(size2_hw, room2_hw), tuple(coefficients), tuple(inner))


def strip_size(size1_hw: Size, size2_hw: Size) -> int:
    """Bytes of the correlation that exist at once by default: what suits the backend, yet enough patches that reading image 2 for each strip does not count."""
    patch = 16 * -(-size2_hw[0] // 2) * -(-size2_hw[1] // 2)
    return patch * min(patch_count(size1_hw[1]), max(STRIP_PATCHES, default_strip_bytes() // patch))


def match_fields(
    desc1: Array,
    desc2: Array,
    pyramid: Geometry | None = None,
    mask2: Array | None = None,
    *,
    keep: bool = False,
    dtype=jnp.float32,
    strip_bytes: int | None = None,
) -> Fields:
    """Matches each patch of image 1 with image 2 and each 4x4 cell of image 2 with the patches.

    Args:
      desc1: (H1, W1, D), desc2: (H2, W2, D) descriptors; products accumulate in float32.
      pyramid: says which parts of the arrays exist, and how many levels there are; by default all.
      mask2: (H2, W2) bool, the pixels of image 2 that may be matched; by default all.
      keep: keep level 0's arg-maxima from the way up, or correlate again on the way down.
      dtype: storage of levels; sums are float32.
      strip_bytes: bytes of the correlation that may exist at once; by default what suits the backend.

    Returns:
      Fields over the whole arrays; patches beyond the true size score 0.
    """
    (H1, W1), (H2, W2) = desc1.shape[:2], desc2.shape[:2]
    h1, w1, h, w = patch_count(H1), patch_count(W1), -(-H2 // 2), -(-W2 // 2)
    pyramid = jax.tree.map(jnp.asarray, pyramid or geometry((H1, W1), (H2, W2)))
    top = len(pyramid.coefficients)
    penalty = _penalty(pyramid.pixels, mask2)
    inner_penalty = _penalty(pyramid.inner[0], mask2) if top else penalty
    exists = pool_phases(tuple(inner_penalty), with_argmax=False) == 0
    pixels = sort_pixels(desc2)

    chunks = min(w1, -(-w1 * 16 * h * w // (strip_bytes or strip_size((H1, W1), (H2, W2)))))
    patches = desc1[CELL // 2 :: CELL, CELL // 2 :: CELL] * (pyramid.patches[0][0][:, None] & pyramid.patches[0][1])[..., None].astype(desc1.dtype)
    patches = jnp.pad(patches, ((0, 1), (0, -w1 % chunks), (0, 0))).reshape(h1 + 1, chunks, -1, desc1.shape[2])  # one empty row: parents' rows are one more

    def whole_row(x):
        return x.reshape(-1, *x.shape[2:])[:w1]

    def correlate(some):
        """Phases (n, 4, h, w) of <d1, d2> of n patches."""
        by_last = (((1,), (1,)), ((), ()))
        products = lax.dot_general(some, pixels, by_last, preferred_element_type=jnp.float32)
        return products.reshape(-1, 4, h, w)

    def pool(products, penalty, with_argmax):
        phases = tuple(products[:, i] + penalty[i] for i in range(4))
        return pool_phases(phases, with_argmax)

    def best_pixels(products):
        """C_0 and code (n, h, w) of arg-maxima, and the greatest <d1, d2> (h, w) of 2x2 pixels."""
        pooled, codes = pool(products, inner_penalty, with_argmax=True)
        return rectify(pooled), codes, _greatest(products, inner_penalty)

    # Up.
    raw, kept, tower = jnp.zeros((h, w)), None, [None]

    def up(carry, i):
        def one(raw, some):
            products = correlate(some)
            pooled = rectify(pool(products, penalty, with_argmax=False))
            if not keep:
                return raw, (pooled, None)
            best, codes, greatest = best_pixels(products)
            return jnp.maximum(raw, greatest), (pooled, (best.astype(dtype), codes))

        above, raw = carry
        raw, (pooled, best) = lax.scan(one, raw, patches[i])
        below = whole_row(pooled)
        return (below, raw), (_parents(above, below, pyramid, 1, i).astype(dtype), best)

    if top:
        (_, raw), (first, kept) = lax.scan(up, (jnp.zeros((w1, h, w)), raw), jnp.arange(h1 + 1))
        tower.append(first)
    for level in range(2, top + 1):
        tower.append(_next_level(tower[-1], pyramid, level))

    # Down: whole levels in place, then level 1 row by row as level 0 asks for it.
    for level in range(top - 1, 1, -1):
        tower[level] = _update_rows(functools.partial(_consolidated, tower[level + 1], pyramid, level), tower[level])

    def level1(i):
        return _row(tower[1], i) if top == 1 else _consolidated(tower[2], pyramid, 1, tower[1], i)

    def down(carry, i):
        def one(carry, inputs):
            raw, reached = carry
            some, message = inputs
            if kept:
                best, codes = some[0].astype(jnp.float32), some[1]
            else:
                best, codes, greatest = best_pixels(correlate(some))
                raw = jnp.maximum(raw, greatest)
            total = jnp.where(exists, best + message, 0)
            total = lax.optimization_barrier(total)  # rounded once: it is compared with itself
            return (raw, jnp.maximum(reached, _reached(total, codes))), _best(total, codes)

        above, raw, reached = carry
        below = level1(i + 1) if top else above
        message = _message(below, above, pyramid, 0, i) if top else jnp.zeros((w1, h, w))
        message = jnp.pad(message, ((0, -w1 % chunks), (0, 0), (0, 0))).reshape(chunks, -1, h, w)
        some = jax.tree.map(lambda x: x[i], kept if kept else patches)
        (raw, reached), best = lax.scan(one, (raw, reached), (some, message))
        return (below, raw, reached), jax.tree.map(whole_row, best)

    start = level1(0) if top else None
    (_, raw, reached), (score, xy) = lax.scan(down, (start, raw, jnp.zeros((2, 2, h, w))), jnp.arange(h1))
    raw = rectify(raw)
    raw = raw.astype(dtype).astype(jnp.float32) if kept else raw
    return _reciprocal(score, xy, reached, raw, pyramid.pixels)


def _penalty(pixels: tuple[Array, Array], mask: Array | None) -> Array:
    """(4, h, w) phases of the pixels: 0 where they may be matched, else -inf."""
    there = pixels[0][:, None] & pixels[1]
    return jnp.stack(split_phases(jnp.where(there if mask is None else there & mask, 0.0, -jnp.inf)))


def _row(level: Array, i) -> Array:
    """Row i of a level as float32; zeros if there is no such row."""
    row = lax.dynamic_index_in_dim(level, jnp.clip(i, 0, level.shape[0] - 1), keepdims=False).astype(jnp.float32)
    return jnp.where((i >= 0) & (i < level.shape[0]), row, 0)


def _parents(above: Array, below: Array, pyramid: Geometry, level: int, i) -> Array:
    """Row i of C_l (w1', h, w), from the rows of pooled children (w1, h, w) that it reads at q_y - 1 and q_y + 1."""
    h, w = above.shape[1:]
    rows, columns = pyramid.coefficients[level - 1]
    first, second = rows[:, i, None, :, None]
    children = first * shift(above, {1: (-1, h)}) + second * shift(below, {1: (1, h)})
    (first, second), (left, right), parents = columns[:, :, None, :], child_offsets(level), columns.shape[1]
    return rectify(first * shift(children, {0: (left, parents), 2: (-1, w)}) + second * shift(children, {0: (right, parents), 2: (1, w)}))


def _next_level(children: Array, pyramid: Geometry, level: int) -> Array:
    """C_l from C_{l-1}, l >= 2."""
    pooled = lax.map(lambda row: pool_phases(split_phases(row), with_argmax=False), children)

    def row(i):
        return _parents(*(_row(pooled, i + offset) for offset in child_offsets(level)), pyramid, level, i).astype(children.dtype)

    return lax.map(row, jnp.arange(len(pooled)))


def _message(above: Array, below: Array, pyramid: Geometry, level: int, i) -> Array:
    """What row i of a level hears (w1, h, w), from the rows of consolidated parents (w1', h, w) of which it is the child with s_y = -1 and with s_y = +1."""
    h, w = above.shape[1:]
    rows, columns = pyramid.patches[level]
    left, right = child_offsets(level + 1)
    parents = jnp.maximum(shift(above, {1: (1, h)}), shift(below, {1: (-1, h)}))
    heard = jnp.maximum(shift(parents, {0: (-left, len(columns)), 2: (1, w)}), shift(parents, {0: (-right, len(columns)), 2: (-1, w)}))
    return jnp.where((rows[i] & columns)[:, None, None], heard, 0)


def _consolidated(parents: Array, pyramid: Geometry, level: int, responses: Array, i) -> Array:
    """Row i of A_l = C_l + unpool(message), l >= 1, from A_{l+1} and C_l; float32."""
    above, below = (_row(parents, i - offset) for offset in child_offsets(level + 1))
    message = _message(above, below, pyramid, level, i)
    row = _row(responses, i)
    y, x = pyramid.inner[level]
    inner = y[:, None] & x
    _, codes = pool_phases(split_phases(jnp.where(inner, row, -jnp.inf)), with_argmax=True)
    message, codes = lax.optimization_barrier((message, codes))  # each is read nine times
    heard = merge_phases(unpool_phases(message, codes, jnp.maximum), *row.shape[1:])
    return row + jnp.where(inner, heard, 0)


def _update_rows(function, level: Array) -> Array:
    """Row i becomes function(level, i), in place."""
    return lax.fori_loop(0, len(level), lambda i, x: lax.dynamic_update_index_in_dim(x, function(x, i).astype(x.dtype), i, 0), level)


def _greatest(products: Array, penalty: Array) -> Array:
    """(n, 4, h, w) -> (h, w) maximum over patches and phases that may be matched.

    Patch after patch on a CPU, here and below, where a reduction over the slowest axis is
    much slower; one reduction on an accelerator, which such small steps leave idle.
    """
    if not on_cpu():
        return jnp.max(products + penalty, (0, 1))
    start = jnp.full(products.shape[2:], -jnp.inf)
    return lax.scan(lambda most, phases: (functools.reduce(jnp.maximum, phases + penalty, most), None), start, products)[0]


def _reached(total: Array, codes: Array) -> Array:
    """(2, 2, h, w): the greatest sum over patches of each window whose arg-max lies in the row before its middle (first index 1), and likewise column."""

    def placed(total, codes):
        up, left = codes < 3, (codes == 0) | (codes == 3) | (codes == 6)
        where = (~up & ~left, ~up & left, up & ~left, up & left)
        return tuple(jnp.where(here, total, 0) for here in where)

    def one(most, inputs):  # four arrays and no division (codes % 3): in one array of four maps the loop does not become vector instructions
        return tuple(map(jnp.maximum, most, placed(*inputs))), None

    if on_cpu():
        most, _ = lax.scan(one, (jnp.zeros(total.shape[1:]),) * 4, (total, codes))
    else:
        most = [some.max(0, initial=0) for some in placed(total, codes)]
    return jnp.stack(most).reshape(2, 2, *total.shape[1:])


def _best(total: Array, codes: Array) -> tuple[Array, Array]:
    """Score (n,) of the best window of each patch and the pixel (n, 2) (x, y) that is its arg-max; one axis after the other, which is several times faster."""
    patch = jnp.arange(len(total))
    y = jnp.argmax(jnp.max(total, 2), 1)
    row = total[patch, y]
    x = jnp.argmax(row, 1)
    code = codes[patch, y, x].astype(jnp.int32)
    return row[patch, x], jnp.stack([2 * x - 1 + code % 3, 2 * y - 1 + code // 3], -1).astype(jnp.int32)


def _reciprocal(score: Array, xy: Array, reached: Array, raw: Array, pixels) -> Fields:
    """Keeps the patches whose best pixel has no better patch, nor better pixel, in its cell.

    Of equal patches the first. `pixels`, which rows and columns there are, says which 4x4
    cells are whole.
    """
    h, w = raw.shape
    squares = functools.reduce(jnp.maximum, (shift(reached[up, left], {0: (up, h), 1: (left, w)}) for up in (0, 1) for left in (0, 1)))  # of 2x2 pixels
    reached, raw = (
        jnp.maximum(*(jnp.maximum(*(p[a::2, b::2] for b in (0, 1))) for a in (0, 1))) for p in (jnp.pad(x, ((0, h % 2), (0, w % 2))) for x in (squares, raw))
    )
    y, x = (jnp.pad(there, (0, -len(there) % CELL)).reshape(-1, CELL).all(1) for there in pixels)
    reached, raw = (jnp.where(y[:, None] & x, cells, 0) for cells in (reached, raw))
    cell = (xy[..., 1] // CELL) * reached.shape[1] + xy[..., 0] // CELL
    chosen = (score > 0) & (score == reached.ravel()[cell]) & (score >= raw.ravel()[cell])
    index = jnp.arange(score.size).reshape(score.shape)
    first = jnp.full(reached.size, score.size).at[cell].min(jnp.where(chosen, index, score.size))
    return Fields(score, xy, chosen & (first[cell] == index), jnp.maximum(reached, raw))
