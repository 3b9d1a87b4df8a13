"""Training pairs drawn on the device: a random warp of one photograph, or two photographs of one place, cut to aligned crops.

Every draw comes from fold_in(step key, slot), the example's place in the global batch, so that a batch does not depend on
how many devices share it. Source: PUMP, training data (crops that overlap, rotation, rescaling, tilt, noise).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.config import DrawConfig
from jaxdesc.data.jitter import COLOUR, between, colour_jitter, log_between
from jaxdesc.data.posed_draw import draw_posed
from jaxdesc.data.semantic_draw import draw_keypoint_pairs
from jaxdesc.ops import geometry
from jaxdesc.ops.warp import pixel_grid, warp_homography
from jaxdesc.types import Array, Batch, Canvas, Pair, RawBatch

GRID = 16  # points a side that stand for the correspondences of a photograph with its own warp
FRAME, TRIAL = 5, 3  # uniform numbers that a frame and a trial of the windows use up


def random_frame(u: Array, size_wh: Array, tilt: float, cfg: DrawConfig) -> tuple[Array, Array]:
    """Tilt, then rotation about the centre, then rescaling, from (FRAME,) uniform numbers.

    Returns:
      A_photo_to_frame (3, 3) and the frame's (w, h).
    """
    side, skew = jnp.minimum((4 * u[0]).astype(jnp.int32), 3), between(u[1], 0, tilt) * size_wh.max()
    angle = jnp.deg2rad(between(u[2], -cfg.rotation_deg, cfg.rotation_deg))
    scale = log_between(u[3], cfg.min_side_px, cfg.max_side_px) / size_wh.min()
    root_aspect = jnp.sqrt(log_between(u[4], 1 / cfg.aspect, cfg.aspect))
    scale_xy = scale * jnp.stack([root_aspect, 1 / root_aspect])
    A = geometry.resizing(scale_xy) @ geometry.rotation(angle, (size_wh - 1) / 2)
    return A @ geometry.tilting(side, skew, size_wh) if tilt else A, size_wh * scale_xy


def choose_windows(u: Array, xy1: Array, xy2: Array, valid: Array, size1_wh: Array, size2_wh: Array, cfg: DrawConfig) -> tuple[Array, Array]:
    """Two square windows (x, y, side) that see the same part of the place.

    Each trial centres both windows on one correspondence, with scale jitter, pushed inside the images; the trial with the
    greatest score wins, score = n12 * min(n12 / n1, n12 / n2), where n1, n2 and n12 count the correspondences that window 1,
    window 2 and both see (our reading of "number of shared correspondences times least IoU").

    Args:
      u: (trials, TRIAL) uniform numbers.
      xy1, xy2: (K, 2) correspondences, rows that exist marked by valid (K,). Without any, the images' centres serve.
    Returns:
      windows 1 and 2, (3,) each: top-left corner (x, y) in edge coordinates (pixel centre + 0.5) and side, pixels.
    """
    centre = jnp.concatenate([size1_wh, size2_wh]) / 2 - 0.5
    rank = jnp.cumsum(valid)

    def window(u, point, size_wh):
        side = jnp.minimum(cfg.crop_px * log_between(u, 1.0, cfg.crop_scale), size_wh.min())
        corner = jnp.clip(point + 0.5 - side / 2, 0, size_wh - side)
        return jnp.append(corner, side)

    def sees(window, xy):
        return ((xy + 0.5 >= window[:2]) & (xy + 0.5 < window[:2] + window[2])).all(-1) & valid

    def trial(u):
        chosen = jnp.argmax(rank > jnp.minimum(u[0] * rank[-1], rank[-1] - 1))
        point = jnp.where(rank[-1] > 0, jnp.concatenate([xy1[chosen], xy2[chosen]]), centre)
        w1, w2 = window(u[1], point[:2], size1_wh), window(u[2], point[2:], size2_wh)
        s1, s2 = sees(w1, xy1), sees(w2, xy2)
        both = (s1 & s2).sum()
        return w1, w2, both * both / jnp.maximum(jnp.maximum(s1.sum(), s2.sum()), 1)

    w1, w2, score = jax.vmap(trial)(u)
    best = jnp.argmax(score)
    return w1[best], w2[best]


def _into_crop(window: Array, crop_px: int) -> Array:
    """(3, 3) from the frame that holds the window to the crop that shows it."""
    scale = crop_px / window[2]
    return geometry.resizing(jnp.stack([scale, scale])) @ geometry.translation(-window[:2])


def draw_pair(key: Array, canvas1: Canvas, canvas2: Canvas, xy12_px: Array, valid: Array, tilt: float, cfg: DrawConfig) -> tuple[Array, Array, Array]:
    """One training pair.

    Args:
      canvas1, canvas2: photographs; the same one twice for a synthetic pair.
      xy12_px: (K, 4) correspondences on the canvases, rows that exist marked by valid (K,).
      tilt: perspective skew of image 2.
    Returns:
      image1, image2 (crop, crop, 3) in [0, 1] and H_1to2 (3, 3), which means something only for points that the photographs
      themselves relate by the identity.
    """
    # Few draws, large and flat: XLA's CPU compiler needs most of a second for each.
    k_geometry, k_noise = jax.random.split(key)
    u = jax.random.uniform(k_geometry, (FRAME + cfg.trials * TRIAL + 2 * COLOUR + 2,))
    u_frame, u_windows, u_colour1, u_colour2, (u_swap, u_flip) = jnp.split(u, np.cumsum([FRAME, cfg.trials * TRIAL, COLOUR, COLOUR]))
    size1_wh, size2_wh = (c.size_hw[::-1].astype(jnp.float32) for c in (canvas1, canvas2))
    A2, frame2_wh = random_frame(u_frame, size2_wh, tilt, cfg)
    xy1, xy2 = xy12_px[:, :2], geometry.apply_homography(A2, xy12_px[:, 2:])
    inside = ((xy2 >= -0.5) & (xy2 <= frame2_wh - 0.5)).all(-1)
    window1, window2 = choose_windows(u_windows.reshape(cfg.trials, TRIAL), xy1, xy2, valid & inside, size1_wh, frame2_wh, cfg)

    flip = jnp.where(u_flip < cfg.flip_probability, geometry.mirror(cfg.crop_px), jnp.eye(3))
    M1 = flip @ _into_crop(window1, cfg.crop_px)  # photograph to crop
    M2 = flip @ _into_crop(window2, cfg.crop_px) @ A2

    def crop(canvas, M, u_colour):
        image = warp_homography(canvas.image, canvas.size_hw, jnp.linalg.inv(M), (cfg.crop_px, cfg.crop_px))
        return colour_jitter(u_colour, image, cfg)

    image1, image2 = crop(canvas1, M1, u_colour1), crop(canvas2, M2, u_colour2)
    noise = jax.random.uniform(k_noise, (image2.size,), minval=-cfg.noise, maxval=cfg.noise) / 255
    image2 = jnp.clip(image2 + noise.reshape(image2.shape), 0, 1)
    H_1to2 = M2 @ jnp.linalg.inv(M1)

    swap = u_swap < cfg.swap_probability
    H_1to2 = jnp.where(swap, jnp.linalg.inv(H_1to2), H_1to2)
    return jnp.where(swap, image2, image1), jnp.where(swap, image1, image2), H_1to2 / H_1to2[2, 2]


def draw_batch(key: Array, raw: RawBatch, cfg: DrawConfig) -> Batch:
    """The batch that a loss sees, from the photographs that the host delivered: {"synthetic": Pair, "real": Pair, "posed": PosedPair, "semantic": KeypointPair}."""

    def synthetic(key, canvas):
        step = canvas.size_hw[::-1] / GRID
        points = ((pixel_grid(GRID, GRID) + 0.5) * step - 0.5).reshape(-1, 2)
        return draw_pair(key, canvas, canvas, jnp.tile(points, 2), jnp.ones(GRID * GRID, bool), cfg.tilt, cfg)

    def real(key, pair):
        return draw_pair(key, pair.canvas1, pair.canvas2, pair.xy12_px, pair.valid, 0.0, cfg)

    batch = {}
    for half, draw in (("synthetic", synthetic), ("real", real)):
        if half in raw:
            photos, slot = raw[half]
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, slot)
            image1, image2, H_1to2 = jax.vmap(draw)(keys, photos)
            batch[half] = Pair(image1=image1, image2=image2, H_1to2=H_1to2 if half == "synthetic" else None, slot=slot)
    if "posed" in raw:
        batch["posed"] = draw_posed(key, *raw["posed"], cfg)
    if "semantic" in raw:
        batch["semantic"] = draw_keypoint_pairs(key, *raw["semantic"], cfg)
    return batch
