"""One training step and one validation step: pure, the same on one device and on many."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdesc.engine.optim import averaged
from jaxdesc.nets.layers import l2_normalise
from jaxdesc.ops.matching import reciprocal_nearest
from jaxdesc.ops.metrics import MMA_PX, matching_accuracy
from jaxdesc.ops.sampling import resize_aligned
from jaxdesc.types import Array, Batch, Correspondences, Method, Pair, RawBatch, TrainState, Variables

AXIS = "batch"  # the mapped axis that devices reduce over


def init_state(method: Method, optimizer: optax.GradientTransformation, batch: Batch, seed: int) -> TrainState:
    return new_state(method.init(jax.random.key(seed), batch), optimizer)


def new_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of step 0 with these variables."""
    model_state = dict(variables)
    params = model_state.pop("params")
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, model_state=model_state, opt_state=optimizer.init(params))


def inference_variables(state: TrainState) -> Variables:
    """What a trained network is used with: the averaged parameters where training keeps an average."""
    return {"params": averaged(state.opt_state, state.params), **state.model_state}


def train_step(
    state: TrainState,
    raw: RawBatch,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Array, RawBatch], Batch],
    seed: int,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """Draws the batch, takes the gradient of the mean loss over all devices and applies one update.

    Randomness is fold_in(key(seed), step), and within it fold_in(., slot) of each example, so that neither a restart nor the
    number of devices changes anything. With accumulate = A the device's rows are worked through in A parts of equal size,
    their gradients averaged.

    Must run under an axis named AXIS. Returns the new state and scalar metrics: loss, its parts, grad_norm.
    """
    draw_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))

    def objective(params, model_state, part):
        per_example, (parts, model_state) = method.loss({"params": params, **model_state}, draw(draw_key, part), loss_key, True)
        return per_example.mean(), ({name: value.mean() for name, value in parts.items()}, model_state)

    def one_part(carry, part):
        model_state, total = carry
        (loss, (parts, model_state)), grads = jax.value_and_grad(objective, has_aux=True)(state.params, model_state, part)
        return (model_state, jax.tree.map(jnp.add, total, grads)), {"loss": loss, **parts}

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    parts = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), raw)
    if accumulate == 1:
        (model_state, total), metrics = one_part((state.model_state, zeros), jax.tree.map(lambda x: x[0], parts))
    else:
        (model_state, total), metrics = jax.lax.scan(one_part, (state.model_state, zeros), parts)
        metrics = jax.tree.map(jnp.mean, metrics)

    grads = jax.lax.pmean(jax.tree.map(lambda g: g / accumulate, total), AXIS)
    metrics = jax.lax.pmean(metrics, AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = TrainState(step=state.step + 1, params=optax.apply_updates(state.params, updates), model_state=model_state, opt_state=opt_state)
    return new, {**metrics, "grad_norm": optax.tree.norm(grads)}


def full_size(descriptors: Array, size_hw: tuple[int, int]) -> Array:
    """Maps (B, H', W', D), corners aligned with the images', at the images' own size (H, W); of unit length if they had to be resized."""
    if descriptors.shape[1:3] == tuple(size_hw):
        return descriptors
    return l2_normalise(resize_aligned(descriptors, size_hw))


def validation_step(variables: Variables, pair: Pair, *, method: Method) -> tuple[dict[str, Array], Correspondences]:
    """MMA of descriptors alone (reciprocal nearest neighbours, no pyramid) on pairs with known homographies, one pair at a time.

    Returns {"mma@1px": ..., "matches": mean number counted} and the matches of every pair.
    """

    def one(example):
        image1, image2, H_1to2 = example
        desc1, desc2 = full_size(method.describe(variables, jnp.stack([image1, image2])), image1.shape[:2])
        matches = reciprocal_nearest(desc1, desc2)
        return matching_accuracy(matches, H_1to2, desc2.shape[:2]), matches

    (share, weight, count), matches = jax.lax.map(one, (pair.image1, pair.image2, pair.H_1to2))
    mean = (share * weight[:, None]).sum(0) / jnp.maximum(weight.sum(), 1)
    return {**{f"mma@{t:g}px": m for t, m in zip(MMA_PX, mean, strict=True)}, "matches": count.mean()}, matches
