"""Reading photographs as they come: any folder, any sane format, 8-bit upright RGB out.

Convention: shrinking maps pixel centres by x' = (x + .5) s - .5 with s = new size / original size per axis (`frames.rescaled`), the
original being the upright image, after the EXIF orientation.
"""

import io
import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from jaxdesc.errors import UserError
from jaxdesc.ops.frames import fitted

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm")
MIN_SIDE_PX = 32  # a shorter side below this holds nothing to learn from
MAX_PIXELS = 10**9  # 3 GB once decoded; a larger one is a mistake or an attack

_LOSSY = ("JPEG", "MPO", "WEBP")
_GAP = 3.0  # decode and box-reduce no further than this many times the wanted size, Lanczos does the rest
_BOMB_GUARD = threading.Lock()


class UnreadableImage(UserError):
    """A file that is no usable image; `reason` is the part of the sentence after the file's name."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{path} cannot be used: {reason}.")
        self.reason = reason


class _Decoded(NamedTuple):
    image: Image.Image  # RGB, upright, shrunk
    original_hw: tuple[int, int]  # upright, before shrinking
    format: str  # Pillow's name of the file format
    changed: bool  # whether the pixels differ from what the file holds


class Encoded(NamedTuple):
    """A photograph as a dataset stores it."""

    data: bytes  # JPEG or PNG, 8-bit RGB, upright
    original_hw: tuple[int, int]  # upright, before shrinking


def find_images(folder: str | os.PathLike) -> list[str]:
    """Names of all images below `folder`, relative, with forward slashes, sorted.

    Nested folders are searched, extensions are compared without case; hidden files and folders and `__MACOSX` are passed over.

    Raises:
      UserError: if the folder is missing, is a file, or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is a file, not a folder of images." if root.exists() else f"There is no folder {root}.")
    names = []
    for place, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__MACOSX"]
        names += [(Path(place) / f).relative_to(root).as_posix() for f in files if not f.startswith(".") and f.lower().endswith(EXTENSIONS)]
    if not names:
        raise UserError(f"{root} holds no image; files ending in {', '.join(EXTENSIONS)} are looked for, in sub-folders too.")
    return sorted(names)


def read_rgb(path: str | os.PathLike, max_side: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, upright, its longer side shrunk to `max_side` if it is longer.

    The EXIF orientation is applied, transparency is laid over white, 16 bits are scaled to 8 (/ 257), gray is repeated, palettes, CMYK and
    1-bit images are converted; of animations the first frame is taken. JPEG files are decoded at a reduced size where that is enough.

    Raises:
      UnreadableImage: (a UserError) if the file is missing, empty, truncated, no image, or too large to decode.
    """
    return np.asarray(_decode(_read_bytes(path), path, max_side).image)


def encode_for_dataset(path: str | os.PathLike, max_side: int) -> Encoded:
    """The photograph as 8-bit, upright RGB with the longer side <= `max_side`, encoded; everything stored has been decoded once.

    JPEG files that are so already keep their bytes. Others become JPEG (quality 95, no chroma subsampling) where the source was lossy, else PNG.

    Raises:
      UnreadableImage: as `read_rgb`, and if the shorter side is below MIN_SIDE_PX.
    """
    data = _read_bytes(path)
    decoded = _decode(data, path, max_side)
    if min(decoded.image.size) < MIN_SIDE_PX:
        (height, width), (w, h) = decoded.original_hw, decoded.image.size
        shrunk = f" ({w}x{h} px once shrunk)" if (height, width) != (h, w) else ""
        raise UnreadableImage(path, f"{width}x{height} px{shrunk} is smaller than {MIN_SIDE_PX} px on its shorter side")
    if decoded.format == "JPEG" and not decoded.changed:
        return Encoded(data, decoded.original_hw)
    buffer = io.BytesIO()
    if decoded.format in _LOSSY:
        decoded.image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        decoded.image.save(buffer, "PNG")
    return Encoded(buffer.getvalue(), decoded.original_hw)


def _read_bytes(path: str | os.PathLike) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(path, _reason(error)) from error
    if not data:
        raise UnreadableImage(path, "the file is empty")
    return data


def _decode(data: bytes, path: str | os.PathLike, max_side: int | None) -> _Decoded:
    try:
        with _open(io.BytesIO(data)) as image:
            stored_wh = image.size
            wanted_wh = fitted(stored_wh[::-1], max_side)[::-1]
            # libjpeg decodes at 1/2, 1/4 or 1/8 for less; `box` is what the reduced image covers of the original, to a fraction of a pixel
            _, box = image.draft(None, tuple(int(_GAP * s) for s in wanted_wh)) or (None, None)
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise ValueError(f"{stored_wh[0]}x{stored_wh[1]} px are too many to decode")
            image.load()
            orientation = _orientation(image)  # only now: Pillow turns TIFF files upright while loading and drops the tag
            rgb = _to_rgb(image)
            if wanted_wh != stored_wh:
                rgb = rgb.resize(wanted_wh, Image.Resampling.LANCZOS, box=box, reducing_gap=_GAP)
            if orientation != 1:
                rgb = rgb.transpose(_TURNS[orientation])
            changed = image.mode != "RGB" or image.has_transparency_data or orientation != 1 or wanted_wh != stored_wh
            return _Decoded(rgb, stored_wh if orientation >= 5 else stored_wh[::-1], image.format, changed)
    except Exception as error:  # broken files make Pillow raise nearly anything
        raise UnreadableImage(path, _reason(error)) from error


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
        image = Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8))
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
