"""Vectors of unit length."""

import jax
import jax.numpy as jnp

from jaxdesc.types import Array


def l2_normalise(x: Array, eps: float = 1e-24) -> Array:
    """x / ||x||_2 over the last axis in float32; a zero vector stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))
