"""Gaps between matches are filled."""

import contextlib

import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import KDTree, QhullError

from jaxdesc.errors import UserError


def densify(corres: np.ndarray, size1_hw: tuple[int, int], size2_hw: tuple[int, int], side: str = "left") -> np.ndarray:
    """A position in the other image for every pixel of one.

    Linear over the triangles of a Delaunay triangulation of the matches; outside their hull, or where there is no triangle (fewer than three matches, or all
    on a line), the pixel moves by the mean flow of the three nearest matches.

    Args:
      corres: (N, 4 or 6) rows x1, y1, x2, y2, ...
      side: "left": pixels of image 1, positions in image 2; "right": the other way round.

    Returns:
      (H, W, 2) float32 (x, y).

    Raises:
      UserError: there is no match to start from.
    """
    if side not in ("left", "right"):
        raise UserError(f"side = {side!r} must be left or right.")
    if not len(corres):
        raise UserError("There is no match to fill the gaps between: match with a smaller min_component, or other images.")
    ends = corres[:, :2].astype(np.float64), corres[:, 2:4].astype(np.float64)
    (here, there), (H, W) = (ends, size1_hw) if side == "left" else (ends[::-1], size2_hw)
    here, first = np.unique(here, axis=0, return_index=True)
    flow = there[first] - here
    y, x = np.mgrid[:H, :W].astype(np.float64)
    pixels = np.stack([x, y], -1)
    out = np.full((H, W, 2), np.nan)
    if len(here) >= 3:
        with contextlib.suppress(QhullError):  # all on a line
            out = LinearNDInterpolator(here, flow)(pixels)
    outside = np.isnan(out[..., 0])
    nearest = KDTree(here).query(pixels[outside], k=range(1, min(3, len(here)) + 1))[1]
    out[outside] = flow[nearest].mean(1)
    return (pixels + out).astype(np.float32)


def dense_rows(positions: np.ndarray, side: str = "left") -> np.ndarray:
    """`densify`'s map as rows (H * W, 4) x1, y1, x2, y2, row by row over the dense side."""
    H, W, _ = positions.shape
    y, x = np.mgrid[:H, :W].astype(np.float32)
    pixels = np.stack([x, y], -1).reshape(-1, 2)
    ends = (pixels, positions.reshape(-1, 2))
    return np.concatenate(ends if side == "left" else ends[::-1], 1)
