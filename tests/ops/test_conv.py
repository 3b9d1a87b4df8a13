"""The convolution against loops, and its gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.ops import conv as conv_module
from jaxdesc.ops.conv import conv

CASES = [((2, 7, 6, 3), 3, 1, 1), ((1, 8, 5, 2), 3, 2, 1), ((2, 9, 7, 2), 2, 1, 2), ((1, 9, 10, 3), 5, 2, 1), ((2, 4, 6, 2), 1, 2, 1)]


def slow(x, kernel, stride, dilation):
    """(y, function from dL/dy to (dL/dx, dL/dkernel)), pixel by pixel in float64."""
    k, (b, h, w, _) = kernel.shape[0], x.shape
    pad = (k - 1) * dilation // 2
    rows, cols = ((n + 2 * pad - (k - 1) * dilation - 1) // stride + 1 for n in (h, w))
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    places = [(v, u, i, j) for v in range(rows) for u in range(cols) for i in range(k) for j in range(k)]
    y = np.zeros((b, rows, cols, kernel.shape[-1]))
    for v, u, i, j in places:
        y[:, v, u] += padded[:, v * stride + i * dilation, u * stride + j * dilation] @ kernel[i, j]

    def backward(g):
        dx, dk = np.zeros_like(padded), np.zeros(kernel.shape)
        for v, u, i, j in places:
            at = (slice(None), v * stride + i * dilation, u * stride + j * dilation)
            dx[at] += g[:, v, u] @ kernel[i, j].T
            dk[i, j] += padded[at].T @ g[:, v, u]
        return dx[:, pad : pad + h, pad : pad + w], dk

    return y, backward


@pytest.fixture
def by_images(monkeypatch):
    """Small products too are taken image by image."""
    monkeypatch.setattr(conv_module, "WORTHWHILE", 0)


@pytest.mark.parametrize("worthwhile", [0, 1e7], ids=["by images", "at once"])
@pytest.mark.parametrize(("shape", "k", "stride", "dilation"), CASES)
def test_value_and_gradients(shape, k, stride, dilation, worthwhile, monkeypatch):
    monkeypatch.setattr(conv_module, "WORTHWHILE", worthwhile)
    rng = np.random.default_rng(k)
    x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(k, k, shape[-1], 4)).astype(np.float32)
    y, backward = slow(x, kernel, stride, dilation)
    g = rng.normal(size=y.shape).astype(np.float32)

    @jax.jit
    def both(x, kernel, g):
        y, vjp = jax.vjp(lambda x, kernel: conv(x, kernel, stride, dilation), x, kernel)
        return y, *vjp(g)

    for ours, theirs in zip(both(x, kernel, g), (y, *backward(g)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_bfloat16_sums_in_float32(by_images):
    """1,024 ones: a sum in bfloat16 would stick at 256."""
    x, kernel, g = jnp.ones((4, 16, 16, 1), jnp.bfloat16), jnp.zeros((1, 1, 1, 1), jnp.bfloat16), jnp.ones((4, 16, 16, 1), jnp.bfloat16)
    gradient = jax.jit(lambda x, kernel, g: jax.vjp(conv, x, kernel)[1](g)[1])(x, kernel, g)
    assert gradient.dtype == jnp.bfloat16 and float(gradient[0, 0, 0, 0]) == 1024


def test_small_products_are_taken_at_once():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 3))
    assert "scan" not in str(jax.make_jaxpr(jax.grad(lambda kernel: conv(x, kernel).sum()))(kernel))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order of axes is the CPU backend's")
def test_in_a_loop_too_gradients_are_convolutions_that_the_backend_runs_fast():
    def total(xs, kernel):
        gradient = jax.grad(lambda kernel, x: jnp.sum(jnp.sin(conv(jnp.sin(conv(x, kernel, 2)), kernel))))
        return jax.lax.scan(lambda total, x: (total + gradient(kernel, x), None), jnp.zeros(kernel.shape), xs)[0]

    program = jax.jit(total).lower(jnp.ones((3, 2, 12, 16, 4)), jnp.ones((3, 3, 4, 4))).compile().as_text()
    orders = re.findall(r" convolution\(.*dim_labels=([\w>-]+)", program)
    assert len(orders) == 5 and set(orders) == {"b01f_01io->b01f"}
