"""Odd image files, as users have them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxdesc.data.images import UnreadableImage, encode_for_dataset, find_images, read_rgb
from jaxdesc.ops.frames import fitted, rescaled
from jaxdesc.types import UserError

RNG = np.random.default_rng(0)


def smooth(height, width, channels=3):
    """A smooth picture without symmetry, so that resampling and JPEG change it little and every flip shows."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [np.sin(3 * x + 2 * y), np.cos(4 * y - x), x * y, 0.5 + 0.5 * x][:channels]
    return np.clip(np.stack(planes, -1) * 110 + 128, 0, 255).astype(np.uint8)


def save(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


def test_find_images(tmp_path):
    wanted = ["B.JPEG", "a b.png", "sub/größe 1.TiF", "sub/deep/x.jpg", "Žluť.webp"]
    for name in [*wanted, "notes.txt", ".hidden.jpg", ".git/y.jpg", "__MACOSX/z.jpg", "sub/._x.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert find_images(tmp_path) == sorted(wanted)


def test_find_images_refuses(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jpg").write_bytes(b"x")
    for name, words in (("missing", "There is no folder"), ("file.jpg", "is a file"), ("empty", "holds no image")):
        with pytest.raises(UserError, match=words) as error:
            find_images(tmp_path / name)
        assert name in str(error.value)


def jpeg_bytes():
    buffer = io.BytesIO()
    Image.fromarray(smooth(300, 400)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"this is no picture at all\n" * 50, "not an image"),
        (jpeg_bytes()[:-200], "truncated"),
    ],
    ids=["empty", "text", "truncated"],
)
@pytest.mark.parametrize("max_side", [None, 40])
def test_broken_files(tmp_path, content, words, max_side):
    path = tmp_path / "broken file.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_rgb(path, max_side)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_rgb(tmp_path / "x.jpg")
    with pytest.raises(UserError, match="directory"):
        read_rgb(tmp_path)


def test_gray_and_alpha(tmp_path):
    gray = smooth(37, 53, 1)[..., 0]
    np.testing.assert_array_equal(read_rgb(save(tmp_path / "l.png", gray)), np.repeat(gray[..., None], 3, -1))
    rgba = smooth(37, 53, 4)
    rgba[..., 3] = RNG.integers(0, 256, (37, 53))
    rgba[:9, :, 3] = 0
    alpha = rgba[..., 3:] / 255.0
    over_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_rgb(save(tmp_path / "rgba.png", rgba)) - over_white).max() <= 1
    assert (read_rgb(tmp_path / "rgba.png")[:9] == 255).all()
    la = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(np.ascontiguousarray(rgba[..., 3]))])
    assert np.abs(read_rgb(save(tmp_path / "la.png", la))[..., 1] - (gray * alpha[..., 0] + 255 * (1 - alpha[..., 0]))).max() <= 1


def test_palette_one_bit_and_cmyk(tmp_path):
    picture = Image.fromarray(smooth(40, 64))
    palette = picture.quantize(32)
    np.testing.assert_array_equal(read_rgb(save(tmp_path / "p.png", palette)), np.asarray(palette.convert("RGB")))
    transparent = read_rgb(save(tmp_path / "pt.png", palette, transparency=palette.getpixel((3, 5))))
    assert (transparent[5, 3] == 255).all()
    bits = RNG.random((40, 64)) < 0.5
    np.testing.assert_array_equal(read_rgb(save(tmp_path / "1.png", bits)), np.repeat(255 * bits[..., None], 3, -1))
    cmyk = read_rgb(save(tmp_path / "cmyk.jpg", picture.convert("CMYK"), quality=100))
    assert cmyk.shape == (40, 64, 3) and np.abs(cmyk - np.asarray(picture, int)).mean() < 3


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    deep = RNG.integers(0, 65536, (33, 47), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    np.testing.assert_array_equal(read_rgb(save(tmp_path / name, deep))[..., 2], np.floor(deep / 257 + 0.5))


def test_thirty_two_bits_are_refused(tmp_path):
    with pytest.raises(UserError, match="32-bit"):
        read_rgb(save(tmp_path / "f.tif", RNG.random((40, 40)).astype(np.float32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{kind.lower()}", smooth(60, 90), format=kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert upright.shape[:2] == ((90, 60) if orientation >= 5 else (60, 90))
    np.testing.assert_array_equal(read_rgb(path), upright)
    shrunk = np.asarray(Image.fromarray(upright).resize((20, 30) if orientation >= 5 else (30, 20), Image.Resampling.LANCZOS))
    assert np.abs(read_rgb(path, 30).astype(int) - shrunk).max() <= 3
    encoded = encode_for_dataset(path, 90)
    assert encoded.original_hw == upright.shape[:2]
    stored = np.asarray(Image.open(io.BytesIO(encoded.data)))  # upright without a look at the EXIF
    assert stored.shape == upright.shape and np.abs(stored.astype(int) - upright).max() <= 8


def test_broken_exif_beside_sound_pixels(tmp_path):
    path = save(tmp_path / "x.jpg", smooth(50, 60), exif=b"Exif\x00\x00XX*\x00" + struct.pack("<I", 10**6))
    assert read_rgb(path).shape == (50, 60, 3)


def test_panorama_of_20000_px(tmp_path):
    """Beyond Pillow's own limit, whose warning is an error here; decoded small, and the same picture."""
    path = save(tmp_path / "wide.jpg", Image.fromarray(smooth(25, 100)).resize((20000, 5000)), quality=60)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit < 20000 * 5000
    rgb = read_rgb(path, 400)
    assert rgb.shape == (100, 400, 3) and limit == Image.MAX_IMAGE_PIXELS
    expected = np.asarray(Image.fromarray(smooth(25, 100)).resize((400, 100)), int)
    assert np.abs(rgb - expected).mean() < 2


def test_shrinking_keeps_pixel_centres(tmp_path):
    """The centre of a blob moves by x' = (x + .5) s - .5, also where JPEG is decoded at a reduced, rounded size."""
    height, width, x0, y0 = 1003, 1501, 1310.0, 777.0
    y, x = np.mgrid[:height, :width]
    blob = (250 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * 40**2))).astype(np.uint8)
    for name in ("x.jpg", "x.png"):
        rgb = read_rgb(save(tmp_path / name, blob), 101)[..., 0].astype(float)
        assert rgb.shape == fitted((height, width), 101) == (67, 101)
        v, u = np.mgrid[:67, :101]
        centre = np.array([(rgb * u).sum(), (rgb * v).sum()]) / rgb.sum()
        by_hand = ((x0 + 0.5) * 101 / width - 0.5, (y0 + 0.5) * 67 / height - 0.5)
        np.testing.assert_allclose(centre, by_hand, atol=0.03)
        np.testing.assert_allclose(rescaled(np.array([x0, y0]), (height, width), (67, 101)), np.float32(by_hand))


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
