"""Keypoint supervision: the row of the correlation that belongs to a keypoint shall peak where the keypoint is in the other image. COLD, 2.5.

L = mean_b (1 / n_b) sum_m w_m CE_m, CE_m of the z-scored row A[i_m, :] and the cell j_m, w_m by whether the present prediction of the keypoint is right.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.methods.cold.cells import correlation, cross_entropy, difficulty, nearest_cell, transfer
from jaxdesc.nets.frozen import COLLECTION, thaw
from jaxdesc.ops import masked
from jaxdesc.ops.metrics import PCK_ALPHAS
from jaxdesc.types import Array, Batch, KeypointPair, Variables


def one_direction(desc1: Array, desc2: Array, xy1: Array, xy2: Array, valid: Array, side_px: int, cfg) -> tuple[Array, Array, Array]:
    """Keypoints of image 1 sought in image 2.

    Args:
      desc1, desc2: (h, w, D) cells. xy1, xy2: (K, 2) px. valid: (K,) bool; what the others hold, NaN included, does not matter.
      side_px: T, the longer side of the images, that distances are measured against.
    Returns:
      () the loss (1 / n) sum_m w_m CE_m, 0 without keypoints; () the same with all weights 1; (K,) distance of the predictions from the truth over T.
    """
    map1, map2 = desc1.shape[:2], desc2.shape[:2]
    flat1, flat2 = (d.reshape(-1, d.shape[-1]) for d in (desc1, desc2))
    xy1, xy2 = (jnp.where(valid[:, None], xy, 0) for xy in (xy1, xy2))
    rows = correlation(flat1[nearest_cell(xy1, map1)], flat2)
    entropy = jnp.where(valid, cross_entropy(rows, nearest_cell(xy2, map2), cfg.deviation_gradient), 0)
    fixed1, fixed2 = jax.lax.stop_gradient((flat1, flat2))
    found, _ = transfer(xy1, fixed1, fixed2, map1, map2, cfg.box_px, cfg.mutual_filter)
    distance = jnp.sqrt(jnp.sum((found - xy2) ** 2, -1)) / side_px
    n = jnp.maximum(valid.sum(), 1)
    return jnp.sum(difficulty(distance, cfg.hard_alpha) * entropy) / n, jnp.sum(entropy) / n, distance


def pair_loss(desc1: Array, desc2: Array, xy1: Array, xy2: Array, valid: Array, side_px: int, cfg) -> tuple[Array, Array, Array]:
    """`one_direction`, or with cfg.bidirectional the mean of both directions; the distances are those from image 1 to image 2."""
    loss, entropy, distance = one_direction(desc1, desc2, xy1, xy2, valid, side_px, cfg)
    if not cfg.bidirectional:
        return loss, entropy, distance
    back, back_entropy, _ = one_direction(desc2, desc1, xy2, xy1, valid, side_px, cfg)
    return (loss + back) / 2, (entropy + back_entropy) / 2, distance


def cold_loss(variables: Variables, batch: Batch, key: Array, train: bool, *, net: nn.Module, cfg, axis_name: str | None = None):
    """COLD's training loss; all images go through the network together and share the batch statistics of the transforms.

    Args:
      batch: {"keypoints": KeypointPair}. key: not used, nothing is random.
      train: whether the transforms' batch statistics are those of the batch, and are updated.
    Returns:
      per_example (B,), (parts, model_state): "CE" (B,), the cross entropy without weights, and "pck@0.05", "pck@0.1", "pck@0.15" (B,): the share of a pair's
      keypoints, image 1 to image 2, within alpha T, whose plain mean over the batch is that over its pairs with keypoints. Only training is spread over the mapped axis.
    """
    pair: KeypointPair = batch["keypoints"]
    images = jnp.concatenate([pair.image1, pair.image2])
    kept = {name: variables[name] for name in variables if name in ("batch_stats", COLLECTION)}
    if train:
        maps, updated = net.apply(thaw(variables), images, train=True, mutable=["batch_stats"])
        kept = {**kept, **updated}
    else:
        maps = net.apply(thaw(variables), images, train=False)
    n, side_px = pair.slot.shape[0], max(pair.image1.shape[1:3])

    def one(desc1, desc2, xy1, xy2, valid):
        return pair_loss(desc1, desc2, xy1, xy2, valid, side_px, cfg)

    per_example, entropy, distance = jax.vmap(one)(maps[:n], maps[n:], pair.xy1_px, pair.xy2_px, pair.valid)
    has_any, counts = pair.valid.any(1), jnp.maximum(pair.valid.sum(1), 1)
    parts = {"CE": entropy}
    for alpha in PCK_ALPHAS:
        share = ((distance <= alpha) & pair.valid).sum(1) / counts
        parts[f"pck@{alpha:g}"] = masked.mean_terms(share, has_any, axis_name if train else None)
    return per_example, (parts, kept)
