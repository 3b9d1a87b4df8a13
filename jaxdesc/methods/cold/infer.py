"""COLD at work: keypoints moved from one image to another, nearest neighbours between all cells. COLD, 2.4 and 2.7."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.config import Options, option
from jaxdesc.images import fit, pad, rescale, resize, to_float
from jaxdesc.methods.cold import cells, network
from jaxdesc.ops.matching import nearest_cells
from jaxdesc.ops.sampling import cell_centres
from jaxdesc.types import Array, Correspondences, Variables


@dataclass(frozen=True)
class MatchOptions(Options):
    """How two images are matched densely."""

    side_px: int = option(
        600,
        "images with a longer side are shrunk to it, aspect kept: 150 x 150 cells at most",
        **{"at_least": 32, "flag": "side", "unit": "PX"},
    )
    mutual: bool = option(
        True,
        "cells that choose each other alone; one way: the nearest neighbour of every cell",
        flag="one-way",
    )


_describe = jax.jit(network.describe, static_argnames="net")


@partial(jax.jit, static_argnames="mutual")
def _dense(desc1: Array, desc2: Array, size1_hw: Array, size2_hw: Array, mutual: bool) -> Correspondences:
    xy1, xy2 = (cell_centres(d.shape[:2], cells.CELLS) for d in (desc1, desc2))
    inside1, inside2 = (
        (xy <= size_hw[::-1] - 1).all(-1) for xy, size_hw in ((xy1, size1_hw), (xy2, size2_hw))
    )
    return nearest_cells(desc1, desc2, xy1, xy2, inside1, inside2, mutual)


def match(
    variables: Variables,
    image1: Array,
    image2: Array,
    options: MatchOptions = MatchOptions(),
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    net: nn.Module,
) -> Correspondences:
    """Nearest neighbours by cosine between all cells of two images, in blocks. COLD, 2.7 (HPatches).

    Args:
      image1, image2: (H, W, 3) uint8, or float in [0, 1].
      say, progress: not used; any two images fit, see MatchOptions.side_px, and there is one step.
    Returns:
      Correspondences on the host, in pixels of the images as given; one row a cell of image 1; score: cosine; valid: see MatchOptions; code 0.
    Raises:
      UserError: an image that is no RGB image.
    """
    given = [to_float(image, name) for image, name in ((image1, "image1"), (image2, "image2"))]
    shrunk = [resize(pixels, fit(pixels.shape[:2], options.side_px)) for pixels in given]
    desc1, desc2 = (_describe(net, variables, pad(pixels)[None])[0] for pixels in shrunk)
    found = jax.tree.map(np.asarray, _dense(desc1, desc2, *(np.array(pixels.shape[:2]) for pixels in shrunk), options.mutual))
    ends = [rescale(xy, small.shape[:2], large.shape[:2]) for xy, small, large in zip((found.xy1_px, found.xy2_px), shrunk, given, strict=True)]
    return found.replace(xy1_px=ends[0], xy2_px=ends[1])


def transfer(variables: Variables, image1: Array, image2: Array, xy1_px: Array, *, net: nn.Module, cfg) -> tuple[Array, Array]:
    """Keypoints of image 1 in image 2: by the nearest neighbours of the cells around each, see `methods.cold.cells.transfer`. COLD, 2.4.

    Args:
      image1, image2: (H, W, 3) float32 in [0, 1], of one size: of objects, squashed to squares of cfg.image_px, the aspect not kept. xy1_px: (N, 2).
      cfg: of the method: box_px and mutual_filter.
    Returns:
      (N, 2) px of image 2, and (N,) greatest cosine of the nearest cell.
    """
    maps1, maps2 = network.describe(net, variables, jnp.stack([image1, image2]))
    flat1, flat2 = (maps.reshape(-1, maps.shape[-1]) for maps in (maps1, maps2))
    return cells.transfer(xy1_px, flat1, flat2, maps1.shape[:2], maps2.shape[:2], cfg.box_px, cfg.mutual_filter)
