"""Convolution whose gradients are quick on a CPU too.

XLA's CPU backend has fast programs for convolutions whose axes come in the order NHWC, HWIO. It puts others, gradients among them, into that order; but not inside
a loop or a branch (jax 0.10.2), where it runs them as plain sums, a hundred times slower. So the gradients are written in that order here.

The gradient of the filters is then a convolution with a filter as large as the image: on 3x3 filters of 32 to 128 channels it ran at 20 to 31 GFLOP a core and
second, beside 75 to 85 of the convolution itself. As a matrix product of each image's patches it ran at 42 to 69, and was more exact; not with 100 filters of 5x5
pixels and 400 channels, whose patches are as much to copy as to multiply.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdesc.types import Array

WORTHWHILE = 1e7  # products; with fewer, what a loop saves is less than what it costs to compile
LONGEST = 40  # numbers of a patch for each filter: with more, copying the patch costs more than the product gains
LAYOUT = ("NHWC", "HWIO", "NHWC")


def _plain(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    pad = ((kernel.shape[0] - 1) * dilation) // 2
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, [(pad, pad)] * 2, rhs_dilation=(dilation,) * 2, dimension_numbers=LAYOUT)


def _input_gradient(g: Array, kernel: Array, size_hw: tuple[int, int], stride: int, dilation: int) -> Array:
    """dx: g, spread by the stride, convolved with the filters turned about."""
    reach = (kernel.shape[0] - 1) * dilation
    pad = reach // 2
    edges = [(reach - pad, n - (m - 1) * stride - 1 + pad) for n, m in zip(size_hw, g.shape[1:3], strict=True)]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return jax.lax.conv_general_dilated(g, turned, (1, 1), edges, (stride,) * 2, (dilation,) * 2, LAYOUT)


def _kernel_gradient_at_once(x: Array, kernel: Array, g: Array, stride: int, dilation: int) -> Array:
    """dK: x with its channels as images, convolved with g as a filter whose taps are `stride` apart."""
    reach = (kernel.shape[0] - 1) * dilation
    pad = reach // 2
    edges = [(pad, reach + (m - 1) * stride + 1 - n - pad) for n, m in zip(x.shape[1:3], g.shape[1:3], strict=True)]
    product = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (dilation,) * 2, edges, rhs_dilation=(stride,) * 2, dimension_numbers=LAYOUT
    )
    return product.transpose(1, 2, 0, 3)


def _kernel_gradient_by_images(x: Array, kernel: Array, g: Array, stride: int, dilation: int) -> Array:
    """dK[i, j, c, o] = sum over b, v, u of padded[b, v stride + i dilation, u stride + j dilation, c] g[b, v, u, o], an image's patches in memory at a time."""
    k, _, channels, features = kernel.shape
    h, w = g.shape[1:3]
    pad = ((k - 1) * dilation) // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def seen(image: Array, i: int, j: int) -> Array:
        top, left = i * dilation, j * dilation
        return image[top : top + (h - 1) * stride + 1 : stride, left : left + (w - 1) * stride + 1 : stride]

    def add_image(total, pair):
        image, g = pair
        patches = jnp.concatenate([seen(image, i, j) for i in range(k) for j in range(k)], -1).reshape(h * w, -1)
        # features first: in this order XLA's product of two tall matrices is half as fast again
        product = jax.lax.dot_general(g.reshape(h * w, -1), patches, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return total + product, None

    total = jax.lax.scan(add_image, jnp.zeros((features, k * k * channels), jnp.float32), (padded, g))[0]
    return total.T.reshape(kernel.shape).astype(kernel.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: Array, kernel: Array, stride: int = 1, dilation: int = 1) -> Array:
    """y[b, v, u, o] = sum over i, j, c of x[b, v stride + i dilation - p, u stride + j dilation - p, c] kernel[i, j, c, o], p = (k - 1) dilation // 2; zeros outside.

    Shapes: x (B, H, W, C), kernel (k, k, C, O) -> (B, H', W', O) with H' = (H + 2 p - (k - 1) dilation - 1) // stride + 1.
    """
    return _plain(x, kernel, stride, dilation)


def _forward(x, kernel, stride, dilation):
    return _plain(x, kernel, stride, dilation), (x, kernel)


def _backward(stride, dilation, saved, g):
    x, kernel = saved
    patch, features = kernel.size // kernel.shape[-1], kernel.shape[-1]
    kernel_gradient = _kernel_gradient_by_images if g.size * patch >= WORTHWHILE and patch <= LONGEST * features else _kernel_gradient_at_once

    def in_order(x, kernel, g):
        return _input_gradient(g, kernel, x.shape[1:3], stride, dilation), kernel_gradient(x, kernel, g, stride, dilation)

    def by_xla(x, kernel, g):
        return jax.vjp(lambda x, kernel: _plain(x, kernel, stride, dilation), x, kernel)[1](g)

    return jax.lax.platform_dependent(x, kernel, g, cpu=in_order, default=by_xla)


conv.defvjp(_forward, _backward)
