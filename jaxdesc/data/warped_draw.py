"""Random warps of photographs, drawn on the device: affine maps and thin-plate splines. Source: GSF, supplementary 1 (ranges, the height and width being 1)."""

import jax
import jax.numpy as jnp

from jaxdesc.config import WarpConfig
from jaxdesc.data.jitter import between
from jaxdesc.ops import tps
from jaxdesc.ops.resample import detail_of, resample
from jaxdesc.types import Array, Canvas


def random_warp(key: Array, cfg: WarpConfig) -> tuple[Array, Array]:
    """(2, 3) affine matrix and (control^2, 2) displacements for `tps.warp`."""
    k_normal, k_uniform = jax.random.split(key)
    shift = jnp.clip(cfg.shift_std * jax.random.normal(k_normal, (2,)), -cfg.shift, cfg.shift)
    u = jax.random.uniform(k_uniform, (2 + 2 * cfg.control**2,))
    angle = jnp.deg2rad(between(u[0], -cfg.angle_deg, cfg.angle_deg))
    return tps.similarity(angle, between(u[1], *cfg.scale), shift), between(u[2:], -cfg.bend, cfg.bend).reshape(-1, 2)


def squashed_view(canvas: Canvas, uv: Array) -> Array:
    """The photograph at unit positions uv (H, W, 2), which beyond its edges show it mirrored, (H, W, 3) in [0, 1]."""
    detail = detail_of(tps.px_from_unit(uv, canvas.size_hw))
    return resample(canvas.image, canvas.size_hw, tps.px_from_unit(tps.reflect(uv), canvas.size_hw), detail)
