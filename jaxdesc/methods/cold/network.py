"""COLD's network: a frozen ResNet whose activations are brought to D channels each, resampled to a quarter of the image and added. COLD, 2.2 and 2.3."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.methods.cold.cells import CELLS, map_shape
from jaxdesc.nets.frozen import freeze, thaw
from jaxdesc.nets.layers import BatchNorm, Conv
from jaxdesc.nets.resnet import ResNet, activations, tap_grid
from jaxdesc.ops.sampling import regrid, resize_aligned
from jaxdesc.types import Array, Batch, Grid, Variables

BACKBONE = "backbone"  # the module that does not learn


def side_px(cfg) -> int:
    """Side of the square that images of objects are squashed to."""
    return cfg.image_px


def all_taps(depth: int, before_relu: bool = True) -> tuple[str, ...]:
    """The pooled stem and the output of every block, before its last ReLU or after: 34 of a ResNet-101."""
    blocks = [name for name in activations(depth) if name.startswith("layer") and name.endswith(".sum") == before_relu]
    return ("maxpool", *blocks)


def transform_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, *, taps: int) -> Array:
    """N(0, 2 / (fan in * taps)): He's start, scaled so that the sum over the taps starts no larger than one of them; drawn flat as in `nets.layers`."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape) * (2 / (math.prod(shape[:-1]) * taps)) ** 0.5


class Cold(nn.Module):
    """h = sum_l up(T_l(f_l)), d = h / sqrt(sum h^2 + eps), with T_l = BN(Conv1x1), without bias, and a ReLU behind it if `relu`.

    T_l works at the activation's own resolution: a linear map of the channels commutes with resampling, and is the cheaper the fewer pixels there are. The sum is
    accumulated tap by tap, so that the resampled maps never exist together.

    up: "aligned", the corners of an activation are those of the cells' map, as in Dynamic Hyperpixel
    Flow: a cell of stride 32 then counts up to 12 px (of 240) away from where the ResNet saw it;
    "exact", every activation is read where its cells lie.

    Shapes: (B, H, W, 3) RGB in [0, 1] -> (B, ceil(H / 4), ceil(W / 4), dim) float32; cell (v, u) is centred on pixel (4 u, 4 v).
    """

    depth: int
    taps: tuple[str, ...]
    dim: int
    width: int = 64
    relu: bool = False
    eps: float = 1e-6
    resize: str = "aligned"
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Array:
        """With `train` the transforms' normalisation uses and updates the batch's statistics; the ResNet's are the stored ones in any case."""
        features = ResNet(self.depth, self.taps, self.width, dtype=self.dtype, name=BACKBONE)(images, train=False)
        size, start, h = map_shape(*images.shape[1:3]), partial(transform_init, taps=len(self.taps)), 0.0
        for tap, f in zip(self.taps, features, strict=True):
            name = tap.replace(".", "_")
            x = Conv(self.dim, 1, bias=False, kernel_init=start, dtype=self.dtype, name=f"conv_{name}")(jax.lax.stop_gradient(f))
            x = BatchNorm(train=train, axis_name=self.axis_name, dtype=self.dtype, name=f"bn_{name}")(x)
            x = (nn.relu(x) if self.relu else x).astype(jnp.float32)
            aligned = self.resize == "aligned"
            h += resize_aligned(x, size) if aligned else regrid(x, tap_grid(tap), CELLS, size)
        return h * jax.lax.rsqrt(jnp.sum(h * h, -1, keepdims=True) + self.eps)


def build(cfg, axis_name: str | None = None) -> Cold:
    depth = int(cfg.backbone.removeprefix("resnet"))
    return Cold(
        depth=depth,
        taps=tuple(cfg.taps) or all_taps(depth, cfg.before_relu),
        dim=cfg.dim,
        width=cfg.width,
        relu=cfg.relu,
        eps=cfg.eps,
        resize=cfg.resize,
        axis_name=axis_name,
        dtype=jnp.dtype(cfg.dtype),
    )


def init(net: nn.Module, key: Array, batch: Batch) -> Variables:
    """{"params": the transforms, "frozen": the ResNet, "batch_stats": of both}."""
    image = next(iter(batch.values())).image1[:1]
    return freeze(net.init(key, image, train=False), lambda path: path == BACKBONE)


def grid(height: int, width: int) -> Grid:
    """Cell (0, 0) on pixel (0, 0), a cell every CELL_PX."""
    return CELLS


def describe(net: nn.Module, variables: Variables, images: Array) -> Array:
    """Unit descriptors of the cells: (B, H, W, 3) RGB in [0, 1] -> (B, ceil(H / 4), ceil(W / 4), D)."""
    return net.apply(thaw(variables), images, train=False)
