"""Views of photographs know where they look."""

import numpy as np
import pytest

from jaxdesc.matching.views import Crop, view


@pytest.mark.parametrize(("factor", "rotation"), [(1.0, 0.0), (0.5, 0.0), (2**-0.5, 0.0), (1.0, 90.0), (0.5, -45.0), (1.0, 180.0), (1.0, 135.0)])
def test_views_know_where_they_look(factor, rotation):
    """Of a picture whose colours are its own coordinates, the view shows where its pixels come from."""
    y, x = np.mgrid[:70, :101].astype(np.float32)
    looked = view(Crop(np.stack([x, y, 0 * x], -1)[10:, 20:], (20, 10)), factor, rotation)
    assert all(n % 64 == 0 for n in looked.image.shape[:2])
    h, w = looked.size_hw
    v, u = np.mgrid[:h, :w]
    pixels = np.stack([u, v], -1).reshape(-1, 2).astype(np.float64)
    there = looked.locate(pixels)
    np.testing.assert_allclose(looked.find(there), pixels, atol=1e-6)
    inside = ((there > [22, 12]) & (there < [98, 67])).all(1)
    np.testing.assert_allclose(looked.image[:h, :w, :2].reshape(-1, 2)[inside], there[inside], atol=0.05)
    assert inside.mean() > 0.3
    if rotation:
        outside = ((there < [19.4, 9.4]) | (there > [100.6, 69.6])).any(1)
        mask = looked.mask[:h, :w].ravel()
        assert mask[inside].all() and not mask[outside].any() and looked.mask.sum() == mask.sum()
        assert looked.image[~looked.mask].max() == 0
    else:
        np.testing.assert_allclose(looked.image[:, w : w + 3], looked.image[:, w - 4 : w - 1][:, ::-1], atol=1e-4)  # reflected
