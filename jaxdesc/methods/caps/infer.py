"""CAPS at work: descriptors at keypoints, pairs of points, dense matches at 1/4 of the resolution."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.config import Options, option
from jaxdesc.images import pad, pad_points, to_float
from jaxdesc.methods.caps import network
from jaxdesc.methods.caps.matching import match_pair, similarities, window_shape
from jaxdesc.ops.matching import nearest_cells
from jaxdesc.ops.sampling import px_from_uv, sample, uv_from_px, uv_grid
from jaxdesc.types import Array, Correspondences, UserError, Variables

POINTS = 1024  # points are padded to multiples of it: few programs
GROUP = 256  # points whose scores with a whole map exist at once


@dataclass(frozen=True)
class MatchOptions(Options):
    """How two images are matched densely."""

    mutual: bool = option(
        True,
        "cells that choose each other alone; one way: the nearest neighbour of every cell",
        flag="one-way",
    )
    search: str = option(
        "local",
        "where given points are looked for finely: in the window around the coarse match, as the "
        "paper describes it, or in the whole fine map, as the released program does",
        choices=("local", "global"),
    )


_features = jax.jit(network.features, static_argnames="net")
_describe = jax.jit(network.describe, static_argnames="net")


def _padded(image: Array, name: str = "image") -> tuple[np.ndarray, tuple[int, int]]:
    """(1, H', W', 3) float32, padded, and the image's own (H, W)."""
    pixels = to_float(image, name)
    return pad(pixels)[None], pixels.shape[:2]


@partial(jax.jit, static_argnames=("size_hw", "normalize"))
def _at(coarse: Array, fine: Array, xy: Array, size_hw: tuple[int, int], normalize: bool) -> Array:
    uv = uv_from_px(xy, size_hw)
    return network.joined(sample(coarse, uv), sample(fine, uv), normalize)


def describe_at(variables: Variables, image: Array, xy_px: Array, normalize: bool = True, *, net: nn.Module) -> Array:
    """Descriptors of N keypoints: coarse and fine maps, each sampled bilinearly, side by side.

    Args:
      image: (H, W, 3) uint8, or float in [0, 1]. xy_px: (N, 2) pixels inside the image.
      normalize: each half is of unit length; False: as the network gives them.
    Returns:
      (N, coarse_dim + fine_dim) float32.
    """
    pixels, _ = _padded(image)
    maps = _features(net, variables, pixels)
    return _at(maps.coarse[0], maps.fine[0], pad_points(xy_px, POINTS), pixels.shape[1:3], normalize)[: len(xy_px)]


def _cells_inside(map_hw: tuple[int, int], frame_hw: tuple[int, int], size_hw: Array) -> tuple[Array, Array]:
    """(P, 2) pixels of a map's cells in the frame that the map was made from, row by row, and (P,) whether the image (H, W) at its top left holds them."""
    xy = px_from_uv(uv_grid(*map_hw).reshape(-1, 2), frame_hw)
    return xy, (xy[:, 0] <= size_hw[1] - 1) & (xy[:, 1] <= size_hw[0] - 1)


@partial(jax.jit, static_argnames=("frame1_hw", "frame2_hw", "mutual"))
def _dense(desc1: Array, desc2: Array, size1_hw: Array, size2_hw: Array, frame1_hw, frame2_hw, mutual: bool) -> Correspondences:
    xy1, inside1 = _cells_inside(desc1.shape[:2], frame1_hw, size1_hw)
    xy2, inside2 = _cells_inside(desc2.shape[:2], frame2_hw, size2_hw)
    found = nearest_cells(desc1, desc2, xy1, xy2, inside1, inside2, mutual)
    return found.replace(score=found.score / 2)  # a sum of two cosines


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
    """Dense matches of two photographs, one for each cell of image 1 at 1/4 of its resolution. Source: CAPS, supplementary 5.

    Args:
      image1, image2: (H, W, 3) uint8, or float in [0, 1].
      say, progress: not used; any two images fit, and there is one step.
    Returns:
      Correspondences on the host; score: the mean of the cosines of the coarse and the fine halves; valid: see `MatchOptions`; code 0.
    Raises:
      UserError: an image that is no RGB image.
    """
    (pixels1, size1), (pixels2, size2) = _padded(image1, "image1"), _padded(image2, "image2")
    desc1, desc2 = (_describe(net, variables, pixels)[0] for pixels in (pixels1, pixels2))
    found = _dense(desc1, desc2, np.array(size1), np.array(size2), pixels1.shape[1:3], pixels2.shape[1:3], options.mutual)
    return jax.tree.map(np.asarray, found)


def query_maps(
    maps1, maps2, uv1: Array, inside_coarse: Array, inside_fine: Array, *, window: float, search: str, similarity: str
) -> tuple[Array, Array, Array]:
    """Nearest neighbours of points uv1 (N, 2), first among the coarse cells, then among the fine ones.

    Args:
      maps1, maps2: Maps of one pair, without the batch axis. inside_coarse, inside_fine: bool of the maps' cells (row by row): may be chosen.
      window, search: "local": fine cells at most `window` from the coarse one, in both normalised coordinates, at least the nearest; "global": all.
    Returns:
      (N, 2) normalised fine locations, (N, 2) coarse ones, (N,) fine scores.
    """

    def one(uv):  # a group of points
        coarse_uv, fine_uv = (uv_grid(*m.shape[:2]).reshape(-1, 2) for m in maps2)
        scores = similarities(sample(maps1.coarse, uv), maps2.coarse.reshape(-1, maps2.coarse.shape[-1]), similarity)
        centre = coarse_uv[jnp.where(inside_coarse, scores, -jnp.inf).argmax(-1)]
        scores = jnp.where(inside_fine, similarities(sample(maps1.fine, uv), maps2.fine.reshape(-1, maps2.fine.shape[-1]), similarity), -jnp.inf)
        if search == "local":
            gap = jnp.where(inside_fine, jnp.abs(fine_uv - centre[:, None]).max(-1), jnp.inf)
            scores = jnp.where(gap <= jnp.maximum(window, gap.min(-1, keepdims=True)), scores, -jnp.inf)
        return fine_uv[scores.argmax(-1)], centre, scores.max(-1)

    n = len(uv1)
    groups = jnp.pad(uv1, ((0, -n % GROUP), (0, 0))).reshape(-1, GROUP, 2)
    return tuple(x.reshape(-1, *x.shape[2:])[:n] for x in jax.lax.map(one, groups))


def _points_inside(xy_px: Array, size_hw: tuple[int, int]) -> np.ndarray:
    """(N, 2) float32; raises UserError for another shape and for points outside image 1."""
    xy = np.asarray(xy_px, np.float32)
    if xy.ndim != 2 or xy.shape[1] != 2 or not ((xy >= 0) & (xy <= np.array(size_hw[::-1]) - 1)).all():
        raise UserError(f"Positions (N, 2) in pixels inside image1 of {size_hw[1]}x{size_hw[0]} are expected.")
    return xy


class Distributions(NamedTuple):
    """Where N points of image 1 may be in image 2, as the loss sees it; NumPy."""

    coarse: np.ndarray  # (N, h, w) probabilities of the coarse map's cells, corners aligned with the image's
    fine: np.ndarray  # (N, r, c) probabilities of the window's grid, corners aligned with the window's; 0 outside
    window_px: np.ndarray  # (N, 4) float32 the window's left, top, right and bottom in image 2
    xy2_px: np.ndarray  # (N, 2) float32 expected fine location in image 2


@partial(jax.jit, static_argnames=("net", "window", "use_nn", "similarity"))
def _pair(variables: Variables, image1: Array, image2: Array, xy1: Array, net: nn.Module, **options):
    maps1, maps2 = (jax.tree.map(lambda m: m[0], network.features(net, variables, image[None])) for image in (image1, image2))
    return match_pair(maps1, maps2, uv_from_px(xy1, image1.shape[:2]), **options), maps2


def distributions(variables: Variables, image1: Array, image2: Array, xy1_px: Array, *, net: nn.Module, cfg) -> Distributions:
    """The matching layer's probabilities for points of image 1. Source: CAPS, supplementary 4, Fig. 1.

    Args:
      image1, image2: (H, W, 3) uint8, or float in [0, 1]. xy1_px: (N, 2) pixels of image 1. cfg: of the method: window, use_nn and similarity.
    Raises:
      UserError: an image that is no RGB image; points outside image 1.
    """
    options = {"window": cfg.window, "use_nn": cfg.use_nn, "similarity": cfg.similarity}
    image1, image2 = (to_float(image, name) for image, name in ((image1, "image1"), (image2, "image2")))
    xy1 = _points_inside(xy1_px, image1.shape[:2])
    matches, maps2 = jax.device_get(_pair(variables, image1, image2, xy1, net, **options))
    size, n = image2.shape[:2], len(xy1)
    centre = matches.coarse.peak_uv if cfg.use_nn else matches.coarse.uv
    corners = [np.asarray(px_from_uv(centre + sign * cfg.window, size)) for sign in (-1, 1)]
    grid = window_shape(maps2.fine.shape[:2], cfg.window)
    return Distributions(
        coarse=matches.coarse.probability.reshape(n, *maps2.coarse.shape[:2]),
        fine=matches.fine.probability.reshape(n, *grid),
        window_px=np.concatenate(corners, -1),
        xy2_px=np.asarray(px_from_uv(matches.fine.uv, size)),
    )


_query_maps = jax.jit(query_maps, static_argnames=("window", "search", "similarity"))


def query(
    variables: Variables,
    image1: Array,
    image2: Array,
    xy1_px: Array,
    options: MatchOptions = MatchOptions(),
    *,
    net: nn.Module,
    cfg,
) -> tuple[Correspondences, np.ndarray]:
    """Where points of image 1 are in image 2: the coarse nearest neighbour in the whole map, then the fine one. CAPS, section 3.

    Args:
      image1, image2: (H, W, 3) uint8, or float in [0, 1]. xy1_px: (N, 2) pixels of image 1.
      options: where the fine neighbour is searched. cfg: of the method: window and similarity.
    Returns:
      Correspondences on the host, all valid, score of the fine descriptors by cfg.similarity, code 0; and the coarse locations (N, 2) in pixels of image 2.
    Raises:
      UserError: an image that is no RGB image; points outside image 1.
    """
    (pixels1, size1), (pixels2, size2) = _padded(image1, "image1"), _padded(image2, "image2")
    xy1 = _points_inside(xy1_px, size1)
    maps1, maps2 = (jax.tree.map(lambda m: m[0], _features(net, variables, pixels)) for pixels in (pixels1, pixels2))
    frame1, frame2 = pixels1.shape[1:3], pixels2.shape[1:3]
    inside = [_cells_inside(m.shape[:2], frame2, np.array(size2))[1] for m in maps2]
    uv1 = uv_from_px(pad_points(xy1, POINTS), frame1)
    fine, coarse, score = _query_maps(maps1, maps2, uv1, *inside, window=cfg.window, search=options.search, similarity=cfg.similarity)
    n = len(xy1)
    xy2, coarse_xy2 = (np.asarray(px_from_uv(uv[:n], frame2)) for uv in (fine, coarse))
    return Correspondences(xy1, xy2, np.asarray(score[:n]), np.zeros(n, np.int32), np.ones(n, bool)), coarse_xy2


def points(variables: Variables, image1: Array, image2: Array, xy1_px: Array, options: MatchOptions, *, net, cfg) -> Correspondences:
    """The fine locations of `query`."""
    return query(variables, image1, image2, xy1_px, options, net=net, cfg=cfg)[0]
