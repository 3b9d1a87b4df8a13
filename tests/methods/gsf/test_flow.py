"""Semantic flow: every function against loops over cells written from the formulas; the source map, the target map and the features all differ in size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.methods.gsf import flow

RNG = np.random.default_rng(0)
dense_guidance = jax.jit(flow.dense_guidance, static_argnames=("target_hw", "convention", "order"))
reconstruction_loss = jax.jit(flow.reconstruction_loss, static_argnames=("window", "weight"))
classification_loss = jax.jit(flow.classification_loss, static_argnames="window")
unit_features, correlation, mutual_confidence = (
    jax.jit(flow.unit_features),
    jax.jit(flow.correlation),
    jax.jit(flow.mutual_confidence, static_argnames=("power", "contrast")),
)
H, W, H2, W2, D = 5, 4, 3, 6, 7
TARGET = (H2, W2)
CELLS = [(x, y) for y in range(H) for x in range(W)]
CELLS2 = [(x, y) for y in range(H2) for x in range(W2)]
Q = RNG.uniform(0, 1, (H, W, H2 * W2)).astype(np.float32)
REFINED = (Q * RNG.uniform(0.5, 1, Q.shape)).astype(np.float32)
SELECTED = Q > 0.93
FLOW = RNG.uniform(-1.5, 1.5, (H, W, 2)).astype(np.float32)


def features(h, w, seed):
    made = np.random.default_rng(seed).normal(size=(h, w, D))
    return (made / np.linalg.norm(made, axis=-1, keepdims=True)).astype(np.float32)


def test_features_and_correlation():
    raw, raw2 = RNG.normal(size=(H, W, D)), RNG.normal(size=(H2, W2, D))
    raw[0, 0] = 0
    ours, ours2 = unit_features(raw), unit_features(raw2)
    np.testing.assert_allclose(ours, [[f / np.sqrt(sum(v * v for v in f) + 1e-6) for f in row] for row in raw], atol=1e-5)
    C = correlation(ours, ours2)
    expected = [[[max(0.0, float(np.dot(ours[y, x], ours2[v, u]))) for u, v in CELLS2] for x in range(W)] for y in range(H)]
    np.testing.assert_allclose(C, expected, atol=1e-5)
    assert (np.array(expected) == 0).any()
    assert np.isfinite(jax.grad(lambda f: unit_features(f).sum())(jnp.zeros((2, 2, D)))).all()


def slow_ratios(C):
    """c / max of its row * c / max of its column, by loops, (cells, cells2)."""
    rows = C.reshape(-1, C.shape[-1]).astype(np.float64)
    return np.array(
        [
            [c / row.max() * c / column.max() for c, column in zip(row, rows.T, strict=True)]
            for row in rows
        ]
    )


@pytest.mark.parametrize(("power", "contrast"), [(0, 1.0), (1, 1.0), (0, 3.5), (0, 4000.0)])
def test_mutual_confidence(power, contrast):
    """At any contrast it is 1 exactly at mutual nearest neighbours, however small C is."""
    C = RNG.uniform(0, 1, (H, W, H2 * W2)).astype(np.float32)
    rows = C.reshape(H * W, -1).astype(np.float64)
    expected = slow_ratios(C) ** contrast * rows**power
    ours = np.asarray(mutual_confidence(C, power, contrast)).reshape(H * W, -1)
    np.testing.assert_allclose(ours, expected, rtol=1e-6 * contrast + 1e-6, atol=1e-30)
    if power == 0:
        mutual = (rows == rows.max(1, keepdims=True)) & (rows == rows.max(0))
        assert mutual.any()
        np.testing.assert_array_equal(ours > 1 - 3e-7 * contrast, mutual)  # two roundings
        faint = mutual_confidence(np.float32(2**-10) * C, power, contrast).reshape(H * W, -1)
        np.testing.assert_allclose(faint, ours, rtol=1e-6 * contrast)
    kept = (expected > 0.9).any(1).mean()
    np.testing.assert_allclose(flow.density(ours.reshape(C.shape), 0.9), kept, rtol=1e-6)
    assert 0 < kept < 1
    assert not np.asarray(mutual_confidence(np.zeros_like(C), power, contrast)).any()
    assert np.isfinite(jax.grad(lambda c: mutual_confidence(c, power, contrast).sum())(np.where(C > 0.5, C, 0))).all()


@pytest.mark.parametrize("density", [0.5, 0.75])
def test_contrast_of_a_density(density):
    """Against a search by halves, which works as the density falls with the contrast."""
    C = (0.8 + 0.2 * RNG.uniform(size=(20, 12, 90))).astype(np.float32)  # cosines all alike
    best = slow_ratios(C).max(1)
    low, high = 1.0, 1000.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if (best**middle > 0.9).mean() > density else (low, middle)
    ours = flow.contrast_of(np.asarray(flow.ratio_product(C)).max(-1), 0.9, density)
    assert 1 < ours < 1000
    assert abs(int((best**ours > 0.9).sum()) - int((best**low > 0.9).sum())) <= 1
    found = flow.density(mutual_confidence(C, 0, ours), 0.9)
    assert abs(found - density) <= 1 / len(best)


def test_contrast_where_none_gives_the_density():
    """All cells mutual nearest neighbours: any is too low; few with a match at 1: the least."""
    assert flow.contrast_of(np.ones(40), 0.9, 0.75) == 1000
    assert flow.contrast_of(np.full(40, 0.2), 0.9, 0.75) == 1
    assert flow.contrast_of(np.zeros(40), 0.9, 0.75) == 1


def slow_guidance(Q, selected):
    """G, m cell by cell."""
    G, m = np.zeros((len(CELLS), 2)), np.zeros(len(CELLS))
    for k, (x, y) in enumerate(CELLS):
        for j, (u, v) in enumerate(CELLS2):
            if selected[y, x, j]:
                m[k] += Q[y, x, j]
                G[k] += Q[y, x, j] * np.array([u - x, v - y])
        G[k] = G[k] / m[k] if m[k] > 0 else 0
    return G, m


def test_sparse_guidance():
    G, m = flow.sparse_guidance(Q, SELECTED, TARGET)
    slow_G, slow_m = slow_guidance(Q, SELECTED)
    np.testing.assert_allclose(G.reshape(-1, 2), slow_G, atol=1e-4)
    np.testing.assert_allclose(m.reshape(-1), slow_m, atol=1e-5)
    assert (slow_m == 0).any() and (slow_m > 0).any()


@pytest.mark.parametrize(("c", "convention"), [(1.0, "width"), (2.5, "variance")])
def test_dense_guidance_of_order_0(c, convention):
    G, m = slow_guidance(Q, SELECTED)
    spread = 2 * c**2 if convention == "width" else 2 * c
    expected = []
    for x, y in CELLS:
        K = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / spread) for u, v in CELLS]
        expected.append(sum(k * a * g for k, a, g in zip(K, m, G, strict=True)) / (sum(k * a for k, a in zip(K, m, strict=True)) + 1e-8))
    np.testing.assert_allclose(dense_guidance(Q, SELECTED, TARGET, c, convention).reshape(-1, 2), expected, atol=1e-4)


def test_dense_guidance_of_order_1():
    G, m = slow_guidance(Q, SELECTED)
    ours = dense_guidance(Q, SELECTED, TARGET, 2.0, "width", order=1).reshape(-1, 2)
    design = np.array([(1, x, y) for x, y in CELLS])
    for i, (x, y) in enumerate(CELLS):
        weight = np.array([np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8) for u, v in CELLS]) * m
        root = np.sqrt(weight)[:, None]
        fit = np.linalg.lstsq(root * design, root * G, rcond=None)[0]
        np.testing.assert_allclose(ours[i], [1, x, y] @ fit, atol=2e-2)  # the ridge
    # affine displacements come back, which a mean does not give: j = (W2 - 1 - x, ...) is matched by one cell each
    affine = np.zeros((4, 4, 16), bool)
    for y in range(4):
        for x in range(4):
            affine[y, x, (3 - y) * 4 + x] = True
    whole = np.ones((4, 4, 16), np.float32)
    expected = [[[0, 3 - 2 * y] for x in range(4)] for y in range(4)]
    np.testing.assert_allclose(dense_guidance(whole, affine, (4, 4), 2.0, "width", order=1), expected, atol=0.02)
    assert np.abs(dense_guidance(whole, affine, (4, 4), 2.0, "width") - np.array(expected)).max() > 0.5


@pytest.mark.parametrize("order", [0, 1])
def test_no_match_and_one_match(order):
    """Without a match there is no guidance and no NaN; a single one guides all that it reaches."""
    dense = partial(dense_guidance, target_hw=TARGET, convention="width", order=order)
    loss = jax.jit(jax.value_and_grad(lambda q, selected, c: (dense(q, selected, c=c) ** 2).sum()))
    nothing = np.zeros_like(SELECTED)
    value, gradient = loss(Q, nothing, 2.0)
    assert value == 0 and not np.asarray(gradient).any()
    one = nothing.copy()
    one[2, 1, 1 * W2 + 4] = True
    np.testing.assert_allclose(dense(Q, one, c=2.0), np.broadcast_to([3.0, -1.0], (H, W, 2)), atol=1e-3)
    near = np.asarray(dense(Q, one, c=0.1))
    np.testing.assert_allclose(near[2, 1], [3, -1], atol=1e-3)
    assert not np.delete(near.reshape(-1, 2), 2 * W + 1, 0).any()
    assert np.isfinite(loss(Q, one, 2.0)[1]).all()


@pytest.mark.parametrize("order", [0, 1])
def test_gradients_go_through_the_values_and_not_the_selection(order):
    def loss(q):
        return (dense_guidance(q, flow.confident(q, 0.93), TARGET, 1.5, "width", order=order) ** 2).sum()

    with_selection = np.asarray(jax.jit(jax.grad(loss))(Q))
    constant = np.asarray(jax.jit(jax.grad(lambda q: (dense_guidance(q, SELECTED, TARGET, 1.5, "width", order=order) ** 2).sum()))(Q))
    np.testing.assert_allclose(with_selection, constant, atol=1e-4)
    assert not with_selection[~SELECTED].any() and with_selection[SELECTED].any() and np.isfinite(with_selection).all()
    if order == 0:
        j = tuple(np.argwhere(SELECTED)[3])
        step = np.zeros(Q.shape)
        step[j] = 1e-4

        def slow(q):
            G, m = slow_guidance(q, SELECTED)
            K = np.array([[np.exp(-((x - u) ** 2 + (y - v) ** 2) / 4.5) for u, v in CELLS] for x, y in CELLS]) * m
            return ((K @ G / K.sum(1, keepdims=True)) ** 2).sum()

        np.testing.assert_allclose(with_selection[j], (slow(Q + step) - slow(Q - step)) / 2e-4, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("c", "convention"), [(1.5, "width"), (3.0, "variance")])
def test_modulation(c, convention):
    C = RNG.uniform(0, 1, (H, W, H2 * W2)).astype(np.float32)
    spread = 2 * c**2 if convention == "width" else 2 * c
    expected = np.array(
        [[C[y, x, j] * np.exp(-((u - x - FLOW[y, x, 0]) ** 2 + (v - y - FLOW[y, x, 1]) ** 2) / spread) for j, (u, v) in enumerate(CELLS2)] for x, y in CELLS]
    )
    np.testing.assert_allclose(flow.modulate(C, FLOW, TARGET, c, convention).reshape(H * W, -1), expected, atol=1e-5)


def test_the_modulation_makes_no_second_volume():
    """Of arrays as large as the volume the compiled program holds what it is given and what it returns."""
    C = jax.ShapeDtypeStruct((20, 20, 400), jnp.float32)
    compiled = jax.jit(partial(flow.modulate, target_hw=(20, 20), c=5.0, convention="width")).lower(C, jax.ShapeDtypeStruct((20, 20, 2), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 20 * 20 * 400 / 4


def test_warp_and_best_flow():
    target = features(H2, W2, 1)

    def tent(x, y):
        return sum(max(0, 1 - abs(x - u)) * max(0, 1 - abs(y - v)) * target[v, u] for u, v in CELLS2)

    expected = [tent(x + FLOW[y, x, 0], y + FLOW[y, x, 1]) for x, y in CELLS]
    np.testing.assert_allclose(flow.warp_map(target, FLOW).reshape(-1, D), expected, atol=1e-5)
    C = RNG.uniform(0, 1, (H, W, H2 * W2)).astype(np.float32)
    best = [np.subtract(CELLS2[int(np.argmax(C[y, x]))], (x, y)) for x, y in CELLS]
    np.testing.assert_array_equal(flow.best_flow(C, TARGET).reshape(-1, 2), best)


def test_silhouette_loss():
    mask, mask2 = RNG.uniform(size=(H, W)) > 0.5, RNG.uniform(size=(H2, W2)) > 0.5
    same = flow.same_side(mask, mask2)
    squares, masked = [], []
    for x, y in CELLS:
        for j, (u, v) in enumerate(CELLS2):
            if SELECTED[y, x, j]:
                squares.append((REFINED[y, x, j] - Q[y, x, j]) ** 2)
                masked.append((REFINED[y, x, j] - (Q[y, x, j] if mask[y, x] == mask2[v, u] else 0)) ** 2)
    np.testing.assert_allclose(flow.silhouette_loss(REFINED, Q, SELECTED), np.mean(squares), rtol=1e-5)
    np.testing.assert_allclose(flow.silhouette_loss(REFINED, Q, SELECTED, same), np.mean(masked), rtol=1e-5)
    assert np.mean(masked) > 2 * np.mean(squares)
    assert flow.silhouette_loss(Q, Q, SELECTED) == 0 and flow.silhouette_loss(REFINED, Q, np.zeros_like(SELECTED), same) == 0


def slow_window(x, y, window):
    return [(u, v) for u, v in CELLS if abs(u - x) <= window // 2 and abs(v - y) <= window // 2]


@pytest.mark.parametrize("window", [3, 5])
def test_reconstruction_loss(window):
    source, warped = features(H, W, 2), features(H, W, 3)
    e = ((source - warped) ** 2).sum(-1)
    total, weighted, mass, count = 0.0, 0.0, 0.0, 0
    for x, y in CELLS:
        mean = np.mean([e[v, u] for u, v in slow_window(x, y, window)])
        for j in range(len(CELLS2)):
            if SELECTED[y, x, j]:
                total, count = total + mean, count + 1
                weighted, mass = weighted + REFINED[y, x, j] * mean, mass + REFINED[y, x, j]
    ours = partial(reconstruction_loss, source, warped, window=window)
    np.testing.assert_allclose(ours(REFINED, SELECTED), total / count, rtol=1e-5)
    np.testing.assert_allclose(ours(REFINED, SELECTED, weight="qprime"), weighted / mass, rtol=1e-5)
    for weight in ("recon", "qprime"):
        value, gradient = jax.value_and_grad(lambda q, weight=weight: ours(q, np.zeros_like(SELECTED), weight=weight))(REFINED)
        assert value == 0 and not np.asarray(gradient).any()
    gradient = np.asarray(jax.grad(lambda f: reconstruction_loss(source, f, REFINED, SELECTED, window))(warped))
    direction = RNG.normal(size=warped.shape).astype(np.float32)
    ends = [float(reconstruction_loss(source, warped + step * direction, REFINED, SELECTED, window)) for step in (1e-2, -1e-2)]
    np.testing.assert_allclose((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-2, rtol=1e-2)


@pytest.mark.parametrize(("window", "sharpness"), [(3, 1.0), (5, 10.0)])
def test_classification_loss(window, sharpness):
    source, warped = features(H, W, 4), features(H, W, 5)
    losses = []
    for x, y in CELLS:
        scores = {(u, v): np.exp(sharpness * np.dot(source[y, x].astype(np.float64), warped[v, u])) for u, v in slow_window(x, y, window)}
        losses.append(-np.log(scores[x, y] / sum(scores.values())))
    ours = partial(classification_loss, window=window, sharpness=sharpness)
    np.testing.assert_allclose(ours(source, warped), np.mean(losses), rtol=1e-5)
    zeros = np.zeros((9, 11, D), np.float32)
    counts = [len(range(max(0, y - 1), min(9, y + 2))) * len(range(max(0, x - 1), min(11, x + 2))) for y in range(9) for x in range(11)]
    np.testing.assert_allclose(classification_loss(zeros, zeros, 3), np.log(counts).mean(), rtol=1e-5)  # chance: ln 9 inside
    gradient = jax.jit(jax.grad(lambda f: ours(source, f)))(warped)
    direction = RNG.normal(size=warped.shape).astype(np.float32)
    slope = (float(ours(source, warped + 1e-2 * direction)) - float(ours(source, warped - 1e-2 * direction))) / 2e-2
    np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-2, atol=1e-3)


def test_smoothness_loss():
    across = [abs(FLOW[y, x + 1, k] - FLOW[y, x, k]) for y in range(H) for x in range(W - 1) for k in (0, 1)]
    down = [abs(FLOW[y + 1, x, k] - FLOW[y, x, k]) for y in range(H - 1) for x in range(W) for k in (0, 1)]
    np.testing.assert_allclose(flow.smoothness_loss(jnp.array(FLOW)), np.mean(across) + np.mean(down), rtol=1e-5)


def test_masks_become_cells():
    mask = np.zeros((10, 12), bool)
    mask[2:4, 3] = True  # 2 of 12 pixels of the cell (1, 1)
    mask[9, 11] = True  # 1 of 12
    found = flow.mask_cells(mask, (5, 2), 0.1)
    expected = [[mask[2 * i : 2 * i + 2, 6 * k : 6 * k + 6].mean() > 0.1 for k in range(2)] for i in range(5)]
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == 1
    assert flow.mask_cells(mask, (5, 2), 0.05).sum() == 2


def test_points_are_carried():
    at = RNG.uniform(-1, [W, H], (20, 2)).astype(np.float32)
    expected = []
    for x, y in at:
        u, v = np.clip(x, 0, W - 1), np.clip(y, 0, H - 1)
        expected.append(np.array([x, y]) + sum(max(0, 1 - abs(u - a)) * max(0, 1 - abs(v - b)) * FLOW[b, a] for a, b in CELLS))
    np.testing.assert_allclose(flow.carried(FLOW, at), expected, atol=1e-5)
