"""Epipolar geometry and lines of sight against projections and brute force."""

from collections import Counter

import jax
import numpy as np
from scipy.spatial.transform import Rotation

from jaxdesc.data import sight
from tests.data.test_posed import project


def test_fundamental_matrix_against_projections():
    """x2' F x1 = 0 for projections of random points, also with skew and for a rectified pair, where F33 = 0."""
    rng = np.random.default_rng(1)
    solve = jax.jit(sight.fundamental)
    for rectified in (False, True):
        K1, K2 = (
            np.array([[500.0, 3, 320], [0, 480, 240], [0, 0, 1]]),
            np.array([[700.0, -2, 300], [0, 690, 250], [0, 0, 1]]),
        )
        R, t = Rotation.from_rotvec(rng.normal(0, 0.3, 3)).as_matrix(), rng.normal(size=3)
        if rectified:
            K2, R, t = K1, np.eye(3), np.array([1.0, 0, 0])
        t /= np.linalg.norm(t)
        F = np.asarray(solve(*(np.asarray(a, np.float32) for a in (K1, K2, R, t))), np.float64)
        X = rng.uniform([-2, -2, 6], [2, 2, 12], (40, 3))
        for x1, x2 in zip(
            project(K1, np.eye(3), np.zeros(3), X), project(K2, R, t, X), strict=True
        ):
            line = F @ [*x1, 1]
            assert abs(line @ [*x2, 1]) / np.hypot(*line[:2]) < 1e-2
        assert np.isclose(np.linalg.norm(F), 1) if rectified else np.isclose(F[2, 2], 1, atol=1e-6)


def test_seen_within_against_a_walk_along_the_line_of_sight():
    """Brute force: some of 4,000 depths project into the image, in front of the camera."""
    rng = np.random.default_rng(0)
    seen = jax.jit(sight.seen_within)
    agreed = Counter()
    for _ in range(30):
        K1, K2 = (
            np.array([[rng.uniform(40, 90), 0, 24], [0, rng.uniform(40, 90), 16], [0, 0, 1]])
            for _ in range(2)
        )
        R, t = Rotation.from_rotvec(rng.normal(0, 0.5, 3)).as_matrix(), rng.normal(size=3)
        t /= np.linalg.norm(t)
        depths = np.sort(10 ** rng.uniform(-2, 1.5, 2))
        xy = rng.uniform([0, 0], [47, 31], (25, 2))
        got = np.asarray(
            seen(*(np.asarray(a, np.float32) for a in (xy, K1, K2, R, t, depths, (48, 32))))
        )
        for point, answer in zip(xy, got, strict=True):
            x = K2 @ (
                R @ (np.linalg.inv(K1) @ [*point, 1])[:, None] * np.geomspace(*depths, 4000)
                + t[:, None]
            )
            with np.errstate(divide="ignore"):
                u, v = x[:2] / x[2]

            def inside(margin, x=x, u=u, v=v):
                return bool(
                    (
                        (x[2] > 0)
                        & (u > -0.5 - margin)
                        & (u < 47.5 + margin)
                        & (v > -0.5 - margin)
                        & (v < 31.5 + margin)
                    ).any()
                )

            if inside(-0.3):
                assert answer
            elif not inside(0.3):
                assert not answer
            agreed[bool(answer)] += 1
    assert min(agreed.values()) > 100


def test_depths_that_queries_are_pruned_by():
    """The paper's, 1e-3 and 1 times the largest distance of two cameras, or up to the points."""
    np.testing.assert_allclose(sight.depth_range(4.0, 30.0, "cameras"), [0.004, 4], rtol=1e-6)
    np.testing.assert_allclose(sight.depth_range(4.0, 30.0, "points"), [0.004, 30], rtol=1e-6)
    np.testing.assert_allclose(sight.depth_range(4.0, 3.0, "points"), [0.004, 3], rtol=1e-6)
    np.testing.assert_allclose(sight.depth_range(4.0, 0.0, "points"), [0.004, 4], rtol=1e-6)
