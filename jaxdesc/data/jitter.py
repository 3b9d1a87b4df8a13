"""Random changes of colour on the device, from uniform numbers."""

import jax.numpy as jnp
import numpy as np

from jaxdesc.config import DrawConfig
from jaxdesc.types import Array

YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
YIQ_INVERSE = np.linalg.inv(YIQ)
COLOUR = 4  # uniform numbers that a change of colours uses up


def between(u: Array, low: float, high: float) -> Array:
    return low + (high - low) * u


def log_between(u: Array, low: float, high: float) -> Array:
    return low * (high / low) ** u


def colour_jitter(u: Array, image: Array, cfg: DrawConfig) -> Array:
    """Brightness, contrast, saturation and hue change as one affine map of the colours, clipped to [0, 1].

    out = b c R S x + (1 - c) b m: b scales; c moves away from m, the mean luma; S mixes with luma; R turns chroma (I, Q) in the
    YIQ space. Luma and chroma are those of NTSC.

    Args:
      u: (COLOUR,) uniform numbers.
      image: (H, W, 3) in [0, 1].
    """
    b, c, s = (between(u[i], 1 - amount, 1 + amount) for i, amount in enumerate((cfg.brightness, cfg.contrast, cfg.saturation)))
    angle = 2 * jnp.pi * between(u[3], -cfg.hue, cfg.hue)
    cos, sin = s * jnp.cos(angle), s * jnp.sin(angle)
    chroma = jnp.eye(3).at[1:, 1:].set(jnp.array([[cos, -sin], [sin, cos]]))
    A = b * c * (YIQ_INVERSE @ chroma @ YIQ)
    return jnp.clip(image @ A.T + (1 - c) * b * (image @ YIQ[0]).mean(), 0, 1)
