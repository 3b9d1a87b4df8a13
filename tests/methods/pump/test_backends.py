"""What an accelerator runs otherwise than a CPU gives the same results; seen here on a CPU."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.methods.pump import backends, matching_pyramid
from jaxdesc.methods.pump.average_precision import pixel_ap
from jaxdesc.methods.pump.uniqueness import uniqueness_loss
from jaxdesc.ops.normalise import l2_normalise


@pytest.fixture(params=["gpu", "tpu"])
def elsewhere(request, monkeypatch):
    """Runs a function as a CPU would, then as another backend."""

    def both(function, *inputs):
        here = jax.jit(lambda *x: function(*x))(*inputs)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: request.param)
            there = jax.jit(lambda *x: function(*x))(*inputs)
        return here, there

    return both


def maps(*shape):
    keys = jax.random.split(jax.random.key(0), 2)
    return tuple(l2_normalise(jax.random.normal(key, shape)) for key in keys)


def test_losses_of_several_pairs_at_once(elsewhere, monkeypatch):
    monkeypatch.setattr(backends, "PAIRS", 2)  # of three: a remainder
    desc1, desc2 = maps(3, 64, 64, 8)
    keys, H = jax.random.split(jax.random.key(1), 3), jnp.tile(jnp.eye(3), (3, 1, 1))

    def losses(desc1, desc2):
        uniq = backends.map_pairs(lambda pair: uniqueness_loss(*pair, border=4), (desc1, desc2))
        ap, valid = pixel_ap(desc1, desc2, H, keys, border=8)
        return uniq.sum() + jnp.where(valid, ap, 0).mean(), (uniq, ap)

    here, there = elsewhere(jax.value_and_grad(losses, (0, 1), has_aux=True), desc1, desc2)
    chex.assert_trees_all_close(here, there, atol=1e-6)
    assert np.abs(here[1][0]).max() > 1e-4


def test_maxima_over_patches_by_reductions(elsewhere):
    rng = np.random.default_rng(0)
    products = rng.normal(size=(7, 4, 6, 5)).astype(np.float32)
    penalty = np.where(rng.uniform(size=(4, 6, 5)) < 0.3, -np.inf, 0).astype(np.float32)
    here, there = elsewhere(matching_pyramid._greatest, products, penalty)
    chex.assert_trees_all_equal(here, there, (products + penalty).max((0, 1)))

    total = np.maximum(products[:, 0], 0)
    codes = rng.integers(0, 9, total.shape).astype(np.uint8)
    here, there = elsewhere(matching_pyramid._reached, total, codes)
    oracle = np.zeros((2, 2, 6, 5), np.float32)
    for (_, y, x), value, code in zip(np.ndindex(total.shape), total.ravel(), codes.ravel(), strict=True):
        at = int(code // 3 == 0), int(code % 3 == 0), y, x
        oracle[at] = max(oracle[at], value)
    chex.assert_trees_all_equal(here, there, oracle)
