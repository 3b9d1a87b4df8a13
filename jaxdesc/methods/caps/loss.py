"""L = E_c + E_f + 0.1 Y_c + 0.1 Y_f: expected locations lie on their epipolar lines, and lead back to where they came from. CAPS, section 3.

The functions above `caps_loss` are for one pair.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.methods.caps.matching import Matches, match_pair
from jaxdesc.methods.caps.unet import Maps
from jaxdesc.ops import masked
from jaxdesc.ops.epipolar import epipolar_distance, safe_norm
from jaxdesc.ops.sampling import px_from_uv, uv_from_px
from jaxdesc.types import Array, Batch, PosedPair, Variables

PAIR = "pair"  # the mapped axis of a batch's pairs
PARTS = ("E_coarse", "E_fine", "Y_coarse", "Y_fine")
PCK_PX = 5.0  # of the training curve, Fig. 4 of the supplementary


def mean_term(x: Array, valid: Array, axes: tuple[str, ...] = ()) -> Array:
    """() the pair's mean of x (N,) where valid (N,); 0 if nothing is.

    Args:
      axes: mapped axes of pairs that are taken together: the mean over them of what is
        given is then the mean of x over all their valid points, as in `masked.mean_terms`.
    """
    total, count = jnp.sum(jnp.where(valid, x, 0)), jnp.sum(valid)
    return total * (jax.lax.psum(1, axes) / jnp.maximum(jax.lax.psum(count, axes), 1))


def weights(
    std: Array, kept: Array, valid: Array, reweight: bool = True, axes: tuple[str, ...] = ()
) -> Array:
    """w = 1 / std over its mean, times the mask, over (its mean + 1e-8); no gradient.

    Args:
      std: (N,) > 0. kept: (N,) bool, the mask. valid: (N,) bool, the points that exist.
      reweight: False: 1 instead of 1 / std.
      axes: mapped axes of pairs over whose points the means are taken too.
    Returns:
      (N,) of mean 1 over the valid points, all 0 if none is kept.
    """

    def mean(w):
        return jax.lax.pmean(mean_term(w, valid, axes), axes)

    w = jnp.where(valid, 1 / std if reweight else jnp.ones_like(std), 0)
    w = w / jnp.maximum(mean(w), 1e-30)
    w = jnp.where(kept & valid, w, 0)
    return jax.lax.stop_gradient(w / (mean(w) + 1e-8))


def pair_losses(
    matches: Matches,
    xy1: Array,
    F_1to2: Array,
    valid: Array,
    size_hw: tuple[int, int],
    cfg,
    axes: tuple[str, ...] = (),
) -> dict[str, Array]:
    """The four parts, without their weights in L. With e the epipolar distance in pixels, s
    and l the shorter and longer side of the images in pixels:

        E_c = mean(w_c e_c) / l       kept where e_c < 0.5 s
        E_f = mean(w_f e_f) / l       kept where e_f < 0.5 s and e_c < 0.125 s
        Y   = mean(w [d < 40 px] d) / l,  d = ||x1 - x1_loop||,
                                      kept where e < 0.025 s, e of the same level

    w from 1 / std (E) or 1 / (std std_loop) (Y) of the same level, see `weights`.

    Args:
      matches: of the N points xy1 (N, 2) in pixels of image 1. F_1to2: (3, 3).
      valid: (N,) bool; what the other points hold does not matter.
      size_hw: of both images.
      axes: mapped axes of the pairs whose points w is normalised over and the means are
        taken over together, see `mean_term`; none: over this pair's.
    """
    xy1 = jnp.where(valid[:, None], xy1, 0)
    long, short = max(size_hw), min(size_hw)
    e = {
        level: epipolar_distance(F_1to2, xy1, px_from_uv(getattr(matches, level).uv, size_hw))
        for level in ("coarse", "fine")
    }
    kept = {"coarse": e["coarse"] < cfg.epipolar_share * short}
    kept["fine"] = (e["fine"] < cfg.epipolar_share * short) & (e["coarse"] < cfg.fine_share * short)

    def mean(values, std, kept):
        return mean_term(weights(std, kept, valid, cfg.reweight, axes) * values, valid, axes) / long

    parts = {}
    for level in ("coarse", "fine"):
        there, back = getattr(matches, level), getattr(matches, f"{level}_loop")
        parts[f"E_{level}"] = mean(e[level], there.std, kept[level])
        d = safe_norm(xy1 - px_from_uv(back.uv, size_hw))
        near = e[level] < cfg.cycle_share * short
        parts[f"Y_{level}"] = mean(jnp.where(d < cfg.cycle_px, d, 0), there.std * back.std, near)
    return {name: parts[name] for name in PARTS}


def together(cfg, axis_name: str | None) -> tuple[str, ...]:
    """Mapped axes of the pairs whose points count together: those of a batch, on all devices."""
    if cfg.weights_over == "pair":
        return ()
    return (PAIR,) if axis_name is None else (PAIR, axis_name)


def caps_loss(variables: Variables, batch: Batch, key: Array, train: bool, *, net: nn.Module, cfg, axis_name: str | None = None):
    """CAPS's training loss; all images go through the network together and share its batch statistics.

    Args:
      batch: {"posed": PosedPair}. key: not used, nothing is random.
      train: whether batch statistics are those of the batch, and are updated.
    Returns:
      per_example (B,), (parts, model_state): the four parts (B,), and "pck@5px" (B,), the share of fine locations within 5 px of the known true ones, where
      the batch knows any.
    """
    pair: PosedPair = batch["posed"]
    images = jnp.concatenate([pair.image1, pair.image2])
    if train:
        maps, model_state = net.apply(variables, images, train=True, mutable=["batch_stats"])
    else:
        maps, model_state = net.apply(variables, images, train=False), {"batch_stats": variables["batch_stats"]}
    n = pair.slot.shape[0]
    size_hw = pair.image1.shape[1:3]

    def one(coarse1, fine1, coarse2, fine2, xy1, F_1to2, valid):
        uv1 = uv_from_px(jnp.where(valid[:, None], xy1, 0), size_hw)
        matches = match_pair(Maps(coarse1, fine1), Maps(coarse2, fine2), uv1, window=cfg.window, use_nn=cfg.use_nn, similarity=cfg.similarity)
        parts = pair_losses(matches, xy1, F_1to2, valid, size_hw, cfg, together(cfg, axis_name))
        return parts, px_from_uv(matches.fine.uv, size_hw)

    halves = maps.coarse[:n], maps.fine[:n], maps.coarse[n:], maps.fine[n:]
    each = jax.vmap(one, axis_name=PAIR)
    parts, xy2 = each(*halves, pair.xy1_px, pair.F_1to2, pair.valid)
    factors = (cfg.coarse_weight, cfg.fine_weight, cfg.coarse_cycle_weight, cfg.fine_cycle_weight)
    per_example = sum(factor * parts[name] for factor, name in zip(factors, PARTS, strict=True))
    if pair.xy2_px is not None:
        known = pair.valid & pair.known
        error = safe_norm(jnp.where(known[..., None], pair.xy2_px - jax.lax.stop_gradient(xy2), 0))
        parts[f"pck@{PCK_PX:g}px"] = masked.mean_terms((error <= PCK_PX).astype(jnp.float32), known, axis_name)
    return per_example, (parts, model_state)
