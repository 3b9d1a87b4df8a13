"""What every room of the house passes to its neighbours. Coordinates are (x, y) pixels, the centre of the top-left pixel is (0, 0)."""

from typing import Any, NamedTuple

import jax
from flax import struct

from jaxdesc.errors import UserError as UserError

Array = jax.Array
Size = tuple[int, int]  # rows and columns


@struct.dataclass
class Canvas:
    """A decoded photograph at the top left of a fixed square; the rest of the square is black."""

    image: Array  # (..., C, C, 3) uint8 RGB
    size_hw: Array  # (..., 2) int32: rows and columns that hold the photograph


@struct.dataclass
class RawPair:
    """Two photographs of one place as the host delivers them."""

    canvas1: Canvas
    canvas2: Canvas
    # Correspondences; they only aim the crops.
    xy12_px: Array  # (..., K, 4) float32 [x1, y1, x2, y2] on the canvases
    log2_scale_1to2: Array  # (..., K) float32: of the local change of length on the canvases
    turns_1to2: Array  # (..., K) int32: quarter turns, clockwise as seen
    valid: Array  # (..., K) bool


@struct.dataclass
class Pair:
    """Two crops as a loss sees them."""

    image1: Array  # (B, H, W, 3) float32 RGB in [0, 1]
    image2: Array  # (B, H, W, 3) float32 RGB in [0, 1]
    H_1to2: Array | None  # (B, 3, 3) float32 homography in pixels where it is known, else None
    slot: Array  # (B,) int32 place in the global batch: what the example's random draws are folded with


@struct.dataclass
class PosedPair:
    """Two views with known relative pose, and the points of view 1 that a loss asks for."""

    image1: Array  # (B, H, W, 3) float32 RGB in [0, 1]
    image2: Array  # (B, H, W, 3) float32 RGB in [0, 1]
    F_1to2: Array  # (B, 3, 3) float32 fundamental matrix in pixels of both images as they are here: x2~' F x1~ = 0; of any scale
    xy1_px: Array  # (B, N, 2) float32 queries in image 1
    valid: Array  # (B, N) bool: the query exists
    xy2_px: Array | None  # (B, N, 2) float32 true positions in image 2, for scores only, never for a loss; None where depth is not known
    known: Array | None  # (B, N) bool: xy2_px holds the true position of the query; None with xy2_px
    slot: Array  # (B,) int32 place in the global batch: what the example's random draws are folded with


@struct.dataclass
class KeypointPair:
    """Two images of objects of one category, or an image and a warped copy of it; row k of the keypoints is the same part in both."""

    image1: Array  # (B, H, W, 3) float32 RGB in [0, 1]
    image2: Array  # (B, H, W, 3) float32 RGB in [0, 1]
    xy1_px: Array  # (B, K, 2) float32 in image 1
    xy2_px: Array | None  # (B, K, 2) float32 in image 2; None where none is known of any pair
    valid: Array  # (B, K) bool: the keypoint exists
    slot: Array  # (B,) int32 place in the global batch: what the example's random draws are folded with
    mask1: Array | None = None  # (B, H, W) float32 in [0, 1]: share of each pixel of image 1 that is of the object; 1 all over where a pair has no masks
    mask2: Array | None = None  # the same of image 2; both None where no pair of the run has masks


# A training batch has a static split, by the kinds of pair that a run has, see data.kinds.
RawBatch = dict[str, Any]  # {kind: (rows as the host delivers them, slot)}
Batch = dict[str, Pair | PosedPair | KeypointPair]
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}


@struct.dataclass
class Keypoints:
    """N keypoints of one image."""

    xy_px: Array  # (N, 2) float32
    scale_px: Array  # (N,) float32 diameter of the support; 0 where the detector gives none
    score: Array  # (N,) float32, higher is better
    valid: Array  # (N,) bool


@struct.dataclass
class Correspondences:
    """N matches between two images, of which the rows marked valid exist."""

    xy1_px: Array  # (N, 2) float32
    xy2_px: Array  # (N, 2) float32
    score: Array  # (N,) float32, higher is better
    code: Array  # (N,) int32: scale and rotation of image 2, see ops.matching.encode_pose
    valid: Array  # (N,) bool


@struct.dataclass
class TrainState:
    """Everything that training changes, arrays only."""

    step: Array  # () int32, updates made so far
    params: Any
    model_state: Any  # batch statistics
    opt_state: Any


class Grid(NamedTuple):
    """Where the cells of a descriptor map lie on its image.

    Cell (column u, row v) is centred on pixel origin_xy + stride_xy * (u, v); real numbers.
    """

    origin_xy: tuple[float, float]
    stride_xy: tuple[float, float]
