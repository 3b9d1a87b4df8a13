"""Views of photographs: shrunk and turned, as a search for scale and rotation looks at them.

Scale and rotation say how image 2 shows what image 1 shows: a small displacement d1 in image 1 is
d2 = scale * R(rotation) d1 in image 2, R turning the x axis towards the y axis (clockwise on a
screen). At scale s image 1 is shrunk by min(s, 1) and image 2 by min(1 / s, 1), so that nothing is
enlarged; then image 2 is turned by -rotation about its centre on a canvas that holds it all. The
canvas's corners are black and never match.

Sides are padded to multiples of STEP_PX pixels: by reflection, so that the network sees no edge, or
black where the canvas is turned.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates

from jaxdesc.config import Options, option
from jaxdesc.images import STEP_PX
from jaxdesc.types import Size


@dataclass(frozen=True)
class Views(Options):
    """Which changes of scale and rotation between two images are searched; usually none."""

    max_scale: float = option(
        1.0,
        "change of scale that is searched, 1/S to S in steps of sqrt(2)",
        **{"at_least": 1, "unit": "S"},
    )
    max_rotation_deg: float = option(
        0.0,
        "rotation that is searched, within +-DEG in steps of 45 degrees; 180 for all",
        **{"at_least": 0, "at_most": 180, "flag": "max-rot", "unit": "DEG"},
    )


class View(NamedTuple):
    """An image, or a part of it, as the network gets to see it."""

    image: np.ndarray  # (H, W, 3) float32, sides multiples of STEP_PX
    size_hw: Size  # that exist
    mask: np.ndarray | None  # (H, W) bool: photograph, not canvas; None: no canvas
    to_image: np.ndarray  # (2, 3) affine: pixels of the view -> pixels of the whole image

    def locate(self, xy: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of the view -> of the image."""
        return xy @ self.to_image[:, :2].T + self.to_image[:, 2]

    def find(self, xy: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of the image -> of the view."""
        return np.linalg.solve(self.to_image[:, :2], (xy - self.to_image[:, 2]).T).T


class Crop(NamedTuple):
    """A part of an image."""

    pixels: np.ndarray  # (H, W, 3) float32
    corner_xy: tuple[int, int] = (0, 0)
    shrink: float = 1.0  # before everything else


def poses(options: Views) -> list[tuple[float, float]]:
    """(scale, rotation in degrees): 2^(i / 2) within 1 / max_scale and max_scale, and multiples of 45 within +- max_rotation_deg; 180 once."""
    steps, turns = math.floor(2 * math.log2(options.max_scale) + 1e-6), math.floor(options.max_rotation_deg / 45 + 1e-6)
    rotations = [45.0 * k for k in range(-turns, turns + 1) if k > -4]
    return [(2 ** (i / 2), rotation) for rotation in rotations for i in range(-steps, steps + 1)]


def factors(scale: float) -> tuple[float, float]:
    """By what the two images are shrunk."""
    return min(scale, 1.0), min(1 / scale, 1.0)


def bucket(size_hw: Size) -> Size:
    return tuple(-(-n // STEP_PX) * STEP_PX for n in size_hw)


def _shrunk(n: int, factor: float) -> int:
    return max(1, round(n * factor))


def canvas_size(size_hw: Size, factor: float, rotation_deg: float) -> Size:
    """Rows and columns that hold an image after shrinking and turning."""
    h, w = (_shrunk(n, factor) for n in size_hw)
    c, s = abs(math.cos(math.radians(rotation_deg))), abs(math.sin(math.radians(rotation_deg)))
    return math.ceil(w * s + h * c - 1e-6), math.ceil(w * c + h * s - 1e-6)


def _resampling(old: int, new: int, room: int) -> np.ndarray:
    """(room, old) weights of resizing along an axis: triangles as wide as a new pixel, at the centres (x' + .5) old / new - .5; the rest by reflection."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(old) - centres[:, None]) * min(1, new / old))
    weights /= weights.sum(1, keepdims=True)
    return weights[np.pad(np.arange(new), (0, room - new), mode="reflect")].astype(np.float32)


def view(crop: Crop, factor: float, rotation_deg: float = 0.0) -> View:
    """A crop shrunk by `factor` and turned by -`rotation_deg`, in a bucket."""
    size, factor = crop.pixels.shape[:2], crop.shrink * factor
    h, w = (_shrunk(n, factor) for n in size)
    room = bucket((h, w)) if rotation_deg == 0 else (h, w)
    rows, columns = (_resampling(*lengths) for lengths in zip(size, (h, w), room, strict=True))
    image = np.einsum("yh,hwc,xw->yxc", rows, crop.pixels, columns, optimize=True)
    sx, sy = size[1] / w, size[0] / h
    enlarge = np.array([[sx, 0, 0.5 * sx - 0.5 + crop.corner_xy[0]], [0, sy, 0.5 * sy - 0.5 + crop.corner_xy[1]], [0, 0, 1]])
    if rotation_deg == 0:
        return View(image, (h, w), None, enlarge[:2])
    H, W = canvas_size(size, factor, rotation_deg)
    t = math.radians(rotation_deg)
    turn = np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
    corner = np.array([(w - 1) / 2, (h - 1) / 2]) - turn @ np.array([(W - 1) / 2, (H - 1) / 2])
    to_shrunk = np.vstack([np.column_stack([turn, corner]), [0, 0, 1]])
    y, x = np.mgrid[: bucket((H, W))[0], : bucket((H, W))[1]].astype(np.float64)
    xs, ys = (to_shrunk[i, 0] * x + to_shrunk[i, 1] * y + to_shrunk[i, 2] for i in (0, 1))
    mask = (xs > -1e-3) & (xs < w - 1 + 1e-3) & (ys > -1e-3) & (ys < h - 1 + 1e-3) & (x < W) & (y < H)
    where = np.stack([ys.clip(0, h - 1), xs.clip(0, w - 1)])
    turned = np.stack([map_coordinates(image[..., c], where, order=1) for c in range(3)], -1) * mask[..., None]
    return View(turned.astype(np.float32), (H, W), mask, (enlarge @ to_shrunk)[:2])
