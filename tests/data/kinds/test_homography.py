"""Photographs and warped copies of them: what is drawn, and how matches are scored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.data.kinds import HomographyPairs
from jaxdesc.ops.geometry import apply_homography
from jaxdesc.types import Correspondences, Pair
from tests.data.test_crops import CFG, drawn, photographs, warped


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"swap_probability": 1.0},
        {"flip_probability": 1.0},
        {"swap_probability": 1.0, "flip_probability": 1.0},
    ],
)
def test_the_homography_relates_the_two_crops(flags):
    """Colours at p in image 1 and at H p in image 2 agree wherever H p lies inside."""
    pair = warped(dataclasses.replace(CFG, **flags), n=4)
    assert pair.image1.shape == (4, 32, 32, 3)
    assert (np.abs(pair.H_1to2[:, 2, :2]).max(-1) > 1e-5).all()  # one of the two is tilted
    shared = 0
    for i in range(4):
        y, x = np.mgrid[2:30, 2:30]
        q = np.asarray(apply_homography(pair.H_1to2[i], jnp.stack([x, y], -1).astype(jnp.float32)))
        inside = ((q >= 1) & (q <= 29)).all(-1)
        nearest = np.round(q[inside]).astype(int)
        first, second = (
            np.asarray(pair.image1[i])[2:30, 2:30][inside],
            np.asarray(pair.image2[i])[nearest[:, 1], nearest[:, 0]],
        )
        lit = (first.min(-1) > 0.02) & (second.min(-1) > 0.02)  # not beyond the photograph
        shared += lit.sum()
        if lit.any():
            assert np.median(np.abs(first - second)[lit]) < 0.04
    assert shared > 300


def test_draws_follow_the_slot_not_the_place():
    """An example looks the same wherever it stands in a device's rows; another slot or step looks different."""
    both = warped(CFG, n=2)
    reversed_rows = jax.tree.map(lambda x: x[::-1], photographs(2)), jnp.array([1, 0])
    swapped = drawn(HomographyPairs(), jax.random.key(0), *reversed_rows, CFG)
    np.testing.assert_allclose(both.image2[0], swapped.image2[1], atol=1e-6)
    assert float(jnp.abs(both.H_1to2[0] - warped(CFG, seed=1).H_1to2[0]).max()) > 1e-3
    assert (
        float(jnp.abs(both.H_1to2[0] - warped(CFG, slots=jnp.array([5, 6])).H_1to2[0]).max()) > 1e-3
    )


def test_matches_are_correct_within_three_pixels():
    H = np.array([[1, 0, 4], [0, 1, -2], [0, 0, 1.0]], np.float32)
    pair = Pair(image1=None, image2=None, H_1to2=H, slot=None)
    xy1 = np.array([[5, 5], [10, 8], [3, 9.0]], np.float32)
    xy2 = xy1 + np.array([[4, -2], [4, 0.9], [4, 1.1]], np.float32)
    row = np.zeros(3)
    assert HomographyPairs.correct(pair, Correspondences(xy1, xy2, row, row, row)).tolist() == [
        True,
        True,
        False,
    ]
