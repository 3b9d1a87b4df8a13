"""GSF at work: a dense flow between two images, keypoints moved along it."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates

from jaxdesc.config import Options, option
from jaxdesc.images import rescale, resize, to_float
from jaxdesc.methods.gsf import network
from jaxdesc.methods.gsf.flow import carried
from jaxdesc.methods.gsf.network import Alignment, GsfNet
from jaxdesc.ops.sampling import cell_centres, cells_from_px, px_from_cells
from jaxdesc.types import Array, Correspondences, UserError, Variables

_align = jax.jit(network.align, static_argnames="net")


@dataclass(frozen=True)
class MatchOptions(Options):
    """Which cells of image 1 are given out."""

    confident: bool = option(
        False, "only cells with a match that the pruning network keeps, Q' > rho"
    )


def _squashed(image: Array, name: str, cfg) -> np.ndarray:
    pixels, side = to_float(image, name), network.side_px(cfg)
    if min(pixels.shape[:2]) < cfg.grid:
        h, w = pixels.shape[:2]
        raise UserError(f"{name} of {w}x{h} px is too small: it is cut into {cfg.grid}x{cfg.grid} cells, each needs a pixel at least.")
    return resize(pixels, (side, side))


def alignment(variables: Variables, image1: Array, image2: Array, *, net: GsfNet) -> Alignment:
    """Everything that GSF finds between two images, both squashed to squares; NumPy, without the batch axis.

    Args:
      image1, image2: (H, W, 3) uint8, or float in [0, 1].
    Raises:
      UserError: an image that is no RGB image, or of fewer pixels than cells a side.
    """
    pixels = [_squashed(image, name, net.cfg)[None] for image, name in ((image1, "image1"), (image2, "image2"))]
    return jax.tree.map(lambda x: x[0], jax.device_get(_align(net, variables, *pixels)))


def moved(
    flow: np.ndarray, xy1: np.ndarray, size1_hw: tuple[int, int], size2_hw: tuple[int, int], cfg
) -> np.ndarray:
    """Points (..., 2) px of image 1 along a flow (h, w, 2) in cells, to px of image 2; float32.

    Cells lie on the square that images are squashed to as `network.grid` says; the flow is
    bilinear between their centres and constant beyond the outermost.
    """
    square = (network.side_px(cfg),) * 2
    grid = network.grid(cfg, *square)
    cells = cells_from_px(rescale(xy1, size1_hw, square).reshape(-1, 2), grid)
    step = [map_coordinates(flow[..., k], cells.T[::-1], order=1, mode="nearest") for k in (0, 1)]
    there = px_from_cells(cells + np.stack(step, -1), grid)
    return rescale(there.reshape(np.shape(xy1)), square, size2_hw)


def transfer(variables: Variables, image1: Array, image2: Array, xy1_px: Array, *, net: GsfNet) -> tuple[Array, Array]:
    """Keypoints of image 1 in image 2, moved along the flow: bilinear between the centres of the cells, constant beyond the outermost.

    Args:
      image1, image2: (side, side, 3) float32 in [0, 1], squashed to squares of `side_px`. xy1_px: (N, 2).
    Returns:
      (N, 2) px of image 2, and (N,) max_j Q'[i, j] of the cell i that is nearest to a point.
    """
    found = network.align(net, variables, image1[None], image2[None])
    grid = network.grid(net.cfg, *image1.shape[:2])
    cells = cells_from_px(xy1_px, grid)
    x, y = jnp.clip(jnp.round(cells), 0, net.cfg.grid - 1).astype(jnp.int32).T
    xy2 = px_from_cells(carried(found.flow[0], cells), grid)
    return xy2, found.refined[0].max(-1)[y, x]


def dense(variables: Variables, image1: Array, image2: Array, *, net: GsfNet) -> np.ndarray:
    """(H1, W1, 2) float32: where every pixel of image 1 lies in image 2. Arguments and errors as in `alignment`."""
    y, x = np.mgrid[: np.shape(image1)[0], : np.shape(image1)[1]]
    found = alignment(variables, image1, image2, net=net)
    xy1 = np.stack([x, y], -1).astype(np.float32)
    return moved(found.flow, xy1, np.shape(image1)[:2], np.shape(image2)[:2], net.cfg)


def match(
    variables: Variables,
    image1: Array,
    image2: Array,
    options: MatchOptions = MatchOptions(),
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    net: GsfNet,
) -> Correspondences:
    """The flow at the centres of the cells of image 1, row by row.

    Args:
      image1, image2: as in `alignment`. say, progress: not used; any two images fit, and there is one step.
    Returns:
      Correspondences on the host; score: max_j Q'[i, j]; valid: the position lies on image 2, and see `MatchOptions`; code 0.
    Raises:
      UserError: as `alignment`.
    """
    found, (h1, w1), (h2, w2) = alignment(variables, image1, image2, net=net), np.shape(image1)[:2], np.shape(image2)[:2]
    square = (network.side_px(net.cfg),) * 2
    centres = cell_centres(found.flow.shape[:2], network.grid(net.cfg, *square))
    xy1 = rescale(centres, square, (h1, w1))
    xy2 = moved(found.flow, xy1, (h1, w1), (h2, w2), net.cfg)
    valid = ((xy2 >= -0.5) & (xy2 <= np.array([w2, h2]) - 0.5)).all(-1)
    if options.confident:
        valid &= found.selected.any(-1).reshape(-1)
    return Correspondences(xy1, xy2, found.refined.max(-1).reshape(-1), np.zeros(len(xy1), np.int32), valid)
