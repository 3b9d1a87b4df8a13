"""Photographs as data sets store them."""

import io
import os
from typing import NamedTuple

from jaxdesc.images import UnreadableImage, decode, read_bytes

MIN_SIDE_PX = 32  # a shorter side below this holds nothing to learn from

_LOSSY = ("JPEG", "MPO", "WEBP")


class Encoded(NamedTuple):
    """A photograph as a dataset stores it."""

    data: bytes  # JPEG or PNG, 8-bit RGB, upright
    original_hw: tuple[int, int]  # upright, before shrinking


def encode_for_dataset(path: str | os.PathLike, max_side: int) -> Encoded:
    """The photograph as 8-bit, upright RGB with the longer side <= `max_side`, encoded; everything stored has been decoded once.

    JPEG files that are so already keep their bytes. Others become JPEG (quality 95, no chroma subsampling) where the source was lossy, else PNG.

    Raises:
      UnreadableImage: as `read_rgb`, and if the shorter side is below MIN_SIDE_PX.
    """
    data = read_bytes(path)
    decoded = decode(data, path, max_side)
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
