"""Photographs on their way into a network: shapes, resizing and points against loops."""

import numpy as np
import pytest

from jaxdesc.ops import frames
from jaxdesc.types import UserError


def slow_resized(image, size):
    """Row by row: means over areas where an axis shrinks, else linear between pixel centres."""
    for axis, m in enumerate(size):
        n, rows = image.shape[axis], np.moveaxis(image, axis, 0)
        out = []
        for i in range(m):
            if m < n:
                parts = [(max(0.0, min((i + 1) * n / m, j + 1) - max(i * n / m, j)), rows[j]) for j in range(n)]
            else:
                at = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
                j = min(int(at), n - 2)
                parts = [(j + 1 - at, rows[j]), (at - j, rows[j + 1])]
            out.append(sum(w * row for w, row in parts) / sum(w for w, _ in parts))
        image = np.moveaxis(np.array(out), 0, axis)
    return image


@pytest.mark.parametrize("size", [(5, 4), (11, 13), (6, 15), (7, 10)])
def test_resized_against_loops(size):
    image = np.random.default_rng(0).uniform(size=(7, 10, 3))
    np.testing.assert_allclose(frames.resized(image, size), slow_resized(image, size), atol=1e-5)


def test_points_stay_on_what_they_mark():
    x, y = np.meshgrid(np.arange(60.0), np.arange(40.0))
    image = np.stack([x, y, 0 * x], -1)  # a pixel says where it is
    small = frames.resized(image, (10, 20))
    xy = frames.rescaled(small[3:5, 4:9, :2], (40, 60), (10, 20))
    np.testing.assert_allclose(xy, np.stack(np.meshgrid(np.arange(4, 9), np.arange(3, 5)), -1), atol=1e-4)
    assert xy.dtype == np.float32


def test_filled_and_fitted():
    image = np.random.default_rng(1).uniform(size=(5, 9, 3))
    out = frames.filled(image, 4)
    assert out.shape == (8, 12, 3)
    np.testing.assert_array_equal(out[:5, :9], image)
    np.testing.assert_array_equal(out[6, 10], image[2, 6])  # mirrored at the last pixel
    assert frames.fitted((300, 400), 200) == (150, 200) and frames.fitted((30, 40), 200) == (30, 40)


def test_pixels():
    gray = np.full((2, 3, 3), 51, np.uint8)
    np.testing.assert_allclose(frames.pixels(gray), 0.2)
    assert frames.pixels(gray / 255.0).dtype == np.float32
    for wrong in (gray[..., :1], gray[0], gray[:0]):
        with pytest.raises(UserError, match="image1 has the shape"):
            frames.pixels(wrong, "image1")
