import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.config import DrawConfig
from jaxdesc.data import draw
from jaxdesc.ops.geometry import apply_homography
from jaxdesc.types import Canvas, RawPair

CFG = DrawConfig(crop_px=32, min_side_px=40, max_side_px=80, noise=0, swap_probability=0, flip_probability=0)


def photographs(n=2, side=96, h=80, w=88):
    y, x = np.mgrid[:h, :w]
    image = np.zeros((n, side, side, 3), np.uint8)
    for i in range(n):
        image[i, :h, :w] = np.stack([127 + 120 * np.sin(x / (9 + i)), 127 + 120 * np.cos(y / 8), 127 + 60 * np.sin((x + y) / 11)], -1).astype(np.uint8)
    return Canvas(image=jnp.array(image), size_hw=jnp.tile(jnp.array([h, w]), (n, 1)))


def synthetic(cfg, seed=0, n=2, slots=None):
    slots = jnp.arange(n) if slots is None else slots
    return jax.jit(draw.draw_batch, static_argnums=2)(jax.random.key(seed), {"synthetic": (photographs(n), slots)}, cfg)["synthetic"]


@pytest.mark.parametrize("flags", [{}, {"swap_probability": 1.0}, {"flip_probability": 1.0}, {"swap_probability": 1.0, "flip_probability": 1.0}])
def test_the_homography_relates_the_two_crops(flags):
    """Colours at p in image 1 and at H p in image 2 agree wherever H p lies inside."""
    pair = synthetic(dataclasses.replace(CFG, **flags), n=4)
    assert pair.image1.shape == (4, 32, 32, 3)
    shared = 0
    for i in range(4):
        y, x = np.mgrid[2:30, 2:30]
        q = np.asarray(apply_homography(pair.H_1to2[i], jnp.stack([x, y], -1).astype(jnp.float32)))
        inside = ((q >= 1) & (q <= 29)).all(-1)
        nearest = np.round(q[inside]).astype(int)
        first, second = np.asarray(pair.image1[i])[2:30, 2:30][inside], np.asarray(pair.image2[i])[nearest[:, 1], nearest[:, 0]]
        lit = (first.min(-1) > 0.02) & (second.min(-1) > 0.02)  # not beyond the photograph
        shared += lit.sum()
        if lit.any():
            assert np.median(np.abs(first - second)[lit]) < 0.04
    assert shared > 300


def test_draws_follow_the_slot_not_the_place():
    """An example looks the same wherever it stands in a device's rows; another slot or step looks different."""
    both = synthetic(CFG, n=2)
    swapped = jax.jit(draw.draw_batch, static_argnums=2)(
        jax.random.key(0), {"synthetic": (jax.tree.map(lambda x: x[::-1], photographs(2)), jnp.array([1, 0]))}, CFG
    )["synthetic"]
    np.testing.assert_allclose(both.image2[0], swapped.image2[1], atol=1e-6)
    assert float(jnp.abs(both.H_1to2[0] - synthetic(CFG, seed=1).H_1to2[0]).max()) > 1e-3
    assert float(jnp.abs(both.H_1to2[0] - synthetic(CFG, slots=jnp.array([5, 6])).H_1to2[0]).max()) > 1e-3


def test_real_pairs_see_the_same_part():
    """Two copies of one photograph with sparse correspondences: the crops overlap and carry no homography."""
    canvases = photographs(6)
    rng = np.random.default_rng(0)
    points = rng.uniform([0, 0], [88, 80], (6, 20, 2)).astype(np.float32)
    raw = RawPair(
        canvas1=canvases, canvas2=canvases, xy12_px=jnp.array(np.tile(points, 2)), valid=jnp.arange(20)[None] < jnp.array([20, 15, 10, 4, 1, 0])[:, None]
    )
    cfg = dataclasses.replace(CFG, tilt=0.0, rotation_deg=0.0, aspect=1.0)
    pair = jax.jit(draw.draw_batch, static_argnums=2)(jax.random.key(0), {"real": (raw, jnp.arange(6))}, cfg)["real"]
    assert pair.H_1to2 is None
    chex.assert_tree_all_finite((pair.image1, pair.image2))
    assert float(pair.image1.min()) > 0 and float(pair.image1.mean()) > 0.3  # windows stay inside the photograph


def test_windows_overlap_better_with_more_trials():
    rng = np.random.default_rng(0)
    xy = jnp.array(rng.uniform(0, 200, (64, 2)), jnp.float32)
    size = jnp.array([200.0, 200.0])

    def shared(trials):
        cfg = dataclasses.replace(CFG, trials=trials, crop_px=64)

        def one(key):
            w1, w2 = draw.choose_windows(jax.random.uniform(key, (trials, draw.TRIAL)), xy, xy, jnp.ones(64, bool), size, size, cfg)
            low, high = jnp.maximum(w1[:2], w2[:2]), jnp.minimum(w1[:2] + w1[2], w2[:2] + w2[2])
            return jnp.prod(jnp.maximum(high - low, 0)) / jnp.maximum(w1[2], w2[2]) ** 2

        return float(jax.vmap(one)(jax.random.split(jax.random.key(0), 64)).mean())

    assert shared(5) > shared(1) > 0.5


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_changes_colours_only(field):
    plain, changed = synthetic(CFG), synthetic(dataclasses.replace(CFG, **{field: 0.4}))
    np.testing.assert_allclose(plain.H_1to2, changed.H_1to2)
    assert float(jnp.abs(plain.image1 - changed.image1).mean()) > 0.005
    assert float(changed.image1.min()) >= 0 and float(changed.image1.max()) <= 1


def test_noise_touches_image_2_only_and_has_its_amplitude():
    plain, noisy = synthetic(CFG), synthetic(dataclasses.replace(CFG, noise=25.0))
    np.testing.assert_allclose(plain.image1, noisy.image1)
    difference = jnp.abs(plain.image2 - noisy.image2)
    assert 20 / 255 < float(difference.max()) <= 25 / 255 + 1e-6


def test_rescaling_is_log_uniform_within_its_bounds():
    numbers = jax.random.uniform(jax.random.key(0), (500, draw.FRAME))
    cfg = dataclasses.replace(CFG, aspect=1.0)
    sizes = jax.vmap(lambda u: draw.random_frame(u, jnp.array([300.0, 200.0]), 0.5, cfg)[1])(numbers)
    short = np.asarray(sizes.min(-1))
    assert 40 <= short.min() < 43 and 75 < short.max() <= 80.01
    np.testing.assert_allclose(np.log(short).mean(), (np.log(40) + np.log(80)) / 2, atol=0.03)
    np.testing.assert_allclose(sizes[:, 0] / sizes[:, 1], 1.5, rtol=1e-4)
