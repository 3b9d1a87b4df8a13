import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.ops.depthwise import _by_fourier, _gradients_by_fourier, _grouped, depthwise_conv


def loop(x, k):
    _, h, w, _ = x.shape
    rows, cols = k.shape[:2]
    out = np.zeros_like(x)
    for v in range(h):
        for u in range(w):
            for i in range(rows):
                for j in range(cols):
                    y, z = v + i - rows // 2, u + j - cols // 2
                    if 0 <= y < h and 0 <= z < w:
                        out[:, v, u] += x[:, y, z] * k[i, j, 0]
    return out


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3), (9, 9)])
def test_equals_a_loop_and_its_gradient_equals_xla(kernel):
    rng = np.random.default_rng(0)
    x, k, g = rng.normal(size=(2, 5, 7, 3)), rng.normal(size=(*kernel, 1, 3)), rng.normal(size=(2, 5, 7, 3))
    x, k, g = (a.astype(np.float32) for a in (x, k, g))
    y, pull = jax.vjp(depthwise_conv, x, k)
    np.testing.assert_allclose(y, loop(x, k), rtol=1e-4, atol=1e-4)
    _, pull_xla = jax.vjp(_grouped, x, k)
    for ours, theirs in zip(pull(g), pull_xla(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3), (9, 9)])
@pytest.mark.parametrize("size", [(5, 7), (24, 17)])
def test_what_a_gpu_computes_equals_a_loop(kernel, size):
    rng = np.random.default_rng(0)
    x, k, g = (rng.normal(size=s).astype(np.float32) for s in ((2, *size, 3), (*kernel, 1, 3), (2, *size, 3)))
    np.testing.assert_allclose(jax.jit(_by_fourier)(x, k), loop(x, k), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(_gradients_by_fourier(x, k, g), jax.vjp(_grouped, x, k)[1](g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_half_precision_stays_half():
    x, k = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 1, 2), jnp.bfloat16)
    y, pull = jax.vjp(depthwise_conv, x, k)
    assert y.dtype == jnp.bfloat16 and all(g.dtype == jnp.bfloat16 for g in pull(y))
    assert float(y[0, 1, 1, 0]) == 9
