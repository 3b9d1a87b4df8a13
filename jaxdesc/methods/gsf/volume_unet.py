"""GSF's U-Net on a volume of all pairs: the cells of one image are the pixels, the cells of the other the channels."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.nets.layers import BatchNorm, Conv
from jaxdesc.ops import conv as ops
from jaxdesc.types import Array


def he_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """N(0, 2 / fan in), drawn flat, which compiles faster."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape) * (2 / math.prod(shape[:-1])) ** 0.5


def max_pool2(x: Array) -> Array:
    """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C): the greatest of 2x2; an odd side is filled up at the bottom or right."""
    for axis in (1, 2):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, x.shape[axis] % 2)
        x = jnp.pad(x, widths, constant_values=-jnp.inf)
        x = jnp.maximum(*(jax.lax.slice_in_dim(x, start, None, 2, axis) for start in (0, 1)))
    return x


class UpConv(nn.Module):
    """Transposed 3x3 convolution of stride 2 with bias: (B, H, W, C) -> (B, 2H, 2W, features); pixel i reaches rows 2 i to 2 i + 2, so the last of them goes."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", he_normal, (3, 3, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return jax.lax.conv_transpose(x.astype(self.dtype), kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


class VolumeUNet(nn.Module):
    """The pruning and the matching network before what follows conv8. Source: GSF, supplementary Table 1.

    conv1 5x5, conv1b; pool, conv2, conv2b; pool, conv3, conv3b; pool, conv4, conv4b; upconv5 joined with conv3b, conv5, conv5b; upconv6 with conv2b, conv6,
    conv6b; upconv7 with conv1b, conv7, conv7b; conv8 5x5. Every convolution but conv8 is followed by batch normalisation and ReLU. Channels are width,
    2 width, 4 width, 8 width going down. Twice an odd side is one more than the skip's, whose last row or column of the upsampled map goes.

    conv8 starts with filters of zeros, so that its output is `start` for every input.

    Shapes: (B, h, w, C) -> (B, h, w, out) float32, any h and w >= 1.

    Attributes:
      levels: poolings; 3 in the paper and in the names above, of which fewer leave out the innermost.
    """

    out: int
    start: float
    width: int = 64
    levels: int = 3
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def normed(x, name):
            return nn.relu(BatchNorm(train=train, axis_name=self.axis_name, dtype=self.dtype, name=f"{name}_bn")(x))

        def conv(x, features, name, kernel=3):
            return normed(Conv(features, kernel, dtype=self.dtype, kernel_init=he_normal, name=name)(x), name)

        def twice(x, features, level, kernel=3):
            return conv(conv(x, features, f"conv{level}", kernel), features, f"conv{level}b")

        skips = []
        for level in range(self.levels):
            x = twice(x, self.width * 2**level, level + 1, 3 if level else 5)
            skips.append(x)
            x = max_pool2(x)
        x = twice(x, self.width * 2**self.levels, self.levels + 1)
        for level in range(self.levels + 2, 2 * self.levels + 2):
            skip = skips.pop()
            up = normed(UpConv(x.shape[-1], dtype=self.dtype, name=f"upconv{level}")(x), f"upconv{level}")
            x = twice(jnp.concatenate([up[:, : skip.shape[1], : skip.shape[2]], skip], -1), skip.shape[-1], level)
        kernel = self.param("conv8_kernel", nn.initializers.zeros, (5, 5, self.width, self.out))
        bias = self.param("conv8_bias", nn.initializers.constant(self.start), (self.out,))
        return ops.conv(x.astype(jnp.float32), kernel) + bias
