"""Overlapping crops of two photographs, drawn on the device: pairs for PUMP.

A photograph comes with its own warp, or with another one. A pair is drawn in this order:

    1. a photograph is paired with a tilted copy of itself; another pair is as it is
    2. the two change places
    3. image 2, whichever it is now, is turned and rescaled
    4. two windows are chosen that show the same part at about the same scale
    5. the windows are resampled to the crops; light, colours and sharpness of both change
    6. noise falls on the pixels of image 2, and both crops are compressed

Source: PUMP, training data (overlapping crops, rotation, rescaling, tilt, noise). Its
released program sets the order and the size of the changes; those of light, sharpness and
compression are ours, and off unless asked for.
"""

import dataclasses
import typing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.config import option
from jaxdesc.data import degrade
from jaxdesc.data.jitter import COLOUR, between, colour_jitter, log_between
from jaxdesc.errors import UserError
from jaxdesc.ops import geometry
from jaxdesc.ops.resample import resample
from jaxdesc.ops.warp import LEVELS, pixel_grid, warp_homography
from jaxdesc.types import Array, Canvas, RawPair

TILT, FRAME, TRIAL = 2, 3, 2  # uniform numbers that a tilt, a frame and a trial use up


@dataclass(frozen=True)
class CropConfig(degrade.DegradeConfig):
    """How pairs for PUMP are cut.

    Sizes, angles and probabilities are the released program's, which has no changes of colour
    but the noise.
    """

    crop_px: int = option(256, "side of the square crops that a loss sees", at_least=32)
    rotation_deg: float = option(
        20.0, "rotation of image 2, uniform within +- this", at_least=0, at_most=180
    )
    min_side_px: float = option(
        256.0, "least shorter side that image 2 is rescaled to (log-uniform)", above=0
    )
    max_side_px: float = option(
        1536.0, "greatest shorter side that image 2 is rescaled to", above=0
    )
    aspect: float = option(
        1.3,
        "greatest change of image 2's aspect ratio (log-uniform in [1/a, a])",
        at_least=1,
    )
    crop_scale: float = option(
        1.5,
        "scale jitter of the crop windows: they undo the images' local scale and keep one factor "
        "log-uniform in [1/this, this], as in the released program (left in, a pair in four would "
        "differ by more than 1.5)",
        at_least=1,
    )
    trials: int = option(
        5,
        "crop windows tried, of which the best-overlapping pair is kept",
        at_least=1,
    )
    noise: float = option(
        12.5,
        "uniform noise within +- this, of 255, on the pixels of image 2 before its crop is "
        "resampled (the released program's 25 is the full width)",
        at_least=0,
        at_most=255,
    )
    swap_probability: float = option(
        0.5,
        "images of a pair change places, before image 2 is turned, rescaled and made noisy, so "
        "that either may be",
        at_least=0,
        at_most=1,
    )
    ramp_steps: int = option(
        0,
        "steps over which the geometry grows from none (tilt, rotation, change of scale and "
        "aspect) to that of the fields above; 0: full from the start",
        at_least=0,
    )

    def undistorted(self) -> typing.Self:
        """Without the noise too."""
        return dataclasses.replace(super().undistorted(), noise=0.0)

    def check(self) -> None:
        if self.min_side_px > self.max_side_px:
            raise UserError(
                f"config.draw.min_side_px = {self.min_side_px} is greater than "
                f"config.draw.max_side_px = {self.max_side_px}."
            )


class Common(NamedTuple):
    """K points that two frames have in common."""

    xy1: Array  # (K, 2) pixels of frame 1
    xy2: Array  # (K, 2) pixels of frame 2
    scale_1to2: Array  # (K,) local change of length
    valid: Array  # (K,) bool: the point exists and lies inside both frames


def random_tilt(u: Array, size_wh: Array, tilt: float, fraction: Array | float = 1.0) -> Array:
    """(3, 3) from a photograph to its tilted copy of the same size, from (TILT,) numbers."""
    side = jnp.minimum((4 * u[0]).astype(jnp.int32), 3)
    return geometry.tilting(side, fraction * between(u[1], 0, tilt) * size_wh.max(), size_wh)


def random_frame(
    u: Array, size_wh: Array, cfg: CropConfig, fraction: Array | float = 1.0
) -> tuple[Array, Array]:
    """Rotation about the centre, then rescaling, from (FRAME,) uniform numbers.

    Args:
      fraction: of the change of the image, which is identity at 0.
    Returns:
      A_image_to_frame (3, 3) and the frame's (w, h).
    """
    angle = fraction * jnp.deg2rad(between(u[0], -cfg.rotation_deg, cfg.rotation_deg))
    scale = (log_between(u[1], cfg.min_side_px, cfg.max_side_px) / size_wh.min()) ** fraction
    root_aspect = jnp.sqrt(log_between(u[2], 1 / cfg.aspect, cfg.aspect)) ** fraction
    scale_xy = scale * jnp.stack([root_aspect, 1 / root_aspect])
    A = geometry.resizing(scale_xy) @ geometry.rotation(angle, (size_wh - 1) / 2)
    return A, size_wh * scale_xy


def choose_windows(
    u: Array,
    common: Common,
    size1_wh: Array,
    size2_wh: Array,
    cfg: CropConfig,
    fraction: Array | float = 1.0,
) -> tuple[Array, Array, Array]:
    """Two square windows (x, y, side) that show the same part at about the same scale.

    Each trial centres both windows on one common point. With r the point's local scale
    times one jitter, log-uniform within `crop_scale` either way, window 1 is
    max(1, 1 / r) crops wide and window 2 max(1, r), so that the crops differ in scale by
    no more than the jitter. Both are cut to the shorter side of their frame and pushed
    inside it. The trial with the greatest score wins, n12 * min(n12 / n1, n12 / n2),
    where n1, n2 and n12 count the points that window 1, window 2 and both see. (Our
    reading of "number of shared correspondences times least IoU".)

    Args:
      u: (trials, TRIAL) uniform numbers.
      common: without any valid point, the frames' centres serve.
      fraction: power of the jitter, of which there is none at 0.
    Returns:
      windows 1 and 2, (3,) each: top-left corner (x, y) in edge coordinates (pixel
      centre + 0.5) and side, pixels; () index of the point that they are centred on.
    """
    rank = jnp.cumsum(common.valid)
    some = rank[-1] > 0

    def window(point, widening, size_wh):
        side = jnp.minimum(cfg.crop_px * jnp.maximum(1, widening), size_wh.min())
        return jnp.append(jnp.clip(point + 0.5 - side / 2, 0, size_wh - side), side)

    def sees(window, xy):
        inside = (xy + 0.5 >= window[:2]) & (xy + 0.5 < window[:2] + window[2])
        return inside.all(-1) & common.valid

    def trial(u):
        chosen = jnp.argmax(rank > jnp.minimum(u[0] * rank[-1], rank[-1] - 1))
        point1 = jnp.where(some, common.xy1[chosen], size1_wh / 2 - 0.5)
        point2 = jnp.where(some, common.xy2[chosen], size2_wh / 2 - 0.5)
        scale = jnp.where(some, common.scale_1to2[chosen], size2_wh.min() / size1_wh.min())
        ratio = scale * log_between(u[1], 1 / cfg.crop_scale, cfg.crop_scale) ** fraction
        w1, w2 = window(point1, 1 / ratio, size1_wh), window(point2, ratio, size2_wh)
        s1, s2 = sees(w1, common.xy1), sees(w2, common.xy2)
        both = (s1 & s2).sum()
        return w1, w2, chosen, both * both / jnp.maximum(jnp.maximum(s1.sum(), s2.sum()), 1)

    *found, score = jax.vmap(trial)(u)
    best = jnp.argmax(score)
    return tuple(array[best] for array in found)


def _into_crop(window: Array, crop_px: int) -> Array:
    """(3, 3) from the frame that holds the window to the crop that shows it."""
    scale = crop_px / window[2]
    return geometry.resizing(jnp.stack([scale, scale])) @ geometry.translation(-window[:2])


def frame_noise(key: Array, window: Array, crop_px: int) -> Array:
    """Uniform noise within +-1 on the pixels of a frame, as a crop of the frame shows it.

    The noise repeats itself every crop_px pixels, rounded up to a multiple of the coarsest
    halved copy's pixel. It is resampled as photographs are: a window twice as wide as the
    crop averages four pixels' noise.

    Returns:
      (crop_px, crop_px, 3) float32.
    """
    coarsest = 2 ** (LEVELS - 1)
    side = -(-crop_px // coarsest) * coarsest
    tile = jax.random.bits(key, (side * side * 3,), jnp.uint8).reshape(side, side, 3)
    step = window[2] / crop_px
    xy = jnp.mod((pixel_grid(crop_px, crop_px) + 0.5) * step + window[:2], side) - 0.5
    size_hw, detail = jnp.array([side, side]), jnp.full((crop_px, crop_px), jnp.log2(step))
    return 2 * resample(tile, size_hw, xy, detail) - 1


def exchanged(pair: RawPair) -> RawPair:
    """The same two photographs in the other order."""
    return RawPair(
        canvas1=pair.canvas2,
        canvas2=pair.canvas1,
        xy12_px=jnp.roll(pair.xy12_px, 2, axis=-1),
        log2_scale_1to2=-pair.log2_scale_1to2,
        turns_1to2=-pair.turns_1to2,
        valid=pair.valid,
    )


def draw_pair(
    key: Array, pair: RawPair, tilt: float, cfg: CropConfig, fraction: Array | float = 1.0
) -> tuple[Array, Array, Array]:
    """One training pair.

    Args:
      pair: photographs with correspondences; the same one twice for a warped copy.
      tilt: perspective skew of one of the two.
      fraction: of all changes of the geometry.
    Returns:
      image1, image2 (crop, crop, 3) in [0, 1] and H_1to2 (3, 3), which means something
      only for points that the photographs themselves relate by the identity.
    """
    # Few draws, large and flat: XLA's CPU compiler needs most of a second for each.
    k_geometry, k_noise = jax.random.split(key)
    counts = (TILT, FRAME, cfg.trials * TRIAL, COLOUR, COLOUR, 2)
    u = jax.random.uniform(k_geometry, (sum(counts),))
    u_tilt, u_frame, u_windows, u_colour1, u_colour2, (u_swap, u_flip) = jnp.split(
        u, np.cumsum(counts)[:-1]
    )
    swap = u_swap < cfg.swap_probability
    pair = jax.tree.map(partial(jnp.where, swap), exchanged(pair), pair)
    canvases = pair.canvas1, pair.canvas2
    size1_wh, size2_wh = (c.size_hw[::-1].astype(jnp.float32) for c in canvases)

    frame2, frame2_wh = random_frame(u_frame, size2_wh, cfg, fraction)
    A1, A2 = jnp.eye(3), frame2  # photographs to frames
    if tilt:  # of the copy, which is image 1 if the two have changed places
        tilted = random_tilt(u_tilt, size2_wh, tilt, fraction)
        A1, A2 = jnp.where(swap, tilted, A1), jnp.where(swap, A2, A2 @ tilted)

    common = _in_frames(pair, A1, A2, size1_wh, frame2_wh)
    window1, window2, chosen = choose_windows(
        u_windows.reshape(cfg.trials, TRIAL), common, size1_wh, frame2_wh, cfg, fraction
    )
    middle = jnp.full(2, (cfg.crop_px - 1) / 2)
    upright = geometry.rotation(-jnp.pi / 2 * pair.turns_1to2[chosen], middle)
    mirror = geometry.mirror(cfg.crop_px)
    flip = jnp.where(u_flip < cfg.flip_probability, mirror, jnp.eye(3))
    M1 = flip @ _into_crop(window1, cfg.crop_px) @ A1  # photographs to crops
    M2 = flip @ upright @ _into_crop(window2, cfg.crop_px) @ A2

    def crop(canvas: Canvas, M: Array, u_colour: Array, changes: degrade.Changes) -> Array:
        out_to_in = jnp.linalg.inv(M)
        image = warp_homography(canvas.image, canvas.size_hw, out_to_in, (cfg.crop_px,) * 2)
        return changes.blurred(colour_jitter(u_colour, changes.lit(image), cfg))

    changes1, changes2 = degrade.changes(jax.random.fold_in(key, 2), cfg)
    image1 = crop(pair.canvas1, M1, u_colour1, changes1)
    image2 = crop(pair.canvas2, M2, u_colour2, changes2)
    if cfg.noise:
        noise = cfg.noise / 255 * frame_noise(k_noise, window2, cfg.crop_px)
        image2 = jnp.clip(image2 + noise, 0, 1)
    H_1to2 = M2 @ jnp.linalg.inv(M1)
    images = changes1.compressed(image1), changes2.compressed(image2)
    return *images, H_1to2 / H_1to2[2, 2]


def _in_frames(pair: RawPair, A1: Array, A2: Array, size1_wh: Array, size2_wh: Array) -> Common:
    """The pair's correspondences, seen in frames of these sizes through A1 and A2."""
    xy1_px, xy2_px = pair.xy12_px[:, :2], pair.xy12_px[:, 2:]
    xy1, xy2 = geometry.apply_homography(A1, xy1_px), geometry.apply_homography(A2, xy2_px)
    areas = geometry.change_of_area(A2, xy2_px) / geometry.change_of_area(A1, xy1_px)

    def inside(xy, size_wh):
        return ((xy >= -0.5) & (xy <= size_wh - 0.5)).all(-1)

    return Common(
        xy1=xy1,
        xy2=xy2,
        scale_1to2=jnp.exp2(pair.log2_scale_1to2) * jnp.sqrt(areas),
        valid=pair.valid & inside(xy1, size1_wh) & inside(xy2, size2_wh),
    )


def draw_pairs(
    key: Array,
    pairs: RawPair,
    slot: Array,
    tilt: float,
    cfg: CropConfig,
    step: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`draw_pair` of a batch, leading axis B; the geometry grows over cfg.ramp_steps."""
    ramps = cfg.ramp_steps and step is not None
    fraction = jnp.minimum(step / cfg.ramp_steps, 1.0) if ramps else 1.0
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slot)
    return jax.vmap(lambda k, pair: draw_pair(k, pair, tilt, cfg, fraction))(keys, pairs)
