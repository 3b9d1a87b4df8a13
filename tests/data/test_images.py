"""Photographs as data sets store them."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxdesc.data.images import encode_for_dataset
from jaxdesc.images import UnreadableImage, read_rgb
from tests.test_images import save, smooth


def test_encode_keeps_sound_jpeg_bytes(tmp_path):
    path = save(tmp_path / "x.jpg", smooth(60, 90))
    assert encode_for_dataset(path, 90).data == path.read_bytes()
    decoded = Image.open(io.BytesIO(encode_for_dataset(path, 50).data))
    assert (decoded.format, decoded.size, decoded.mode) == ("JPEG", (50, 33), "RGB") and decoded.layer[0][1:3] == decoded.layer[1][1:3]
    gray = save(tmp_path / "gray.jpg", smooth(60, 90, 1)[..., 0])
    assert Image.open(io.BytesIO(encode_for_dataset(gray, 90).data)).mode == "RGB"
    lossless = smooth(60, 90)
    png = Image.open(io.BytesIO(encode_for_dataset(save(tmp_path / "x.bmp", lossless), 90).data))
    assert png.format == "PNG"
    np.testing.assert_array_equal(np.asarray(png), lossless)


def test_tiny_images_cannot_train(tmp_path):
    with pytest.raises(UnreadableImage, match="8x8 px is smaller than 32 px"):
        encode_for_dataset(save(tmp_path / "icon.png", smooth(8, 8)), 1024)
    with pytest.raises(UnreadableImage, match=r"700x40 px \(350x20 px once shrunk\)"):
        encode_for_dataset(save(tmp_path / "strip.png", smooth(40, 700)), 350)
    assert read_rgb(tmp_path / "icon.png").shape == (8, 8, 3)
