"""ResNets with torchvision's arithmetic (v1.5: the 3x3 convolution of a bottleneck strides), without the classifier; activations are asked for by name."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.nets.layers import BatchNorm, Conv, fan_out_normal, imagenet_normalise
from jaxdesc.types import Array, Grid, UserError

# Blocks of the four stages and whether they are bottlenecks, by depth. Source: He et al., CVPR 2016, Table 1; 10 is not in the paper, it is the least of its kind.
DEPTHS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
EXPANSION = 4  # of a bottleneck's last convolution


def activations(depth: int, width: int = 64) -> dict[str, int]:
    """Channels of every activation that can be tapped, by name, in the order of the forward pass.

    "stem" (after the first ReLU, 1/2 of the image), "maxpool" (1/4); of block j of stage i, "layer{i}.{j}.sum" before its last ReLU and "layer{i}.{j}" after
    it. Stages are at 1/4, 1/8, 1/16 and 1/32. "layer{i}" is another name of the stage's last block and not listed here.
    """
    blocks, bottleneck = DEPTHS[depth]
    found = {"stem": width, "maxpool": width}
    for i, count in enumerate(blocks):
        channels = width * 2**i * (EXPANSION if bottleneck else 1)
        found |= {f"layer{i + 1}.{j}{end}": channels for j in range(count) for end in (".sum", "")}
    return found


STRIDES = {"stem": 2, "maxpool": 4, "layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}


def tap_grid(tap: str) -> Grid:
    """Where the cells of an activation lie: every filter is centred, so cell (0, 0) is pixel (0, 0)."""
    stride = float(STRIDES[tap.split(".")[0]])
    return Grid((0.0, 0.0), (stride, stride))


def _resolved(tap: str, depth: int) -> str:
    blocks = {f"layer{i + 1}": count for i, count in enumerate(DEPTHS[depth][0])}
    return f"{tap}.{blocks[tap] - 1}" if tap in blocks else tap


def tapped_channels(depth: int, taps: Sequence[str], width: int = 64) -> list[int]:
    """Channels of the activations named.

    Raises:
      UserError: a depth or an activation that does not exist.
    """
    if depth not in DEPTHS:
        raise UserError(f"There is no ResNet-{depth}: the depth is one of {', '.join(map(str, DEPTHS))}.")
    found = activations(depth, width)
    for tap in taps:
        if _resolved(tap, depth) not in found:
            raise UserError(f"A ResNet-{depth} has no activation {tap!r}: it has stem, maxpool, and layer1 to layer4, layer1.0, layer1.0.sum and so on.")
    return [found[_resolved(tap, depth)] for tap in taps]


def check_weights(spec: str, width: int) -> None:
    """What a ResNet of a configuration may start from, config.method.weights: imagenet:FILE, caps:PATH, or empty; see `store.pretrained`.

    Raises:
      UserError: it is something else, or for a file of ImageNet's the width is not theirs.
    """
    kind, _, path = spec.partition(":")
    if spec and (kind not in ("imagenet", "caps") or not path):
        raise UserError(f"config.method.weights = {spec!r} must be imagenet:FILE or caps:PATH, or empty.")
    if kind == "imagenet" and width != 64:
        raise UserError(f"config.method.width = {width} must be 64 where config.method.weights names a ResNet trained on ImageNet.")


def max_pool(x: Array) -> Array:
    """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C): the greatest of 3x3, stride 2, centred on even rows and columns.

    Separable, by strided slices: XLA's CPU backend differentiates these faster than a window reduction.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        widths = [(0, 0)] * x.ndim
        widths[axis] = (1, n % 2)
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        parts = [jax.lax.slice_in_dim(padded, start, start + n + n % 2 - 1, 2, axis) for start in (0, 1, 2)]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x


class Block(nn.Module):
    """A residual block up to the sum, before its last ReLU: (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), channels).

    Basic: 3x3 (stride), 3x3. Bottleneck: 1x1, 3x3 (stride), 1x1 to EXPANSION times the features. Normalisation follows every convolution, ReLU all but the last;
    the shortcut is a strided 1x1 convolution with normalisation where the shape changes.
    """

    features: int
    stride: int
    bottleneck: bool
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def stage(x, features, kernel, stride, conv, bn):
            x = Conv(features, kernel, stride=stride, bias=False, kernel_init=fan_out_normal, dtype=self.dtype, name=conv)(x)
            return BatchNorm(train=train, axis_name=self.axis_name, dtype=self.dtype, name=bn)(x)

        channels = self.features * (EXPANSION if self.bottleneck else 1)
        plan = [(self.features, 1, 1), (self.features, 3, self.stride), (channels, 1, 1)] if self.bottleneck else [(channels, 3, self.stride), (channels, 3, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(plan):
            y = stage(nn.relu(y) if i else y, features, kernel, stride, f"conv{i + 1}", f"bn{i + 1}")
        if self.stride > 1 or x.shape[-1] != channels:
            x = stage(x, channels, 1, self.stride, "downsample_conv", "downsample_bn")
        return x + y


class ResNet(nn.Module):
    """Activations of a ResNet by name; blocks after the last one that is asked for have no parameters and are not computed.

    Parameters are named as torchvision's: conv1, bn1, layer{i}_{j}/conv{k} and /bn{k}, layer{i}_{j}/downsample_conv and _bn.

    Shapes: (B, H, W, 3) RGB in [0, 1] -> a tuple of (B, ceil(H / s), ceil(W / s), channels) in `dtype`, one a tap, with the channels and strides s of `activations`.

    Attributes:
      depth: a key of DEPTHS.
      taps: names of `activations`, or "layer{i}" for the output of a stage.
      width: channels of the stem; 64 in the paper.
    """

    depth: int = 50
    taps: tuple[str, ...] = ("layer4",)
    width: int = 64
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool) -> tuple[Array, ...]:
        """With `train`, normalisation uses and updates the batch's statistics, else the running ones; a frozen network is one that is called without."""
        tapped_channels(self.depth, self.taps, self.width)
        wanted = {_resolved(tap, self.depth) for tap in self.taps}
        found: dict[str, Array] = {}

        def keep(name: str, x: Array) -> Array:
            if name in wanted:
                found[name] = x
            return x

        def done() -> bool:
            return len(found) == len(wanted)

        x = Conv(self.width, 7, stride=2, bias=False, kernel_init=fan_out_normal, dtype=self.dtype, name="conv1")(imagenet_normalise(images))
        x = keep("stem", nn.relu(BatchNorm(train=train, axis_name=self.axis_name, dtype=self.dtype, name="bn1")(x)))
        x = x if done() else keep("maxpool", max_pool(x))
        blocks, bottleneck = DEPTHS[self.depth]
        for i, count in enumerate(blocks):
            for j in range(count):
                if not done():
                    stride = 2 if i and not j else 1
                    block = Block(self.width * 2**i, stride, bottleneck, self.axis_name, self.dtype, name=f"layer{i + 1}_{j}")
                    x = keep(f"layer{i + 1}.{j}", nn.relu(keep(f"layer{i + 1}.{j}.sum", block(x, train))))
        return tuple(found[_resolved(tap, self.depth)] for tap in self.taps)
