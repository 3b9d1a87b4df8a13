import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.ops import geometry
from jaxdesc.ops.warp import LEVELS, halvings, warp_homography


def smooth_canvas(side=64, h=50, w=60):
    y, x = np.mgrid[:h, :w]
    image = np.zeros((side, side, 3), np.uint8)
    image[:h, :w] = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), 2 * x + y], -1).astype(np.uint8)
    return jnp.array(image), jnp.array([h, w])


def loop_bilinear(image, x, y):
    """Bilinear sample with black outside, one point at a time."""
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    out = np.zeros(3)
    for dy in (0, 1):
        for dx in (0, 1):
            if 0 <= y0 + dy < image.shape[0] and 0 <= x0 + dx < image.shape[1]:
                out += image[y0 + dy, x0 + dx] * (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
    return out / 255


def test_identity_is_the_photograph():
    image, size = smooth_canvas()
    np.testing.assert_allclose(warp_homography(image, size, jnp.eye(3), (50, 60)), image[:50, :60] / 255, atol=1e-6)


def test_enlarging_equals_a_bilinear_loop_and_is_black_outside():
    image, size = smooth_canvas()
    H = geometry.translation(jnp.array([-13.3, 20.2])) @ geometry.rotation(0.3, jnp.array([20.0, 20.0])) @ jnp.diag(jnp.array([0.7, 0.6, 1.0]))
    out = np.asarray(warp_homography(image, size, H, (33, 47)))
    photo = np.asarray(image)[:50, :60].astype(float)
    for v, u in [(0, 0), (10, 3), (32, 46), (20, 20), (5, 40)]:
        x, y = np.asarray(geometry.apply_homography(H, jnp.array([[u, v]], jnp.float32)))[0]
        np.testing.assert_allclose(out[v, u], loop_bilinear(photo, x, y), atol=2e-4)
    assert out[0, 0].max() == 0


def test_halved_copies_are_means():
    image, _ = smooth_canvas()
    pixels, starts = halvings(image)
    assert len(starts) == LEVELS
    half = np.asarray(image, float).reshape(32, 2, 32, 2, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(pixels[starts[1] : starts[2]]).reshape(32, 32, 3), half, atol=0.51)


def test_halved_copies_of_the_least_multiple():
    """A canvas need be no more than a multiple of the coarsest copy's pixel."""
    pixels, starts = halvings(jnp.full((40, 40, 3), 7, jnp.uint8))
    assert starts.tolist() == [0, 1600, 2000, 2100] and len(pixels) == 2125 and (pixels == 7).all()


def test_shrinking_does_not_alias():
    rng = np.random.default_rng(0)
    noise = jnp.array(rng.integers(0, 256, (256, 256, 3)), jnp.uint8)
    out = warp_homography(noise, jnp.array([256, 256]), geometry.resizing(jnp.array([4.0, 4.0])), (64, 64))
    exact = np.asarray(noise, float).reshape(64, 4, 64, 4, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(out, exact, atol=0.01)


def test_behind_the_camera_is_black():
    image, size = smooth_canvas()
    H = jnp.array([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]])  # w < 0 from x = 10 on
    out = warp_homography(image, size, H, (8, 40))
    assert out[:, 11:].max() == 0 and out[:, :5].max() > 0
    assert bool(jnp.isfinite(out).all())


def test_jit_equals_eager():
    image, size = smooth_canvas()
    H = geometry.resizing(jnp.array([1.7, 1.3]))
    jitted = jax.jit(warp_homography, static_argnums=3)(image, size, H, (20, 24))
    np.testing.assert_allclose(jitted, warp_homography(image, size, H, (20, 24)), atol=1e-5)
