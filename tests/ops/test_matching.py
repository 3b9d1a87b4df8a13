import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.ops.matching import CELL, nearest, reciprocal_nearest
from jaxdesc.ops.metrics import matching_accuracy
from jaxdesc.types import Correspondences


def loop(desc1, desc2):
    patches = [(x, y) for y in range(2, desc1.shape[0], CELL) for x in range(2, desc1.shape[1], CELL)]
    best, cells = {}, {}
    for p in patches:
        scores = desc2 @ desc1[p[1], p[0]]
        y, x = np.unravel_index(scores.argmax(), scores.shape)
        best[p] = ((x, y), scores.max())
        for v in range(scores.shape[0]):
            for u in range(scores.shape[1]):
                cell = (u // CELL, v // CELL)
                if scores[v, u] > cells.get(cell, (-9, None))[0]:
                    cells[cell] = (scores[v, u], (p, (u, v)))
    return {(p, q) for p, (q, _) in best.items() if cells[q[0] // CELL, q[1] // CELL][1] == (p, q)}


@pytest.mark.parametrize("strip", [3, 128])
def test_reciprocal_matches_equal_a_loop(strip):
    rng = np.random.default_rng(0)
    desc1, desc2 = rng.normal(size=(15, 22, 5)).astype(np.float32), rng.normal(size=(12, 16, 5)).astype(np.float32)
    found = reciprocal_nearest(jnp.array(desc1), jnp.array(desc2), strip=strip)
    kept = np.asarray(found.valid)
    rows = {(tuple(map(int, a)), tuple(map(int, b))) for a, b in zip(np.asarray(found.xy1_px)[kept], np.asarray(found.xy2_px)[kept], strict=True)}
    assert rows == loop(desc1, desc2) and len(rows) > 2


def test_identical_images_match_themselves():
    desc = jax.random.normal(jax.random.key(0), (16, 20, 32))
    found = reciprocal_nearest(desc, desc)
    assert bool(found.valid.all())
    np.testing.assert_array_equal(found.xy1_px, found.xy2_px)


def matches(xy1, xy2, valid):
    n = len(xy1)
    return Correspondences(
        xy1_px=jnp.array(xy1, jnp.float32), xy2_px=jnp.array(xy2, jnp.float32), score=jnp.ones(n), code=jnp.zeros(n, jnp.int32), valid=jnp.array(valid)
    )


def test_accuracy_by_hand():
    """Shift by (2, 0) in an 11 x 11 image; errors 0, 1, 3.2, one match whose truth is outside, one that is not valid."""
    H = jnp.array([[1.0, 0, 2], [0, 1, 0], [0, 0, 1]])
    found = matches([[0, 0], [1, 1], [2, 2], [10, 3], [4, 4]], [[2, 0], [4, 1], [7.2, 2], [10, 3], [6, 4]], [True, True, True, True, False])
    share, weight, count = matching_accuracy(found, H, (11, 11))
    np.testing.assert_allclose(share, [2 / 3, 2 / 3, 1], atol=1e-6)
    assert weight == 1 and count == 3
    share, _, _ = matching_accuracy(found, H, (11, 11), thresholds_px=(0.5, 3.3))
    np.testing.assert_allclose(share, [1 / 3, 1], atol=1e-6)


def test_a_pair_without_matches_scores_zero_and_one_without_overlap_does_not_count():
    found = matches([[0, 0]], [[0, 0]], [False])
    share, weight, _ = matching_accuracy(found, jnp.eye(3), (5, 5))
    assert float(share.max()) == 0 and weight == 1
    _, weight, _ = matching_accuracy(found, jnp.array([[1.0, 0, 99], [0, 1, 0], [0, 0, 1]]), (5, 5))
    assert weight == 0


def test_mutual_nearest_neighbours_in_strips():
    """Rows that do not exist are nobody's neighbour; of equal scores the first counts; strips do not show."""
    rng = np.random.default_rng(4)
    desc1, desc2 = rng.normal(size=(23, 5)).astype(np.float32), rng.normal(size=(17, 5)).astype(np.float32)
    desc1[9] = desc1[2]
    exists1, exists2 = rng.uniform(size=23) < 0.8, rng.uniform(size=17) < 0.8
    exists1[[2, 9]] = True
    scores = np.where(exists2, desc1 @ desc2.T, -np.inf)
    best = scores.argmax(1)
    back = np.where(exists1[:, None], scores, -np.inf).argmax(0)
    mutual = exists1 & (back[best] == np.arange(23))
    assert 0 < mutual.sum() < exists1.sum() and not mutual[9]
    for strip in (4, 1024):
        index, score, chosen = jax.jit(nearest, static_argnames="strip")(desc1, desc2, exists1, exists2, strip=strip)
        np.testing.assert_array_equal(index[exists1], best[exists1])
        np.testing.assert_allclose(score[exists1], scores.max(1)[exists1], rtol=1e-5)
        np.testing.assert_array_equal(chosen, mutual)
