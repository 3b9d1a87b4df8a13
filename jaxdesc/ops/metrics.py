"""Scores as (sum, weight) pairs, so that they add up over examples, batches and devices."""

import jax.numpy as jnp

from jaxdesc.ops.geometry import apply_homography
from jaxdesc.types import Array, Correspondences

MMA_PX = (1.0, 3.0, 5.0)
PCK_PX = 5.0  # on pairs with known poses
PCK_ALPHAS = (0.05, 0.1, 0.15)  # of the longer side, on pairs with common keypoints
PCK_ALPHA = 0.1  # the one of them that pictures and checkpoints go by


def matching_accuracy(matches: Correspondences, H_1to2: Array, size2_hw: tuple[int, int], thresholds_px=MMA_PX) -> tuple[Array, Array, Array]:
    """Share of matches whose reprojection error ||H x1 - x2|| is at most t pixels, for each t.

    Matches whose true position lies outside image 2 are left out. Source: D2-Net's MMA, here on one pair.

    Returns:
      (T,) the shares, () the weight of the pair: 1, or 0 if the images share no patch, and () the number of matches counted.
      A pair without any match scores 0.
    """
    truth = apply_homography(H_1to2, matches.xy1_px)
    h2, w2 = size2_hw
    shared = ((truth >= 0) & (truth <= jnp.array([w2 - 1, h2 - 1]))).all(-1)
    counted = matches.valid & shared
    error = jnp.linalg.norm(jnp.where(counted[:, None], truth - matches.xy2_px, 0.0), axis=-1)
    good = (error[:, None] <= jnp.array(thresholds_px)) & counted[:, None]
    share = good.sum(0) / jnp.maximum(counted.sum(), 1)
    return share, shared.any().astype(jnp.float32), counted.sum()
