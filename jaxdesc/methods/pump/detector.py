"""R2D2's detector, which its released checkpoints carry as two heads on the network's output.

X is that output before it is made unit length; both heads are 1x1 convolutions of X^2:

    reliability    R = softmax(clf(X^2)), the second of two
    repeatability  S = s / (1 + s) with s = softplus(sal(X^2))

A keypoint is a maximum of S in 3 x 3 pixels with R and S above 0.7, and its score R S. The image is
seen at sizes falling by 2^(1/4), the longer side from at most 1024 px to at least 256 px.
Source: Revaud et al., R2D2: Repeatable and Reliable Detector and Descriptor, NeurIPS 2019.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.images import rescale, resize, to_float
from jaxdesc.matching.hessian import is_maximum
from jaxdesc.matching.keypoints import SUPPORT_PX
from jaxdesc.ops.normalise import l2_normalise
from jaxdesc.types import Array, Keypoints, Size, Variables

LARGEST_PX, SMALLEST_PX = 1024, 256  # of the longer side
LEAST = 0.7  # reliability and repeatability of a keypoint
GATHERED = 1024  # descriptors are read in multiples of so many: few programs


def maps(net: nn.Module, variables: Variables, images: Array) -> tuple[Array, Array, Array]:
    """R and S (B, H, W), and unit descriptors (B, H, W, D), of images (B, H, W, 3) in [0, 1]."""
    x = net.apply(variables, images, train=False, method="features").astype(jnp.float32)
    clf, sal = (_head(variables["heads"][name], x**2) for name in ("clf", "sal"))
    reliability = jax.nn.softmax(clf)[..., 1]
    s = jax.nn.softplus(sal[..., 0])
    return reliability, s / (1 + s), l2_normalise(x)


def _head(head: Variables, x: Array) -> Array:
    return x @ head["kernel"][0, 0] + head["bias"]


_maps = jax.jit(maps, static_argnames="net")
_gather = jax.jit(lambda descriptors, y, x: descriptors[y, x])


def sizes(size_hw: Size) -> list[Size]:
    """The sizes at which an image is seen, the largest first; the first one in any case."""
    largest = min(LARGEST_PX, max(size_hw))
    count = 1 + max(0, math.floor(4 * math.log2(largest / SMALLEST_PX)))
    scales = [largest / max(size_hw) * 2 ** (-i / 4) for i in range(count)]
    return [tuple(max(1, round(n * scale)) for n in size_hw) for scale in scales]


def detect(
    variables: Variables, image: np.ndarray, most: int, *, net: nn.Module
) -> tuple[Keypoints, np.ndarray]:
    """The `most` best keypoints of all sizes together, and their descriptors (N, D).

    They lie on pixels of the size at which they were found. scale_px = 32 px of that size.
    """
    pixels, size_hw = to_float(image), image.shape[:2]
    levels = [_level(variables, resize(pixels, hw), size_hw, most, net) for hw in sizes(size_hw)]
    xy, scale, score, descriptors = (np.concatenate(part) for part in zip(*levels, strict=True))
    best = np.argsort(-score, kind="stable")[:most]
    found = Keypoints(xy[best], scale[best], score[best], np.ones(len(best), bool))
    return found, descriptors[best]


def _level(
    variables: Variables, image: np.ndarray, size_hw: Size, most: int, net: nn.Module
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions in the whole image, scales, scores and descriptors of one size's best."""
    reliability, repeatability, descriptors = _maps(net, variables, image[None])
    reliability, repeatability = np.array(reliability[0]), np.array(repeatability[0])
    found = is_maximum(repeatability) & (repeatability > LEAST) & (reliability > LEAST)
    y, x = np.nonzero(found)
    score = reliability[y, x] * repeatability[y, x]
    best = np.argsort(-score, kind="stable")[:most]
    y, x, n = y[best], x[best], len(best)
    rows = np.pad(np.stack([y, x]), ((0, 0), (0, -n % GATHERED)))
    here = np.asarray(_gather(descriptors[0], *rows))[:n]
    scale = np.full(n, SUPPORT_PX * max(size_hw) / max(image.shape[:2]), np.float32)
    return rescale(np.stack([x, y], 1), image.shape[:2], size_hw), scale, score[best], here
