"""Cells, transfer and the standardised cross entropy against NumPy loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.methods.cold import cells
from jaxdesc.ops.sampling import cell_centres

MAP1, MAP2, D = (5, 7), (6, 4), 8  # rows and columns of cells
transfer = jax.jit(cells.transfer, static_argnums=(3, 4), static_argnames=("box_px", "mutual"))


def unit(rng, count):
    x = rng.normal(size=(count, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def slow_correlation(desc1, desc2):
    return np.array([[max(0.0, float(a @ b)) ** 2 for b in desc2] for a in desc1.astype(np.float64)])


def slow_transfer(xy, A, map1, map2, half, mutual):
    if mutual:
        A = np.array([[A[i, j] * A[i, j] ** 2 / (A[i].max() * A[:, j].max()) for j in range(A.shape[1])] for i in range(A.shape[0])])
    moves = []
    for v in range(map1[0]):
        for u in range(map1[1]):
            if abs(xy[0] - 4 * u) <= half and abs(xy[1] - 4 * v) <= half:
                j = A[v * map1[1] + u].argmax()
                moves.append((4 * (j % map2[1]) - 4 * u, 4 * (j // map2[1]) - 4 * v))
    return xy + np.mean(moves, 0), len(moves)


def test_maps_and_centres():
    assert cells.map_shape(240, 240) == (60, 60) and cells.map_shape(21, 17) == (6, 5)
    centres = np.asarray(cell_centres(MAP1, cells.CELLS))
    assert centres.shape == (35, 2)
    np.testing.assert_array_equal(centres[[0, 1, 7, 34]], [[0, 0], [4, 0], [0, 4], [24, 16]])


def test_nearest_cell_is_the_nearest_centre():
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.uniform(-3, 30, (200, 2)), [[2, 2], [6, 10], [0, 0], [-9, 99]]]).astype(np.float32)  # some between two centres
    centres = np.asarray(cell_centres(MAP1, cells.CELLS))
    slow = [np.linalg.norm(centres - p, axis=1).argmin() for p in xy]
    np.testing.assert_array_equal(cells.nearest_cell(xy, MAP1), slow)


@pytest.mark.parametrize(("box_px", "mutual"), [(11, False), (7, True)])
def test_transfer_against_numpy(box_px, mutual):
    rng = np.random.default_rng(1)
    desc1, desc2 = unit(rng, 35), unit(rng, 24)
    xy = np.concatenate([rng.uniform(0, [27, 19], (40, 2)), [[1, 1], [4, 4], [2, 2], [3, 13], [27, 19]]]).astype(np.float32)
    ours, score = transfer(xy, desc1, desc2, MAP1, MAP2, box_px=box_px, mutual=mutual)
    A = slow_correlation(desc1, desc2)
    theirs, counts = zip(*(slow_transfer(p, A, MAP1, MAP2, (box_px - 1) / 2, mutual) for p in xy.astype(np.float64)), strict=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(score, (desc1 @ desc2.T).max(1)[np.asarray(cells.nearest_cell(xy, MAP1))], rtol=1e-5)
    assert max(counts) == (9 if box_px == 11 else 4)


def test_a_point_that_no_box_holds_moves_with_its_nearest_cell():
    rng = np.random.default_rng(2)
    desc1, desc2 = unit(rng, 35), unit(rng, 24)
    xy = np.array([[2.0, 6.0]], np.float32)  # 2 px from the nearest centres, boxes reach 1
    j = slow_correlation(desc1, desc2)[7].argmax()
    moved = [[4 * (j % 4), 4 * (j // 4) - 4]]
    np.testing.assert_allclose(transfer(xy, desc1, desc2, MAP1, MAP2, box_px=3)[0] - xy, moved, atol=1e-5)


def test_strips_do_not_change_the_mutual_filter():
    rng = np.random.default_rng(3)
    desc1, desc2, asked = unit(rng, 35), unit(rng, 24), np.arange(35)
    plain = cells.best_cells(desc1, desc2, asked)
    whole, strips = (cells.best_cells(desc1, desc2, asked, True, strip) for strip in (35, 8))
    np.testing.assert_array_equal(whole, strips)
    assert (np.asarray(plain) != np.asarray(whole)).any()


def test_cross_entropy_against_numpy():
    rng = np.random.default_rng(4)
    rows = rng.uniform(size=(6, 50)).astype(np.float32)
    rows[5] = 0.25  # flat: sd is 0
    target = rng.integers(0, 50, 6)
    slow = []
    for row, j in zip(rows.astype(np.float64), target, strict=True):
        z = (row - row.mean()) / (row.std() or 1)
        slow.append(-np.log(np.exp(z[j]) / np.exp(z).sum() + 1e-30))
    np.testing.assert_allclose(cells.cross_entropy(rows, target), slow, rtol=1e-5)
    np.testing.assert_allclose(slow[5], np.log(50))


def test_standard_scores_are_bounded():
    peak = np.zeros((1, 3600), np.float32)
    peak[0, 7] = 1e-3
    assert float(cells.standardised(peak).max()) == pytest.approx(np.sqrt(3599), rel=1e-5)


@pytest.mark.parametrize("through", [False, True])
def test_gradient_of_the_cross_entropy(through):
    """Finite, on a flat row too, and that of the formula, with the standard deviation held fixed or not."""
    rng = np.random.default_rng(5)
    rows, target = rng.uniform(size=(2, 20)), np.array([3, 11])
    rows[1] = 0.5
    ours = np.asarray(jax.jit(jax.grad(lambda r: cells.cross_entropy(r, target, through).sum()))(rows.astype(np.float32)))
    assert np.isfinite(ours).all()
    fixed = rows.std(1, keepdims=True)
    fixed[1] = 1

    def slow(r):
        sd = np.array([[r[0].std()], [1]]) if through else fixed
        z = (r - r.mean(1, keepdims=True)) / sd
        return -sum(np.log(np.exp(z[i, t]) / np.exp(z[i]).sum() + 1e-30) for i, t in enumerate(target))

    for i, j in ((0, 3), (0, 8), (1, 11), (1, 0)):
        step = np.zeros_like(rows)
        step[i, j] = 1e-5
        assert ours[i, j] == pytest.approx((slow(rows + step) - slow(rows - step)) / 2e-5, rel=1e-3, abs=1e-5)


def test_easy_and_hard_keypoints():
    distance = jnp.array([0.0, 6.0, 12.0, 24.0, 24.1, 300.0])
    np.testing.assert_allclose(cells.difficulty(distance, 24.0), [0, 1 / 16, 1 / 4, 1, 1, 1], rtol=1e-6)
    assert not np.asarray(jax.grad(lambda d: partial(cells.difficulty, limit=24.0)(d).sum())(distance)).any()
