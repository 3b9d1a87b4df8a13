"""A method from outside the package, with every slot of the contract filled.

One layer of filters on squares of 4 x 4 pixels, trained so that the two ends of a known homography
look alike. It imports nothing of jaxdesc but the contract and what any method may use.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.config import MethodConfig, Options, option
from jaxdesc.method import Definition, Method, Released
from jaxdesc.ops.geometry import apply_homography
from jaxdesc.ops.matching import nearest_cells
from jaxdesc.ops.normalise import l2_normalise
from jaxdesc.ops.sampling import cell_centres, descriptors_at
from jaxdesc.types import Correspondences, Grid, Keypoints

SIDE = 4  # pixels of a cell


@dataclass(frozen=True)
class Config(MethodConfig):
    name: ClassVar[str] = "fifth"
    kinds: ClassVar[tuple[str, ...]] = ("homography",)

    dim: int = option(8, "length of a descriptor", at_least=1)


@dataclass(frozen=True)
class MatchOptions(Options):
    least: float = option(-1.0, "least cosine of a match", at_least=-1, at_most=1, unit="COS")


def grid(height, width):
    """The centre of a cell's 4 x 4 pixels."""
    return Grid((1.5, 1.5), (SIDE, SIDE))


def init(key, batch, *, dim):
    """Filters (3 * SIDE^2, dim) and no batch statistics."""
    return {"params": {"filters": jax.random.normal(key, (3 * SIDE**2, dim))}}


def describe(variables, images):
    b, h, w, _ = images.shape
    images = jnp.pad(images, ((0, 0), (0, -h % SIDE), (0, -w % SIDE), (0, 0)), mode="edge")
    rows, columns = images.shape[1] // SIDE, images.shape[2] // SIDE
    cells = images.reshape(b, rows, SIDE, columns, SIDE, 3).swapaxes(2, 3)
    return l2_normalise(
        (cells.reshape(b, rows, columns, -1) - 0.5) @ variables["params"]["filters"]
    )


def loss(variables, batch, key, train):
    """1 - <d1(x), d2(H x)>, mean over the cells of image 1 whose x lies in image 2."""
    pair = batch["homography"]
    size_hw = pair.image1.shape[1:3]
    maps1, maps2 = (describe(variables, images) for images in (pair.image1, pair.image2))
    centres = cell_centres(maps1.shape[1:3], grid(*size_hw))

    def one(map1, map2, H):
        there = apply_homography(H, centres)
        inside = ((there >= 0) & (there <= jnp.array(size_hw[::-1]) - 1)).all(-1)
        cosine = jnp.sum(
            map1.reshape(len(centres), -1) * descriptors_at(map2, there, grid(*size_hw)), -1
        )
        return jnp.where(inside, 1 - cosine, 0).sum() / jnp.maximum(inside.sum(), 1)

    per_example = jax.vmap(one)(maps1, maps2, pair.H_1to2)
    return per_example, ({"distance": per_example}, {})


def describe_at(variables, image, xy_px):
    return descriptors_at(describe(variables, image[None])[0], xy_px, grid(*image.shape[:2]))


def match(variables, image1, image2, options, say=None, progress=None):
    images = [
        np.asarray(i, np.float32) / (255 if i.dtype == np.uint8 else 1) for i in (image1, image2)
    ]
    maps = [describe(variables, image[None])[0] for image in images]
    centres = [cell_centres(m.shape[:2], grid(0, 0)) for m in maps]
    inside = [
        (xy <= np.array(i.shape[1::-1]) - 1).all(-1) for xy, i in zip(centres, images, strict=True)
    ]
    found = jax.tree.map(np.asarray, nearest_cells(*maps, *centres, *inside, True))
    return found.replace(valid=found.valid & (found.score >= options.least))


def _moved(variables, image1, image2, xy1):
    """Points (N, 2) and, for each, the centre of the cell of image 2 that is most like it."""
    queries = describe_at(variables, image1, xy1)
    map2 = describe(variables, image2[None])[0]
    scores = queries @ map2.reshape(-1, map2.shape[-1]).T
    return cell_centres(map2.shape[:2], grid(0, 0))[scores.argmax(-1)], scores.max(-1)


def points(variables, image1, image2, xy1_px, options):
    xy2, score = _moved(variables, image1 / 255.0, image2 / 255.0, jnp.asarray(xy1_px))
    n = len(xy1_px)
    return Correspondences(
        xy1_px, np.asarray(xy2), np.asarray(score), np.zeros(n, int), np.ones(n, bool)
    )


def dense(variables, image1, image2):
    y, x = np.mgrid[: image1.shape[0], : image1.shape[1]]
    return np.stack([x, y], -1) + np.float32([3.0, 0.0])


def detect(variables, image, most):
    """The first cells, each with the descriptor of its own."""
    map1 = describe(variables, image[None] / np.float32(255))[0]
    xy = np.asarray(cell_centres(map1.shape[:2], grid(0, 0)))[:most]
    ones = np.ones(len(xy), np.float32)
    return Keypoints(xy, SIDE * ones, ones, ones > 0), np.asarray(map1).reshape(-1, map1.shape[-1])[
        : len(xy)
    ]


def explain(variables, image1, image2, xy1_px, xy2_px):
    return np.full((5, 7, 3), 10 * len(xy1_px), np.uint8)


def build(cfg, axis_name=None):
    return Method(
        init=partial(init, dim=cfg.dim),
        loss=loss,
        describe=describe,
        grid=grid,
        match=match,
        describe_at=describe_at,
        transfer=_moved,
        square_px=64,
        dense=dense,
        points=points,
        detect=detect,
        explain=explain,
    )


def from_torch(tensors):
    filters = tensors["filters"]
    return Config(dim=filters.shape[1]), {"params": {"filters": filters}}


METHOD = Definition(
    Config,
    build,
    MatchOptions,
    released=lambda: Released(from_torch, "the fifth method's weights are nobody's"),
    published={"mma@3px": 0.5},
    benchmarks=lambda: {"fifth": lambda args: print("no time at all")},
)
