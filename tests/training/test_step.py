"""The training step on a toy method whose arithmetic can be followed by hand."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdesc.config import OptimConfig
from jaxdesc.method import Method
from jaxdesc.training.optim import kept_average, learning_rate, make_optimizer
from jaxdesc.training.step import AXIS, inference_variables, init_state, settle_statistics, train_step

TOY_BATCH = {"x": np.arange(8, dtype=np.float32).reshape(8, 1), "slot": np.arange(8, dtype=np.int32)}


def toy_loss(variables, batch, key, train):
    noise = jax.vmap(lambda slot: jax.random.normal(jax.random.fold_in(key, slot)))(batch["slot"])
    value = (variables["params"]["w"] * batch["x"][:, 0] - 1 + 0.1 * noise) ** 2
    return value, ({"square": value}, {"batch_stats": {"seen": variables["batch_stats"]["seen"] + 1}})


TOY = Method(init=lambda key, batch: {"params": {"w": jnp.ones(())}, "batch_stats": {"seen": jnp.zeros(())}}, loss=toy_loss, describe=None, grid=None, match=None)


def run(devices, steps=3, accumulate=1, cfg=None):
    cfg = cfg or OptimConfig(learning_rate=1e-2)
    optimizer = make_optimizer(cfg, steps)
    step = partial(train_step, method=TOY, optimizer=optimizer, draw=lambda key, raw, step: raw, seed=3, accumulate=accumulate)
    state = init_state(TOY, optimizer, TOY_BATCH, 0)
    state = jax.tree.map(lambda x: np.broadcast_to(x, (devices, *x.shape)), state)
    parallel = jax.pmap(step, axis_name=AXIS, devices=jax.devices()[:devices])
    batch = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), TOY_BATCH)
    metrics = None
    for _ in range(steps):
        state, metrics = parallel(state, batch)
    return jax.tree.map(lambda x: np.asarray(x[0]), state), jax.tree.map(lambda x: float(x[0]), metrics)


def test_eight_devices_equal_one():
    one, eight = run(1), run(8)
    chex.assert_trees_all_close(one[0], eight[0], rtol=1e-6)
    assert one[1] == pytest.approx(eight[1], rel=1e-5)


def test_accumulation_equals_the_whole_batch():
    whole, parts = run(1), run(1, accumulate=4)
    np.testing.assert_allclose(whole[0].params["w"], parts[0].params["w"], rtol=1e-5)
    assert parts[0].model_state["batch_stats"]["seen"] == 12 and whole[0].model_state["batch_stats"]["seen"] == 3
    assert whole[1]["loss"] == pytest.approx(parts[1]["loss"], rel=1e-5)


def test_weight_decay_is_coupled():
    """First update of Adam by hand with the decay in the gradient: m / sqrt(v) = sign(g + wd w)."""
    params, grads = {"w": jnp.array(2.0)}, {"w": jnp.array(-0.5)}
    optimizer = make_optimizer(OptimConfig(learning_rate=0.1, weight_decay=0.5), 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * np.sign(-0.5 + 0.5 * 2.0), rtol=1e-5)


def torch_adam(grads, w, lr, wd, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        g = g + wd * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def torch_sgd(grads, w, lr, wd, momentum):
    v = 0.0
    for g in grads:
        v = momentum * v + g + wd * w
        w -= lr * v
    return w


def torch_adamw(grads, w, lr, wd, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= lr * ((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + wd * w)
    return w


def followed(cfg, grads, w, rates=None):
    """A scalar's path down given gradients."""
    optimizer = make_optimizer(cfg, len(grads), rates)
    params = {"w": jnp.array(w)}
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update({"w": jnp.array(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    return params["w"]


def test_optimisers_are_torchs():
    grads = np.random.default_rng(0).normal(size=12)
    adam = OptimConfig(learning_rate=3e-2, weight_decay=1e-2)
    np.testing.assert_allclose(followed(adam, grads, 0.7), torch_adam(grads, 0.7, 3e-2, 1e-2), rtol=1e-4)
    sgd = OptimConfig(name="sgd", learning_rate=3e-2, momentum=0.5, weight_decay=1e-2)
    np.testing.assert_allclose(followed(sgd, grads, 0.7), torch_sgd(grads, 0.7, 3e-2, 1e-2, 0.5), rtol=1e-4)
    adamw = OptimConfig(name="adamw", learning_rate=3e-2, weight_decay=0.1)
    np.testing.assert_allclose(followed(adamw, grads, 0.7), torch_adamw(grads, 0.7, 3e-2, 0.1), rtol=1e-4)


def test_rates_multiply_updates():
    cfg, grads = OptimConfig(name="sgd", learning_rate=1.0, weight_decay=0.0), np.array([0.1, -0.3])
    np.testing.assert_allclose(followed(cfg, grads, 0.7, lambda tree: {"w": 0.25}), 0.75, rtol=1e-5)
    assert followed(cfg, grads, 0.7, lambda tree: jax.tree.map(lambda _: 0.0, tree)) == jnp.float32(0.7)


def test_running_mean_of_the_parameters():
    cfg = OptimConfig(learning_rate=1e-2, ema_decay=0.5)
    state, _ = run(1, steps=2, cfg=cfg)
    w = [float(run(1, steps=n, cfg=OptimConfig(learning_rate=1e-2))[0].params["w"]) for n in (1, 2)]
    np.testing.assert_allclose(kept_average(state.opt_state).average["w"], 0.5 * (0.5 * 1.0 + 0.5 * w[0]) + 0.5 * w[1], rtol=1e-5)
    assert inference_variables(state)["params"]["w"] != state.params["w"]


def test_averaged_parameters_get_batch_statistics_of_their_own():
    """Those of w x, with the average of w: .9^40 of the trained network's are left."""

    def loss(variables, batch, key, train):
        y = variables["params"]["w"] * batch["x"][:, 0]
        mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * jax.lax.pmean(y.mean(), AXIS)
        return (y - 1) ** 2, ({}, {"batch_stats": {"mean": mean}})

    method = TOY._replace(init=lambda key, batch: {"params": {"w": jnp.ones(())}, "batch_stats": {"mean": jnp.zeros(())}}, loss=loss)
    optimizer = make_optimizer(OptimConfig(learning_rate=0.1, ema_decay=0.9), 40)
    how = partial(partial, method=method, draw=lambda key, raw, step: raw, seed=0)
    state = jax.tree.map(lambda x: x[None], init_state(method, optimizer, TOY_BATCH, 0))
    batch = jax.tree.map(lambda x: x[None], TOY_BATCH)
    update, settle = (jax.pmap(f, axis_name=AXIS, devices=jax.devices()[:1]) for f in (how(train_step, optimizer=optimizer), how(settle_statistics)))
    for _ in range(8):
        state, _ = update(state, batch)
    trained = state
    for _ in range(40):
        state = settle(state, batch)
    used = jax.tree.map(lambda x: float(x[0]), inference_variables(state))
    w = float(trained.params["w"][0])
    assert abs(used["params"]["w"] - w) > 0.1
    assert used["batch_stats"]["mean"] == pytest.approx(3.5 * used["params"]["w"], abs=0.06)
    chex.assert_trees_all_equal(state.params, trained.params)
    chex.assert_trees_all_equal(state.model_state, trained.model_state)


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("constant", {0: 1.0, 99: 1.0}),
        ("cosine", {0: 1.0, 50: 0.5, 100: 0.0}),
        ("trapezoid", {0: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        ("halving", {0: 1.0, 29: 1.0, 30: 0.5, 60: 0.25}),
    ],
)
def test_schedules(schedule, points):
    rate = learning_rate(OptimConfig(learning_rate=1.0, schedule=schedule, halving_steps=30), 100)
    for step, value in points.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-6)


def test_warm_up_rises_to_the_rate():
    rate = learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=4), 100)
    np.testing.assert_allclose([float(rate(i)) for i in range(6)], [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-5)


def test_gradient_clipping():
    optimizer = make_optimizer(OptimConfig(learning_rate=1.0, weight_decay=0.0, clip_norm=1.0, b1=0.0, b2=0.0, eps=1e3), 10)
    params = {"w": jnp.zeros(2)}
    updates, _ = optimizer.update({"w": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"] * 1e3, [-0.6, -0.8], rtol=1e-2)
