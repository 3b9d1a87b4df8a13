"""CAPS: the matching layer and the losses against NumPy written from the paper, then the method as a whole."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdesc import config
from jaxdesc.config import ExperimentConfig
from jaxdesc.data.kinds import DataConfig, HomographyPairs, PosedPairs
from jaxdesc.methods import METHODS
from jaxdesc.methods.caps import Config, infer, loss, matching, network
from jaxdesc.methods.caps.infer import MatchOptions
from jaxdesc.methods.caps.matching import Match, Matches, match_pair
from jaxdesc.methods.caps.unet import Maps
from jaxdesc.methods.caps.weights import from_torch
from jaxdesc.predict import predictor
from jaxdesc.store import weights
from jaxdesc.training.step import validation_step
from jaxdesc.types import Pair, PosedPair, UserError
from tests.reference import inputs

SIZE = (48, 80)  # rows and columns of the images
TINY = Config(backbone="resnet10", width=4, decoder_features=(8, 8), coarse_dim=6, fine_dim=5)
CFG = Config()
DATA = DataConfig(posed=PosedPairs(per_batch=2))
pair_jit = jax.jit(match_pair, static_argnames=("window", "use_nn", "similarity"))


def random_maps(seed, coarse=(3, 5), fine=(16, 24), scale=1.0):
    rng = np.random.default_rng(seed)
    return Maps(*(rng.normal(0, scale, (*hw, d)).astype(np.float32) for hw, d in ((coarse, 4), (fine, 6))))


# ---- the layer, slowly


def tent_sample(maps, uv):
    """Bilinear with aligned corners, zeros outside, by tents over all pixels."""
    h, w, _ = maps.shape
    px, py = (uv[0] + 1) / 2 * (w - 1), (uv[1] + 1) / 2 * (h - 1)
    weight = np.clip(1 - abs(np.arange(h) - py), 0, None)[:, None] * np.clip(1 - abs(np.arange(w) - px), 0, None)
    return np.einsum("hw,hwd->d", weight, maps)


def slow_match(query, positions, descriptors, similarity):
    """Expected position, std and the most probable position of one query."""
    scores = np.array([query @ d if similarity == "correlation" else -((query - d) ** 2).sum() for d in descriptors])
    p = np.exp(scores - scores.max())
    p /= p.sum()
    mean = sum(q * x for q, x in zip(p, positions, strict=True))
    second = sum(q * x**2 for q, x in zip(p, positions, strict=True))
    return mean, np.sqrt(np.maximum(second - mean**2, 1e-10)).sum(), positions[scores.argmax()]


def slow_pair(maps1, maps2, uv1, window, use_nn, similarity):
    def whole(query, maps):
        h, w, _ = maps.shape
        cells = [(i, j) for i in range(h) for j in range(w)]
        return slow_match(query, np.array([(2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1) for i, j in cells]), [maps[c] for c in cells], similarity)

    def part(query, maps, centre):
        rows, columns = int(window * maps.shape[0]), int(window * maps.shape[1])
        positions = np.array([(centre[0] + a, centre[1] + b) for b in np.linspace(-window, window, rows) for a in np.linspace(-window, window, columns)])
        return slow_match(query, positions, [tent_sample(maps, x) for x in positions], similarity)

    maps1, maps2 = ([m.astype(np.float64) for m in maps] for maps in (maps1, maps2))
    found = []
    for uv in uv1:
        coarse = whole(tent_sample(maps1[0], uv), maps2[0])
        start = coarse[2] if use_nn else coarse[0]
        fine = part(tent_sample(maps1[1], uv), maps2[1], start)
        back = part(tent_sample(maps2[1], fine[0]), maps1[1], uv)
        found.append((coarse, fine, whole(tent_sample(maps2[0], start), maps1[0]), back))
    return found


@pytest.mark.parametrize(("window", "use_nn", "similarity"), [(0.125, True, "correlation"), (0.25, False, "distance")])
def test_matching_layer_against_numpy(window, use_nn, similarity):
    maps1, maps2 = random_maps(0), random_maps(1, coarse=(4, 5), fine=(18, 17))
    uv1 = np.random.default_rng(2).uniform(-1, 1, (7, 2)).astype(np.float32)
    ours = pair_jit(maps1, maps2, uv1, window=window, use_nn=use_nn, similarity=similarity)
    theirs = slow_pair(maps1, maps2, uv1, window, use_nn, similarity)
    for i, level in enumerate(ours):
        for k, name in enumerate(("uv", "std", "peak_uv")):
            np.testing.assert_allclose(getattr(level, name), [row[i][k] for row in theirs], rtol=2e-3, atol=2e-4, err_msg=f"{Matches._fields[i]}.{name}")
        np.testing.assert_allclose(level.probability.sum(-1), 1, rtol=1e-5)


def test_windows_have_an_eighth_of_the_map_and_both_ends():
    uv = np.asarray(matching.window_uv(jnp.array([[0.5, -0.25]]), (120, 160), 0.125))
    assert uv.shape == (1, 15 * 20, 2)
    np.testing.assert_allclose((uv.min(1), uv.max(1)), ([[0.375, -0.375]], [[0.625, -0.125]]), atol=1e-6)
    assert matching.window_uv(jnp.zeros((1, 2)), (8, 4), 0.125).shape == (1, 4, 2)  # never less than two a side


def test_flat_maps_expect_the_centre_and_sharp_ones_the_peak():
    whole = jax.jit(matching.match_whole, static_argnames="similarity")
    query = np.eye(15, dtype=np.float32)[[11]]  # of the third row and the second column
    flat = whole(query, np.ones((3, 5, 15), np.float32), similarity="correlation")
    np.testing.assert_allclose(flat.uv, [[0, 0]], atol=1e-6)
    np.testing.assert_allclose(flat.std, np.sqrt(np.mean([1, 0.25, 0, 0.25, 1])) + np.sqrt(2 / 3), rtol=1e-5)
    sharp = whole(query, 100 * np.eye(15, dtype=np.float32).reshape(3, 5, 15), similarity="correlation")
    np.testing.assert_allclose(sharp.uv, [[-0.5, 1]], atol=1e-6)
    np.testing.assert_array_equal(sharp.peak_uv, [[-0.5, 1]])
    np.testing.assert_allclose(sharp.std, 2e-5, rtol=1e-5)  # the least: sqrt(1e-10) an axis


# ---- the losses, slowly


def made_up(seed, n=40, there_px=12.0, back_px=30.0):
    """Points, a fundamental matrix, and matches near to and far from where they should be."""
    rng = np.random.default_rng(seed)
    F = rng.normal(size=(3, 3)) * np.array([[1e-5, 1e-5, 1e-3], [1e-5, 1e-5, 1e-3], [1e-3, 1e-3, 1]])
    xy1 = rng.uniform(0, [SIZE[1] - 1, SIZE[0] - 1], (n, 2))
    lines = np.c_[xy1, np.ones(n)] @ F.T
    lines /= np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    target = rng.uniform(0, [SIZE[1] - 1, SIZE[0] - 1], (n, 2))
    target -= ((target * lines[:, :2]).sum(1) + lines[:, 2])[:, None] * lines[:, :2]  # onto the line
    spread = rng.exponential(1, (n, 1)) * rng.choice([0.05, 1], (n, 1))
    levels = []
    for centre, px in ((target, there_px), (target, there_px), (xy1, back_px), (xy1, back_px)):
        xy = centre + rng.normal(0, px, (n, 2)) * spread
        uv = 2 * xy / (np.array(SIZE[::-1]) - 1) - 1
        levels.append(Match(uv.astype(np.float32), rng.uniform(1e-2, 1, n).astype(np.float32), uv.astype(np.float32), np.zeros((n, 1), np.float32)))
    return Matches(*levels), xy1.astype(np.float32), (F / F[2, 2]).astype(np.float32), rng.uniform(size=n) < 0.8


def slow_parts(matches, xy1, F, valid, cfg):
    rows = np.flatnonzero(valid)
    short, long = min(SIZE), max(SIZE)

    def px(match):
        return (match.uv.astype(np.float64) + 1) / 2 * (np.array(SIZE[::-1]) - 1)

    def epipolar(match):
        found = []
        for i in rows:
            a, b, c = F.astype(np.float64) @ [*xy1[i], 1]
            x, y = px(match)[i]
            found.append(abs(a * x + b * y + c) / max(np.hypot(a, b), 1e-8))
        return np.array(found)

    def weighted(values, std, kept):
        w = 1 / std[rows].astype(np.float64) if cfg.reweight else np.ones(len(rows))
        w = w / w.mean() * kept
        return (w / (w.mean() + 1e-8) * values).mean() / long

    def cycle(match):
        d = np.linalg.norm(xy1[rows] - px(match)[rows], axis=1)
        return np.where(d < cfg.cycle_px, d, 0)

    e_c, e_f = epipolar(matches.coarse), epipolar(matches.fine)
    masks = (e_c < 0.5 * short, (e_f < 0.5 * short) & (e_c < 0.125 * short), e_c < 0.025 * short, e_f < 0.025 * short)
    assert all(0 < m.sum() < len(m) for m in masks)  # each of them decides something here
    return {
        "E_coarse": weighted(e_c, matches.coarse.std, masks[0]),
        "E_fine": weighted(e_f, matches.fine.std, masks[1]),
        "Y_coarse": weighted(cycle(matches.coarse_loop), matches.coarse.std * matches.coarse_loop.std, masks[2]),
        "Y_fine": weighted(cycle(matches.fine_loop), matches.fine.std * matches.fine_loop.std, masks[3]),
    }


parts_jit = jax.jit(loss.pair_losses, static_argnames=("size_hw", "cfg"))


def parts_of(matches, xy1, F, valid, cfg=CFG):
    parts = parts_jit(matches, xy1, F, valid, size_hw=SIZE, cfg=cfg)
    return {name: float(value) for name, value in parts.items()}


@pytest.mark.parametrize("reweight", [True, False])
def test_losses_against_numpy(reweight):
    cfg = dataclasses.replace(CFG, reweight=reweight)
    for seed in range(3):
        inputs = made_up(seed)
        assert parts_of(*inputs, cfg) == pytest.approx(slow_parts(*inputs, cfg), rel=2e-3)


def test_points_that_do_not_exist_change_nothing():
    matches, xy1, F, valid = made_up(4)
    expected = parts_of(matches, xy1, F, valid)
    shorter = jax.tree.map(lambda x: x[valid], (matches, xy1))
    assert parts_of(*shorter, F, np.ones(valid.sum(), bool)) == pytest.approx(expected, rel=1e-4)
    xy1 = np.where(valid[:, None], xy1, np.nan)
    assert parts_of(matches, xy1, F, valid) == pytest.approx(expected, rel=1e-6)


def test_scale_of_f_does_not_matter_and_nothing_kept_is_zero():
    matches, xy1, F, valid = made_up(5)
    assert parts_of(matches, xy1, -20 * F, valid) == pytest.approx(parts_of(matches, xy1, F, valid), rel=1e-3)
    assert set(parts_of(matches, xy1, F, np.zeros_like(valid)).values()) == {0.0}
    far = matches._replace(coarse=matches.coarse._replace(uv=matches.coarse.uv + 100))
    far = far._replace(fine=matches.fine._replace(uv=matches.fine.uv + 100))
    assert set(parts_of(far, xy1, F, valid).values()) == {0.0}


def test_perfect_matches_cost_nothing():
    matches, xy1, F, valid = made_up(6, there_px=0.0, back_px=0.0)
    assert max(parts_of(matches, xy1, F, valid).values()) < 1e-4
    worse = parts_of(*made_up(6, there_px=3.0, back_px=3.0)[:1], xy1, F, valid)
    assert min(worse.values()) > 1e-3


def test_weights_have_mean_one_and_no_gradient():
    std, kept, valid = jnp.array([0.1, 0.4, 2.0, 1.0]), jnp.array([True, True, False, True]), jnp.array([True, True, True, False])
    w = np.asarray(loss.weights(std, kept, valid))
    np.testing.assert_allclose(w, [3 * 0.8, 3 * 0.2, 0, 0], rtol=1e-5)  # 10 : 2.5 of the kept and valid, mean 1 over the three valid points
    np.testing.assert_allclose(loss.weights(std, kept, valid, reweight=False), [1.5, 1.5, 0, 0], rtol=1e-5)
    assert not jax.grad(lambda std: (loss.weights(std, kept, valid) * jnp.arange(4.0)).sum())(std).any()


def batch_parts(size_hw, cfg, axis_name=None):
    """Parts of the pairs of a batch: (B, ...) of Matches, xy1, F_1to2 and valid -> {name: (B,)}."""
    axes = loss.together(cfg, axis_name)

    def parts(*pair):
        return loss.pair_losses(*pair, size_hw, cfg, axes)

    return jax.vmap(parts, axis_name=loss.PAIR)


@pytest.mark.parametrize("over", ["batch", "pair"])
def test_weights_over_the_batch_or_the_pair_are_the_released_programs(over):
    """Three pairs of 50 points: the released program normalises over all of them; a pair as a
    batch of its own is what the paper's formula says."""
    given = inputs.load("caps_losses.npz")
    cfg = dataclasses.replace(CFG, weights_over=over)

    def match(xy, std):
        uv = (2 * given[xy] / np.array([639, 479]) - 1).astype(np.float32)
        return Match(uv, given[std], uv, None)

    there = match("coord2_ec", "std_c"), match("coord2_ef", "std_f")
    matches = Matches(*there, match("coord1_lc", "std_lc"), match("coord1_lf", "std_lf"))
    pairs = matches, given["coord1"], given["F"], np.ones((3, 50), bool)
    parts = jax.jit(batch_parts((480, 640), cfg))(*pairs)
    found = np.stack([parts[name] for name in loss.PARTS], -1)
    found = np.c_[found @ [1, 1, 0.1, 0.1], found]
    found = found.mean(0) if over == "batch" else found
    np.testing.assert_allclose(found, given[f"over_{over}"], rtol=2e-6)


def test_weights_over_the_batch_count_points_that_exist():
    """Three pairs with different numbers of points are one pair with all of them."""
    cfg = dataclasses.replace(CFG, weights_over="batch")
    pairs = [made_up(seed) for seed in range(3)]
    F = pairs[0][2]
    pairs = [(matches, xy1, F, valid) for matches, xy1, _, valid in pairs]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *pairs)
    found = jax.jit(batch_parts(SIZE, cfg))(*batch)
    one = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch[:2])
    expected = parts_of(*one, F, batch[3].ravel(), CFG)
    assert len(set(batch[3].sum(1))) > 1 and min(expected.values()) > 0
    assert {name: float(x.mean()) for name, x in found.items()} == pytest.approx(expected, rel=1e-5)


def test_eight_devices_weigh_points_as_one():
    """Each device has two pairs of the batch; each pair's parts and gradients are the same."""
    cfg = dataclasses.replace(CFG, weights_over="batch")
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *[made_up(seed) for seed in range(16)])

    def objective(axis_name):
        def total(uv, matches, *pair):
            moved = matches._replace(fine=matches.fine._replace(uv=uv))
            parts = batch_parts(SIZE, cfg, axis_name)(moved, *pair)
            return sum(x.sum() for x in parts.values()), parts

        return jax.grad(total, has_aux=True)

    assert jax.device_count() == 8
    split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
    slopes, parts = jax.jit(objective(None))(batch[0].fine.uv, *batch)
    each_slopes, each = jax.pmap(objective("batch"), axis_name="batch")(split[0].fine.uv, *split)
    for name, x in parts.items():
        np.testing.assert_allclose(each[name].ravel(), x, rtol=1e-6, err_msg=name)
    scale = float(jnp.abs(slopes).max())
    np.testing.assert_allclose(each_slopes.reshape(slopes.shape), slopes, atol=1e-6 * scale)


# ---- the method


def warped(n=3, seed=0, points=12, truth=True, first_slot=0):
    """Posed pairs whose second image is the first, moved by (8, 0): the epipolar lines are rows, F = [(1, 0, 0)]x."""
    rng = np.random.default_rng(seed)
    base = np.kron(rng.uniform(size=(n, SIZE[0] // 4, SIZE[1] // 4 + 2, 3)), np.ones((1, 4, 4, 1))).astype(np.float32)
    xy1 = rng.uniform([8, 0], [SIZE[1] - 1, SIZE[0] - 1], (n, points, 2)).astype(np.float32)
    valid = rng.uniform(size=(n, points)) < 0.9
    known = rng.uniform(size=(n, points)) < 0.5
    F = np.tile(np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32), (n, 1, 1))
    return PosedPair(
        image1=base[:, :, : SIZE[1]],
        image2=base[:, :, 8:],
        F_1to2=F,
        xy1_px=xy1,
        valid=valid,
        xy2_px=xy1 - np.array([8, 0], np.float32) if truth else None,
        known=known if truth else None,
        slot=np.arange(n, dtype=np.int32) + first_slot,
    )


@pytest.fixture(scope="module")
def method():
    return METHODS["caps"].build(TINY)


@pytest.fixture(scope="module")
def fresh(method):
    return jax.jit(method.init)(jax.random.key(0), {"posed": warped()})


@pytest.fixture(scope="module")
def variables(fresh):
    # descriptors of a network at its start are small, and zero where no channel is active; these make the layer's choices matter
    rng = np.random.default_rng(0)
    change = {"scale": lambda x: 3 * x, "bias": lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32)}
    return jax.tree_util.tree_map_with_path(lambda path, x: change[path[-1].key](x) if "conv_" in str(path) and path[-1].key in change else x, fresh)


@pytest.fixture(scope="module")
def loss_and_gradient(method):
    def objective(params, variables, batch, train):
        per_example, (parts, state) = method.loss({**variables, "params": params}, batch, jax.random.key(1), train)
        return per_example.mean(), (per_example, parts, state)

    return jax.jit(jax.value_and_grad(objective, has_aux=True), static_argnums=3)


def test_loss_is_the_weighted_sum_of_what_numpy_finds(method, variables, loss_and_gradient):
    batch = warped()
    (_, (per_example, parts, _)), _ = loss_and_gradient(variables["params"], variables, {"posed": batch}, True)
    chex.assert_shape(per_example, (3,))
    np.testing.assert_allclose(per_example, parts["E_coarse"] + parts["E_fine"] + 0.1 * (parts["Y_coarse"] + parts["Y_fine"]), rtol=1e-5)
    assert set(parts) == {"E_coarse", "E_fine", "Y_coarse", "Y_fine", "pck@5px"}
    assert all(leaf.shape == (3,) and np.isfinite(leaf).all() for leaf in parts.values())
    assert float(parts["E_coarse"].min()) > 0

    net = METHODS["caps"].build(TINY).loss.keywords["net"]
    maps, _ = jax.jit(lambda v, x: net.apply(v, x, True, mutable=["batch_stats"]))(variables, np.concatenate([batch.image1, batch.image2]))
    b = 1
    maps1, maps2 = (Maps(maps.coarse[i], maps.fine[i]) for i in (b, b + 3))
    uv1 = 2 * batch.xy1_px[b] / (np.array(SIZE[::-1]) - 1) - 1
    matches = jax.tree.map(np.asarray, pair_jit(maps1, maps2, uv1.astype(np.float32), window=0.125, use_nn=True, similarity="correlation"))
    expected = parts_of(matches, batch.xy1_px[b], batch.F_1to2[b], batch.valid[b])
    assert {name: float(parts[name][b]) for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_each_part_has_its_own_weight(variables):
    cfg = dataclasses.replace(TINY, coarse_weight=0.7, fine_weight=0.3, coarse_cycle_weight=0.05, fine_cycle_weight=2.0, cycle_px=1e3, cycle_share=0.5)
    weighted = METHODS["caps"].build(cfg)
    per_example, (parts, _) = jax.jit(lambda batch: weighted.loss(variables, batch, jax.random.key(0), False))({"posed": warped()})
    assert min(float(parts[name].min()) for name in loss.PARTS) > 0
    expected = 0.7 * parts["E_coarse"] + 0.3 * parts["E_fine"] + 0.05 * parts["Y_coarse"] + 2 * parts["Y_fine"]
    np.testing.assert_allclose(per_example, expected, rtol=1e-5)


def test_share_of_correct_keypoints_counts_known_points(method, variables, loss_and_gradient):
    batch = warped()
    (_, (_, parts, _)), _ = loss_and_gradient(variables["params"], variables, {"posed": batch}, True)
    share = float(parts["pck@5px"].mean())
    off = dataclasses.replace(batch, xy2_px=np.where((batch.known & batch.valid)[..., None], batch.xy2_px + 500, np.nan).astype(np.float32))
    (_, (_, none, _)), grads = loss_and_gradient(variables["params"], variables, {"posed": off}, True)
    assert 0 <= share <= 1 and float(none["pck@5px"].mean()) == 0
    chex.assert_tree_all_finite(grads)
    count = (batch.known & batch.valid).sum()
    np.testing.assert_allclose(share * count, round(share * count), atol=1e-3)


def test_gradients_are_finite_and_reach_every_parameter(variables, loss_and_gradient):
    batch = {"posed": warped()}
    _, grads = loss_and_gradient(variables["params"], variables, batch, True)
    chex.assert_tree_all_finite(grads)
    still = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.abs(g).max() > 0]
    assert not still
    nothing = {"posed": dataclasses.replace(warped(), valid=np.zeros((3, 12), bool), xy1_px=np.full((3, 12, 2), np.nan, np.float32))}
    (value, _), grads = loss_and_gradient(variables["params"], variables, nothing, True)
    assert float(value) == 0 and all(not np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_gradients_are_the_slopes():
    """In the maps of one pair, along random directions; the layer's choices and weights do not move within the step."""
    maps1, maps2 = random_maps(0, scale=1.5), random_maps(1, scale=1.5)
    batch = warped(1, points=20, truth=False)
    uv1 = (2 * batch.xy1_px[0] / (np.array(SIZE[::-1]) - 1) - 1).astype(np.float32)
    found = pair_jit(maps1, maps2, uv1, window=0.125, use_nn=True, similarity="correlation")

    @jax.jit
    @jax.value_and_grad
    def objective(maps):
        matches = match_pair(*maps, uv1)
        # weights carry no gradient: hold the standard deviations, as differentiation does
        matches = Matches(*(m._replace(std=held.std) for m, held in zip(matches, found, strict=True)))
        given = batch.xy1_px[0], batch.F_1to2[0], batch.valid[0]
        parts = loss.pair_losses(matches, *given, SIZE, CFG)
        return parts["E_coarse"] + parts["E_fine"] + parts["Y_coarse"] + parts["Y_fine"]

    _, grads = objective((maps1, maps2))
    rng, step = np.random.default_rng(3), 2e-4
    for _ in range(3):
        direction = jax.tree.map(lambda m: rng.normal(size=m.shape).astype(np.float32), (maps1, maps2))
        plus, minus = (float(objective(jax.tree.map(lambda m, d, s=s: m + s * step * d, (maps1, maps2), direction))[0]) for s in (1, -1))
        slope = sum((np.asarray(g) * d).sum() for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose((plus - minus) / (2 * step), slope, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("over", ["pair", "batch"])
def test_three_devices_are_the_whole_batch(over, variables):
    """Loss, parts and batch statistics of a batch in three shares are those of the batch as one."""
    batch, cfg = {"posed": warped()}, dataclasses.replace(TINY, weights_over=over)
    shared, whole = METHODS["caps"].build(cfg, axis_name="batch"), METHODS["caps"].build(cfg)
    split = jax.tree.map(lambda x: x.reshape(3, -1, *x.shape[1:]), batch)
    each = jax.vmap(lambda share: shared.loss(variables, share, jax.random.key(1), True), axis_name="batch")
    per_example, (parts, model_state) = jax.jit(each)(split)
    expected, (expected_parts, expected_state) = jax.jit(
        lambda batch: whole.loss(variables, batch, jax.random.key(1), True)
    )(batch)
    np.testing.assert_allclose(per_example[:, 0], expected, rtol=2e-3)
    assert {name: float(x.mean()) for name, x in parts.items()} == pytest.approx({name: float(x.mean()) for name, x in expected_parts.items()}, rel=2e-3)
    for three, one in zip(jax.tree.leaves(model_state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(three, np.broadcast_to(one, three.shape), rtol=2e-3, atol=1e-5)


def test_one_fixed_batch_overfits(fresh, loss_and_gradient):
    batch, optimizer = {"posed": warped()}, optax.adam(3e-3)
    update = jax.jit(optimizer.update)
    params, state, losses = fresh["params"], optimizer.init(fresh["params"]), []
    for _ in range(60):
        (value, _), grads = loss_and_gradient(params, fresh, batch, True)
        updates, state = update(grads, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


# ---- use


def image_of(seed, hw=(60, 70)):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def test_descriptors_at_keypoints_are_both_maps_sampled(method, variables):
    image = np.random.default_rng(0).uniform(size=(64, 128, 3)).astype(np.float32)  # no filling up
    xy = np.array([[0, 0], [127, 63], [40.5, 21.25], [90, 10]])
    maps = infer._features(method.describe_at.keywords["net"], variables, image[None])
    uv = 2 * xy / np.array([127, 63]) - 1
    raw = np.stack([np.concatenate([tent_sample(np.asarray(m[0], np.float64), p) for m in maps]) for p in uv])
    np.testing.assert_allclose(method.describe_at(variables, image, xy, normalize=False), raw, rtol=1e-3, atol=1e-4)
    found = np.asarray(method.describe_at(variables, image, xy))
    assert found.shape == (4, 11)
    np.testing.assert_allclose(found[:, :6], raw[:, :6] / np.linalg.norm(raw[:, :6], axis=1, keepdims=True), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[:, 6:], raw[:, 6:] / np.linalg.norm(raw[:, 6:], axis=1, keepdims=True), rtol=1e-3, atol=1e-4)


def test_dense_matches_are_mutual_nearest_neighbours(method, variables):
    images = image_of(0), image_of(1, (50, 100))
    found = method.match(variables, *images)
    every = method.match(variables, *images, MatchOptions(mutual=False))
    net = method.match.keywords["net"]
    flat, places = [], []
    for image in images:
        (h, w), padded = image.shape[:2], infer._padded(image)[0]
        maps = np.asarray(infer._describe(net, variables, padded)[0])
        rows, columns = maps.shape[:2]
        assert (rows, columns) == (padded.shape[1] // 4, padded.shape[2] // 4)
        xy = np.array([(j * (padded.shape[2] - 1) / (columns - 1), i * (padded.shape[1] - 1) / (rows - 1)) for i in range(rows) for j in range(columns)])
        inside = (xy <= [w - 1, h - 1]).all(1)
        flat.append(maps.reshape(-1, maps.shape[2])[inside])
        places.append(xy[inside])
    scores = flat[0] @ flat[1].T
    best, back = scores.argmax(1), scores.argmax(0)
    mutual = back[best] == np.arange(len(best))
    assert 0 < mutual.sum() < len(mutual)
    np.testing.assert_allclose(every.xy1_px[every.valid], places[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(every.score[every.valid], scores.max(1) / 2, rtol=1e-4)
    np.testing.assert_allclose(found.xy1_px[found.valid], places[0][mutual], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.xy2_px[found.valid], places[1][best[mutual]], rtol=1e-4, atol=1e-4)
    assert not found.code.any()


def test_an_image_matches_itself_in_place(method, variables):
    image = image_of(3)
    found = method.match(variables, image, image)
    assert found.valid.sum() > 100
    np.testing.assert_array_equal(found.xy1_px[found.valid], found.xy2_px[found.valid])
    xy = np.random.default_rng(0).uniform([0, 0], [69, 59], (9, 2))
    matches, coarse = infer.query(variables, image, image, xy, net=method.match.keywords["net"], cfg=TINY)
    assert matches.xy2_px.shape == coarse.shape == (9, 2) and matches.valid.all()


def test_distributions_of_the_figure(method, variables):
    images, xy = (image_of(0, (48, 80)), image_of(1, (56, 72))), [[10, 10], [60.5, 40], [30, 20]]
    found = infer.distributions(variables, *images, xy, net=method.match.keywords["net"], cfg=TINY)
    assert found.coarse.shape == (3, 4, 5) and found.fine.shape == (3, 2, 2)  # int(14 / 8) is 1, and 2 the least
    np.testing.assert_allclose(found.coarse.sum((1, 2)), 1, rtol=1e-5)
    peak = np.array([np.unravel_index(p.argmax(), p.shape)[::-1] for p in found.coarse]) * np.array([71, 55]) / np.array([4, 3])
    half = 0.125 * np.array([71, 55]) / 2
    np.testing.assert_allclose(found.window_px, np.concatenate([peak - half, peak + half], 1), rtol=1e-4, atol=1e-3)
    corners = found.window_px[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]
    np.testing.assert_allclose(found.xy2_px, (found.fine.reshape(3, 4, 1) * corners).sum(1), rtol=1e-4, atol=1e-3)


def test_the_predictor_takes_maps_of_a_quarter(method, variables, tmp_path):
    """Full-size descriptors, keypoints through the method's own sampling, matches in the pixels of the images as given."""
    weights.save(tmp_path / "w.safetensors", "caps", TINY, jax.device_get(variables))
    net = predictor.load(tmp_path / "w.safetensors")
    assert net.dim == 11
    image, xy = image_of(0), np.array([[0, 0], [69, 59], [33.25, 7.5]])
    dense = net.describe(image)
    assert dense.shape == (60, 70, 11)
    np.testing.assert_allclose(np.linalg.norm(dense, axis=-1), 1, rtol=1e-4)
    padded = np.pad(image, ((0, 4), (0, 58), (0, 0)), mode="reflect") / np.float32(255)
    maps = np.asarray(infer._describe(method.match.keywords["net"], variables, padded[None])[0], np.float64)
    for x, y in ((0, 0), (50, 33), (69, 59)):
        expected = tent_sample(maps, 2 * np.array([x, y]) / np.array([127, 63]) - 1)
        np.testing.assert_allclose(dense[y, x], expected / np.linalg.norm(expected), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(net.describe_at(image, xy), method.describe_at(variables, image, xy), rtol=1e-4, atol=1e-5)
    matches = net.match(image, image)
    np.testing.assert_array_equal(matches.xy1, matches.xy2)
    assert len(net.match(image, image, mutual=False).score) == 15 * 17  # cells every 63 / 15 by 127 / 31 px from 0, inside 60 x 70
    with pytest.raises(UserError, match="max_scale"):
        net.match(image, image, max_scale=2.0)


def test_validation_is_in_the_pixels_of_the_images(method, variables):
    """Descriptors of a quarter of the size are brought to all of it before matching: one patch every 4 pixels, not every 16."""
    image = np.random.default_rng(0).uniform(size=(2, 64, 128, 3)).astype(np.float32)
    same = Pair(image1=image, image2=image, H_1to2=np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)), slot=np.arange(2))
    scores, matches = jax.jit(partial(validation_step, method=method, scores=HomographyPairs.scores))(variables, same)
    assert matches.xy1_px.shape == (2, 16 * 32, 2) and float(matches.xy1_px.max()) == 126
    assert float(scores["matches"]) > 300 and float(scores["mma@3px"]) > 0.99


def slow_query(maps1, maps2, uv1, inside, search, similarity):
    def cells(maps):
        h, w, d = maps.shape
        return np.array([(2 * j / (w - 1) - 1, 2 * i / (h - 1) - 1) for i in range(h) for j in range(w)]), maps.reshape(-1, d)

    def scored(query, found):
        return found @ query if similarity == "correlation" else -((found - query) ** 2).sum(1)

    rows = []
    for uv in uv1:
        places, found = cells(maps2[0])
        centre = places[np.where(inside[0], scored(tent_sample(maps1[0], uv), found), -np.inf).argmax()]
        places, found = cells(maps2[1])
        allowed = inside[1] & ((abs(places - centre) <= 0.2).all(1) | (search == "global"))
        scores = np.where(allowed, scored(tent_sample(maps1[1], uv), found), -np.inf)
        rows.append((places[scores.argmax()], centre, scores.max()))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("search", "similarity"), [("local", "correlation"), ("global", "distance")])
def test_queries_against_numpy(search, similarity):
    maps1, maps2 = random_maps(0), random_maps(1, fine=(18, 17))
    rng = np.random.default_rng(5)
    uv1 = rng.uniform(-1, 1, (6, 2)).astype(np.float32)
    inside = rng.uniform(size=15) < 0.7, rng.uniform(size=18 * 17) < 0.9
    found = infer._query_maps(maps1, maps2, uv1, *inside, window=0.2, search=search, similarity=similarity)
    for ours, theirs in zip(found, slow_query(maps1, maps2, uv1, inside, search, similarity), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_mistakes_in_use_are_sentences(method, variables):
    net = method.match.keywords["net"]
    with pytest.raises(UserError, match="search = 'near' must be one of local, global"):
        MatchOptions(search="near")
    with pytest.raises(UserError, match="70x60"):
        infer.query(variables, image_of(0), image_of(1), [[70, 1]], net=net, cfg=TINY)
    with pytest.raises(UserError, match=r"image2 has the shape \(60, 70\)"):
        method.match(variables, image_of(0), image_of(1)[..., 0])
    with pytest.raises(UserError, match=r"MatchOptions\.mutual"):
        MatchOptions(mutual="yes")


# ---- configuration and released weights


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"backbone": "resnet51"}, r"backbone"),
        ({"window": 0.0}, r"window"),
        ({"similarity": "cosine"}, r"similarity"),
        ({"decoder_features": (0, 4)}, r"decoder_features"),
        ({"weights": "resnet50.pth"}, r"weights"),
        ({"weights": "imagenet:resnet18.pth"}, r"width"),
        ({"fine_cycle_weight": -1.0}, r"fine_cycle_weight"),
        ({"weights_over": "device"}, r"weights_over"),
    ],
)
def test_wrong_fields_are_named(change, field):
    config.validate(ExperimentConfig(method=TINY, data=DATA))
    with pytest.raises(UserError, match=rf"config\.method\.{field}"):
        config.validate(ExperimentConfig(method=dataclasses.replace(TINY, **change), data=DATA))


def test_parts_of_a_batch_do_not_see_each_others_points():
    train = config.TrainConfig(accumulate=2)
    over_batch = dataclasses.replace(TINY, weights_over="batch")
    with pytest.raises(UserError, match=r"= 'batch' needs config\.train\.accumulate = 1, not 2"):
        config.validate(ExperimentConfig(method=over_batch, data=DATA, train=train))
    config.validate(ExperimentConfig(method=TINY, data=DATA, train=train))


def test_defaults_are_the_papers():
    assert (CFG.coarse_weight, CFG.fine_weight, CFG.coarse_cycle_weight, CFG.fine_cycle_weight) == (1, 1, 0.1, 0.1)
    assert (CFG.epipolar_share, CFG.fine_share, CFG.cycle_share, CFG.cycle_px, CFG.window) == (0.5, 0.125, 0.025, 40, 0.125)
    assert (CFG.backbone, CFG.decoder, CFG.decoder_features, CFG.coarse_dim, CFG.fine_dim, CFG.use_nn) == ("resnet50", "paper", (512, 256), 128, 128, True)


def released(variables):
    """As the released checkpoint: firstconv, firstbn, layer1.0..., upconv3.conv.conv and
    iconv3.conv, which takes [decoder, encoder]."""
    found = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]):
            *modules, last = (k.key for k in path if k.key != "norm")
            name = ".".join(modules).replace("backbone.", "").replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
            for i in range(1, 4):
                name = name.replace(f"layer{i}_", f"layer{i}.")
            if modules[0] == "backbone" and len(modules) == 2:
                name = f"first{modules[1].rstrip('1')}"
            if name.startswith("upconv"):
                name = name.replace(".", ".conv.", 1)
            role = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[last]
            found[f"{name}.{role}"] = np.asarray(leaf).transpose(3, 2, 0, 1) if leaf.ndim == 4 else np.asarray(leaf)
    for name, features in zip(("iconv3", "iconv2"), TINY.decoder_features, strict=True):
        weight = found[f"{name}.conv.weight"]
        encoder, decoder = weight[:, :-features], weight[:, -features:]
        found[f"{name}.conv.weight"] = np.concatenate([decoder, encoder], 1)
    return found


def test_released_weights_come_back(variables):
    tensors = released(variables)
    assert {"firstconv.weight", "firstbn.running_var", "upconv3.conv.conv.bias", "iconv2.bn.weight", "conv_fine.conv.weight"} <= set(tensors)
    for wrapper in ("net.", "module.", "module.net.", "net.module.", ""):  # the released program keeps the network in an attribute `net`
        cfg, found = from_torch({f"{wrapper}{name}": value for name, value in tensors.items()} | {f"{wrapper}firstbn.num_batches_tracked": np.array(1)})
        assert cfg == dataclasses.replace(TINY, decoder="released")
        chex.assert_trees_all_equal(found, {name: jax.tree.map(np.asarray, tree) for name, tree in variables.items()})


@pytest.fixture(scope="module")
def converted():
    """Names and shapes of the published network, filled by a seed, through the converter."""
    cfg, found = from_torch(inputs.caps_state(inputs.load("caps_maps.npz")["names"]))
    assert cfg == Config(decoder="released")
    return jax.jit(partial(network.features, network.build(cfg))), found


@pytest.mark.parametrize("case", sorted(inputs.CAPS_IMAGES))
def test_converted_weights_give_the_maps_of_the_released_program(converted, case):
    """Also of 97 x 131 pixels, where the encoder's maps are padded: 28 x 36 for 25 x 33."""
    features, found = converted
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    image = np.moveaxis(inputs.caps_image(case), 1, -1) * std + mean
    maps, expected = features(found, image.astype(np.float32)), inputs.load("caps_maps.npz")
    coarse, fine = (np.moveaxis(np.asarray(m), -1, 1) for m in maps)
    np.testing.assert_allclose(coarse[:, ::16], expected[f"{case}_coarse"], atol=1e-4)
    np.testing.assert_allclose(fine[:, ::16, ::3, ::3], expected[f"{case}_fine"], atol=1e-4)


def test_files_that_were_converted_wrongly_are_refused(variables, tmp_path, monkeypatch):
    """The header of that time does not tell converted weights from trained ones; all other
    files are what they were."""
    cfg, found = from_torch(released(variables))
    path = tmp_path / "w.safetensors"
    weights.save(path, "caps", cfg, found)
    chex.assert_trees_all_equal(weights.load(path).variables, found)
    monkeypatch.setattr(weights, "FORMAT_VERSION", 1)
    weights.save(path, "caps", cfg, found, {"source": "caps.pth", "licence": "MIT"})
    with pytest.raises(UserError, match=r"w\.safetensors may hold .* wrongly: make it again"):
        predictor.load(path)
    weights.save(path, "caps", dataclasses.replace(cfg, decoder="paper"), found)
    chex.assert_trees_all_equal(weights.load(path).variables, found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("layer3.0.bn2.weight"), r"missing: layer3\.0\.bn2\.weight\."),
        (lambda t: t.update({"fc.weight": np.zeros(3)}), r"not used: fc\.weight\."),
        (lambda t: t.update({"iconv3.bn.bias": np.zeros(3)}), r"of another shape: iconv3\.bn\.bias is \(3,\) instead of \(8,\)\."),
        (lambda t: t.pop("conv_fine.conv.weight"), r"not the weights of CAPS's network"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("layer2.0")], r"not the weights of CAPS's network: stages of 1, 0, 1 blocks"),
    ],
)
def test_what_does_not_fit_is_listed(variables, change, words):
    tensors = released(variables)
    change(tensors)
    with pytest.raises(UserError, match=words):
        from_torch(tensors)
