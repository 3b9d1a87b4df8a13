"""Pixel-wise average precision against loops that follow the paper's definitions."""


import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxdesc.methods.pump import average_precision
from jaxdesc.ops import masked
from tests.methods.pump.test_uniqueness import descriptors


def ap_oracle(scores, positive, bins):
    """AP of one query from lists of scores and flags."""
    pos, everything = np.zeros(bins), np.zeros(bins)
    for score, flag in zip(scores, positive, strict=True):
        for m in range(bins):
            centre = 1 - m / (bins - 1)
            open_end = (m == 0 and score > 1) or (m == bins - 1 and score < 0)
            mass = 1 if open_end else max(0, 1 - abs(score - centre) * (bins - 1))
            everything[m] += mass
            pos[m] += mass * flag
    ap, seen, seen_pos = 0, 0, 0
    for m in range(bins):
        seen, seen_pos = seen + everything[m], seen_pos + pos[m]
        ap += seen_pos / (1e-16 + seen) * pos[m] / max(pos.sum(), 1)
    return ap


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 10**6), st.sampled_from([2, 5, 20]))
def test_soft_histogram_ap(seed, bins):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-0.3, 1.3, (2, 3, 6)).astype(np.float32)
    kind = rng.integers(0, 3, scores.shape)  # positive, negative, absent
    got = jax.jit(average_precision.soft_histogram_ap, static_argnums=3)(scores, kind == 0, kind == 1, bins)
    for index in np.ndindex(2, 3):
        here = kind[index] < 2
        np.testing.assert_allclose(got[index], ap_oracle(np.float64(scores[index][here]), kind[index][here] == 0, bins), atol=1e-5)


def test_soft_histogram_ap_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        scores, kind = rng.uniform(-0.1, 1.1, (4, 9)), rng.integers(0, 3, (4, 9))
        check_grads(lambda s: average_precision.soft_histogram_ap(s, kind == 0, kind == 1, 20), (scores,), order=1, modes=["rev"], eps=1e-6)


def test_soft_histogram_ap_extremes():
    scores = jnp.array([0.9, 0.8, 0.1, -1.0, 0.0])
    for positive, expected in (([1, 1, 0, 0, 0], 1), ([0, 0, 0, 0, 0], 0), ([1, 1, 1, 1, 1], 1)):
        positive = jnp.array(positive, bool)
        value, gradient = jax.value_and_grad(average_precision.soft_histogram_ap)(scores, positive, ~positive)
        assert value == pytest.approx(expected)
        assert np.isfinite(gradient).all()


OPTIONS = {"border": 3, "spacing": 4}
H = np.stack([np.array([[1.1, 0.1, -4], [-0.05, 0.9, 2], [1e-3, 0, 1]]), np.eye(3), np.array([[1.0, 0, 9], [0, 1, -6], [0, 0, 1]])]).astype(np.float32)


def ap_inputs():
    return descriptors(0, 3, 22, 26, 4), descriptors(1, 3, 25, 21, 4), H, jax.random.split(jax.random.key(3), 3)


def test_sample_queries():
    key = jax.random.key(0)
    sample = average_precision.sample_queries(key, H[2], (30, 70), (40, 20), border=5, spacing=4)
    query, true = np.asarray(sample.query_xy1_px), np.asarray(sample.true_xy2_px)
    assert query.shape == (20 * 60 // 16, 2)
    assert query.min(0).tolist() >= [5, 5]
    assert (query.max(0) <= [70 - 6, 30 - 6]).all()
    assert query[:, 0].max() > 40  # both axes are used whole
    for xy, there, valid in zip(query, true, np.asarray(sample.valid), strict=True):
        exact = xy + np.array([9, -6])
        assert valid == (0 <= exact[0] < 20 and 0 <= exact[1] < 40)
        np.testing.assert_array_equal(there, np.clip(exact, 0, [19, 39]))
    distractor = np.asarray(sample.distractor_xy2_px)
    assert distractor.shape == query.shape
    assert distractor.min() == 0
    assert distractor[:, 0].max() == 19
    assert 30 < distractor[:, 1].max() <= 39
    again = average_precision.sample_queries(key, H[2], (30, 70), (40, 20), border=5, spacing=4)
    chex.assert_trees_all_equal(sample, again)


def test_pixel_ap_against_loops():
    desc1, desc2, H_1to2, keys = ap_inputs()
    ap, valid = jax.jit(lambda *a: average_precision.pixel_ap(*a, **OPTIONS))(desc1, desc2, H_1to2, keys)
    samples = [jax.tree.map(np.asarray, average_precision.sample_queries(k, h, (22, 26), (25, 21), **OPTIONS)) for k, h in zip(keys, H_1to2, strict=True)]
    assert 0 < np.mean(valid) < 1
    for b, sample in enumerate(samples):
        np.testing.assert_array_equal(valid[b], sample.valid)
        for i, ((x1, y1), (x2, y2)) in enumerate(zip(sample.query_xy1_px, sample.true_xy2_px, strict=True)):
            if not sample.valid[i]:
                continue
            query, scores, flags = np.float64(desc1[b, y1, x1]), [], []
            for y, x in np.ndindex(25, 21):
                distance = np.hypot(y - y2, x - x2)
                if distance <= 2 or 4 <= distance <= 7:
                    scores.append(query @ desc2[b, y, x])
                    flags.append(distance <= 2)
            for image, other in enumerate(samples):
                for x, y in other.distractor_xy2_px:
                    scores.append(0 if image == b and np.hypot(y - y2, x - x2) < 4 else query @ desc2[image, y, x])
                    flags.append(False)
            np.testing.assert_allclose(ap[b, i], ap_oracle(scores, flags, 20), atol=1e-5)


def test_pixel_ap_gradient():
    desc1, desc2, H_1to2, keys = (x[:2] for x in ap_inputs())
    with jax.enable_x64(True):
        loss = jax.jit(lambda a, b: jnp.mean(average_precision.average_precision_loss(*average_precision.pixel_ap(a, b, H_1to2, keys, **OPTIONS))))
        check_grads(loss, (np.float64(desc1), np.float64(desc2)), order=1, modes=["rev"], eps=1e-6)


def test_devices_share_distractors():
    """Two devices with a pair each give what one device with both pairs gives: values, validity, loss and gradients."""
    desc1, desc2, H_1to2, keys = (x[:2] for x in ap_inputs())

    def loss(desc1, desc2, H_1to2, keys, axis_name=None):
        ap, valid = average_precision.pixel_ap(desc1, desc2, H_1to2, keys, axis_name=axis_name, **OPTIONS)
        return jnp.sum(average_precision.average_precision_loss(ap, valid, axis_name)), (ap, valid)

    one = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(desc1, desc2, H_1to2, keys)
    split = [x[:, None] for x in (desc1, desc2, H_1to2, keys)]
    (value, aux), gradients = jax.pmap(lambda *a: jax.value_and_grad(lambda *b: loss(*b, axis_name="batch"), (0, 1), has_aux=True)(*a), axis_name="batch")(
        *split
    )
    two = (value.sum(), jax.tree.map(lambda x: x[:, 0], aux)), jax.tree.map(lambda x: x[:, 0], gradients)
    chex.assert_trees_all_close(two, one, atol=1e-6)


def test_average_precision_loss_is_the_mean_over_valid_queries():
    rng = np.random.default_rng(0)
    ap, valid = rng.uniform(size=(4, 7)), rng.uniform(size=(4, 7)) < 0.4
    terms = average_precision.average_precision_loss(np.where(valid, ap, np.nan), valid)
    assert terms.shape == (4,)
    np.testing.assert_allclose(np.mean(terms), np.mean([1 - a for a, v in zip(ap.flat, valid.flat, strict=True) if v]), rtol=1e-6)
    np.testing.assert_array_equal(masked.mean_terms(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)), [0, 0])
