"""Matching photographs that do not fit into memory: coarsely as a whole, then tile by tile."""

import itertools
from collections.abc import Iterator

import numpy as np

from jaxdesc.matching.views import Crop
from jaxdesc.method import Progress
from jaxdesc.methods.pump.multiscale import Describe, followed, merge, runs, work
from jaxdesc.methods.pump.single import MatchOptions
from jaxdesc.types import Size

SIDE = 512  # pixels: longer side of the coarse pass, and side of a tile, where memory allows
LEAST_SCORE = 1.0  # of a coarse match that is followed
LEAST_SHARE = 0.1  # of a tile's coarse matches that a tile of image 2 must hold


def tile_corners(size_hw: Size, side: int) -> np.ndarray:
    """(T, 2) (x, y) of tiles that overlap by half, the last ones moved inwards to end with the image."""
    y, x = (sorted({min(at, max(0, n - side)) for at in range(0, max(1, n - side // 2), side // 2)}) for n in size_hw)
    return np.array(list(itertools.product(x, y)))


def tile_pairs(corres: np.ndarray, size1_hw: Size, size2_hw: Size, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Corners of the tiles that coarse matches (N, 6) connect.

    A match belongs to the tile of image 2 whose centre is nearest; so each counts once, and the tile shows what surrounds it.
    """
    corres = corres[corres[:, 4] > LEAST_SCORE]
    corners1, corners2 = tile_corners(size1_hw, side), tile_corners(size2_hw, side)
    centres2 = corners2 + (np.minimum(side, size2_hw[::-1]) - 1) / 2
    owner = np.argmin(np.linalg.norm(corres[:, None, 2:4] - centres2, axis=-1), axis=1)
    for corner in corners1:
        inside = np.all((corres[:, :2] >= corner - 0.5) & (corres[:, :2] < corner + side - 0.5), 1)
        votes = np.bincount(owner[inside], minlength=len(corners2))
        for chosen in np.flatnonzero((votes > 0) & (votes >= LEAST_SHARE * votes.sum())):
            yield corner, corners2[chosen]


def crop(image: np.ndarray, corner_xy: np.ndarray, side: int) -> Crop:
    x, y = map(int, corner_xy)
    return Crop(image[y : y + side, x : x + side], (x, y))


def match_recursively(
    describe: Describe, image1: np.ndarray, image2: np.ndarray, options: MatchOptions, side: int, progress: Progress | None = None
) -> tuple[np.ndarray, int]:
    """Merged matches (N, 6) of all tile pairs, and how many pairs there were; coarse pass and tiles have sides of at most `side` pixels."""
    whole = [Crop(image, shrink=min(1.0, side / max(image.shape[:2]))) for image in (image1, image2)]
    done = work(*([round(n * at.shrink) for n in at.pixels.shape[:2]] for at in whole), options)
    coarse = merge(list(followed(runs(describe, *whole, options), 0, done, progress)))
    pairs = list(tile_pairs(coarse, image1.shape[:2], image2.shape[:2], side))
    todo = done + len(pairs) * work((side, side), (side, side), options)
    tiles = (run for one, other in pairs for run in runs(describe, crop(image1, one, side), crop(image2, other, side), options))
    return merge(list(followed(tiles, done, todo, progress))), len(pairs)
