"""CAPS's network and the maps that are made with it."""

import flax.linen as nn
import jax.numpy as jnp

from jaxdesc.methods.caps.unet import CapsNet, Maps, fine_shape
from jaxdesc.ops.normalise import l2_normalise
from jaxdesc.ops.sampling import aligned_grid, resize_aligned
from jaxdesc.types import Array, Batch, Grid, Variables


def build(cfg, axis_name: str | None = None) -> CapsNet:
    return CapsNet(
        depth=int(cfg.backbone.removeprefix("resnet")),
        width=cfg.width,
        decoder_features=cfg.decoder_features,
        coarse_dim=cfg.coarse_dim,
        fine_dim=cfg.fine_dim,
        released=cfg.decoder == "released",
        axis_name=axis_name,
        dtype=jnp.dtype(cfg.dtype),
    )


def init(net: nn.Module, key: Array, batch: Batch) -> Variables:
    pair = next(iter(batch.values()))
    return net.init(key, pair.image1[:1], train=False)


def grid(cfg, height: int, width: int) -> Grid:
    """Corners of the fine map and of the image coincide, as in the paper's matching layer."""
    shape = fine_shape(height, width, cfg.decoder == "released")
    return aligned_grid((height, width), shape)


def features(net: nn.Module, variables: Variables, images: Array) -> Maps:
    """(B, H, W, 3) RGB in [0, 1] -> coarse maps at 1/16 and fine maps at 1/4, not normalised."""
    return net.apply(variables, images, train=False)


def joined(coarse: Array, fine: Array, normalize: bool = True) -> Array:
    """Descriptors (..., coarse_dim) and (..., fine_dim) side by side, each half of unit length unless `normalize` is False."""
    return jnp.concatenate([l2_normalise(half) if normalize else half for half in (coarse, fine)], -1)


def describe(net: nn.Module, variables: Variables, images: Array, normalize: bool = True) -> Array:
    """Dense descriptors: (B, H, W, 3) RGB in [0, 1] -> (B, h, w, coarse_dim + fine_dim).

    h and w are those of the fine map, H / 4 and W / 4, corners aligned with the images'.

    The coarse map is resized to the fine one and both are put side by side. Source: CAPS, supplementary 5.
    """
    maps = features(net, variables, images)
    return joined(resize_aligned(maps.coarse, maps.fine.shape[1:3]), maps.fine, normalize)
