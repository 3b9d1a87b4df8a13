"""Correlation, pooling and aggregation against loops that follow the definitions."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax.test_util import check_grads

from jaxdesc.methods.pump.correlation import correlate_and_pool, maxpool3x3s2
from jaxdesc.methods.pump.pyramid import aggregate, levels, pyramid, rectify
from jaxdesc.types import UserError

CASES = [(5, 8, 600), (6, 7, 1), (4, 6, None), (1, 3, 10)]  # H, W, strip_bytes: strips of 3, 1, 7 and 1 of 7 patches
CHILDREN = tuple(itertools.product((-1, 1), repeat=2))


def pool_oracle(maps):
    """Loops over windows: the maximum, its cell 0..8 and its place in the map; the first of equals in row-major order."""
    n, H, W = maps.shape
    shape = (n, (H + 1) // 2, (W + 1) // 2)
    pooled, codes, places = np.full(shape, -np.inf), np.zeros(shape, int), {}
    for a, i, j in np.ndindex(shape):
        for code, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            y, x = 2 * i + dy, 2 * j + dx
            if 0 <= y < H and 0 <= x < W and maps[a, y, x] > pooled[a, i, j]:
                pooled[a, i, j], codes[a, i, j], places[a, i, j] = maps[a, y, x], code, (a, y, x)
    return pooled, codes, places


def unpool_oracle(gradient, places, shape):
    total = np.zeros(shape)
    for window, place in places.items():
        total[place] += gradient[window]
    return total


def integers(rng, *shape):
    """Small integers: sums are exact and ties are many."""
    return rng.integers(-2, 3, shape).astype(np.float32)


class CorrelationTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*CASES)
    def test_correlate_and_pool(self, H, W, strip_bytes):
        rng = np.random.default_rng(H)
        desc1, desc2 = integers(rng, 7, 3), integers(rng, H, W, 3)
        desc1[:, 0], desc2[:, :, 0] = 3, -3  # every product is negative: the zeros of absent pixels must not win
        C = np.einsum("pd,yxd->pyx", desc1, desc2)
        pooled, codes, places = pool_oracle(C)
        gradient = integers(rng, *pooled.shape)
        dC = unpool_oracle(gradient, places, C.shape)

        def everything(desc1, desc2, gradient):
            pool = functools.partial(correlate_and_pool, strip_bytes=strip_bytes)
            value, pull = jax.vjp(pool, desc1, desc2)
            return pool(desc1, desc2), pool(desc1, desc2, with_argmax=True), value, pull(gradient)

        plain, (value, got_codes), kept, (d1, d2) = self.variant(everything)(desc1, desc2, gradient)
        for got in (plain, value, kept):
            np.testing.assert_array_equal(got, pooled)
        np.testing.assert_array_equal(got_codes, codes)
        assert got_codes.dtype == jnp.uint8
        np.testing.assert_array_equal(d1, np.einsum("pyx,yxd->pd", dC, desc2))
        np.testing.assert_array_equal(d2, np.einsum("pyx,pd->yxd", dC, desc1))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*CASES)
    def test_maxpool(self, H, W, strip_bytes):
        rng = np.random.default_rng(W)
        x = integers(rng, 7, H, W)
        pooled, codes, places = pool_oracle(x)
        gradient = integers(rng, *pooled.shape)

        def everything(x, gradient):
            pool = functools.partial(maxpool3x3s2, strip_bytes=strip_bytes)
            value, pull = jax.vjp(pool, x)
            return pool(x), pool(x, with_argmax=True), value, pull(gradient)

        plain, (value, got_codes), kept, (dx,) = self.variant(everything)(x, gradient)
        for got in (plain, value, kept):
            np.testing.assert_array_equal(got, pooled)
        np.testing.assert_array_equal(got_codes, codes)
        np.testing.assert_array_equal(dx, unpool_oracle(gradient, places, x.shape))


def test_low_precision_descriptors_accumulate_in_float32():
    rng = np.random.default_rng(0)
    desc1, desc2 = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((6, 40), (5, 7, 40)))
    expected, _, _ = pool_oracle(np.einsum("pd,yxd->pyx", np.float64(desc1), np.float64(desc2)))
    got, pull = jax.vjp(correlate_and_pool, desc1, desc2)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert [d.dtype for d in pull(got)] == [jnp.bfloat16] * 2


def test_vmap_equals_a_loop():
    rng = np.random.default_rng(0)
    desc1, desc2 = integers(rng, 3, 6, 4), integers(rng, 3, 5, 7, 4)
    gradient = jax.grad(lambda a, b: jnp.sum(correlate_and_pool(a, b, strip_bytes=300) ** 2), (0, 1))
    looped = [jax.jit(gradient)(a, b) for a, b in zip(desc1, desc2, strict=True)]
    chex.assert_trees_all_close(jax.jit(jax.vmap(gradient))(desc1, desc2), jax.tree.map(lambda *x: jnp.stack(x), *looped))


def aggregate_oracle(children, weight, level):
    """Sums over the four children of every parent at every position, straight from the definition. Returns responses and the parents' weights k."""
    h1, w1, h2, w2 = children.shape
    H1, W1 = (h1 + 1, w1 + 1) if level == 1 else (h1, w1)
    response, k = np.zeros((H1, W1, h2, w2)), np.zeros((H1, W1))
    for py, px in np.ndindex(H1, W1):
        family = []
        for sy, sx in CHILDREN:
            y, x = (py + (sy - 1) // 2, px + (sx - 1) // 2) if level == 1 else (py + sy * 2 ** (level - 2), px + sx * 2 ** (level - 2))
            if 0 <= y < h1 and 0 <= x < w1:
                family.append((y, x, sy, sx))
                k[py, px] += weight[y, x]
        for qy, qx in np.ndindex(h2, w2):
            present = [(weight[y, x], children[y, x, qy + sy, qx + sx]) for y, x, sy, sx in family if 0 <= qy + sy < h2 and 0 <= qx + sx < w2]
            m = sum(w for w, _ in present)
            if m > 0:
                response[py, px, qy, qx] = sum(w * c for w, c in present) / (k[py, px] ** 0.1 * m**0.9)
    return response, k


@pytest.mark.parametrize("shape", [(3, 4, 13, 20), (5, 3, 20, 13), (6, 7, 41, 38)])
def test_aggregate_and_weights(shape):
    rng = np.random.default_rng(shape[0])
    steps = levels(shape, smallest=3)
    assert len(steps) >= 3
    children, weight = None, np.ones(shape[:2])
    for number, step in enumerate(steps, start=1):
        size = [-(-n // 2**number) for n in shape[2:]]
        children = rng.normal(size=(*weight.shape, *size))
        expected, weight = aggregate_oracle(children, weight, number)
        np.testing.assert_allclose(aggregate(jnp.asarray(children, jnp.float32), step), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.outer(step.rows.weight, step.columns.weight), weight)


def test_constant_maps_stay_constant_in_the_interior():
    for step in levels((9, 9, 40, 40)):
        weight = (np.outer(step.rows.weight, step.columns.weight) > 0)[:, :, None, None]
        sizes = [axis.coefficients.shape[2] for axis in step]
        before = [len(axis.weight) - (axis.offsets[1] == 0) for axis in step]
        out = np.asarray(aggregate(jnp.ones((*before, *sizes)), step))[:, :, 1:-1, 1:-1]
        np.testing.assert_allclose(out, np.broadcast_to(weight, out.shape), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "count"),
    [
        ((28, 28, 112, 112), {}, 4),  # 56, 28, 14, 7
        ((28, 28, 112, 9), {}, 0),
        ((28, 28, 10, 112), {}, 1),
        ((28, 28, 112, 112), {"smallest": 6}, 5),  # 4
        ((28, 28, 112, 112), {"limit": 2}, 2),
        ((1, 1, 112, 112), {}, 2),  # two parents along each axis, then spacing 1 joins them, spacing 2 finds nobody
    ],
)
def test_levels(shape, options, count):
    assert len(levels(shape, **options)) == count


def test_too_small_for_a_pyramid():
    with pytest.raises(UserError, match="larger crops"):
        pyramid(jnp.ones((2, 2, 3)), jnp.ones((9, 9, 3)))


def test_rectify():
    x = jnp.array([-2.0, 0.0, 4.0])
    for power in (1.5, 2.0):
        np.testing.assert_allclose(rectify(x, power), [0, 0, 4**power], rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(rectify), (0, None))(x, power), [0, 0, power * 4 ** (power - 1)], rtol=1e-6)


def test_pyramid_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        patches, pixels = rng.normal(size=(3, 2, 4)), rng.normal(size=(11, 21, 4))
        check_grads(jax.jit(lambda a, b: jnp.mean(pyramid(a, b, strip_bytes=2000) ** 2)), (patches, pixels), order=1, modes=["rev"], eps=1e-6)
