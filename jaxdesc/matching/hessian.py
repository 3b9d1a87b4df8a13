"""Keypoints where the determinant of the Hessian is greatest: blobs and corners, at small scales.

At each scale s of the gray image L, in gray levels of 0 to 255 and pixels,

    R_s = s^4 (L_xx L_yy - L_xy^2)

with derivatives of the Gaussian of s. A keypoint is a maximum of R_s > 0 in 3 x 3 pixels, moved to
that of parabolas. No training. Source: Beaudet, ICPR 1978; Lindeberg, IJCV 1998 (the factor s^4).
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import cKDTree

from jaxdesc.errors import UserError
from jaxdesc.types import Keypoints

VERSION = 1  # of `hessian`, to be told from what was stored when it found other keypoints
SIGMAS = (1.7,)  # chosen in docs/results/detectors.md
SIGMA_RANGE = (0.5, 8.0)
BORDER_PX = 16  # what lies nearer to the border is no keypoint
APART_PX = 2.0  # two keypoints are at least as far from each other
SUPPORT = 12.0  # diameter of a keypoint's support over its scale s, as SIFT's is
LEAST = 1e-6  # of R_s: what the rounding of float32 makes of a plane is less


def hessian(rgb: np.ndarray, most: int, sigmas: Sequence[float] = SIGMAS) -> Keypoints:
    """The `most` best keypoints of an image (H, W, 3), uint8 or floats in [0, 1], best first.

    Those of all scales together, by score R_s; none is within APART_PX of a better one.
    scale_px = 12 s. An image of fewer than 33 px a side has none.

    Raises:
      UserError: no scales, or one outside SIGMA_RANGE.
    """
    check_sigmas(sigmas)
    gray = cv2.cvtColor(np.float32(rgb) * (1 if rgb.dtype == np.uint8 else 255), cv2.COLOR_RGB2GRAY)
    xy, score, scale = (
        np.concatenate(columns) for columns in zip(*(_maxima(gray, s) for s in sigmas), strict=True)
    )
    kept = thin(xy, score, most)
    return Keypoints(xy[kept], SUPPORT * scale[kept], score[kept], np.ones(len(kept), bool))


def check_sigmas(sigmas: Sequence[float]) -> None:
    """Raises UserError unless these are scales that `hessian` takes."""
    low, high = SIGMA_RANGE
    if not sigmas or not all(low <= s <= high for s in sigmas):
        raise UserError(
            f"The scales of hessian, {', '.join(f'{s:g}' for s in sigmas) or 'none'}, must be one "
            f"or several numbers from {low:g} to {high:g} px."
        )


def determinant(gray: np.ndarray, sigma: float) -> np.ndarray:
    """R_s (H, W) float32 of a gray image (H, W) float32."""
    g, g1, g2 = _gaussian(sigma)
    xx, yy, xy = (cv2.sepFilter2D(gray, cv2.CV_32F, *ks) for ks in ((g2, g), (g, g2), (g1, g1)))
    return sigma**4 * (xx * yy - xy * xy)


def _gaussian(sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Gaussian and its two derivatives at whole pixels up to 5 sigma.

    What is cut off is made up for: they give 1, x and x^2 / 2 their derivatives at 0 exactly.
    """
    radius = math.ceil(5 * sigma)
    x = np.arange(-radius, radius + 1.0)
    g = np.exp(-(x**2) / (2 * sigma**2))
    g /= g.sum()
    g1 = x * g / (x**2 * g).sum()
    g2 = (x**2 - (x**2 * g).sum()) * g
    g2 *= 2 / (x**2 * g2).sum()
    return np.float32(g), np.float32(g1), np.float32(g2)


def is_maximum(values: np.ndarray) -> np.ndarray:
    """(H, W) bool: nothing is greater among the 3 x 3 pixels around."""
    return values == cv2.dilate(values, np.ones((3, 3), np.uint8))


def _maxima(gray: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (N, 2), scores and scales (N,) of one scale, float32."""
    values = determinant(gray, sigma)
    found = is_maximum(values) & (values > LEAST)
    inside = np.zeros_like(found)
    inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
    y, x = np.nonzero(found & inside)
    xy = np.stack([x, y], 1) + sub_pixel(values, x, y)
    return xy.astype(np.float32), values[y, x], np.full(len(x), sigma, np.float32)


def sub_pixel(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, 2) within +-.5 px of maxima of (H, W), which do not lie on the border: along either
    axis, the top of the parabola through three values.

    A parabola in both, with its mixed derivative, finds no better positions.
    """
    here = values[y, x].astype(float)
    sides = [
        (values[y, x - 1], values[y, x + 1]),
        (values[y - 1, x], values[y + 1, x]),
    ]
    slope = np.stack([after - before for before, after in sides], 1)
    bend = np.stack([2 * here - before - after for before, after in sides], 1)
    return slope / np.where(bend > 0, 2 * bend, np.inf)


def thin(xy: np.ndarray, score: np.ndarray, most: int) -> np.ndarray:
    """Rows of the `most` best points (N, 2), by falling score, of which none is within APART_PX of
    a better one that is kept."""
    falling = np.argsort(-score, kind="stable")
    count = 2 * most
    while True:
        best = falling[:count]
        kept = best[_apart(xy[best])]
        if len(kept) >= most or count >= len(falling):
            return kept[:most]
        count *= 2


def _apart(xy: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a point is kept, when the first ones choose first."""
    kept = np.ones(len(xy), bool)
    close = cKDTree(xy).query_pairs(APART_PX, output_type="ndarray")  # i < j
    for better, worse in close[np.argsort(close[:, 1], kind="stable")]:
        kept[worse] &= not kept[better]
    return kept
