"""The photographs inside scikit-image's wheel: training, tests and examples work without a download."""

from pathlib import Path

import skimage.data

from jaxdesc.data.builders import pairs, photos
from jaxdesc.types import UserError

TRAIN = (
    *("astronaut.png", "brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
)
VALIDATION = ("chelsea.png", "coffee.png", "rocket.jpg")
PAIR = ("motorcycle_left.png", "motorcycle_right.png")  # aligned like any other pair; the known disparity is not used


def open_photos(path: str, max_side_px: int, cache: str) -> photos.PhotoSet:
    """The embedded photographs, held out by hand; raises UserError if `path` is not empty or the cache cannot be written."""
    return photos.prepare("embedded", _files(path, VALIDATION + TRAIN), len(VALIDATION), "embedded", max_side_px, cache)


def open_pairs(path: str, max_side_px: int, cache: str) -> pairs.PairSet:
    """The one embedded pair; raises UserError if `path` is not empty or the cache cannot be written."""
    return pairs.prepare(pairs.Listing("embedded_pair", _files(path, PAIR), {PAIR: None}, {}), "embedded", max_side_px, cache)


def _files(path: str, names: tuple[str, ...]) -> dict[str, Path]:
    if path:
        raise UserError(f"The source embedded:{path} is no folder: write embedded alone, or photos:{path} or pairs:{path} for your own images.")
    folder = Path(skimage.data.__file__).parent
    return {name: folder / name for name in names}
