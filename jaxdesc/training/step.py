"""One training step and one validation step: pure, the same on one device and on many."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxdesc.method import Method
from jaxdesc.ops.epipolar import epipolar_distance
from jaxdesc.ops.geometry import apply_homography
from jaxdesc.ops.matching import nearest, reciprocal_nearest
from jaxdesc.ops.metrics import MMA_PX, PCK_ALPHA, PCK_ALPHAS, PCK_PX, matching_accuracy
from jaxdesc.ops.sampling import cell_centres, descriptors_at, full_size
from jaxdesc.training.optim import ParameterAverage, kept_average, with_model_state
from jaxdesc.types import Array, Batch, Correspondences, KeypointPair, Pair, PosedPair, RawBatch, TrainState, Variables

AXIS = "batch"  # the mapped axis that devices reduce over
RIGHT_PX = 3.0  # of a match on a pair with a known homography that a picture shows as right


def init_state(method: Method, optimizer: optax.GradientTransformation, batch: Batch, seed: int) -> TrainState:
    return new_state(method.init(jax.random.key(seed), batch), optimizer)


def new_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of step 0 with these variables."""
    model_state = dict(variables)
    params = model_state.pop("params")
    opt_state = with_model_state(optimizer.init(params), jax.tree.map(jnp.copy, model_state))
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, model_state=model_state, opt_state=opt_state)


def inference_variables(state: TrainState) -> Variables:
    """What a trained network is used with: the averaged parameters where training keeps an average."""
    kept = kept_average(state.opt_state) or ParameterAverage(state.params, state.model_state)
    return {"params": kept.average, **kept.model_state}


def settle_statistics(
    state: TrainState,
    raw: RawBatch,
    *,
    method: Method,
    draw: Callable[[Array, RawBatch], Batch],
    seed: int,
) -> TrainState:
    """Takes one batch's statistics into those that the averaged parameters are used with.

    Batch statistics belong to the parameters that they were seen with. An average of
    parameters has less spread activations: with the trained network's statistics one of
    11,700 steps had a validation MMA@1 of .729, with its own .770 (the trained one: .762).

    Must run under an axis named AXIS.
    """
    draw_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    batch = draw(draw_key, raw, step=state.step)
    _, (_, model_state) = method.loss(inference_variables(state), batch, loss_key, True)
    return state.replace(opt_state=with_model_state(state.opt_state, model_state))


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
        per_example, (parts, model_state) = method.loss({"params": params, **model_state}, draw(draw_key, part, step=state.step), loss_key, True)
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


def validation_step(variables: Variables, pairs: Pair | PosedPair | KeypointPair, *, method: Method) -> tuple[dict[str, Array], Correspondences]:
    """Scores of descriptors alone on one part of a validation batch, one pair at a time: nearest neighbours, no pyramid, no search in windows.

    Pairs with known homographies: MMA, {"mma@1px": ..., "matches": mean number counted}. Pairs with known poses: {"pck@5px": ..., "epipolar_px": ...}, of which
    the former only where true positions are known. Pairs with common keypoints: {"pck@0.05": ..., "pck@0.1": ..., "pck@0.15": ...} and the parts of the
    loss. See the functions of SCORES.

    Args:
      method: built without an axis, validation runs on one device.

    Returns:
      the scores, means over the pairs that have any, and the matches of every pair, leading axis B.
    """
    scores, matches = jax.lax.map(partial(SCORES[type(pairs)], variables, method=method), pairs)
    return {name: value.sum() / jnp.maximum(weight.sum(), 1) for name, (value, weight) in scores.items()}, matches


def homography_scores(variables: Variables, pair: Pair, *, method: Method) -> tuple[dict[str, tuple[Array, Array]], Correspondences]:
    """One pair: (sum, weight) of each score, and the reciprocal nearest neighbours that were scored."""
    size_hw = pair.image1.shape[:2]
    maps = method.describe(variables, jnp.stack([pair.image1, pair.image2]))
    desc1, desc2 = full_size(maps, method.grid(*size_hw), size_hw)
    matches = reciprocal_nearest(desc1, desc2)
    share, weight, count = matching_accuracy(matches, pair.H_1to2, desc2.shape[:2])
    scores = {f"mma@{t:g}px": (value * weight, weight) for t, value in zip(MMA_PX, share, strict=True)}
    return {**scores, "matches": (count.astype(jnp.float32), jnp.ones(()))}, matches


def posed_scores(variables: Variables, pair: PosedPair, *, method: Method) -> tuple[dict[str, tuple[Array, Array]], Correspondences]:
    """One pair, each query looked for by `look_up`:

        pck@5px      share of the queries with known true positions that are found within 5 px of them
        epipolar_px  mean distance of what is found to the queries' epipolar lines, over all queries

    A pair without such queries has the weight 0. Source: CAPS, supplementary section 7 (PCK of a pair, at 5 px, on reconstructed keypoints).

    Returns:
      (sum, weight) of each score, and a match for each query.
    """
    matches = look_up(variables, pair, method)
    scores = {"epipolar_px": _share(epipolar_distance(pair.F_1to2, pair.xy1_px, matches.xy2_px), pair.valid)}
    if pair.xy2_px is not None:
        scores = {f"pck@{PCK_PX:g}px": _share(right(pair, matches), pair.known & pair.valid), **scores}
    return scores, matches


def keypoint_scores(variables: Variables, pair: KeypointPair, *, method: Method) -> tuple[dict[str, tuple[Array, Array]], Correspondences]:
    """One pair: (sum, weight) of PCK, the share of the keypoints that are moved to within 0.05, 0.1, 0.15 of image 2's longer side of their true positions,
    the method's loss and its parts. Without true positions: the loss and its parts.

    Keypoints are moved by `Method.transfer` where the method has its own way, else by `look_up`.
    """
    if method.transfer is None:
        matches = look_up(variables, pair, method)
    else:
        xy2, score = method.transfer(variables, pair.image1, pair.image2, pair.xy1_px)
        matches = Correspondences(pair.xy1_px, xy2, score, jnp.zeros(len(score), jnp.int32), pair.valid)
    per_example, (parts, _) = method.loss(variables, {"semantic": jax.tree.map(lambda x: x[None], pair)}, jax.random.key(0), False)
    scores = {name: (value[0], jnp.ones(())) for name, value in {"loss": per_example, **parts}.items()}
    if pair.xy2_px is not None:
        scores |= {f"pck@{alpha:g}": _share(near(pair, matches, alpha), pair.valid) for alpha in PCK_ALPHAS}
    return scores, matches


SCORES = {Pair: homography_scores, PosedPair: posed_scores, KeypointPair: keypoint_scores}


def look_up(variables: Variables, pair: PosedPair | KeypointPair, method: Method) -> Correspondences:
    """The points xy1_px of one pair, each with the cell of image 2's whole descriptor map that is most like image 1's map there."""
    grid = method.grid(*pair.image1.shape[:2])
    map1, map2 = method.describe(variables, jnp.stack([pair.image1, pair.image2]))
    queries = descriptors_at(map1, pair.xy1_px, grid)
    cells = cell_centres(map2.shape[:2], grid)
    index, score, _ = nearest(queries, map2.reshape(-1, map2.shape[-1]), pair.valid, jnp.ones(len(cells), bool), strip=256)
    return Correspondences(pair.xy1_px, cells[index], score, jnp.zeros(len(index), jnp.int32), pair.valid)


def _share(values: Array, counted: Array) -> tuple[Array, Array]:
    """Mean over the marked ones and weight 1, or 0 and 0 if there is none."""
    return jnp.where(counted, values, 0).sum() / jnp.maximum(counted.sum(), 1), counted.any().astype(jnp.float32)


def near(pair: KeypointPair, matches: Correspondences, alpha: float) -> Array:
    """(N,) bool: the matches of one pair that lie within `alpha` of image 2's longer side of the truth."""
    return jnp.linalg.norm(pair.xy2_px - matches.xy2_px, axis=-1) <= alpha * max(pair.image2.shape[:2])


def right(pair: Pair | PosedPair | KeypointPair, matches: Correspondences) -> Array:
    """(N,) bool: the matches of one pair that a picture shows as right. With a homography: within 3 px of the truth. With a pose: within 5 px of the true
    position, or, where that is not known, of the epipolar line. With common keypoints: within 0.1 of image 2's longer side, or all, where these are not known."""
    if isinstance(pair, KeypointPair):
        return matches.valid if pair.xy2_px is None else near(pair, matches, PCK_ALPHA)
    if not isinstance(pair, PosedPair):
        return jnp.linalg.norm(apply_homography(pair.H_1to2, matches.xy1_px) - matches.xy2_px, axis=-1) <= RIGHT_PX
    on_line = epipolar_distance(pair.F_1to2, matches.xy1_px, matches.xy2_px) <= PCK_PX
    if pair.xy2_px is None:
        return on_line
    return jnp.where(pair.known, jnp.linalg.norm(pair.xy2_px - matches.xy2_px, axis=-1) <= PCK_PX, on_line)
