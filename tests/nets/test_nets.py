import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.methods.pump.conv_mixer import ConvMixer
from jaxdesc.methods.pump.l2net import QuadL2Net
from jaxdesc.nets.layers import BatchNorm, ShuffledConv, upsample2
from jaxdesc.ops.normalise import l2_normalise

SMALL = ConvMixer(output_dim=6, hidden=8, depth=2, kernel=3)


def init(net, x):
    return jax.jit(net.init, static_argnums=2)(jax.random.key(0), x, False)


def apply(net, variables, x):
    return jax.jit(net.apply, static_argnums=2)(variables, x, False)


def count(net):
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


def test_parameters_of_the_papers_networks():
    assert count(ConvMixer()) == 3_469_568
    convolutions = [(3, 32, 3), (32, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 3), (128, 128, 3)] + [(128, 128, 2)] * 3
    assert count(QuadL2Net()) == sum(i * o * k * k + o for i, o, k in convolutions)  # normalisation has neither scale nor bias


@pytest.mark.parametrize(
    "net", [SMALL, QuadL2Net(output_dim=5), ConvMixer(output_dim=6, hidden=8, depth=1, patch=2, kernel=5), ConvMixer(output_dim=3, hidden=16, depth=0)]
)
def test_unit_descriptors_at_full_resolution(net):
    x = jax.random.uniform(jax.random.key(1), (2, 24, 36, 3))
    variables = init(net, x)
    out = apply(net, variables, x)
    assert out.shape == (2, 24, 36, net.output_dim) and out.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), 1, atol=1e-5)


def test_order_is_convolution_relu_normalisation():
    """The first stage by hand: after ReLU and normalisation with fresh statistics nothing is below zero."""
    x = jax.random.uniform(jax.random.key(1), (1, 8, 8, 3))
    variables = init(SMALL, x)
    _, state = SMALL.apply(variables, x, False, capture_intermediates=True, mutable=["intermediates"])
    stem = state["intermediates"]["stem"]
    normalised = (x - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    p = variables["params"]["stem"]["conv"]
    by_hand = jax.lax.conv_general_dilated(normalised, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["bias"]
    np.testing.assert_allclose(stem["__call__"][0], jnp.maximum(by_hand, 0) / jnp.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)


def test_r2d2_receptive_field_grows_by_dilation():
    """An impulse reaches exactly 11 (3x3) + 14 (2x2) pixels each way, and an even kernel's padding does not move the map."""
    net = QuadL2Net(output_dim=4)
    x = jnp.full((1, 81, 81, 3), 0.5)
    variables = init(net, x)
    changed = jnp.abs(apply(net, variables, x.at[0, 40, 40].set(1.0)) - apply(net, variables, x)).max(-1)[0] > 0
    rows = np.flatnonzero(changed.any(1))
    assert (rows.min(), rows.max()) == (40 - 11 - 14, 40 + 11 + 14)


def test_training_updates_statistics_and_half_precision_runs():
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    for dtype in (jnp.float32, jnp.bfloat16):
        net = ConvMixer(output_dim=6, hidden=8, depth=1, kernel=3, dtype=dtype)
        variables = init(net, x)
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
        out, new = net.apply(variables, x, True, mutable=["batch_stats"])
        assert out.dtype == jnp.float32
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables["batch_stats"], new["batch_stats"])
        assert all(jax.tree.leaves(moved))


def test_half_precision_is_close_to_single():
    x = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))
    variables = init(SMALL, x)
    single = apply(SMALL, variables, x)
    half = SMALL.clone(dtype=jnp.bfloat16).apply(variables, x, False)
    assert float((single * half).sum(-1).min()) > 0.99


def test_batch_norm_is_torchs():
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 3)).astype(np.float32)
    net = BatchNorm(train=True)
    variables = net.init(jax.random.key(0), x)
    out, new = net.apply(variables, x, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["norm"]["var"], 0.9 + 0.1 * var, rtol=1e-4)


def test_shuffled_convolution_layout():
    x = np.arange(2 * 3 * 12, dtype=np.float32).reshape(1, 2, 3, 12)
    params = {"kernel": jnp.eye(12).reshape(1, 1, 12, 12), "bias": 100.0 * jnp.arange(12)}
    out = np.asarray(ShuffledConv(3, 2).apply({"params": params}, jnp.array(x)))
    for c in range(3):
        for dy in (0, 1):
            for dx in (0, 1):
                channel = c * 4 + dy * 2 + dx
                np.testing.assert_array_equal(out[0, dy::2, dx::2, c], x[0, :, :, channel] + 100 * channel)


def test_upsampling_has_half_pixel_centres():
    x = jnp.array([0.0, 1.0, 5.0]).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(upsample2(x)[0, 0, :, 0], [0, 0.25, 0.75, 2, 4, 5], atol=1e-6)
    y = jax.random.normal(jax.random.key(0), (2, 5, 3, 2))
    np.testing.assert_allclose(upsample2(y), jax.image.resize(y, (2, 10, 6, 2), "linear"), atol=1e-5)
    weight = jax.random.normal(jax.random.key(1), (2, 10, 6, 2))
    ours, theirs = (jax.grad(lambda y, up=up: (weight * up(y)).sum())(y) for up in (upsample2, lambda y: jax.image.resize(y, (2, 10, 6, 2), "linear")))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_zero_vectors_normalise_to_zero_with_finite_gradient():
    x = jnp.zeros((2, 3))
    assert bool((l2_normalise(x) == 0).all())
    assert bool(jnp.isfinite(jax.grad(lambda x: l2_normalise(x).sum())(x)).all())
