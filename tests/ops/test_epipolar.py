import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.ops.epipolar import epipolar_distance, epipolar_line, safe_norm


def cameras(seed=0):
    """F of two cameras, and points that both see: F from the definition K2^-T [t]x R K1^-1."""
    rng = np.random.default_rng(seed)
    K1, K2 = (np.array([[f, 0, 300], [0, f * 1.1, 200], [0, 0, 1]]) for f in (500.0, 640.0))
    w = rng.normal(0, 0.2, 3)
    angle = np.linalg.norm(w)
    k = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]]) / angle
    R = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    t = rng.normal(size=3)
    skew = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    F = np.linalg.inv(K2).T @ skew @ R @ np.linalg.inv(K1)
    X = rng.uniform([-2, -2, 4], [2, 2, 9], (30, 3))
    seen = [X @ K1.T, (X @ R.T + t) @ K2.T]
    return F, *(x[:, :2] / x[:, 2:] for x in seen)


def slow_distance(F, xy1, xy2):
    """Distance from xy2 to the nearest of the line's points, found by projecting onto its direction."""
    found = []
    for (x1, y1), p in zip(xy1, xy2, strict=True):
        a, b, c = F @ [x1, y1, 1]
        foot = np.array([-a * c, -b * c]) / (a * a + b * b)
        along = np.array([-b, a]) / np.hypot(a, b)
        gap = p - foot
        found.append(np.linalg.norm(gap - (gap @ along) * along))
    return np.array(found)


def test_true_matches_lie_on_their_lines_and_others_at_their_distance():
    F, xy1, xy2 = cameras()
    F32 = jnp.array(F / F[2, 2], jnp.float32)
    assert float(epipolar_distance(F32, jnp.array(xy1), jnp.array(xy2)).max()) < 0.01
    moved = xy2 + np.random.default_rng(1).normal(0, 40, xy2.shape)
    np.testing.assert_allclose(epipolar_distance(F32, jnp.array(xy1), jnp.array(moved)), slow_distance(F, xy1, moved), rtol=1e-3, atol=0.01)


def test_the_scale_of_f_does_not_matter():
    F, xy1, xy2 = cameras(2)
    moved = jnp.array(xy2 + 30)
    one, other = (epipolar_distance(jnp.array(F / F[2, 2] * s, jnp.float32), jnp.array(xy1), moved) for s in (1, -37.0))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_gradients_are_finite_everywhere_and_true():
    F, xy1, xy2 = cameras()
    F32 = jnp.array(F / F[2, 2], jnp.float32)
    total = lambda xy2, F=F32: epipolar_distance(F, jnp.array(xy1), xy2).sum()  # noqa: E731
    grad = jax.grad(total)
    for F_any, at in ((F32, xy2), (jnp.zeros((3, 3)), xy2), (jnp.diag(jnp.array([0.0, 0, 1])), xy2), (F32, np.zeros_like(xy2))):
        assert bool(jnp.isfinite(grad(jnp.array(at), F_any)).all())
    moved = jnp.array(xy2 + 25, jnp.float32)
    line = np.asarray(epipolar_line(F32, jnp.array(xy1)))
    side = np.sign((np.asarray(moved) * line[:, :2]).sum(1) + line[:, 2])
    np.testing.assert_allclose(grad(moved), side[:, None] * line[:, :2] / np.linalg.norm(line[:, :2], axis=1)[:, None], rtol=1e-4)


def test_norms_have_a_gradient_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(safe_norm(x), [5, 0])
    np.testing.assert_allclose(jax.grad(lambda x: safe_norm(x).sum())(x), [[0.6, 0.8], [0, 0]], atol=1e-6)
