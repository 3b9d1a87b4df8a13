"""Pieces that several networks share. NHWC; parameters are float32, computation runs in `dtype`."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.ops.conv import conv
from jaxdesc.ops.depthwise import depthwise_conv
from jaxdesc.types import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def fan_in_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """U(-b, b) with b = 1 / sqrt(fan in), torch's default for convolutions.

    Drawn flat: XLA's CPU compiler needs ten times as long for random bits of a four-dimensional shape.
    """
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def fan_out_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """N(0, 2 / fan out) with fan out = height * width * filters, torchvision's start for ResNets; drawn flat as above."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape) * (2 / (math.prod(shape[:-2]) * shape[-1])) ** 0.5


def imagenet_normalise(images: Array) -> Array:
    """RGB in [0, 1] -> (image - mean) / std with ImageNet's statistics."""
    return (images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


@jax.custom_vjp
def upsample2(x: Array) -> Array:
    """Bilinear upsampling (B, H, W, C) -> (B, 2H, 2W, C) with half-pixel centres, edges repeated.

    Along each axis y[2i] = (x[i - 1] + 3 x[i]) / 4 and y[2i + 1] = (3 x[i] + x[i + 1]) / 4.
    """
    for axis in (1, 2):
        edges = jnp.concatenate([jax.lax.slice_in_dim(x, 0, 1, axis=axis), x, jax.lax.slice_in_dim(x, -1, None, axis=axis)], axis)
        before, after = jax.lax.slice_in_dim(edges, 0, -2, axis=axis), jax.lax.slice_in_dim(edges, 2, None, axis=axis)
        pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    return x


def _upsample2_backward(_, gradient: Array) -> tuple[Array]:
    """The transpose; on a CPU example by example, in a loop, so that XLA computes it once and
    not anew inside each of its readers."""
    batch, h, w, c = gradient.shape

    def transposed(count):
        like = jax.ShapeDtypeStruct((count, h // 2, w // 2, c), gradient.dtype)
        return jax.linear_transpose(upsample2.fun, like)

    def one_by_one(gradient):
        return jax.lax.map(lambda example: transposed(1)(example[None])[0][0], gradient)

    def at_once(gradient):
        return transposed(batch)(gradient)[0]

    return (jax.lax.platform_dependent(gradient, cpu=one_by_one, default=at_once),)


upsample2.defvjp(lambda x: (upsample2(x), None), _upsample2_backward)


class BatchNorm(nn.Module):
    """Batch normalisation as torch's defaults have it (momentum 0.1 there is 0.9 here, eps 1e-5).

    Statistics are shared over the mapped axis `axis_name`, so they do not depend on the number of devices.
    """

    train: bool
    axis_name: str | None = None
    affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.BatchNorm(
            use_running_average=not self.train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=None if self.is_initializing() else self.axis_name,
            use_scale=self.affine,
            use_bias=self.affine,
            dtype=self.dtype,
            name="norm",
        )(x)


class Conv(nn.Module):
    """Square convolution, zero padding of kernel // 2 unless `patches`; parameters named and shaped as nn.Conv has them.

    Filters of one pixel and patches that do not overlap (`patches`: stride = kernel, no padding) are matrix products, which XLA's
    CPU backend differentiates ten times faster than convolutions.
    """

    features: int
    kernel: int
    patches: bool = False
    dilation: int = 1
    dtype: Any = jnp.float32
    stride: int = 1
    bias: bool = True
    kernel_init: Callable = fan_in_uniform

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k = self.kernel
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype) if self.bias else 0
        x = x.astype(self.dtype)
        if self.patches or k == 1:
            x = x[:, :: self.stride, :: self.stride]
            b, h, w, c = x.shape
            x = x.reshape(b, h // k, k, w // k, k, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // k, w // k, k * k * c)
            return x @ kernel.reshape(k * k * c, self.features) + bias
        return conv(x, kernel, self.stride, self.dilation) + bias


class ShuffledConv(nn.Module):
    """A 1x1 convolution with bias and the pixel shuffle (..., H, W, C f f) -> (..., H f, W f, C) that follows it.

    Channel c f f + dy f + dx goes to row dy, column dx of channel c. The filters are sorted beforehand, so that whole descriptors change places, not channels.
    """

    features: int
    factor: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (b, h, w, channels), f, c = x.shape, self.factor, self.features
        kernel = self.param("kernel", fan_in_uniform, (1, 1, channels, c * f * f)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (c * f * f,)).astype(self.dtype)
        kernel, bias = (p.reshape(-1, c, f * f).swapaxes(1, 2).reshape(-1, f * f * c) for p in (kernel, bias))
        y = (x.astype(self.dtype) @ kernel + bias).reshape(b, h, w, f, f, c)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * f, w * f, c)


class DepthwiseConv(nn.Module):
    """One square filter of odd side a channel, with bias, same padding; parameters as nn.Conv with one group a channel has them."""

    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", fan_in_uniform, (self.kernel, self.kernel, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)
