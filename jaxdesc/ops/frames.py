"""Photographs on their way into a network, on the host: NumPy, and no JAX is loaded."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxdesc.errors import UserError


def pixels(image: ArrayLike, name: str = "image") -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] of uint8, or of floats that are so already; raises UserError for another shape."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"{name} has the shape {image.shape}; an RGB image (height, width, 3) is expected.")
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image.astype(np.float32)


def filled(image: np.ndarray, step: int) -> np.ndarray:
    """(H', W', 3): filled up to multiples of `step` by reflection at the right and bottom, so that photographs of many sizes compile a handful of programs."""
    h, w = image.shape[:2]
    return np.pad(image, ((0, -h % step), (0, -w % step), (0, 0)), mode="reflect")


def filled_points(xy: np.ndarray, step: int) -> np.ndarray:
    """(N', 2) float32: points (N, 2) and then zeros, up to the next multiple of `step` above 0, for the same reason."""
    xy = np.asarray(xy, np.float32)
    return np.pad(xy, ((0, -(-max(1, len(xy)) // step) * step - len(xy)), (0, 0)))


def fitted(size_hw: Sequence[int], most: int | None) -> tuple[int, int]:
    """(H, W) with the longer side shrunk to at most `most`, aspect kept to the nearest pixel."""
    scale = min(1.0, most / max(size_hw)) if most else 1.0
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def _weights(n: int, m: int) -> np.ndarray:
    """(m, n) of which each row sums to 1: means over areas where m < n, else linear between pixel centres, edges repeated."""
    columns = np.arange(n)
    if m < n:
        edges = np.arange(m + 1)[:, None] * (n / m)
        overlap = np.minimum(edges[1:], columns + 1) - np.maximum(edges[:-1], columns)
        return (np.maximum(overlap, 0) * (m / n)).astype(np.float32)
    at = np.clip((np.arange(m)[:, None] + 0.5) * (n / m) - 0.5, 0, n - 1)
    return np.maximum(1 - np.abs(at - columns), 0).astype(np.float32)


def resized(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (*size_hw, 3), the aspect not kept: x' = (x + .5) s - .5; shrunk by averaging over areas, enlarged linearly."""
    (h, w), (rows, columns) = image.shape[:2], size_hw
    if (h, w) == (rows, columns):
        return image
    across = np.einsum("vw,hwc->hvc", _weights(w, columns), image, optimize=True)
    return np.einsum("uh,hvc->uvc", _weights(h, rows), across, optimize=True)


def rescaled(xy: np.ndarray, from_hw: Sequence[int], to_hw: Sequence[int]) -> np.ndarray:
    """Points (..., 2) px of an image of size `from_hw` in the same image resized to `to_hw`: x' = (x + .5) s - .5; float32."""
    scale = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]])
    return ((np.asarray(xy) + 0.5) * scale - 0.5).astype(np.float32)
