"""Reductions over entries of which only some exist."""

import jax.numpy as jnp
from jax import lax

from jaxdesc.types import Array


def mean_terms(x: Array, valid: Array, axis_name: str | None = None) -> Array:
    """One value per example, whose plain mean over the batch is the mean of x over all valid entries of the batch.

    Args:
      x: (B, ...); what it holds where not valid, NaN included, does not matter.
      valid: (B, ...) bool.
      axis_name: mapped axis over which the batch is spread in equal parts, if it is.

    Returns:
      (B,) B' / n * sum of the example's valid entries, with B' examples and n valid entries in the whole batch; 0 if n = 0.
    """
    axes = tuple(range(1, x.ndim))
    count, examples = jnp.sum(valid), x.shape[0]
    if axis_name is not None:
        count, examples = lax.psum((count, examples), axis_name)
    return jnp.sum(jnp.where(valid, x, 0), axes) * (examples / jnp.maximum(count, 1))
