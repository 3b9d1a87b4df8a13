"""Depthwise convolution that is quick on a CPU too.

XLA's CPU backend works grouped convolutions through a scalar loop: for 9x9 over (8, 32, 32, 128) it needed 15 times as long
as a sum of shifted products, and its gradient 10 times as long as the row-wise sums below.
"""

import jax
import jax.numpy as jnp

from jaxdesc.types import Array


def _pad(x: Array, kernel: Array) -> Array:
    half_h, half_w = kernel.shape[0] // 2, kernel.shape[1] // 2
    return jnp.pad(x, ((0, 0), (half_h, half_h), (half_w, half_w), (0, 0)))


def _shifted_products(x: Array, kernel: Array) -> Array:
    h, w = x.shape[1:3]
    padded = _pad(x, kernel)
    out = jnp.zeros(x.shape, jnp.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out += padded[:, i : i + h, j : j + w] * kernel[i, j, 0]
    return out.astype(x.dtype)


def _grouped(x: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=x.shape[-1], dimension_numbers=layout)


def _kernel_gradient_by_rows(x: Array, kernel: Array, g: Array) -> Array:
    """dK[i, j, c] = sum over b, y, x of padded[b, y + i, x + j, c] g[b, y, x, c], one row of g at a time so that both stay in cache."""
    b, h, w, c = x.shape
    rows, cols = kernel.shape[:2]
    padded = _pad(x, kernel)

    def add_row(total, index):
        image, row = index // h, index % h
        g_row = jax.lax.dynamic_slice(g, (image, row, 0, 0), (1, 1, w, c))[0, 0].astype(jnp.float32)
        x_rows = jax.lax.dynamic_slice(padded, (image, row, 0, 0), (1, rows, padded.shape[2], c))[0]
        return total + jnp.stack([(x_rows[:, j : j + w] * g_row).sum(1) for j in range(cols)], axis=1), None

    total = jax.lax.scan(add_row, jnp.zeros((rows, cols, c), jnp.float32), jnp.arange(b * h))[0]
    return total[:, :, None].astype(kernel.dtype)


@jax.custom_vjp
def depthwise_conv(x: Array, kernel: Array) -> Array:
    """y[b, v, u, c] = sum over i, j of x[b, v + i - h // 2, u + j - w // 2, c] kernel[i, j, 0, c]; zeros outside.

    Shapes: x (B, H, W, C), kernel (h, w, 1, C) with h and w odd -> (B, H, W, C).
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted_products, default=_grouped)


def _forward(x, kernel):
    return depthwise_conv(x, kernel), (x, kernel)


def _backward(saved, g):
    x, kernel = saved

    def by_hand(x, kernel, g):
        return _shifted_products(g, kernel[::-1, ::-1]), _kernel_gradient_by_rows(x, kernel, g)

    def by_xla(x, kernel, g):
        return jax.vjp(_grouped, x, kernel)[1](g)

    return jax.lax.platform_dependent(x, kernel, g, cpu=by_hand, default=by_xla)


depthwise_conv.defvjp(_forward, _backward)
