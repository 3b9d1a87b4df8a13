"""Masks of objects."""

import numpy as np
import pytest
from PIL import Image

from jaxdesc.datasets.masks import ObjectMask
from jaxdesc.types import UserError

BOX = np.zeros((50, 80), np.uint8)
BOX[10:31, 20:51] = 200


def mask(path, pixels, mode="L"):
    Image.fromarray(pixels).convert(mode).save(path)


def test_bad_masks_are_named(tmp_path):
    path = tmp_path / "m.png"
    read = ObjectMask(path, None).read
    with pytest.raises(UserError, match=r"There is no mask .*m\.png"):
        read((50, 80))
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"The mask .*m\.png cannot be read"):
        read((50, 80))
    mask(path, BOX)
    np.testing.assert_array_equal(read((50, 80)), BOX > 0)
    with pytest.raises(UserError, match=r"m\.png is 80x50 px, but its image is 50x80 px"):
        read((80, 50))
    mask(path, 0 * BOX)
    with pytest.raises(UserError, match=r"m\.png is empty: all its pixels are 0"):
        read((50, 80))
    mask(path, BOX, "RGB")
    with pytest.raises(UserError, match=r"m\.png has 3 channels"):
        read((50, 80))
