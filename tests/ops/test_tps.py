"""Thin-plate splines against the textbook's linear system, solved point by point."""

import jax
import numpy as np
import pytest

from jaxdesc.ops import tps

RNG = np.random.default_rng(0)
UV = RNG.uniform(-0.3, 1.3, (11, 2)).astype(np.float32)
MOVED = RNG.uniform(-0.1, 0.1, (9, 2)).astype(np.float32)
warp, reflect = jax.jit(tps.warp), jax.jit(tps.reflect)
similarity = jax.jit(tps.similarity)


def slow_spline(point, control, values):
    """f(point) from the system of Bookstein for these values alone."""

    def u(r):
        return 0.0 if r == 0 else r * r * 2 * np.log(r)

    n = len(control)
    system, right = np.zeros((n + 3, n + 3)), np.zeros(n + 3)
    for i, c in enumerate(control):
        system[i, :n] = [u(np.hypot(*(c - other))) for other in control]
        system[i, n:] = system[n:, i] = 1, *c
        right[i] = values[i]
    w = np.linalg.solve(system, right)
    return sum(w[k] * u(np.hypot(*(point - c))) for k, c in enumerate(control)) + w[n] + w[n + 1 :] @ point


@pytest.mark.parametrize("side", [3, 4])
def test_spline_against_the_linear_system(side):
    control = tps.control_grid(side)
    values = RNG.normal(size=side * side)
    found = tps.spline_basis(UV, control) @ values
    np.testing.assert_allclose(found, [slow_spline(point, control, values) for point in UV.astype(np.float64)], atol=2e-5)


def test_splines_go_through_their_points_and_keep_affine_maps():
    control = tps.control_grid(3)
    np.testing.assert_array_equal(control[[0, 1, 3]], [[0, 0], [0.5, 0], [0, 0.5]])
    np.testing.assert_allclose(tps.spline_basis(control.astype(np.float32), control), np.eye(9), atol=1e-5)
    plane = np.array([0.3, -0.7])
    np.testing.assert_allclose(tps.spline_basis(UV, control) @ (control @ plane + 2), UV @ plane + 2, atol=1e-5)


def test_warp_is_the_affine_map_of_the_spline():
    A = np.asarray(similarity(0.3, 1.2, np.array([0.1, -0.05], np.float32)))
    expected = []
    for point in UV.astype(np.float64):
        moved = point + [slow_spline(point, tps.control_grid(3), MOVED[:, k].astype(np.float64)) for k in (0, 1)]
        x, y = moved - 0.5
        expected.append([1.2 * (np.cos(0.3) * x - np.sin(0.3) * y) + 0.6, 1.2 * (np.sin(0.3) * x + np.cos(0.3) * y) + 0.45])
    np.testing.assert_allclose(warp(UV, A, MOVED), expected, atol=2e-5)
    identity = similarity(0.0, 1.0, np.zeros(2, np.float32))
    np.testing.assert_allclose(warp(UV, identity, np.zeros((9, 2), np.float32)), UV, atol=1e-6)


def test_gradients_are_finite_on_control_points():
    at = tps.control_grid(3).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda uv: (tps.spline_warp(uv, MOVED) ** 2).sum()))(at)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(jax.jit(jax.grad(lambda moved: tps.spline_warp(at, moved)[4].sum()))(MOVED), np.eye(9)[4][:, None] * [1, 1], atol=1e-5)


def test_unit_coordinates_and_their_edges():
    np.testing.assert_allclose(tps.unit_from_px(np.array([[-0.5, -0.5], [6.5, 4.5], [3, 2]], np.float32), (5, 7)), [[0, 0], [1, 1], [0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(tps.px_from_unit(tps.unit_from_px(UV, (5, 7)), np.array([5, 7])), UV, atol=1e-5)
    np.testing.assert_allclose(tps.px_from_unit(tps.unit_grid(5, 7), (5, 7))[3, 6], [6, 3], atol=1e-5)
    np.testing.assert_array_equal(tps.inside(np.array([[0.0, 1.0], [0.5, -0.01], [1.01, 0.5]])), [True, False, False])
    # column -1 mirrors column 0, column -2 column 1; likewise at the other end
    columns = np.arange(-7, 14) + 0.0
    mirrored = np.pad(np.arange(7), 7, mode="symmetric")
    uv = tps.unit_from_px(np.stack([columns, np.zeros_like(columns)], -1).astype(np.float32), (1, 7))
    np.testing.assert_allclose(tps.px_from_unit(reflect(uv), (1, 7))[:, 0], mirrored, atol=1e-4)
