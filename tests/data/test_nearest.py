"""Mutual nearest neighbours."""

import tracemalloc

import numpy as np
import pytest

from jaxdesc.data.nearest import mutual_nearest
from jaxdesc.types import UserError


@pytest.mark.parametrize(("n1", "n2", "block"), [(37, 53, 4 * 53 * 5), (53, 37, 1), (20, 20, 1 << 26), (1, 9, 40)])
def test_mutual_nearest_is_the_double_loop(n1, n2, block):
    rng = np.random.default_rng(n1)
    a, b = rng.normal(size=(n1, 12)), rng.normal(size=(n2, 12)).astype(np.float16)
    indices, scores = mutual_nearest(a, b, block)
    similarity = [[sum(float(x) * float(y) for x, y in zip(p, q, strict=True)) for q in b] for p in a]
    expected = []
    for i, row in enumerate(similarity):
        j = row.index(max(row))
        column = [other[j] for other in similarity]
        if column.index(max(column)) == i:
            expected.append((i, j))
    assert indices.tolist() == [list(pair) for pair in expected] and len(expected) > 0
    np.testing.assert_allclose(scores, [similarity[i][j] for i, j in expected], rtol=1e-5)


def test_equal_descriptors_match_once():
    a = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    assert mutual_nearest(a, a)[0].tolist() == [[0, 0], [2, 2], [4, 4]]
    assert mutual_nearest(a, a[:0])[0].shape == (0, 2)
    with pytest.raises(UserError, match="different methods"):
        mutual_nearest(a, a[:, :2])


def test_memory_does_not_grow_with_the_product():
    a = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    tracemalloc.start()
    mutual_nearest(a, a, block_bytes=1 << 18)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20, "the whole product would take 36 MB"
