"""Random warps of photographs, drawn on the device: affine maps and thin-plate splines.

Source: GSF, supplementary 1 (ranges, the height and width being 1).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdesc.config import option
from jaxdesc.data.jitter import between
from jaxdesc.errors import UserError
from jaxdesc.ops import tps
from jaxdesc.ops.resample import detail_of, resample
from jaxdesc.types import Array, Canvas


@dataclass(frozen=True)
class WarpConfig:
    """Affine maps and splines; lengths are fractions of the image's height and width."""

    shift: float = option(0.15, "greatest translation", at_least=0, at_most=1)
    shift_std: float = option(
        0.075,
        "standard deviation of the translation, normally distributed, before it is cut off at "
        "`shift`",
        at_least=0,
    )
    angle_deg: float = option(10.0, "rotation uniform within +- this", at_least=0, at_most=180)
    scale: tuple[float, float] = option((0.8, 1.2), "scale uniform between these")
    bend: float = option(
        0.1,
        "control points of the spline move by up to +- this, uniform",
        at_least=0,
        at_most=1,
    )
    control: int = option(3, "control points a side", at_least=2)

    def check(self, where: str) -> None:
        """What `option` cannot say; raises UserError naming the field, `where` and its name."""
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(
                f"{where}.scale = {self.scale} must be two numbers above 0, the smaller one first."
            )


def random_warp(key: Array, cfg: WarpConfig) -> tuple[Array, Array]:
    """(2, 3) affine matrix and (control^2, 2) displacements for `tps.warp`."""
    k_normal, k_uniform = jax.random.split(key)
    shift = jnp.clip(cfg.shift_std * jax.random.normal(k_normal, (2,)), -cfg.shift, cfg.shift)
    u = jax.random.uniform(k_uniform, (2 + 2 * cfg.control**2,))
    angle = jnp.deg2rad(between(u[0], -cfg.angle_deg, cfg.angle_deg))
    A = tps.similarity(angle, between(u[1], *cfg.scale), shift)
    return A, between(u[2:], -cfg.bend, cfg.bend).reshape(-1, 2)


def squashed_view(canvas: Canvas, uv: Array) -> Array:
    """The photograph at unit positions uv (H, W, 2), which beyond its edges show it mirrored,
    (H, W, 3) in [0, 1]."""
    detail = detail_of(tps.px_from_unit(uv, canvas.size_hw))
    xy = tps.px_from_unit(tps.reflect(uv), canvas.size_hw)
    return resample(canvas.image, canvas.size_hw, xy, detail)
