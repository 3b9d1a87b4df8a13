"""Groups of matches that agree with each other are kept. Source: PUMP, section 3."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

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
