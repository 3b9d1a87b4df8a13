"""What a camera does to a picture, on the device: uneven light, a tone curve, blur, compression.

Each change has a strength of its own for every image. Half of the images are spared each
change; for the others its strength is uniform up to the greatest, see `strength`.
"""

import dataclasses
import typing
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.config import DrawConfig, option
from jaxdesc.data.jitter import between, log_between
from jaxdesc.types import Array

LIGHT, BLUR, JPEG = 3 * 3 + 2, 3, 3  # uniform numbers that each change uses up
SHADE_SIDE = 3  # control points a side of the field of shade
BLOCK = 8  # side of JPEG's blocks, pixels
MARGIN = 16  # pixels that are mirrored around an image before it is blurred

# Tables K.1 and K.2 of the JPEG standard (ITU-T T.81): steps for luma and chroma, quality 50.
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
CHROMA = np.full((BLOCK, BLOCK), 99, np.float32)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# JFIF's YCbCr, of RGB in the same range; Cb and Cr around 0.
YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
    np.float32,
)


@dataclass(frozen=True)
class DegradeConfig(DrawConfig):
    """How sharp and how evenly lit images are; see `strength`."""

    shade: float = option(
        0.0,
        "uneven light: brightness within 1 +- this, different over the image; as gamma, blur_px, "
        "motion_px and jpeg_quality it spares half of the images and is uniform up to the full "
        "strength for the others",
        at_least=0,
        at_most=1,
    )
    gamma: float = option(
        1.0, "exponent of the colours, log-uniform within [1/this, this]", at_least=1
    )
    blur_px: float = option(
        0.0, "greatest sigma of a Gaussian blur, pixels of the crop", at_least=0, at_most=8
    )
    motion_px: float = option(
        0.0, "greatest length of a straight motion blur, pixels of the crop", at_least=0, at_most=16
    )
    jpeg_quality: int = option(
        100,
        "lowest quality that crops are compressed with, as JPEG does; 100: they are not",
        at_least=5,
        at_most=100,
    )

    def undistorted(self) -> typing.Self:
        """With even light, sharp and not compressed too."""
        still = {"shade": 0.0, "gamma": 1.0, "blur_px": 0.0, "motion_px": 0.0}
        return dataclasses.replace(super().undistorted(), **still, jpeg_quality=100)


class Changes(NamedTuple):
    """The changes of one image that the configuration asks for; others leave it as it is."""

    cfg: DegradeConfig
    u: Array  # (LIGHT + BLUR + JPEG,) uniform numbers

    def lit(self, image: Array) -> Array:
        asked = self.cfg.shade or self.cfg.gamma > 1
        return light(self.u[:LIGHT], image, self.cfg) if asked else image

    def blurred(self, image: Array) -> Array:
        asked = self.cfg.blur_px or self.cfg.motion_px
        return blur(self.u[LIGHT : LIGHT + BLUR], image, self.cfg) if asked else image

    def compressed(self, image: Array) -> Array:
        asked = self.cfg.jpeg_quality < 100
        return compress(self.u[LIGHT + BLUR :], image, self.cfg) if asked else image


def changes(key: Array, cfg: DegradeConfig) -> tuple[Changes, Changes]:
    """Those of image 1 and of image 2."""
    u = jax.random.uniform(key, (2, LIGHT + BLUR + JPEG))
    return Changes(cfg, u[0]), Changes(cfg, u[1])


def strength(u: Array) -> Array:
    """[0, 1] -> [0, 1]: 0 for one half of the numbers, uniform for the other."""
    return jnp.maximum(2 * u - 1, 0)


def light(u: Array, image: Array, cfg: DegradeConfig) -> Array:
    """Uneven light, then a tone curve: clip(image (1 + a f), 0, 1)^g.

    f is a smooth field in [-1, 1], three control points a side; a and log g grow with
    `strength` up to cfg.shade and +-log cfg.gamma.

    Args:
      u: (LIGHT,) uniform numbers. image: (H, W, 3) in [0, 1].
    """
    knots = 2 * u[: SHADE_SIDE**2].reshape(SHADE_SIDE, SHADE_SIDE) - 1
    field = jax.image.resize(knots, image.shape[:2], "linear")[..., None]
    shaded = jnp.clip(image * (1 + strength(u[-2]) * cfg.shade * field), 0, 1)
    side = jnp.where(u[-1] < 0.5, 1 - 2 * u[-1], 2 * u[-1] - 1)  # which way the curve bends
    up = log_between(strength(side), 1.0, cfg.gamma)
    return jnp.maximum(shaded, 1e-4) ** jnp.where(u[-1] < 0.5, 1 / up, up)


def blur(u: Array, image: Array, cfg: DegradeConfig) -> Array:
    """Out of focus and shaken: a Gaussian, and the mean over a straight stroke.

    In frequencies f, cycles a pixel: exp(-2 pi^2 s^2 |f|^2) sinc(l f . d), with s up to
    cfg.blur_px, l up to cfg.motion_px and any direction d. Mirrored at the border.

    Args:
      u: (BLUR,) uniform numbers. image: (H, W, 3).
    """
    margin = [(MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)]
    padded = jnp.pad(image, margin, mode="symmetric")
    height, width = padded.shape[:2]
    fy, fx = jnp.fft.fftfreq(height)[:, None], jnp.fft.rfftfreq(width)[None]
    sigma, length = strength(u[0]) * cfg.blur_px, strength(u[1]) * cfg.motion_px
    along = jnp.cos(jnp.pi * u[2]) * fx + jnp.sin(jnp.pi * u[2]) * fy
    response = jnp.exp(-2 * (jnp.pi * sigma) ** 2 * (fx**2 + fy**2)) * jnp.sinc(length * along)
    spectrum = jnp.fft.rfft2(padded, axes=(0, 1)) * response[..., None]
    out = jnp.fft.irfft2(spectrum, (height, width), axes=(0, 1))
    return jnp.clip(out[MARGIN:-MARGIN, MARGIN:-MARGIN], 0, 1)


def compress(u: Array, image: Array, cfg: DegradeConfig) -> Array:
    """What JPEG keeps of an image: 8x8 cosine transforms, rounded to steps of its tables.

    Quality 100 down to cfg.jpeg_quality, with the IJG library's scaling of the tables;
    spared images are not rounded at all. Blocks begin anywhere. Chroma is not halved.

    Args:
      u: (JPEG,) uniform numbers. image: (H, W, 3) in [0, 1].
    """
    whole = jnp.pad(image, [*((0, -n % BLOCK) for n in image.shape[:2]), (0, 0)], mode="edge")
    height, width, _ = whole.shape
    amount = strength(u[0])
    quality = between(amount, 100.0, float(cfg.jpeg_quality))
    percent = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    tables = np.stack([LUMA, CHROMA, CHROMA], -1)[None, :, None]  # for every block
    steps = jnp.clip(jnp.floor((tables * percent + 50) / 100), 1, 255)
    offset = jnp.minimum((u[1:] * BLOCK).astype(jnp.int32), BLOCK - 1)
    shifted = jnp.roll(255 * whole, offset, (0, 1))
    levels = shifted @ YCBCR.T - np.array([128, 0, 0], np.float32)
    blocks = levels.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
    basis = cosine_basis()
    found = jnp.einsum("ik,akblc,jl->aibjc", basis, blocks, basis, precision="highest")
    kept = jnp.round(found / steps) * steps
    back = jnp.einsum("ik,aibjc,jl->akblc", basis, kept, basis, precision="highest")
    rgb = (back.reshape(height, width, 3) + np.array([128, 0, 0], np.float32)) @ INVERSE.T
    out = jnp.clip(jnp.roll(rgb, -offset, (0, 1)) / 255, 0, 1)
    return jnp.where(amount > 0, out[: image.shape[0], : image.shape[1]], image)


def cosine_basis() -> np.ndarray:
    """(8, 8) orthonormal rows: row i samples the cosine of i half periods."""
    i, k = np.mgrid[:BLOCK, :BLOCK]
    rows = np.cos((2 * k + 1) * i * np.pi / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    rows[0] = np.sqrt(1 / BLOCK)
    return rows.astype(np.float32)


INVERSE = np.linalg.inv(YCBCR)
