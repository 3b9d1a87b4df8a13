"""PUMP's network and its use on images of any size."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.methods.pump.conv_mixer import ConvMixer
from jaxdesc.methods.pump.l2net import QuadL2Net
from jaxdesc.nets.layers import fan_in_uniform
from jaxdesc.types import Array, Batch, Variables

# Outputs of R2D2's heads for keypoints, 1x1 convolutions on the descriptors: reliability as two
# classes, and repeatability. They are kept in a collection of their own, "heads".
HEADS = {"clf": 2, "sal": 1}


def build(cfg, axis_name: str | None = None) -> nn.Module:
    common = {"output_dim": cfg.output_dim, "dtype": jnp.dtype(cfg.dtype), "axis_name": axis_name}
    if cfg.backbone == "r2d2":
        return QuadL2Net(**common)
    return ConvMixer(hidden=cfg.hidden, depth=cfg.depth, patch=cfg.patch, kernel=cfg.kernel, **common)


def multiple(cfg) -> int:
    """The sides of an image that the network takes are multiples of this."""
    return cfg.patch if cfg.backbone == "convmixer" else 1


def init(net: nn.Module, key: Array, batch: Batch, heads: bool = False) -> Variables:
    pair = next(iter(batch.values()))
    variables = net.init(key, pair.image1[:1], train=False)
    return {**variables, "heads": _heads(key, net.output_dim)} if heads else variables


def _heads(key: Array, channels: int) -> Variables:
    keys = jax.random.split(key, len(HEADS))
    return {
        name: {"kernel": fan_in_uniform(k, (1, 1, channels, n)), "bias": jnp.zeros(n)}
        for k, (name, n) in zip(keys, HEADS.items(), strict=True)
    }


def describe(net: nn.Module, variables: Variables, images: Array, multiple: int = 1) -> Array:
    """Dense descriptors: (B, H, W, 3) RGB in [0, 1] -> (B, H, W, D) float32 of unit length.

    Sides that are no multiple of `multiple` are padded by reflection at the right and bottom, and the result is cut.
    """
    h, w = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0)), mode="reflect")
    return net.apply(variables, padded, train=False)[:, :h, :w]


compiled = jax.jit(describe, static_argnames=("net", "multiple"))
