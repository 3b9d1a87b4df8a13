import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc import config
from jaxdesc.config import OptimConfig
from jaxdesc.data.kinds import CropConfig, HomographyPairs
from jaxdesc.methods import METHODS
from jaxdesc.methods.pump import Config, network
from jaxdesc.methods.pump.average_precision import average_precision_loss, pixel_ap
from jaxdesc.methods.pump.uniqueness import uniqueness_loss
from jaxdesc.training.optim import make_optimizer
from jaxdesc.training.step import AXIS, init_state, train_step, validation_step
from jaxdesc.types import Pair

TINY = Config(output_dim=8, hidden=8, depth=1, kernel=3, ap_border_px=8, uniq_border_px=8)


def pairs(n, known, seed=0, side=64, first_slot=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    image = jax.image.resize(jax.random.uniform(keys[0], (n, side // 4, side // 4, 3)), (n, side, side, 3), "linear")
    shifted = jnp.roll(image, (2, 3), (1, 2))
    H = jnp.tile(jnp.array([[1.0, 0, 3], [0, 1, 2], [0, 0, 1]]), (n, 1, 1))
    return Pair(image1=image, image2=shifted, H_1to2=H if known else None, slot=jnp.arange(n) + first_slot)


def batch(homography=2, unlabelled=4, seed=0):
    halves = {
        "homography": pairs(homography, True, seed),
        "unlabelled": pairs(unlabelled, False, seed + 1, first_slot=homography),
    }
    return {half: pair for half, pair in halves.items() if pair.slot.shape[0]}


@pytest.fixture(scope="module")
def method():
    return METHODS["pump"].build(TINY)


@pytest.fixture(scope="module")
def variables(method):
    return jax.jit(method.init)(jax.random.key(0), batch())


@pytest.mark.parametrize(("homography", "unlabelled"), [(2, 4), (2, 0), (0, 4)])
def test_mean_of_the_examples_is_the_papers_sum(method, variables, homography, unlabelled):
    """S+U, S and U: mean per_example = mean L_AP + 0.3 mean L_uniq, with the parts worked out from the maps themselves."""
    data, key = batch(homography, unlabelled), jax.random.key(5)
    per_example, (parts, _) = jax.jit(method.loss, static_argnums=3)(variables, data, key, False)
    chex.assert_shape(per_example, (homography + unlabelled,))
    expected = 0.0
    if homography:
        pair = data["homography"]
        maps = [method.describe(variables, image) for image in (pair.image1, pair.image2)]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, pair.slot)
        ap, valid = pixel_ap(*maps, pair.H_1to2, keys, border=8)
        expected += average_precision_loss(ap, valid).mean()
        np.testing.assert_allclose(parts["L_AP"].mean(), (1 - ap)[valid].mean(), rtol=1e-4)
    if unlabelled:
        pair = data["unlabelled"]
        maps = [method.describe(variables, image) for image in (pair.image1, pair.image2)]
        expected += 0.3 * np.mean([uniqueness_loss(a, b, border=8) for a, b in zip(*maps, strict=True)])
    np.testing.assert_allclose(per_example.mean(), expected, rtol=2e-4, atol=1e-5)


def test_heads_of_a_detector_rest_while_the_network_learns():
    """They are among the variables, the loss hands them on, the descriptors ignore them."""
    cfg = Config(
        backbone="r2d2", output_dim=8, keypoint_heads=True, ap_border_px=8, uniq_border_px=8
    )
    with_heads, without = (
        METHODS["pump"].build(cfg),
        METHODS["pump"].build(dataclasses.replace(cfg, keypoint_heads=False)),
    )
    data = batch(1, 0)
    variables = jax.jit(with_heads.init)(jax.random.key(0), data)
    assert {name: head["kernel"].shape for name, head in variables["heads"].items()} == {
        "clf": (1, 1, 8, 2),
        "sal": (1, 1, 8, 1),
    }
    bare = {name: value for name, value in variables.items() if name != "heads"}
    chex.assert_trees_all_equal(jax.jit(without.init)(jax.random.key(0), data), bare)
    image = data["homography"].image1
    np.testing.assert_array_equal(
        with_heads.describe(variables, image), without.describe(bare, image)
    )
    _, (_, model_state) = jax.eval_shape(
        partial(with_heads.loss, train=True), variables, data, jax.random.key(0)
    )
    chex.assert_trees_all_equal_shapes(
        model_state, {name: value for name, value in variables.items() if name != "params"}
    )


def test_gradients_are_finite_and_reach_every_parameter(method, variables):
    def objective(params):
        return method.loss({**variables, "params": params}, batch(), jax.random.key(1), True)[0].mean()

    grads = jax.jit(jax.grad(objective))(variables["params"])
    chex.assert_tree_all_finite(grads)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_describe_takes_any_size_and_padding_does_not_show(method, variables):
    image = jax.random.uniform(jax.random.key(2), (1, 33, 46, 3))
    maps = method.describe(variables, image)
    assert maps.shape == (1, 33, 46, 8)
    padded = jnp.pad(image, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="reflect")
    np.testing.assert_allclose(maps, method.describe(variables, padded)[:, :33, :46], atol=1e-5)


def first_mean(model_state):
    return model_state["batch_stats"]["stem"]["bn"]["norm"]["mean"]


def test_batch_statistics_of_the_two_images_are_separate_or_joint(method, variables):
    """The parts from the maps of images 1 and images 2, which go through the network as two
    batches or as one. The running statistics take 0.1 of each batch's own, in torch's way."""
    data, key = batch(), jax.random.key(5)
    images = [
        np.concatenate([np.asarray(getattr(data[half], name)) for half in ("homography", "unlabelled")])
        for name in ("image1", "image2")
    ]
    net = network.build(TINY)
    apply = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
    seen = {"separate": images, "joint": [np.concatenate(images)]}
    losses = {}
    for how, groups in seen.items():
        loss = METHODS["pump"].build(dataclasses.replace(TINY, batch_statistics=how)).loss
        _, (parts, model_state) = jax.jit(loss, static_argnums=3)(variables, data, key, True)
        found = [apply(variables, group) for group in groups]
        maps = np.concatenate([descriptors for descriptors, _ in found])
        # Means of the first normalisation: its input does not depend on statistics. They begin
        # at 0, so that after one batch a tenth of the batch's own stands there.
        tenths = [first_mean(state) for _, state in found]
        running = tenths[0] if how == "joint" else 0.9 * tenths[0] + tenths[1]
        np.testing.assert_allclose(first_mean(model_state), running, rtol=1e-4)
        expected = [uniqueness_loss(maps[2 + i], maps[8 + i], border=8) for i in range(4)]
        np.testing.assert_allclose(parts["L_uniq"], expected, rtol=1e-3, atol=1e-5)
        losses[how] = np.asarray(parts["L_uniq"])
    assert np.abs(losses["separate"] - losses["joint"]).max() > 1e-4


def make_step(cfg, steps=4, learning_rate=1e-3, seed=0):
    method = METHODS["pump"].build(cfg, axis_name=AXIS)
    optimizer = make_optimizer(OptimConfig(learning_rate=learning_rate, weight_decay=0.0), steps)
    step = partial(train_step, method=method, optimizer=optimizer, draw=lambda key, raw, step: raw, seed=seed)
    return step, jax.jit(partial(init_state, method, optimizer, seed=seed))(batch())


@pytest.mark.parametrize("statistics", ["joint", "separate"])
def test_one_device_equals_eight(statistics):
    """Loss, parameters and batch statistics after a step of S+U do not depend on the number of devices."""
    step, state = make_step(dataclasses.replace(TINY, batch_statistics=statistics))
    # Of seeds 0 and 2 a ReLU or an arg-max lies so near its kink that rounding decides, which
    # moves gradients by 4e-4 of the greatest; those of seeds 1, 3, 4 and 5 agree to 3e-5.
    data, results = batch(8, 8, seed=3), []
    for devices in (1, 8):
        stacked = jax.tree.map(lambda x, d=devices: np.broadcast_to(x, (d, *x.shape)), state)
        split = jax.tree.map(lambda x, d=devices: x.reshape(d, -1, *x.shape[1:]), data)
        new, metrics = jax.pmap(step, axis_name=AXIS, devices=jax.devices()[:devices])(stacked, split)
        results.append(jax.tree.map(lambda x: np.asarray(x[0]), (metrics, new.model_state, new.opt_state, new.params)))
    for one, eight in zip(jax.tree.leaves(results[0][:2]), jax.tree.leaves(results[1][:2]), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-6)
    # Adam's first moments are the gradients; its update divides by their size, so gradients are what is compared.
    first, second = (next(s.mu for s in r[2] if hasattr(s, "mu")) for r in results)
    scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(first))
    chex.assert_trees_all_close(first, second, atol=1e-4 * scale)


def test_one_fixed_batch_overfits():
    cfg = dataclasses.replace(TINY, output_dim=16, hidden=16)
    step, state = make_step(cfg, steps=60, learning_rate=1e-2)
    parallel = jax.pmap(step, axis_name=AXIS, devices=jax.devices()[:1])
    data = jax.tree.map(lambda x: x[None], batch(2, 2))
    state = jax.tree.map(lambda x: x[None], state)
    losses = []
    for _ in range(60):
        # the same state.step keeps the sampled queries the same
        state, metrics = parallel(state.replace(step=jnp.zeros(1, jnp.int32)), data)
        losses.append(float(metrics["loss"][0]))
    assert min(losses[-5:]) < losses[0] - 0.2


def test_validation_scores_a_perfect_and_a_blind_network():
    pair = pairs(2, True)

    def by_place(variables, images):
        """Descriptors that name the pixel's place in image 1, carried along to image 2."""
        y, x = jnp.meshgrid(jnp.arange(64), jnp.arange(64), indexing="ij")
        code = jax.nn.one_hot(y, 70) * 0 + jax.nn.one_hot(y, 70)
        first = jnp.concatenate([code, jax.nn.one_hot(x, 70)], -1)
        second = jnp.concatenate([jax.nn.one_hot(y - 2, 70), jax.nn.one_hot(x - 3, 70)], -1)
        return jnp.stack([first, second])

    method = METHODS["pump"].build(TINY)._replace(describe=by_place)
    scores, _ = jax.jit(partial(validation_step, method=method, scores=HomographyPairs.scores))({}, pair)
    assert float(scores["mma@1px"]) == 1.0
    blind = method._replace(describe=lambda v, images: jax.random.normal(jax.random.key(0), (2, 64, 64, 8)))
    scores, _ = jax.jit(partial(validation_step, method=blind, scores=HomographyPairs.scores))({}, pair)
    assert float(scores["mma@5px"]) < 0.2


def test_settings_of_the_paper_variant():
    cfg = config.load("configs/pump.py:paper").method
    assert (cfg.uniq_border_px, cfg.uniq_subsample, cfg.ap_border_px, cfg.ap_spacing_px) == (16, 2, 16, 8)
    assert (cfg.ap_positive_px, cfg.ap_negative_px, cfg.ap_bins) == (2.0, (4.0, 7.0), 20)
    assert CropConfig().crop_px == 256
