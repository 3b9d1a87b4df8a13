"""CAPS's network: a ResNet's first three stages and a decoder from 1/16 to 1/4 of the image."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxdesc.nets.layers import BatchNorm, Conv
from jaxdesc.nets.resnet import ResNet
from jaxdesc.ops.sampling import resize_aligned
from jaxdesc.types import Array


class Maps(NamedTuple):
    """Descriptors of images at two resolutions, not normalised."""

    coarse: Array  # (B, ceil(H / 16), ceil(W / 16), coarse_dim) float32
    fine: Array  # (B, h, w, fine_dim) float32, see `fine_shape`


def fine_shape(height: int, width: int, released: bool) -> tuple[int, int]:
    """(h, w) of the fine map of an image: a quarter of its sides, or, where encoders are padded
    (`concatenate`), four times the coarse map's; rounded up."""
    if released:
        return 4 * -(-height // 16), 4 * -(-width // 16)
    return -(-height // 4), -(-width // 4)


class Stage(nn.Module):
    """Convolution, ReLU, normalisation (Table 3), or convolution, normalisation, ELU (`released`)."""

    features: int
    kernel: int
    released: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(self.features, self.kernel, dtype=self.dtype, name="conv")(x)
        norm = BatchNorm(train=train, axis_name=self.axis_name, dtype=self.dtype, name="bn")
        return nn.elu(norm(x)) if self.released else norm(nn.relu(x))


def concatenate(encoder: Array, decoder: Array, released: bool) -> Array:
    """[encoder, decoder], channels side by side (CAPS, supplementary, Table 3).

    Of a side that is no multiple of 16 the decoder's map, twice its half, is larger.
    The paper does not say what happens then: here its first rows and columns go. The
    released program pads the encoder's map with zeros instead, half of them (rounded
    down) before it and the others behind (`released`).
    """
    have, want = encoder.shape[1:3], decoder.shape[1:3]
    if not released:
        return jnp.concatenate([encoder, decoder[:, -have[0] :, -have[1] :]], -1)
    lack = [w - h for h, w in zip(have, want, strict=True)]
    pads = [(n // 2, n - n // 2) for n in lack]
    return jnp.concatenate([jnp.pad(encoder, [(0, 0), *pads, (0, 0)]), decoder], -1)


class CapsNet(nn.Module):
    """Table 3 of CAPS's supplementary: coarse descriptors at 1/16, fine ones at 1/4 of the image.

    Shapes: (B, H, W, 3) RGB in [0, 1], any H and W -> Maps.

    Attributes:
      released: the decoder of the released weights instead of the paper's: see `Stage`
        and `concatenate`.
      decoder_features: channels of the decoder at 1/8 and at 1/4; 512 and 256 in the paper.
    """

    depth: int = 50
    width: int = 64
    decoder_features: tuple[int, int] = (512, 256)
    coarse_dim: int = 128
    fine_dim: int = 128
    released: bool = False
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Maps:
        def stage(x, features, kernel, name):
            return Stage(features, kernel, self.released, self.axis_name, self.dtype, name=name)(x, train)

        taps = ("layer1", "layer2", "layer3")
        backbone = ResNet(self.depth, taps, self.width, self.axis_name, self.dtype, name="backbone")
        quarter, eighth, x = backbone(images, train)
        coarse = stage(x, self.coarse_dim, 1, "conv_coarse")
        for level, (encoder, features) in zip((3, 2), ((eighth, self.decoder_features[0]), (quarter, self.decoder_features[1])), strict=True):
            x = stage(resize_aligned(x, (2 * x.shape[1], 2 * x.shape[2])), features, 3, f"upconv{level}")
            x = stage(concatenate(encoder, x, self.released), features, 3, f"iconv{level}")
        fine = stage(x, self.fine_dim, 1, "conv_fine")
        return Maps(coarse.astype(jnp.float32), fine.astype(jnp.float32))
