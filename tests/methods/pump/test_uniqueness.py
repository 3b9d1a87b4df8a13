"""The uniqueness prior against loops that follow the paper's definitions."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from jaxdesc.methods.pump import uniqueness
from tests.methods.pump.test_pyramid import aggregate_oracle, pool_oracle


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def descriptors(seed, *shape):
    return unit(np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def uniqueness_oracle(desc1, desc2, border, subsample):
    desc1, desc2 = (np.float64(d[border : d.shape[0] - border : subsample, border : d.shape[1] - border : subsample]) for d in (desc1, desc2))
    total = 0
    for a, b in ((desc1, desc2), (desc2, desc1)):
        C = np.einsum("ijd,yxd->ijyx", a[2::4, 2::4], b)
        weight, level = np.ones(C.shape[:2]), 0
        while min(C.shape[2:]) >= 10:
            level += 1
            pooled = pool_oracle(C.reshape(-1, *C.shape[2:]))[0]
            pooled = np.maximum(pooled, 0) ** 1.5
            C, weight = aggregate_oracle(pooled.reshape(*C.shape[:2], *pooled.shape[1:]), weight, level)
        C = np.maximum(C, 0) ** 1.5
        row_losses = [-np.sum((row / (row.sum() + 0.03)) ** 2) for row in C.reshape(-1, C.shape[2] * C.shape[3])]
        total += np.mean(row_losses) / 2
    return total, level


class UniquenessTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_against_loops(self):
        desc1, desc2 = descriptors(0, 43, 45, 3), descriptors(1, 47, 41, 3)  # 20x21 and 22x19 positions: two levels
        expected, level = uniqueness_oracle(desc1, desc2, 2, 2)
        assert level == 2
        got = self.variant(lambda a, b: uniqueness.uniqueness_loss(a, b, border=2, subsample=2, strip_bytes=4000))(desc1, desc2)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_uniqueness_gradient():
    desc1, desc2 = descriptors(0, 25, 22, 3), descriptors(1, 24, 23, 3)
    with jax.enable_x64(True):
        loss = jax.jit(lambda a, b: 100 * uniqueness.uniqueness_loss(a, b, border=1, subsample=1))
        check_grads(loss, (np.float64(desc1), np.float64(desc2)), order=1, modes=["rev"], eps=1e-6)


def test_uniqueness_maps_over_pairs():
    desc1, desc2 = descriptors(0, 2, 14, 15, 3), descriptors(1, 2, 14, 15, 3)
    loss = functools.partial(uniqueness.uniqueness_loss, border=1, subsample=1)
    mapped = jax.jit(jax.grad(lambda a, b: jax.lax.map(lambda x: loss(*x), (a, b)).sum(), (0, 1)))(desc1, desc2)
    vmapped = jax.jit(jax.grad(lambda a, b: jax.vmap(loss)(a, b).sum(), (0, 1)))(desc1, desc2)
    chex.assert_trees_all_close(mapped, vmapped, atol=1e-7)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(hnp.arrays(np.float32, st.sampled_from([(1, 1), (3, 5)]), elements=st.floats(0, 1e3, width=32)))
def test_uniqueness_bounds(C):
    assert -1 <= uniqueness.uniqueness(C) <= 0


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(hnp.arrays(np.float32, (3, 5), elements=st.floats(2**-7, 10, width=32)), st.integers(0, 4))
def test_uniqueness_is_least_for_one_hot_rows(C, winner):
    one_hot = np.zeros_like(C)
    one_hot[:, winner] = C.sum(1)
    assert uniqueness.uniqueness(one_hot, 0.0) == pytest.approx(-1)
    assert uniqueness.uniqueness(C, 0.0) > uniqueness.uniqueness(one_hot, 0.0)
    # supplementary A: of l1-normalised rows, sum C^2 = 1 - sum_{q != q'} C C'
    Cbar = np.float64(C / C.sum(1, keepdims=True))
    products = sum(Cbar[:, q] * Cbar[:, r] for q in range(5) for r in range(5) if q != r)
    assert uniqueness.uniqueness(C, 0.0) == pytest.approx(-np.mean(1 - products), abs=1e-5)


def test_uniqueness_gradient_is_finite_without_a_positive_correlation():
    desc = np.broadcast_to(descriptors(0, 3), (20, 21, 3))
    value, gradients = jax.jit(jax.value_and_grad(lambda a, b: uniqueness.uniqueness_loss(a, b, border=1, subsample=1), (0, 1)))(desc, -desc)
    assert value == 0
    chex.assert_trees_all_close(gradients, jax.tree.map(jnp.zeros_like, gradients))


def test_uniqueness_tells_a_copy_from_noise():
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))[..., None]
    spectrum = np.fft.rfft2(rng.normal(size=(128, 128, 128)), axes=(0, 1)) * np.exp(-2 * (np.pi * frequency * 2) ** 2)  # a Gaussian of 2 px
    smooth = unit(np.fft.irfft2(spectrum, axes=(0, 1)))
    copy = unit(np.roll(smooth, (6, -4), (0, 1)) + 0.05 * rng.normal(size=smooth.shape))
    loss = jax.jit(uniqueness.uniqueness_loss)
    assert loss(np.float32(smooth), np.float32(copy)) == pytest.approx(-0.3, abs=0.03)
    assert loss(np.float32(smooth), descriptors(1, 128, 128, 128)) == pytest.approx(0, abs=0.01)
