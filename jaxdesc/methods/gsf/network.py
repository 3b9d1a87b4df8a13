"""GSF's networks, and the volumes and flows that are made with them."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.methods.gsf import flow
from jaxdesc.methods.gsf.volume_unet import VolumeUNet
from jaxdesc.nets.frozen import freeze, thaw
from jaxdesc.nets.resnet import ResNet, tap_grid
from jaxdesc.types import Array, Batch, Grid, Variables

START = 10.0  # what the pruning network gives before the sigmoid at first: 0.99995 after it


class Alignment(NamedTuple):
    """What is found between B pairs of feature maps; N = h w cells of the target."""

    C: Array  # (B, h, w, N) correlation
    Q: Array  # (B, h, w, N) confidence
    refined: Array  # (B, h, w, N) Q', the confidence after pruning
    selected: Array  # (B, h, w, N) bool: the matches that guide
    guidance: Array  # (B, h, w, 2) G', cells
    flow: Array | None  # (B, h, w, 2) tau, cells; None where only the pruning network was asked for


def grid(cfg, height: int, width: int) -> Grid:
    """Where the features lie on an image of any size: as the activation that they are."""
    return tap_grid(cfg.tap)


def side_px(cfg) -> int:
    """Side of the square that images are squashed to."""
    return cfg.grid * int(tap_grid(cfg.tap).stride_xy[0])


class GsfNet(nn.Module):
    """Features W_F, pruning network W_P and matching network W_M. Source: GSF, supplementary 1 and Table 1."""

    cfg: Any
    axis_name: str | None = None

    def setup(self):
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        self.backbone = ResNet(int(cfg.backbone.removeprefix("resnet")), (cfg.tap,), cfg.width, self.axis_name, dtype)
        self.pruning = VolumeUNet(cfg.grid**2, START, cfg.unet_width, cfg.unet_levels, self.axis_name, dtype)
        self.matching = VolumeUNet(2, 0.0, cfg.unet_width, cfg.unet_levels, self.axis_name, dtype)

    def features(self, images: Array) -> Array:
        """(B, H, W, 3) RGB in [0, 1] -> (B, ceil(H / s), ceil(W / s), d) of unit length; batch statistics are never used nor changed."""
        return flow.unit_features(self.backbone(images, False)[0])

    def align(self, source: Array, target: Array, train: bool, matching: bool = True) -> Alignment:
        """Features (B, grid, grid, d) of sources and targets -> Alignment: C -> Q -> Q' = F(Q; W_P) Q -> G' -> C' -> tau = G' + F(C'; W_M)."""
        cfg, hw = self.cfg, (self.cfg.grid, self.cfg.grid)
        C = jax.vmap(flow.correlation)(source, target)
        contrast = cfg.confidence_contrast or 1.0  # not chosen yet
        Q = jax.vmap(lambda c: flow.mutual_confidence(c, cfg.confidence_power, contrast))(C)
        refined = nn.sigmoid(self.pruning(Q, train)) * Q
        selected = flow.confident(refined, cfg.rho)
        guidance = jax.vmap(lambda q, s: flow.dense_guidance(q, s, hw, cfg.guide_width, cfg.gauss, cfg.mls_order))(refined, selected)
        if not matching:
            return Alignment(C, Q, refined, selected, guidance, None)
        modulated = jax.vmap(lambda c, g: flow.modulate(c, g, hw, cfg.modulation_width, cfg.gauss))(C, guidance)
        return Alignment(C, Q, refined, selected, guidance, guidance + self.matching(modulated, train))

    def __call__(self, images: Array) -> Alignment:
        features = self.features(images)
        return self.align(features, features, False)


def learns(path: str, cfg) -> bool:
    """Whether a parameter, or a whole module, learns in any stage: both U-Nets, and the backbone's stages that `cfg.trained` names."""
    module, _, rest = path.partition("/")
    return module != "backbone" or not rest or rest.split("/")[0].split("_")[0] in cfg.trained


def init(net: GsfNet, key: Array, batch: Batch) -> Variables:
    """Variables do not depend on the batch: the networks see squares of `side_px` whatever the images are."""
    side = side_px(net.cfg)
    return freeze(net.init(key, jnp.zeros((1, side, side, 3))), lambda path: not learns(path, net.cfg))


def describe(net: GsfNet, variables: Variables, images: Array) -> Array:
    """(B, H, W, 3) RGB in [0, 1] -> (B, ceil(H / s), ceil(W / s), d) float32 of unit length."""
    return net.apply(thaw(variables), images, method="features")


def align(net: GsfNet, variables: Variables, image1: Array, image2: Array) -> Alignment:
    """Pairs of squares (B, side_px, side_px, 3) RGB in [0, 1] -> Alignment from images 1 to images 2.

    Images that are the same may move: the guidance of a cell is a mean over all of its
    confident matches, look-alikes among them; only the sum of m[i] G[i] over all cells is
    0, by symmetry.
    """
    full = thaw(variables)
    features = net.apply(full, jnp.concatenate([image1, image2]), method="features")
    return net.apply(full, *jnp.split(features, 2), False, method="align")
