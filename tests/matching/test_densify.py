"""Gaps between matches."""

import numpy as np
import pytest

from jaxdesc.matching.densify import dense_rows, densify
from jaxdesc.types import UserError


def test_densified_affine_field_is_exact():
    rng = np.random.default_rng(6)
    A, b = np.array([[1.1, 0.2], [-0.1, 0.9]]), np.array([3.0, -5.0])
    xy1 = np.concatenate([rng.uniform(2, 28, (40, 2)), [[-1, -1], [41, -1], [-1, 31], [41, 31]]])
    corres = np.column_stack([xy1, xy1 @ A.T + b, np.ones((44, 2))])
    y, x = np.mgrid[:31, :41]
    pixels = np.stack([x, y], -1)
    dense = densify(corres, (31, 41), (20, 20))
    np.testing.assert_allclose(dense, pixels @ A.T + b, atol=1e-3)
    rows = dense_rows(dense)
    assert rows.shape == (31 * 41, 4) and rows[41 + 2, :2].tolist() == [2, 1]
    np.testing.assert_array_equal(rows[41 + 2, 2:], dense[1, 2])
    right = densify(corres[:, [2, 3, 0, 1]], (20, 20), (31, 41), side="right")
    np.testing.assert_array_equal(right, dense)
    np.testing.assert_array_equal(dense_rows(right, "right"), rows[:, [2, 3, 0, 1]])


def test_outside_the_hull_the_three_nearest_decide():
    corres = np.array([[1, 1, 2, 1], [3, 1, 5, 1], [1, 3, 4, 4], [30, 30, 30, 30.0]])
    assert densify(corres, (40, 40), (40, 40))[0, 0].tolist() == pytest.approx([2, 1 / 3])  # mean of (1, 0), (2, 0), (3, 1)
    line = densify(corres[:3] * [1, 0, 1, 1] + [0, 2, 0, 0], (4, 5), (9, 9))  # all at y = 2, two of them at one place
    assert np.isfinite(line).all()
    assert densify(corres[:1], (4, 5), (9, 9))[3, 4].tolist() == [5, 3]
    with pytest.raises(UserError, match="no match"):
        densify(corres[:0], (4, 5), (9, 9))


# The method
