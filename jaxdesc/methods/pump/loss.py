"""L = L_AP (homography pairs) + 0.3 L_uniq (unlabelled pairs)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdesc.methods.pump.average_precision import average_precision_loss, pixel_ap
from jaxdesc.methods.pump.backends import map_pairs
from jaxdesc.methods.pump.uniqueness import uniqueness_loss
from jaxdesc.types import Array, Batch, Variables


def pump_loss(variables: Variables, batch: Batch, key: Array, train: bool, *, net: nn.Module, cfg, axis_name: str | None = None):
    """PUMP's training loss on the halves that the batch has.

    With B_h homography and B_u unlabelled pairs, B = B_h + B_u, the values are B / B_h * L_AP of each of the former and
    B / B_u * uniq_weight * L_uniq of each of the latter, so that their mean is mean L_AP + uniq_weight * mean L_uniq.
    Images 1 and 2 go through the network together and share its batch statistics, or, with
    cfg.batch_statistics = "separate", one after the other: each has its own, and the running
    statistics are updated twice, by images 1 first.

    Args:
      variables: of the network.
      batch: {"homography": Pair with H_1to2, "unlabelled": Pair}, one of them may be absent.
      key: of the step; each example's draws come from fold_in(key, slot).
      train: whether batch statistics are those of the batch, and are updated.
    Returns:
      per_example (B,), ({"L_AP": (B_h,), "L_uniq": (B_u,)}, model_state).
    """
    halves = [half for half in ("homography", "unlabelled") if half in batch]
    images = [
        jnp.concatenate([getattr(batch[half], name) for half in halves])
        for name in ("image1", "image2")
    ]
    total = images[0].shape[0]
    maps, model_state = [], {name: value for name, value in variables.items() if name != "params"}
    for group in images if cfg.batch_statistics == "separate" else [jnp.concatenate(images)]:
        if train:
            found, updated = net.apply(
                {**variables, **model_state}, group, train=True, mutable=["batch_stats"]
            )
            model_state = {**model_state, **updated}
        else:
            found = net.apply(variables, group, train=False)
        maps.append(found)
    maps1, maps2 = jnp.split(jnp.concatenate(maps), 2)

    values, parts, at = [], {}, 0
    for half in halves:
        pair, n = batch[half], batch[half].slot.shape[0]
        desc1, desc2 = maps1[at : at + n], maps2[at : at + n]
        at += n
        if half == "homography":
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, pair.slot)
            ap, valid = pixel_ap(
                desc1,
                desc2,
                pair.H_1to2,
                keys,
                border=cfg.ap_border_px,
                spacing=cfg.ap_spacing_px,
                positive_px=cfg.ap_positive_px,
                negative_min_px=cfg.ap_negative_px[0],
                negative_max_px=cfg.ap_negative_px[1],
                bins=cfg.ap_bins,
                axis_name=axis_name,
            )
            parts["L_AP"] = average_precision_loss(ap, valid, axis_name=axis_name)
            values.append(total / n * parts["L_AP"])
        else:

            def both_ways(pair_of_maps):
                return uniqueness_loss(*pair_of_maps, border=cfg.uniq_border_px, subsample=cfg.uniq_subsample)

            parts["L_uniq"] = map_pairs(both_ways, (desc1, desc2))
            values.append(total / n * cfg.uniq_weight * parts["L_uniq"])
    return jnp.concatenate(values), (parts, model_state)
