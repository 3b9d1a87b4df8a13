"""Photographs inside scikit-image's wheel, and the stereo pair among them with its
calibration and disparity.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import skimage.data

PAIR = ("motorcycle_left.png", "motorcycle_right.png")
DISPARITY = "motorcycle_disp.npz"

# The pair's calibration at this size (Scharstein et al., GCPR 2014; as scikit-image's
# stereo_motorcycle gives it): focal length, principal point of the left image, how much
# further right that of the right image is, all in pixels; baseline in metres.
FOCAL_PX, CENTRE_PX, OFFSET_PX, BASELINE = 994.978, (311.193, 254.877), 31.086, 0.193001


def files(names: Iterable[str]) -> dict[str, Path]:
    """Name -> file."""
    folder = Path(skimage.data.__file__).parent
    return {name: folder / name for name in names}


def disparity() -> np.ndarray:
    """(H, W) float64: left x - right x for each pixel of the left image, px; not finite
    where unknown.
    """
    with np.load(files([DISPARITY])[DISPARITY]) as stored:
        return stored["arr_0"].astype(np.float64)
