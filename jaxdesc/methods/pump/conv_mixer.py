"""ConvMixer as PUMP uses it: convolution, ReLU, batch normalisation, in that order throughout."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdesc.nets.layers import BatchNorm, Conv, DepthwiseConv, ShuffledConv, imagenet_normalise, upsample2
from jaxdesc.ops.normalise import l2_normalise
from jaxdesc.types import Array


class ReluNorm(nn.Module):
    """A convolution's result through ReLU and batch normalisation."""

    convolution: nn.Module
    train: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(self.convolution.copy(name="conv")(x))
        return BatchNorm(train=self.train, axis_name=self.axis_name, dtype=self.dtype, name="bn")(x)


class ConvMixer(nn.Module):
    """Dense unit descriptors at full resolution. Source: PUMP, section "Networks" (3,469,568 parameters at the defaults).

    Stem 5x5 (3 -> hidden/4) and patch embedding; `depth` times a residual depthwise convolution and a 1x1 convolution; a head
    that a pixel shuffle takes to half of the resolution and bilinear interpolation to all of it.

    Shapes: (B, H, W, 3) RGB in [0, 1], H and W multiples of `patch` -> (B, H, W, output_dim) float32, unit length.
    """

    output_dim: int = 128
    hidden: int = 512
    depth: int = 7
    patch: int = 4
    kernel: int = 9
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        conv = partial(Conv, dtype=self.dtype, parent=None)

        def stage(x, name, convolution):
            return ReluNorm(convolution, train, self.axis_name, self.dtype, name=name)(x)

        x = stage(imagenet_normalise(images), "stem", conv(self.hidden // 4, 5))
        x = stage(x, "patches", conv(self.hidden, self.patch, patches=True))
        for i in range(self.depth):
            x = x + stage(x, f"depthwise{i}", DepthwiseConv(self.kernel, dtype=self.dtype, parent=None))
            x = stage(x, f"pointwise{i}", conv(self.hidden, 1))
        x = ShuffledConv(self.output_dim, self.patch // 2, dtype=self.dtype, name="head")(x)
        return l2_normalise(upsample2(x))
