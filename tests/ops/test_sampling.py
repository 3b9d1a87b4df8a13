import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.ops import sampling
from jaxdesc.types import Grid

bilinear, sample = jax.jit(sampling.bilinear), jax.jit(sampling.sample)
px_from_uv, uv_from_px, resize_aligned = (jax.jit(f, static_argnums=1) for f in (sampling.px_from_uv, sampling.uv_from_px, sampling.resize_aligned))
uv_grid = jax.jit(sampling.uv_grid, static_argnums=(0, 1))

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(5, 7, 3)).astype(np.float32)


def slow_bilinear(maps, xy):
    """Tent weights over all pixels; zeros outside."""
    y, x = np.mgrid[: maps.shape[0], : maps.shape[1]]
    return np.stack([(np.clip(1 - abs(x - px), 0, None) * np.clip(1 - abs(y - py), 0, None)).reshape(-1) @ maps.reshape(-1, maps.shape[2]) for px, py in xy])


def test_bilinear_with_zeros_outside():
    xy = np.concatenate([RNG.uniform(-2, 8, (60, 2)), [[0, 0], [6, 4], [2, 3], [6.5, 4], [-1, 0], [1e6, -1e6]]]).astype(np.float32)
    np.testing.assert_allclose(bilinear(jnp.array(MAPS), jnp.array(xy)), slow_bilinear(MAPS.astype(np.float64), xy), atol=1e-5)
    np.testing.assert_array_equal(bilinear(jnp.array(MAPS), jnp.array(xy).reshape(2, 33, 2)).reshape(66, 3), bilinear(jnp.array(MAPS), jnp.array(xy)))


def test_gradients_are_those_of_the_tents():
    xy = RNG.uniform(-0.8, 6, (20, 2)).astype(np.float32)
    xy = np.floor(xy) + np.clip(xy - np.floor(xy), 0.1, 0.9).astype(np.float32)  # away from the kinks
    grad_maps, grad_xy = jax.jit(jax.grad(lambda m, p: (bilinear(m, p) ** 2).sum(), (0, 1)))(jnp.array(MAPS), jnp.array(xy))
    maps = MAPS.astype(np.float64)
    for k in range(2):
        step = np.eye(2)[k] * 1e-4
        slope = ((slow_bilinear(maps, xy + step) ** 2).sum(1) - (slow_bilinear(maps, xy - step) ** 2).sum(1)) / 2e-4
        np.testing.assert_allclose(grad_xy[:, k], slope, rtol=1e-3, atol=1e-3)
    direction = RNG.normal(size=maps.shape)
    slope = ((slow_bilinear(maps + 1e-4 * direction, xy) ** 2).sum() - (slow_bilinear(maps - 1e-4 * direction, xy) ** 2).sum()) / 2e-4
    np.testing.assert_allclose((np.asarray(grad_maps) * direction).sum(), slope, rtol=1e-3)


def test_normalised_coordinates_have_aligned_corners():
    np.testing.assert_allclose(uv_from_px(jnp.array([[0.0, 0], [6, 4], [3, 2], [1.5, 1]]), (5, 7)), [[-1, -1], [1, 1], [0, 0], [-0.5, -0.5]], atol=1e-6)
    xy = jnp.array(RNG.uniform(-3, 9, (10, 2)), jnp.float32)
    np.testing.assert_allclose(px_from_uv(uv_from_px(xy, (5, 7)), (5, 7)), xy, atol=1e-5)
    np.testing.assert_allclose(uv_grid(5, 7)[1, 2], [2 * 2 / 6 - 1, 2 * 1 / 4 - 1], atol=1e-6)
    np.testing.assert_allclose(sample(jnp.array(MAPS), uv_grid(5, 7)), MAPS, atol=1e-5)
    np.testing.assert_array_equal(px_from_uv(uv_from_px(jnp.zeros((1, 2)), (1, 1)), (1, 1)), [[0, 0]])  # an image of one pixel


@pytest.mark.parametrize("size", [(9, 4), (5, 7), (1, 13), (10, 14)])
def test_resizing_is_sampling_at_aligned_corners(size):
    expected = slow_bilinear(MAPS.astype(np.float64), px_from_uv(uv_grid(*size), (5, 7)).reshape(-1, 2) if min(size) > 1 else one_row(size))
    found = resize_aligned(np.stack([MAPS, MAPS + 1]), size)
    np.testing.assert_allclose(found[0], expected.reshape(*size, 3), atol=1e-4)
    np.testing.assert_allclose(found[1], found[0] + 1, atol=1e-4)
    assert sampling.resize_aligned(MAPS, (5, 7)) is MAPS


def test_a_map_of_one_pixel_fills_any_size():
    np.testing.assert_array_equal(resize_aligned(MAPS[:1, :1], (2, 3)), np.broadcast_to(MAPS[:1, :1], (2, 3, 3)))


def one_row(size):
    """A single row of the result is the first row of the map."""
    return np.stack([np.linspace(0, 6, size[1]), np.zeros(size[1])], -1)


GRID = Grid((1.5, -2.0), (4.0, 3.0))  # of MAPS: 7 columns from 1.5 to 25.5, 5 rows from -2 to 10


def test_cells_and_pixels_of_a_grid():
    centres = np.array([[1.5 + 4 * u, -2 + 3 * v] for v in range(5) for u in range(7)])
    np.testing.assert_allclose(sampling.cell_centres((5, 7), GRID), centres, atol=1e-6)
    cells = sampling.cells_from_px(centres.astype(np.float32), GRID)
    assert isinstance(cells, np.ndarray)
    np.testing.assert_allclose(cells, [[u, v] for v in range(5) for u in range(7)], atol=1e-6)
    np.testing.assert_allclose(sampling.px_from_cells(cells, GRID), centres, atol=1e-5)


def test_descriptors_are_read_where_the_cells_lie():
    """Every pixel of an image of 14 x 30, against tents; the outermost cells beyond."""
    y, x = np.mgrid[:14, :30]
    xy = np.stack([x, y], -1).reshape(-1, 2)
    at = np.clip((xy - [1.5, -2]) / [4, 3], 0, [6, 4])
    expected = slow_bilinear(MAPS.astype(np.float64), at)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = jax.jit(sampling.descriptors_at, static_argnums=2)(MAPS, xy.astype(np.float32), GRID)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    every = jax.jit(sampling.full_size, static_argnums=(1, 2))(MAPS, GRID, (14, 30))
    np.testing.assert_allclose(every.reshape(-1, 3), expected, atol=1e-5)
    assert sampling.full_size(MAPS, sampling.PIXELS, (5, 7)) is MAPS


def test_aligned_grids():
    assert sampling.aligned_grid((97, 131), (25, 33)) == Grid((0.0, 0.0), (130 / 32, 4.0))
    assert sampling.aligned_grid((1, 4), (1, 1)).stride_xy == (3.0, 1.0)  # any stride reads one cell
