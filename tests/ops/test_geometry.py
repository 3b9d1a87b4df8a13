import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdesc.ops import geometry

coordinate = st.floats(-50, 50, width=32)


def loop_homography(H, xy):
    out = []
    for x, y in xy:
        u, v, w = np.asarray(H, np.float64) @ np.array([x, y, 1.0])
        out.append((u / w, v / w))
    return np.array(out)


def random_homography(seed):
    rng = np.random.default_rng(seed)
    return np.eye(3) + rng.normal(size=(3, 3)) * np.array([[0.2, 0.2, 9.0], [0.2, 0.2, 9.0], [1e-3, 1e-3, 0.0]])


def test_apply_homography_equals_a_loop():
    H, xy = random_homography(0), np.random.default_rng(1).uniform(0, 60, (17, 2))
    np.testing.assert_allclose(geometry.apply_homography(jnp.array(H), jnp.array(xy)), loop_homography(H, xy), rtol=2e-5, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=8))
def test_homography_then_its_inverse_is_the_identity(seed, points):
    H, xy = random_homography(seed), np.array(points)
    w = xy @ H[2, :2] + H[2, 2]
    if np.abs(np.linalg.det(H)) < 0.2 or np.abs(w).min() < 0.2:
        return
    back = geometry.apply_homography(jnp.array(np.linalg.inv(H)), geometry.apply_homography(jnp.array(H), jnp.array(xy)))
    np.testing.assert_allclose(back, xy, atol=2e-2)


def test_points_at_infinity_are_finite_and_far():
    H = jnp.array([[1.0, 0, 0], [0, 1, 0], [1, 0, -5]])
    out = geometry.apply_homography(H, jnp.array([[5.0, 3.0]]))
    chex.assert_tree_all_finite(out)
    assert jnp.abs(out).max() > 1e6


def test_resizing_keeps_the_outer_edges():
    A = geometry.resizing(jnp.array([2.0, 0.5]))
    corners = jnp.array([[-0.5, -0.5], [9.5, 19.5]])  # of a 10 x 20 image
    np.testing.assert_allclose(geometry.apply_homography(A, corners), [[-0.5, -0.5], [19.5, 9.5]], atol=1e-6)


def test_rotation_turns_x_towards_y_about_the_centre():
    A = geometry.rotation(jnp.pi / 2, jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(geometry.apply_homography(A, jnp.array([[4.0, 4.0], [3.0, 4.0]])), [[3, 5], [3, 4]], atol=1e-5)


def test_mirror_is_its_own_inverse():
    M = geometry.mirror(7)
    np.testing.assert_allclose(M @ M, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(geometry.apply_homography(M, jnp.array([[0.0, 2.0]])), [[6, 2]])


def test_homography_through_four_points():
    H = random_homography(3)
    corners = np.array([[0, 0], [40, 2], [38, 30], [-3, 28]], float)
    found = geometry.homography_from_points(jnp.array(corners), jnp.array(loop_homography(H, corners)))
    np.testing.assert_allclose(found, H / H[2, 2], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("side", "moved", "fixed"), [(0, [0, 3], [1, 2]), (1, [1, 2], [0, 3]), (2, [0, 1], [2, 3]), (3, [2, 3], [0, 1])])
def test_tilting_shrinks_one_side(side, moved, fixed):
    size = jnp.array([41.0, 31.0])
    corners = np.array([[0, 0], [40, 0], [40, 30], [0, 30]], float)
    out = np.asarray(geometry.apply_homography(geometry.tilting(jnp.array(side), jnp.array(10.0), size), jnp.array(corners)))
    np.testing.assert_allclose(out[fixed], corners[fixed], atol=1e-3)
    before, after = (np.linalg.norm(np.subtract(*points[moved])) for points in (corners, out))
    assert 0.3 * before < after < 0.8 * before
    np.testing.assert_allclose(geometry.tilting(jnp.array(side), jnp.array(0.0), size), np.eye(3), atol=1e-4)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_jit_equals_eager(self):
        H, xy = jnp.array(random_homography(5)), jnp.array([[1.0, 2.0], [30.0, 7.0]])
        np.testing.assert_allclose(self.variant(geometry.apply_homography)(H, xy), loop_homography(H, xy), rtol=1e-4)


def test_gradients_match_finite_differences():
    xy = jnp.array([[3.0, 4.0], [10.0, 2.0]])
    jax.test_util.check_grads(
        lambda H: geometry.apply_homography(H, xy), (jnp.array(random_homography(6)),), order=1, modes="rev", eps=1e-2, rtol=0.05, atol=0.5
    )


def test_change_of_area_is_the_determinant_of_the_jacobian():
    H = np.array([[1.2, -0.3, 5.0], [0.2, 0.8, -3.0], [1e-3, -2e-3, 1.0]])

    def through(x, y):
        u, v, w = H @ [x, y, 1]
        return np.array([u / w, v / w])

    for x, y in ((0.0, 0.0), (40.0, -25.0), (-60.0, 33.0)):
        columns = [
            (through(x + dx, y + dy) - through(x - dx, y - dy)) / 2e-3
            for dx, dy in ((1e-3, 0), (0, 1e-3))
        ]
        expected = abs(np.linalg.det(np.transpose(columns)))
        found = geometry.change_of_area(jnp.array(H, jnp.float32), jnp.array([x, y]))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
