"""R2D2's fully convolutional "Quad L2-Net"."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxdesc.nets.layers import BatchNorm, Conv, imagenet_normalise
from jaxdesc.ops.normalise import l2_normalise
from jaxdesc.types import Array

# (features, kernel, dilation) of the nine convolutions; strides are replaced by dilation.
LAYERS = ((32, 3, 1), (32, 3, 1), (64, 3, 1), (64, 3, 2), (128, 3, 2), (128, 3, 4), (128, 2, 4), (128, 2, 8), (128, 2, 16))


class QuadL2Net(nn.Module):
    """Dense unit descriptors at full resolution. Source: R2D2; PUMP's supplementary, Table A.

    Padding is ((kernel - 1) * dilation) // 2 on each side; normalisation without scale or bias after every convolution but
    the last; ReLU after the six 3x3 convolutions only.

    Shapes: (B, H, W, 3) RGB in [0, 1] -> (B, H, W, output_dim) float32, unit length.
    """

    output_dim: int = 128
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __call__(self, images: Array, train: bool) -> Array:
        return l2_normalise(self.features(images, train))

    @nn.compact
    def features(self, images: Array, train: bool) -> Array:
        """The descriptors before they are made unit length, which R2D2's detector looks at."""
        x = imagenet_normalise(images)
        for i, (features, kernel, dilation) in enumerate(LAYERS):
            last = i == len(LAYERS) - 1
            x = Conv(self.output_dim if last else features, kernel, dilation=dilation, dtype=self.dtype, name=f"conv{i}")(x)
            if not last:
                x = BatchNorm(train=train, axis_name=self.axis_name, affine=False, dtype=self.dtype, name=f"bn{i}")(x)
            if kernel == 3:
                x = nn.relu(x)
        return x
