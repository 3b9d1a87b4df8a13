"""Images of every form, as users have them; sizes, resizing and points against loops."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxdesc.data.images import encode_for_dataset
from jaxdesc.images import fit, pad, read_rgb, rescale, resize, to_float
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


# ---- sizes and points


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
    np.testing.assert_allclose(resize(image, size), slow_resized(image, size), atol=1e-5)
    eight = np.rint(255 * image).astype(np.uint8)
    found = resize(eight, size)
    assert found.dtype == np.uint8 and np.abs(found - slow_resized(eight, size)).max() <= 1


def test_points_stay_on_what_they_mark():
    x, y = np.meshgrid(np.arange(60.0), np.arange(40.0))
    image = np.stack([x, y, 0 * x], -1)  # a pixel says where it is
    small = resize(image, (10, 20))
    xy = rescale(small[3:5, 4:9, :2], (40, 60), (10, 20))
    np.testing.assert_allclose(xy, np.stack(np.meshgrid(np.arange(4, 9), np.arange(3, 5)), -1), atol=1e-4)
    assert xy.dtype == np.float32


def test_filled_and_fitted():
    image = np.random.default_rng(1).uniform(size=(5, 9, 3))
    out = pad(image, 4)
    assert out.shape == (8, 12, 3)
    np.testing.assert_array_equal(out[:5, :9], image)
    np.testing.assert_array_equal(out[6, 10], image[2, 6])  # mirrored at the last pixel
    assert fit((300, 400), 200) == (150, 200) and fit((30, 40), 200) == (30, 40)


def test_pixels():
    gray = np.full((2, 3, 3), 51, np.uint8)
    np.testing.assert_allclose(to_float(gray), 0.2)
    assert to_float(gray / 255.0).dtype == np.float32
    for wrong in (gray[..., :1], gray[0], gray[:0]):
        with pytest.raises(UserError, match="image1 has the shape"):
            to_float(wrong, "image1")


# ---- reading


def test_images_of_every_form(tmp_path):
    rgb = smooth(5, 7)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), rgb)
    np.testing.assert_array_equal(read_rgb(str(tmp_path / "a.png")), rgb)
    np.testing.assert_array_equal(read_rgb(Image.fromarray(rgb)), rgb)
    np.testing.assert_array_equal(read_rgb(rgb), rgb)
    floats = read_rgb(rgb / 255.0)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, rgb / 255, atol=1e-6)
    gray = rgb[..., 0]
    for form in (gray, gray[..., None], Image.fromarray(gray)):
        np.testing.assert_array_equal(read_rgb(form), np.stack([gray] * 3, -1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        np.testing.assert_array_equal(read_rgb(turned), np.rot90(rgb, -1))


def of_mode(mode):
    """A picture (40, 60) of a Pillow mode, with alpha from 0 to 255 where it has any."""
    rgba = Image.fromarray(smooth(40, 60, 4))
    if mode == "I;16":
        return Image.fromarray((257 * smooth(40, 60, 1)[..., 0].astype(np.uint16)) - 100)
    if mode == "P, transparent":
        return rgba.convert("RGB").quantize(16)
    return rgba.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else rgba.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("P, transparent", "png")),
        *(("RGB", "png"), ("RGBA", "png"), ("RGBA", "webp"), ("I;16", "png"), ("I;16", "tif")),
        *(("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("P", "gif")),
    ],
)
def test_the_same_by_path_by_picture_and_by_array(tmp_path, mode, suffix):
    path, picture = tmp_path / f"x.{suffix}", of_mode(mode)
    options = {"transparency": picture.getpixel((3, 5))} if "transparent" in mode else {}
    options |= {"lossless": True} if suffix == "webp" else {}
    picture.save(path, **options)
    expected = read_rgb(path)
    assert expected.shape == (40, 60, 3) and expected.dtype == np.uint8 and expected.std() > 5
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_rgb(opened), expected)
        if opened.mode not in ("P", "CMYK"):  # whose numbers alone are no colours
            np.testing.assert_array_equal(read_rgb(np.asarray(opened)), expected)


def test_floats_with_alpha():
    floats = smooth(5, 7, 4).astype(np.float32) / 255
    expected = floats[..., :3] * floats[..., 3:] + 1 - floats[..., 3:]
    np.testing.assert_allclose(read_rgb(floats), expected, atol=1e-6)
    eight = read_rgb(np.rint(255 * floats).astype(np.uint8))
    assert np.abs(eight / 255 - expected).max() < 0.01


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("missing.png", "missing.png cannot be used: there is no such file"),
        (np.zeros((4, 5, 5), np.uint8), r"shape \(4, 5, 5\)"),
        (Image.fromarray(np.zeros((4, 5), np.float32)), "PIL image cannot be used: .*32-bit"),
        (np.zeros((0, 5, 3), np.uint8), "shape"),
        (np.zeros((4, 5, 3), np.int64), "type int64"),
        (np.full((4, 5, 3), 255.0), "must lie in .0, 1."),
        (np.full((4, 5, 3), np.nan), "must lie in .0, 1."),
    ],
)
def test_images_that_are_refused(image, words):
    with pytest.raises(UserError, match=words):
        read_rgb(image)


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
        assert rgb.shape == fit((height, width), 101) == (67, 101)
        v, u = np.mgrid[:67, :101]
        centre = np.array([(rgb * u).sum(), (rgb * v).sum()]) / rgb.sum()
        by_hand = ((x0 + 0.5) * 101 / width - 0.5, (y0 + 0.5) * 67 / height - 0.5)
        np.testing.assert_allclose(centre, by_hand, atol=0.03)
        np.testing.assert_allclose(rescale(np.array([x0, y0]), (height, width), (67, 101)), np.float32(by_hand))
