"""The uniqueness prior on unlabelled pairs.

Source: Revaud et al., CVPR 2022, section 3 and supplementary A.
"""

import jax
import jax.numpy as jnp

from jaxdesc.methods.pump.pyramid import PATCH_SPACING, pyramid, rectify
from jaxdesc.types import Array


def uniqueness_loss(desc1: Array, desc2: Array, *, border: int = 16, subsample: int = 2, eps: float = 0.03, strip_bytes: int | None = None) -> Array:
    """Mean of both directions of -mean_p sum_q Cbar[p, q]^2, with Cbar = C / (sum_q C + eps) and C the rectified top of the pyramid.

    Each row of Cbar is non-negative and sums to less than 1, so -1 < loss <= 0, and the loss falls as rows come closer to one-hot.

    Args:
      desc1, desc2: (H, W, D) descriptors of the two images; for a batch use `lax.map`, which keeps one pair's pyramid in memory (`vmap` works too).
      border: pixels that are dropped at each edge.
      subsample: step at which pixels are kept.
      strip_bytes: see `correlate_and_pool`.

    Returns:
      () float32.
    """
    maps = [desc[border : desc.shape[0] - border : subsample, border : desc.shape[1] - border : subsample] for desc in (desc1, desc2)]
    return (_uniqueness(*maps, eps, strip_bytes) + _uniqueness(*maps[::-1], eps, strip_bytes)) / 2


def _uniqueness(desc1: Array, desc2: Array, eps: float, strip_bytes: int | None) -> Array:
    """One direction, from maps that are already cropped and thinned."""
    first = PATCH_SPACING // 2
    return _prior(desc1[first::PATCH_SPACING, first::PATCH_SPACING], desc2, eps, strip_bytes)


def _prior_value(patches: Array, pixels: Array, eps: float, strip_bytes: int | None) -> Array:
    C = rectify(pyramid(patches, pixels, strip_bytes=strip_bytes))
    return uniqueness(C.reshape(-1, C.shape[2] * C.shape[3]), eps)


# A scalar's gradient can be had along with it and only scaled in the backward pass: what outlives the forward pass is then two descriptor maps
# and not a pyramid, whichever way the caller loops over pairs.
_prior = jax.custom_vjp(_prior_value, nondiff_argnums=(2, 3))
_prior.defvjp(
    lambda patches, pixels, eps, strip_bytes: jax.value_and_grad(_prior_value, (0, 1))(patches, pixels, eps, strip_bytes),
    lambda eps, strip_bytes, gradients, scale: tuple((scale * gradient).astype(gradient.dtype) for gradient in gradients),
)


def uniqueness(C: Array, eps: float = 0.03) -> Array:
    """-mean_p sum_q Cbar[p, q]^2 with Cbar = C / (sum_q C + eps), of responses C (P, Q) >= 0."""
    Cbar = C / (jnp.sum(C, -1, keepdims=True) + eps)
    return -jnp.mean(jnp.sum(Cbar**2, -1))
