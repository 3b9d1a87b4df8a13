"""What one patch of image 1 thinks of image 2 at each level of the pyramid: the maps behind figures D and E of the paper."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxdesc.images import pad, to_float
from jaxdesc.methods.pump import network
from jaxdesc.methods.pump.correlation import maxpool3x3s2
from jaxdesc.methods.pump.matching_pyramid import SMALLEST
from jaxdesc.methods.pump.pyramid import aggregate, levels, rectify
from jaxdesc.ops.matching import CELL
from jaxdesc.types import Array, UserError, Variables


class LevelMap(NamedTuple):
    """C_p^l of one query: position (i, j) of `responses` is pixel (step_px j, step_px i) of image 2."""

    centre_xy: tuple[int, int]  # of the patch p, pixels of image 1
    side_px: int  # of the patch: 4 * 2^l
    step_px: int  # 2^l
    responses: np.ndarray  # (ceil(H2 / 2^l), ceil(W2 / 2^l)) float32


def query_maps(desc1: Array, desc2: Array, xy: tuple[float, float], limit: int = 4) -> list[LevelMap]:
    """The way up the pyramid, C_l = rectify(aggregate(maxpool(C_{l-1}))), for the patches around one pixel alone.

    Patches of level 1 and above sit between those of level 0; the one nearest to the pixel is followed. Below its level L stand 2^L x 2^L patches of level 0.

    Args:
      desc1: (H1, W1, D), desc2: (H2, W2, D).
      xy: pixel of image 1.
      limit: levels above level 0 at most; fewer if the images end the pyramid before.
    Returns:
      level 0, 1, ...
    Raises:
      UserError: the pixel lies outside image 1.
    """
    patches = desc1[CELL // 2 :: CELL, CELL // 2 :: CELL]
    size = patches.shape[:2]
    if not (-0.5 <= xy[0] <= desc1.shape[1] - 0.5 and -0.5 <= xy[1] <= desc1.shape[0] - 0.5 and min(size)):
        raise UserError(f"The pixel ({xy[0]:g}, {xy[1]:g}) lies outside the image of {desc1.shape[1]}x{desc1.shape[0]} px.")
    nearest = [min(n - 1, max(0, round((at - CELL // 2) / CELL))) for at, n in zip(xy[::-1], size, strict=True)]
    parent = [min(n, max(0, round(at / CELL))) for at, n in zip(xy[::-1], size, strict=True)]  # between patches parent - 1 and parent
    found = [LevelMap(tuple(CELL * n + CELL // 2 for n in nearest[::-1]), CELL, 1, np.asarray(rectify(desc2 @ patches[tuple(nearest)])))]
    count = len(levels((*size, *desc2.shape[:2]), smallest=SMALLEST, limit=limit))
    reach = 2**count // 2  # the window holds all that stands below the parent, and its own parents at the edge are never read
    start = [max(0, n - reach) for n in parent]
    window = patches[start[0] : parent[0] + reach, start[1] : parent[1] + reach]
    maps = rectify(jnp.einsum("yxd,hwd->yxhw", window, desc2, preferred_element_type=jnp.float32))
    for level, step in enumerate(levels(maps.shape, smallest=SMALLEST, limit=count), 1):
        pooled = maxpool3x3s2(maps.reshape(-1, *maps.shape[2:]))
        maps = rectify(aggregate(pooled.reshape(*maps.shape[:2], *pooled.shape[1:]), step))
        responses = np.asarray(maps[parent[0] - start[0], parent[1] - start[1]])
        found.append(LevelMap(tuple(CELL * n for n in parent[::-1]), CELL * 2**level, 2**level, responses))
    return found


def explain(
    variables: Variables,
    image1: np.ndarray,
    image2: np.ndarray,
    xy1_px: np.ndarray,
    xy2_px: np.ndarray | None = None,
    *,
    net: nn.Module,
    multiple: int,
) -> np.ndarray:
    """(H, W, 3) uint8: a point's way up the pyramid; see `figures.heat_maps`.

    Raises:
      UserError: more than one point, or its true place, which the picture has no room for; an
        image that is no RGB image; a point outside image 1.
    """
    if len(xy1_px) != 1 or xy2_px is not None:
        raise UserError("PUMP's heat maps show one query, level by level, and no truth.")
    from jaxdesc import figures  # which loads a plotting library

    def described(image, name):
        pixels = to_float(image, name)
        padded = pad(pixels)[None]
        maps = network.compiled(net, variables, padded, multiple)[0]
        return maps[: pixels.shape[0], : pixels.shape[1]]

    desc1, desc2 = described(image1, "image1"), described(image2, "image2")
    return figures.heat_maps(image1, image2, query_maps(desc1, desc2, tuple(xy1_px[0])))
