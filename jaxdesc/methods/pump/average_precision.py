"""Pixel-wise average precision on pairs of known geometry.

Source: He, Lu, Sclaroff, CVPR 2018; on pixels as in R2D2: Revaud et al., NeurIPS 2019.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdesc.methods.pump.backends import map_pairs
from jaxdesc.ops import masked
from jaxdesc.ops.geometry import apply_homography
from jaxdesc.types import Array


def soft_histogram_ap(scores: Array, positive: Array, negative: Array, bins: int = 20) -> Array:
    """Average precision of a ranking whose scores are spread over soft bins.

    Bin m of `bins` is centred at 1 - m / (bins - 1); a score is shared linearly by the two centres around it, and the first and last bins are
    open-ended. From high to low bins, with `pos` the positives' mass per bin,

        precision = cumsum(pos) / (1e-16 + cumsum(all)),   recall step = pos / total positives,   AP = sum(precision * recall step).

    Args:
      scores: (..., N).
      positive, negative: (..., N) bool; an entry that is neither does not exist.

    Returns:
      (...) in [0, 1]; 0 without positives.
    """
    return _average_precision(_cumulative_mass(scores, positive, bins), _cumulative_mass(scores, positive | negative, bins))


def _average_precision(positives: Array, everything: Array) -> Array:
    """AP from the cumulative masses (..., bins) of the positives and of all."""
    steps = jnp.diff(positives, axis=-1, prepend=0) / jnp.maximum(positives[..., -1:], 1)
    return jnp.sum(positives / (1e-16 + everything) * steps, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cumulative_mass(scores: Array, exists: Array, bins: int) -> Array:
    """Mass in bins 0..m of the scores (..., N) that exist, for every m: (..., bins).

    Of a score s, clip((bins - 1) s - (bins - 2 - m), 0, 1) lies in bins 0..m, and all of it in 0..bins-1. One threshold at a time, so that nothing
    larger than the scores is made.
    """
    thresholds = jnp.arange(bins - 2, -1, -1, dtype=scores.dtype)
    mass = lax.map(lambda t: jnp.sum(jnp.where(exists, jnp.clip((bins - 1) * scores - t, 0, 1), 0), -1), thresholds)
    total = jnp.sum(jnp.broadcast_to(exists, scores.shape), -1, dtype=scores.dtype)
    return jnp.moveaxis(jnp.concatenate([mass, total[None]]), 0, -1)


def _cumulative_mass_backward(bins, residuals, gradient):
    scores, exists = residuals  # a score moves mass across the one threshold below it: a look-up instead of a sum over thresholds
    below = jnp.clip((bins - 1) * scores, 0, bins - 2).astype(jnp.int32)
    slope = (bins - 1) * jnp.take_along_axis(gradient, bins - 2 - below, -1)
    return jnp.where(exists & (scores > 0) & (scores < 1), slope, 0), None


_cumulative_mass.defvjp(lambda scores, exists, bins: (_cumulative_mass(scores, exists, bins), (scores, exists)), _cumulative_mass_backward)


class Sample(NamedTuple):
    """Random positions of one pair, integers (x, y)."""

    query_xy1_px: Array  # (Q, 2) queries in image 1
    true_xy2_px: Array  # (Q, 2) where they lie in image 2, rounded; moved to the nearest pixel where that is outside
    valid: Array  # (Q,) bool: inside image 2
    distractor_xy2_px: Array  # (Q, 2) anywhere in image 2


def sample_queries(key: Array, H_1to2: Array, size1_hw: tuple[int, int], size2_hw: tuple[int, int], *, border: int = 16, spacing: int = 8) -> Sample:
    """Q = (H - 2 border)(W - 2 border) / spacing^2 queries at least `border` pixels from the edges of image 1, and as many distractors in image 2."""
    (H1, W1), (H2, W2) = size1_hw, size2_hw
    count = (H1 - 2 * border) * (W1 - 2 * border) // spacing**2
    key_query, key_distractor = jax.random.split(key)
    query = jax.random.randint(key_query, (count, 2), border, jnp.array([W1 - border, H1 - border]))
    last = jnp.array([W2 - 1, H2 - 1])
    true = jnp.round(apply_homography(H_1to2, query.astype(jnp.float32)))
    valid = jnp.all((true >= 0) & (true <= last), -1)
    return Sample(query, jnp.clip(true, 0, last).astype(jnp.int32), valid, jax.random.randint(key_distractor, (count, 2), 0, last + 1))


def pixel_ap(
    desc1: Array,
    desc2: Array,
    H_1to2: Array,
    keys: Array,
    *,
    border: int = 16,
    spacing: int = 8,
    positive_px: float = 2,
    negative_min_px: float = 4,
    negative_max_px: float = 7,
    bins: int = 20,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Average precision with which each of Q random pixels of image 1 finds its place in image 2, by dot products of descriptors.

    Around the true position q of a query, pixels within `positive_px` are positives and those at distances in [negative_min_px, negative_max_px] are
    negatives, as far as they lie inside image 2 (our decision). Negatives too are the distractors, Q random pixels of every image 2 of the batch; the
    score of one that is nearer to q than `negative_min_px`, in the same image, is set to 0.

    Args:
      desc1, desc2: (B, H, W, D).
      H_1to2: (B, 3, 3) homographies in pixels.
      keys: (B,) typed random keys, one per pair: they alone decide the positions (`sample_queries`).
      axis_name: mapped axis whose devices share their distractors; None keeps to this device's batch.

    Returns:
      (B, Q) float32 average precisions, and (B, Q) bool: q lies inside image 2.
    """
    B, H2, W2, D = desc2.shape
    draw = functools.partial(sample_queries, size1_hw=desc1.shape[1:3], size2_hw=(H2, W2), border=border, spacing=spacing)
    sample = jax.vmap(draw)(keys, H_1to2)
    queries = jax.vmap(_at)(desc1, sample.query_xy1_px)  # (B, Q, D)
    distractors = jax.vmap(_at)(desc2, sample.distractor_xy2_px)
    distractor_xy, image = sample.distractor_xy2_px, jnp.arange(B)
    if axis_name is not None:
        distractors, distractor_xy = lax.all_gather((distractors, distractor_xy), axis_name, tiled=True)
        image = image + B * lax.axis_index(axis_name)
    distractors, accumulator = distractors.reshape(-1, D), jnp.promote_types(desc1.dtype, jnp.float32)

    reach = int(negative_max_px)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance2 = x**2 + y**2
    used = (distance2 <= positive_px**2) | (distance2 >= negative_min_px**2) & (distance2 <= negative_max_px**2)
    offsets, is_positive = np.stack([x[used], y[used]], -1), distance2[used] <= positive_px**2

    @jax.checkpoint  # the scores of one image at a time exist, in the backward pass too
    def one_image(inputs):
        queries, desc2, image, true = inputs
        around = true[:, None] + offsets  # (Q, O, 2)
        exists = jnp.all((around >= 0) & (around < jnp.array([W2, H2])), -1)
        near = jnp.einsum("qod,qd->qo", _at(desc2, around), queries, preferred_element_type=accumulator)
        far = jnp.einsum("nd,qd->qn", distractors, queries, preferred_element_type=accumulator)
        gap2 = jnp.sum((true[:, None] - lax.dynamic_index_in_dim(distractor_xy, image, keepdims=False)) ** 2, -1)  # to those of the same image, (Q, Q)
        too_near = lax.dynamic_update_slice(jnp.zeros(far.shape, bool), gap2 < negative_min_px**2, (0, image * true.shape[0]))
        negatives = _cumulative_mass(jnp.where(too_near, 0, far), jnp.array(True), bins) + _cumulative_mass(near, exists & ~is_positive, bins)
        positives = _cumulative_mass(near, exists & is_positive, bins)
        return _average_precision(positives, positives + negatives)

    return map_pairs(one_image, (queries, desc2, image, sample.true_xy2_px)), sample.valid


def average_precision_loss(ap: Array, valid: Array, axis_name: str | None = None) -> Array:
    """(B,) values whose mean over the batch (over all devices of `axis_name`) is the mean of 1 - AP over its valid queries."""
    return masked.mean_terms(1 - ap, valid, axis_name)


def _at(desc: Array, xy: Array) -> Array:
    """Descriptors (..., D) of desc (H, W, D) at integer positions xy (..., 2), moved to the nearest pixel where outside."""
    H, W, D = desc.shape
    x, y = jnp.clip(xy[..., 0], 0, W - 1), jnp.clip(xy[..., 1], 0, H - 1)
    return desc.reshape(-1, D)[y * W + x]
