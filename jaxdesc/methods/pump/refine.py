"""What is done with matches once they are there: groups that agree are kept, and gaps are filled."""

import contextlib

import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree, QhullError

from jaxdesc.errors import UserError
from jaxdesc.ops.matching import decode_pose

RADIUS = 8.0  # pixels


def keep_coherent(corres: np.ndarray, min_component: int = 50) -> np.ndarray:
    """Drops matches that few neighbours agree with.

    Two matches are neighbours if they are at most 8 px apart in both images, and if the
    displacements in the two images make an angle of at most 90 degrees once that of image 2 is
    turned back by the rotation of one of the two matches. Distances are measured at the scale
    they were matched at: times min(s, 1) in image 1 and min(1 / s, 1) in image 2, in the mean
    over the scales s of both.

    Args:
      corres: (N, 6) x1, y1, x2, y2, score, code.
      min_component: connected components of so many matches, or fewer, are dropped.

    Returns:
      (M, 6): the other rows in the same order, score + log2(size of the component).
    """
    if not len(corres):
        return corres
    xy1, xy2 = corres[:, :2].astype(np.float64), corres[:, 2:4].astype(np.float64)
    scale, rotation = decode_pose(corres[:, 5])
    shrink1, shrink2 = np.minimum(scale, 1), np.minimum(1 / scale, 1)
    i, j = KDTree(xy1).query_pairs(RADIUS / shrink1.min(), output_type="ndarray").T
    d1, d2 = xy1[j] - xy1[i], xy2[j] - xy2[i]
    near, parallel = np.ones(len(i), bool), np.zeros(len(i), bool)
    for d, shrink in ((d1, shrink1), (d2, shrink2)):
        near &= np.hypot(*d.T) * (shrink[i] + shrink[j]) / 2 <= RADIUS
    for end in (i, j):
        c, s = np.cos(np.radians(rotation[end])), np.sin(np.radians(rotation[end]))
        x, y = c * d2[:, 0] + s * d2[:, 1], c * d2[:, 1] - s * d2[:, 0]
        parallel |= d1[:, 0] * x + d1[:, 1] * y >= 0
    near &= parallel
    graph = coo_array((np.ones(near.sum(), bool), (i[near], j[near])), shape=(len(corres), len(corres)))
    _, label = connected_components(graph, directed=False)
    size = np.bincount(label)[label]
    out = corres.copy()
    out[:, 4] += np.log2(size)
    return out[size > min_component]


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
