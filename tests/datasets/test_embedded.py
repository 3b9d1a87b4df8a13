"""The stereo pair inside scikit-image is read as scikit-image reads it."""

import numpy as np
from skimage.data import stereo_motorcycle

from jaxdesc.datasets import dense_pairs, embedded
from jaxdesc.images import read_rgb


def test_motorcycle_is_scikit_images():
    left, right, disparity = stereo_motorcycle()
    np.testing.assert_array_equal(embedded.disparity(), disparity)
    files = embedded.files(embedded.PAIR)
    for name, picture in zip(embedded.PAIR, (left, right), strict=True):
        np.testing.assert_array_equal(read_rgb(files[name]), picture)
    found = dense_pairs.motorcycle()
    np.testing.assert_array_equal(found.load("right"), right)
    xy_a, xy_b = found.pairs[0].truth()
    rows = {tuple(a): b for a, b in zip(xy_a.astype(int).tolist(), xy_b.tolist(), strict=True)}
    for x, y in ((300, 200), (0, 0), (740, 499), (111, 333)):
        shift = float(disparity[y, x])
        assert ((x, y) in rows) == np.isfinite(shift)
        if np.isfinite(shift):
            assert rows[x, y] == [x - shift, y]
