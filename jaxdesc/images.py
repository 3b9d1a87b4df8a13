"""Photographs on their way in: one decoder, one resizer, one padding rule; NumPy, no JAX.

Everything is 8-bit RGB, upright after the EXIF orientation, or floats in [0, 1] where those are
given. Coordinates are (x, y) pixels, the centre of the top-left pixel is (0, 0); resizing maps them
by x' = (x + .5) s - .5, s = new size / old size along each axis.
"""

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike
from PIL import ExifTags, Image

from jaxdesc.errors import UserError

ImageLike = str | os.PathLike | Image.Image | np.ndarray
STEP_PX = 64  # sides are padded to multiples of it, so that many sizes compile few programs
MAX_PIXELS = 10**9  # 3 GB once decoded; a larger one is a mistake or an attack

_GAP = 3.0  # decode and box-reduce no further than this many times the wanted size
_BOMB_GUARD = threading.Lock()


class UnreadableImage(UserError):
    """A file that is no usable image; `reason` is the part of the sentence after the file's name."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{path} cannot be used: {reason}.")
        self.reason = reason


class Decoded(NamedTuple):
    """A photograph as its file has it."""

    image: Image.Image  # RGB, upright, shrunk
    original_hw: tuple[int, int]  # upright, before shrinking
    format: str | None  # Pillow's name of the file format
    changed: bool  # whether the pixels differ from what the file holds


# ---- reading


def read_rgb(image: ImageLike, max_side: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB, or float32 in [0, 1] where the array given holds floats.

    The EXIF orientation is applied, transparency is laid over white, 16 bits are scaled to 8
    (/ 257), gray is repeated; palettes, CMYK and 1-bit images are converted; of animations the
    first frame is taken. A file, a PIL image of it and an array of its pixels give the same.

    Args:
      image: a path; a PIL image; an array (H, W), or (H, W, C) of gray, gray and alpha, RGB or
        RGBA, of bool, uint8, uint16, or floats in [0, 1].
      max_side: a longer side is shrunk to it; JPEG files are decoded at a reduced size where
        that is enough.
    Raises:
      UnreadableImage: the file is missing, empty, truncated, no image, or too large to decode.
      UserError: the array has another shape, another type or other values.
    """
    if isinstance(image, (str, os.PathLike)):
        return np.asarray(decode(read_bytes(image), image, max_side).image)
    if isinstance(image, Image.Image):
        try:
            image.load()
            return np.asarray(_decoded(image, fit(image.size[::-1], max_side)).image)
        except ValueError as error:
            raise UserError(f"A PIL image cannot be used: {error}.") from error
    pixels = _from_array(np.asarray(image))
    return resize(pixels, fit(pixels.shape[:2], max_side))


def read_bytes(path: str | os.PathLike) -> bytes:
    """What a file holds; raises UnreadableImage if that cannot be read, or is nothing."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(path, _reason(error)) from error
    if not data:
        raise UnreadableImage(path, "the file is empty")
    return data


def decode(data: bytes, path: str | os.PathLike, max_side: int | None) -> Decoded:
    """An image file's bytes, as `read_rgb`; raises UnreadableImage naming `path`."""
    try:
        with _open(io.BytesIO(data)) as image:
            stored_hw = image.size[::-1]
            wanted_hw = fit(stored_hw, max_side)
            # libjpeg decodes at 1/2, 1/4 or 1/8 for less; `box` is what the reduced image covers
            # of the original, to a fraction of a pixel.
            draft = image.draft(None, tuple(int(_GAP * n) for n in wanted_hw[::-1]))
            if image.size[0] * image.size[1] > MAX_PIXELS:
                w, h = stored_hw[::-1]
                raise ValueError(f"{w}x{h} px are too many to decode")
            image.load()
            return _decoded(image, wanted_hw, stored_hw, draft[1] if draft else None)
    except Exception as error:  # broken files make Pillow raise nearly anything
        raise UnreadableImage(path, _reason(error)) from error


def _decoded(
    image: Image.Image,
    wanted_hw: tuple[int, int],
    stored_hw: tuple[int, int] | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> Decoded:
    """A loaded image made RGB, shrunk and upright.

    Args:
      stored_hw, box: of the file, and what of it the image covers, where that was reduced.
    """
    stored_hw = stored_hw or image.size[::-1]
    # Only now: Pillow turns TIFF files upright while loading and drops the tag.
    orientation = _orientation(image)
    rgb = _to_rgb(image)
    if wanted_hw != stored_hw:
        lanczos = Image.Resampling.LANCZOS
        rgb = rgb.resize(wanted_hw[::-1], lanczos, box=box, reducing_gap=_GAP)
    if orientation != 1:
        rgb = rgb.transpose(_TURNS[orientation])
    original = image.mode == "RGB" and not image.has_transparency_data
    changed = not original or orientation != 1 or wanted_hw != stored_hw
    upright_hw = stored_hw[::-1] if orientation >= 5 else stored_hw
    return Decoded(rgb, upright_hw, image.format, changed)


def _from_array(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 or float32 of an array as `read_rgb` takes it; raises UserError."""
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise UserError(
            f"An image has the shape {shape}: (height, width, 3), or (height, width) for gray, "
            "is expected."
        )
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
        if not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):
            raise UserError(
                "An image of floating-point numbers must lie in [0, 1]; this one reaches from "
                f"{pixels.min():g} to {pixels.max():g}."
            )
    elif pixels.dtype == np.uint16:
        pixels = eight_bits(pixels)
    elif pixels.dtype == bool:
        pixels = 255 * pixels.astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise UserError(
            f"An image has the type {pixels.dtype}: uint8, uint16 or floating-point numbers in "
            "[0, 1] are expected."
        )
    if pixels.shape[2] in (2, 4):
        pixels = _over_white(pixels)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, 65535 being white."""
    return np.rint(pixels / 257.0).astype(np.uint8)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """Colours and alpha (H, W, 2 or 4) over a white ground, of the same type."""
    if pixels.dtype == np.uint8:
        return np.asarray(_to_rgb(Image.fromarray(pixels)))
    return pixels[..., :-1] * pixels[..., -1:] + (1 - pixels[..., -1:])


def _open(file) -> Image.Image:
    """Image.open without Pillow's own limit of 89 million pixels, which a large panorama exceeds; see MAX_PIXELS."""
    with _BOMB_GUARD:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the tag is absent or senseless."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF beside sound pixels
        return 1
    return value if value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers; save it with 8 or 16 bits")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image in a known format"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().rstrip(".") or type(error).__name__


def size_of(image: str | os.PathLike) -> tuple[int, int]:
    """(width, height) from the head of an image file.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with Image.open(image) as opened:
            return opened.size
    except OSError as e:
        raise UserError(f"The image {image} cannot be read: {e.strerror or 'it is none, or damaged'}.") from e


# ---- sizes and points


def to_float(image: ArrayLike, name: str = "image") -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] of uint8, or of floats that are so already.

    Raises:
      UserError: it has another shape.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"{name} has the shape {image.shape}; an RGB image (height, width, 3) is expected."
        )
    pixels = image.astype(np.float32)
    return pixels / 255 if image.dtype == np.uint8 else pixels


def pad(image: np.ndarray, step: int = STEP_PX) -> np.ndarray:
    """(H', W', 3): padded to multiples of `step` by reflection at the right and bottom."""
    h, w = image.shape[:2]
    return np.pad(image, ((0, -h % step), (0, -w % step), (0, 0)), mode="reflect")


def pad_points(xy: np.ndarray, step: int) -> np.ndarray:
    """(N', 2) float32: points (N, 2), then zeros up to the next multiple of `step` above 0."""
    xy = np.asarray(xy, np.float32)
    return np.pad(xy, ((0, -(-max(1, len(xy)) // step) * step - len(xy)), (0, 0)))


def fit(size_hw: Sequence[int], max_side: int | None) -> tuple[int, int]:
    """(H, W) with the longer side shrunk to `max_side`, aspect kept to the nearest pixel."""
    scale = min(1.0, max_side / max(size_hw)) if max_side else 1.0
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def resize(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 or float -> (*size_hw, 3), the aspect not kept.

    An axis is shrunk by averaging over areas, and enlarged linearly, edges repeated.
    """
    (h, w), (rows, columns) = image.shape[:2], size_hw
    if (h, w) == (rows, columns):
        return image
    if (rows < h and columns > w) or (rows > h and columns < w):
        smaller = resize(image.astype(np.float32), (min(h, rows), min(w, columns)))
        larger = resize(smaller, size_hw)
        return np.rint(larger).astype(np.uint8) if image.dtype == np.uint8 else larger
    how = cv2.INTER_AREA if rows <= h and columns <= w else cv2.INTER_LINEAR
    return cv2.resize(image, (columns, rows), interpolation=how)


def rescale(xy: np.ndarray, from_hw: Sequence[int], to_hw: Sequence[int]) -> np.ndarray:
    """Points (..., 2) px of an image of size `from_hw` in it resized to `to_hw`; float32."""
    scale = np.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]])
    return ((np.asarray(xy) + 0.5) * scale - 0.5).astype(np.float32)
