"""Flow files against byte-by-byte writers and readers of their own."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxdesc.store import flow
from jaxdesc.types import UserError

HEIGHT, WIDTH = 5, 7


@pytest.fixture
def field():
    rng = np.random.default_rng(0)
    return rng.normal(0, 20, (HEIGHT, WIDTH, 2)).astype(np.float32), rng.random((HEIGHT, WIDTH)) < 0.8


def test_flo(tmp_path, field):
    uv, valid = field
    path = tmp_path / "a.flo"
    flow.write_flo(path, uv, valid)
    data = path.read_bytes()
    assert data[:4] == b"PIEH" and struct.unpack("<ii", data[4:12]) == (WIDTH, HEIGHT)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            u, v = struct.unpack_from("<ff", data, 12 + 8 * (y * WIDTH + x))
            assert (u, v) == tuple(uv[y, x]) if valid[y, x] else u > 1e9 and v > 1e9
    back, known = flow.read_flo(path)
    np.testing.assert_array_equal(known, valid)
    np.testing.assert_array_equal(back, uv * valid[..., None])
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match="is damaged: 7 x 5 flow vectors need 292 bytes, it has 291"):
        flow.read_flo(path)
    path.write_bytes(b"PIEX" + data[4:])
    with pytest.raises(UserError, match=r"is not a \.flo file"):
        flow.read_flo(path)
    with pytest.raises(UserError, match=r"none\.flo cannot be read: No such file"):
        flow.read_flo(tmp_path / "none.flo")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("order", "scale"), [("<", "-1.0"), (">", "1")])
def test_pfm(tmp_path, channels, order, scale):
    values = np.random.default_rng(1).normal(size=(HEIGHT, WIDTH, channels)).astype(np.float32)
    values[-1, 0, 0] = np.frombuffer(b"\n \n ", order + "f4")[0]  # the first bytes after the header look like blanks
    body = b"".join(struct.pack(order + "f", values[y, x, c]) for y in reversed(range(HEIGHT)) for x in range(WIDTH) for c in range(channels))
    path = tmp_path / "a.pfm"
    path.write_bytes((b"Pf" if channels == 1 else b"PF") + f"\n{WIDTH} {HEIGHT}\n{scale}\n".encode() + body)
    np.testing.assert_array_equal(flow.read_pfm(path), values[..., 0] if channels == 1 else values)
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(UserError, match="is damaged"):
        flow.read_pfm(path)
    path.write_bytes(b"P6\n7 5\n255\n")
    with pytest.raises(UserError, match="is not a PFM file"):
        flow.read_pfm(path)


def test_r2d2_flow(tmp_path, field):
    uv, _ = field
    uv[0, 0] = 3000, -3000  # 16 bits end at 2048 px
    path = tmp_path / "a.png"
    flow.write_r2d2_flow(path, uv)
    pixels = np.array(Image.open(path))
    assert pixels.shape == (HEIGHT, WIDTH, 4)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            u, v = struct.unpack("<hh", bytes(pixels[y, x]))
            if (x, y) != (0, 0):
                assert abs(u / 16 - uv[y, x, 0]) <= 1 / 32 and abs(v / 16 - uv[y, x, 1]) <= 1 / 32
            else:
                assert (u, v) == (2**15 - 1, -(2**15))
    np.testing.assert_allclose(flow.read_r2d2_flow(path)[1:], uv[1:], atol=1 / 32)
    cv2.imwrite(str(path), pixels[..., :3])
    with pytest.raises(UserError, match="no four channels"):
        flow.read_r2d2_flow(path)
    path.write_bytes(b"none")
    with pytest.raises(UserError, match="cannot be read as a PNG"):
        flow.read_r2d2_flow(path)


def test_kitti(tmp_path, field):
    uv, valid = field
    uv[0, 0], valid[0, 0] = (600, 0), True  # 16 bits end at 512 px
    path = tmp_path / "a.png"
    flow.write_kitti(path, uv, valid)
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1].astype(np.float64)
    assert stored[0, 0, 2] == 0
    valid[0, 0] = False
    for y, x in zip(*np.nonzero(valid), strict=True):
        np.testing.assert_allclose((stored[y, x, :2] - 2**15) / 64, uv[y, x], atol=1 / 128)
    back, known = flow.read_kitti(path)
    np.testing.assert_array_equal(known, valid)
    np.testing.assert_allclose(back, uv * valid[..., None], atol=1 / 128)
    for content in (b"", b"none"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a KITTI flow picture"):
            flow.read_kitti(path)
