"""L_P = L_sil + lambda L_geo; L = L_P + lambda_M L_M + lambda_sm L_sm. GSF, supplementary (11) to (14)."""

import jax
import jax.numpy as jnp

from jaxdesc.methods.gsf import flow
from jaxdesc.methods.gsf.network import Alignment, GsfNet, grid, side_px
from jaxdesc.nets.frozen import thaw
from jaxdesc.ops import masked
from jaxdesc.ops.sampling import cells_from_px
from jaxdesc.types import Array, Batch, Grid, KeypointPair, UserError, Variables


def pair_losses(source: Array, target: Array, found: Alignment, masks: tuple[Array, Array] | None, cfg) -> dict[str, Array]:
    """The parts of one pair, without their weights in L: L_sil and L_geo, and L_M and L_sm where there is a flow.

    L_sil and L_geo run over S* = {Q > rho}, which the pruning network does not change.

    Args:
      source, target: features (h, w, d) of unit length. found: Alignment of this pair.
      masks: (h, w) bool of either image's cells, or None.
    """
    among = flow.confident(found.Q, cfg.rho)
    same = None if masks is None else flow.same_side(*masks)
    rebuilt = flow.warp_map(target, found.guidance)
    parts = {
        "L_sil": flow.silhouette_loss(found.refined, found.Q, among, same),
        "L_geo": flow.reconstruction_loss(source, rebuilt, found.refined, among, cfg.geo_window, cfg.geo_weight),
    }
    if found.flow is not None:
        parts["L_M"] = flow.classification_loss(source, flow.warp_map(target, found.flow), cfg.match_window, cfg.sharpness)
        parts["L_sm"] = flow.smoothness_loss(found.flow)
    return parts


def end_point_errors(
    found: Alignment, xy1: Array, xy2: Array, valid: Array, grid: Grid, axis_name: str | None = None
) -> dict[str, Array]:
    """{"epe_best": (B,), "epe_guidance": ..., "epe_flow": ...}: how far the arg-max of C, G' and tau carry keypoints from where they should, in cells; their
    means over the batch are those over all valid keypoints, see `masked.mean_terms`. For scores, not differentiated.

    Args:
      xy1, xy2: (B, K, 2) true positions in px of the squares. valid: (B, K) bool; what the
        others hold does not matter. grid: where the cells lie on the squares.
    """
    h, w = found.guidance.shape[1:3]
    cells1, cells2 = (
        cells_from_px(jnp.where(valid[..., None], xy, 0), grid) for xy in (xy1, xy2)
    )
    flows = {"epe_best": jax.vmap(lambda c: flow.best_flow(c, (h, w)))(found.C), "epe_guidance": found.guidance, "epe_flow": found.flow}
    errors = {name: jnp.sum((jax.vmap(flow.carried)(jax.lax.stop_gradient(f), cells1) - cells2) ** 2, -1) ** 0.5 for name, f in flows.items() if f is not None}
    return {name: masked.mean_terms(error, valid, axis_name) for name, error in errors.items()}


def gsf_loss(
    variables: Variables, batch: Batch, key: Array, train: bool, *, net: GsfNet, cfg, pruning_only: bool = False, axis_name: str | None = None
) -> tuple[Array, tuple[dict[str, Array], Variables]]:
    """GSF's training loss.

    Args:
      batch: {"keypoints": KeypointPair} of squares of `side_px`. With masks `mask1`, `mask2` (B, H, W) the silhouette loss uses them, see
        `cfg.sil_masks`. With true positions, end-point errors are measured; no loss sees these.
      key: not used, nothing is random. train: whether batch statistics of the U-Nets are those of the batch, and are updated.
      pruning_only: L_P alone, with features that are constants: the first stage.
    Returns:
      per_example (B,), (parts, model_state). Parts, (B,) each: the losses; "density", the share of the source's cells with Q > rho (0.75 in the paper), "kept",
      that with Q' > rho; and the end-point errors.
    Raises:
      UserError: images of another size.
    """
    pair: KeypointPair = batch["keypoints"]
    side = side_px(cfg)
    if pair.image1.shape[1:3] != (side, side) or pair.image2.shape[1:3] != (side, side):
        raise UserError(
            f"GSF sees squares of {side} px ({cfg.grid} cells of {side // cfg.grid} px), the batch holds {pair.image1.shape} and {pair.image2.shape}."
        )
    full, model_state = thaw(variables), {name: tree for name, tree in variables.items() if name != "params"}
    features = net.apply(full, jnp.concatenate([pair.image1, pair.image2]), method="features")
    source, target = jnp.split(jax.lax.stop_gradient(features) if pruning_only else features, 2)
    if train:
        found, updated = net.apply(full, source, target, True, not pruning_only, method="align", mutable=["batch_stats"])
        model_state = {**model_state, **updated}
    else:
        found = net.apply(full, source, target, False, not pruning_only, method="align")
    masks = None
    if cfg.sil_masks and pair.mask1 is not None:
        masks = tuple(jax.vmap(lambda m: flow.mask_cells(m, (cfg.grid, cfg.grid), cfg.mask_share))(m) for m in (pair.mask1, pair.mask2))
    parts = jax.vmap(lambda *pair: pair_losses(*pair, cfg))(source, target, found, masks)
    factors = {"L_sil": 1.0, "L_geo": cfg.geo_factor, "L_M": cfg.match_factor, "L_sm": cfg.smooth_factor}
    per_example = sum(factors[name] * value for name, value in parts.items())
    parts |= {name: jax.vmap(lambda q: flow.density(q, cfg.rho))(volume) for name, volume in (("density", found.Q), ("kept", found.refined))}
    if pair.xy2_px is not None:
        parts |= end_point_errors(found, pair.xy1_px, pair.xy2_px, pair.valid, grid(cfg, side, side), axis_name)
    return per_example, (parts, model_state)
