"""The photographs inside scikit-image's wheel: training, tests and examples work without a download."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import skimage.data

from jaxdesc.data.builders import pairs, photos, posed
from jaxdesc.data.cameras import Camera, calibration
from jaxdesc.errors import UserError
from jaxdesc.images import read_rgb
from jaxdesc.matching.keypoints import sift

TRAIN = (
    *("astronaut.png", "brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
)
VALIDATION = ("chelsea.png", "coffee.png", "rocket.jpg")
PAIR = ("motorcycle_left.png", "motorcycle_right.png")  # aligned like any other pair; the known disparity is not used

# The pair's calibration at this size (Scharstein et al., GCPR 2014; as scikit-image's stereo_motorcycle gives it): focal length, principal point of the left
# image, how much further right that of the right image is, all in pixels; baseline in metres.
FOCAL_PX, CENTRE_PX, OFFSET_PX, BASELINE = 994.978, (311.193, 254.877), 31.086, 0.193001
DISPARITY = "motorcycle_disp.npz"  # left x - right x for each pixel of the left image, pixels; not finite where unknown


def open_photos(path: str, max_side_px: int, cache: str) -> photos.PhotoSet:
    """The embedded photographs, held out by hand; raises UserError if `path` is not empty or the cache cannot be written."""
    return photos.prepare("embedded", _files(path, VALIDATION + TRAIN), len(VALIDATION), "embedded", max_side_px, cache)


def open_pairs(path: str, max_side_px: int, cache: str) -> pairs.PairSet:
    """The one embedded pair; raises UserError if `path` is not empty or the cache cannot be written."""
    return pairs.prepare(pairs.Listing("embedded_pair", _files(path, PAIR), {PAIR: None}, {}), "embedded", max_side_px, cache)


def open_posed(path: str, max_side_px: int, cache: str) -> posed.PosedSet:
    """The one embedded pair with its calibration; raises UserError if `path` is not empty or the cache cannot be written."""
    files = _files(path, (*PAIR, DISPARITY))
    return posed.prepare("embedded_posed", [functools.partial(_motorcycle, files)], files, "embedded", max_side_px, cache)


def textures() -> dict[str, Path]:
    """The photographs that rendered scenes are papered with: those of TRAIN, but for two that are smooth nearly everywhere."""
    return _files("", tuple(name for name in TRAIN if name not in ("moon.png", "retina.jpg")))


def _motorcycle(files: Mapping[str, Path]) -> posed.Scene:
    """The stereo pair: known matches are SIFT's keypoints moved by the disparity; those of the right image are looked up through the left one's."""
    pictures = {name: read_rgb(files[name]) for name in PAIR}
    height, width = pictures[PAIR[0]].shape[:2]
    cameras = {}
    for i, name in enumerate(PAIR):
        K = calibration(FOCAL_PX, FOCAL_PX, CENTRE_PX[0] + i * OFFSET_PX, CENTRE_PX[1])
        xy = sift(pictures[name], posed.MAX_KEYPOINTS).xy_px.astype(np.float64)
        cameras[name] = Camera(width, height, K, np.eye(3), np.array([-i * BASELINE, 0, 0]), xy, np.arange(len(xy)))
    with np.load(files[DISPARITY]) as stored:
        disparity = stored["arr_0"].astype(np.float64)
    finite = np.isfinite(disparity)
    depth = posed.far_depth(FOCAL_PX * BASELINE / (disparity[finite] + OFFSET_PX))

    def match(name1: str, name2: str) -> tuple[np.ndarray, np.ndarray]:
        del name2
        xy = cameras[name1].xy_px
        moved = _moved(xy, disparity) if name1 == PAIR[0] else _moved_back(xy, disparity)
        known = np.isfinite(moved) & (moved >= 0) & (moved <= width - 1)
        return np.flatnonzero(known), np.stack([moved, xy[:, 1]], 1)[known]

    return posed.Scene(
        files={name: files[name] for name in PAIR},
        cameras=cameras,
        pairs=[PAIR],
        point_depth=depth,
        match=match,
        detect=False,
        guess=False,
        dropped={},
    )


def _moved(xy: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """x in the right image of points of the left one, (N,), by the nearest pixel's disparity; not finite where that is unknown."""
    row, column = (np.clip(np.rint(xy[:, axis]).astype(int), 0, disparity.shape[1 - axis] - 1) for axis in (1, 0))
    return xy[:, 0] - disparity[row, column]


def _moved_back(xy: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """x in the left image of points of the right one, (N,): of the row's pixels that come within a pixel of the point, the nearest to the camera."""
    columns = np.arange(disparity.shape[1])
    found = np.full(len(xy), np.nan)
    for i, (x, y) in enumerate(xy):
        shift = disparity[min(round(y), len(disparity) - 1)]
        shifts = shift[np.isfinite(shift) & (np.abs(columns - shift - x) < 1)]
        if len(shifts):
            found[i] = x + shifts.max()
    return found


def _files(path: str, names: tuple[str, ...]) -> dict[str, Path]:
    if path:
        raise UserError(f"The source embedded:{path} is no folder: write embedded alone, or photos:{path} or pairs:{path} for your own images.")
    folder = Path(skimage.data.__file__).parent
    return {name: folder / name for name in names}
