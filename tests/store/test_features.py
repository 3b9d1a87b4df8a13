"""Feature files, read back by small readers written from the formats' descriptions."""

import os
import signal
import struct
import subprocess
import sys

import h5py
import numpy as np
import pytest

from jaxdesc.store import features as F
from jaxdesc.types import UserError


def make(count=11, width=128, scales=True, seed=0):
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(count, width)).astype(np.float32)
    return F.Features(
        keypoints=rng.uniform(0, (3001, 2003), (count, 2)).astype(np.float32),
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        scores=rng.random(count).astype(np.float32),
        scales=rng.uniform(8, 64, count).astype(np.float32) if scales else None,
        image_size=(3001, 2003),
    )


TOLERANCES = {"float32": (0, 0), "float16": (1e-3, 1e-6), "int8": (0, 0.01)}  # of unit descriptors of 96 numbers or more, relative and absolute


def same(a, b, storage="float32"):
    for key in ("keypoints", "descriptors", "scores", "scales"):
        x, y = getattr(a, key), getattr(b, key)
        if x is None:
            assert y is None
        else:
            assert y.dtype == np.float32 and y.flags.c_contiguous
            rtol, atol = TOLERANCES[storage if key == "descriptors" else "float16" if key == "scores" and storage != "float32" else "float32"]
            np.testing.assert_allclose(y, x, rtol=rtol, atol=atol)
    assert a.image_size == b.image_size


@pytest.mark.parametrize("storage", F.STORAGES)
@pytest.mark.parametrize("scales", [True, False])
def test_hloc(tmp_path, storage, scales):
    path = tmp_path / "out" / "features.h5"
    assert F.list_names(path) == set()
    images = {"db/day/1.jpg": make(scales=scales), "db/2.jpg": make(7, 96, scales, 1), "q.jpg": make(0, scales=scales)}
    for name, features in images.items():
        assert F.write_hdf5(path, name, features, storage)
    assert not F.write_hdf5(path, "db/2.jpg", make(5)), "left alone"
    with h5py.File(path) as file:  # as hloc reads
        names = set()
        file.visititems(lambda _, item: names.add(item.parent.name.strip("/")) if isinstance(item, h5py.Dataset) else None)
        assert names == set(images) == F.list_names(path)
        group = file["db/2.jpg"]
        assert set(group) == {"keypoints", "descriptors", "scores", "image_size"} | ({"scales"} if scales else set()) | (
            {"descriptor_scales"} if storage == "int8" else set()
        )
        assert group["keypoints"].shape == (7, 2) and group["keypoints"].dtype == np.float32
        assert group["descriptors"].shape == (96, 7) and group["descriptors"].dtype == storage
        assert group["scores"].shape == (7,) and list(group["image_size"]) == [3001, 2003]
    for name, features in images.items():
        same(features, F.read_hdf5(path, name), storage)
    for name in ("db", "db/3.jpg", "db/2.jpg/scores", "nowhere/at/all"):
        with pytest.raises(UserError, match="holds no keypoints of"):
            F.read_hdf5(path, name)


def test_int8_by_hand():
    d = np.array([[0.5, -1.0, 0.25, 0.0], [0, 0, 0, 0], [3e4, 1.0, -2e4, 0.0], [1e-9, -1e-9, 0, 0]], np.float32)
    stored, scales = F.packed(d, "int8")
    assert stored.dtype == np.int8 and scales.dtype == np.float16
    np.testing.assert_array_equal(stored[0], np.rint(d[0] / np.float32(np.float16(1 / 127))))
    assert stored[0, 1] == -127 and not stored[1].any() and scales[1] == 1
    back = F.unpacked(stored, scales)
    assert back.dtype == np.float32 and np.isfinite(back).all()
    slow = np.array([[round(float(x) / float(s)) * float(s) for x in row] for row, s in zip(d[:3], scales, strict=False)])
    np.testing.assert_allclose(back[:3], np.clip(slow, -127 * scales[:3, None].astype(float), 127 * scales[:3, None].astype(float)), rtol=1e-6)
    assert (abs(back - d) <= 0.51 * scales[:, None].astype(np.float32) + 1e-3 * abs(d)).all()


@pytest.mark.parametrize(("storage", "least"), [("float32", 1), ("float16", 1 - 1e-6), ("int8", 0.9995)])
def test_directions_survive_storage(storage, least):
    d = make(200, 64).descriptors
    stored, scales = F.packed(d, storage)
    back = F.unpacked(stored, scales)
    assert ((back * d).sum(1) / np.linalg.norm(back, axis=1) >= least - 1e-6).all()
    assert stored.nbytes + (0 if scales is None else scales.nbytes) == 200 * F.descriptor_bytes(64, storage)
    foreign = stored.astype(np.float32)  # a reader that knows of no scales, and normalises
    np.testing.assert_allclose(foreign / np.linalg.norm(foreign, axis=1, keepdims=True), back / np.linalg.norm(back, axis=1, keepdims=True), atol=1e-6)


def test_hloc_scores_beyond_float16_stay_finite(tmp_path):
    features = make(3)
    features.scores[:] = 1e6, 1, -1e6
    F.write_hdf5(tmp_path / "f.h5", "a", features)
    np.testing.assert_array_equal(F.read_hdf5(tmp_path / "f.h5", "a").scores, [65504, 1, -65504])


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.store.test_features import make, F
done = F.list_names(sys.argv[1])
for i in range(100_000):
    if f"a/{i}.jpg" not in done:
        F.write_hdf5(sys.argv[1], f"a/{i}.jpg", make(50, seed=i))
        print(i, flush=True)
"""


def test_hloc_file_of_a_killed_run_is_readable_and_is_continued(tmp_path):
    path = tmp_path / "f.h5"
    rng = np.random.default_rng(0)
    last = -1
    for _ in range(2):
        run = subprocess.Popen([sys.executable, "-c", WRITER, path, os.getcwd()], stdout=subprocess.PIPE, text=True)
        for _ in range(int(rng.integers(5, 40))):
            last = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
        run.communicate()
        names = F.list_names(path)
        assert names == {f"a/{i}.jpg" for i in range(len(names))} and len(names) > last, "continued without gaps"
        for i in range(max(0, len(names) - 15), len(names)):
            same(make(50, seed=i), F.read_hdf5(path, f"a/{i}.jpg"), storage="float16")


@pytest.mark.parametrize("scales", [True, False])
def test_npz(tmp_path, scales):
    features = make(scales=scales)
    assert F.write_npz(tmp_path, "dir/a.jpg", features, "pump") and not F.write_npz(tmp_path, "dir/a.jpg", make(3), "pump")
    path = tmp_path / "dir" / "a.jpg.pump"
    with np.load(path) as file:  # as R2D2's readers do: the last rows are the best
        assert set(file) == {"keypoints", "descriptors", "scores", "imsize"}
        best = np.argmax(features.scores)
        assert file["keypoints"].shape == (11, 3 if scales else 2) and file["descriptors"].shape == (11, 128) and list(file["imsize"]) == [3001, 2003]
        np.testing.assert_array_equal(file["keypoints"][-1, :2], features.keypoints[best])
        np.testing.assert_array_equal(file["descriptors"][-1], features.descriptors[best])
        assert (np.diff(file["scores"]) >= 0).all()
    same(features.take(np.argsort(features.scores)), F.read_npz(path))


def test_npz_of_others_and_refusals(tmp_path):
    def save(**arrays):
        with open(tmp_path / "a.ppm.caps", "wb") as stream:
            np.savez(stream, **arrays)
        return tmp_path / "a.ppm.caps"

    keypoints = np.random.default_rng(0).random((4, 2))
    features = F.read_npz(save(keypoints=keypoints, descriptors=np.ones((4, 256)), scores=[]))  # CAPS
    assert features.image_size is None and features.scales is None and features.descriptors.shape == (4, 256)
    np.testing.assert_array_equal(features.scores, np.ones(4))
    with pytest.raises(UserError, match="there are 4 keypoints but 3 descriptors"):
        F.read_npz(save(keypoints=keypoints, descriptors=np.ones((3, 256))))
    with pytest.raises(UserError, match="no array `keypoints`"):
        F.read_npz(save(points=keypoints))
    with pytest.raises(UserError, match="cannot be read as npz"):
        F.read_npz(save(keypoints=np.array([None])))  # would need pickle
    (tmp_path / "text").write_text("no zip")
    for name in ("text", "none"):
        with pytest.raises(UserError, match=f"{name} cannot be read as npz"):
            F.read_npz(tmp_path / name)


@pytest.mark.parametrize("form", ["hdf5", "npz"])
def test_keypoints_of_any_detector(tmp_path, form):
    width, height = 40, 30
    xy = np.array([[0, 0], [-0.5, 29.5], [-0.6, 5], [39.5, 29.4], [39.6, 3], [4, 29.6], [np.nan, 2], [7, 8]], np.float32)
    keep = [0, 1, 3, 7]
    path = tmp_path / "kp"
    if form == "hdf5":  # SuperPoint through hloc
        with h5py.File(path, "w") as file:
            group = file.create_group("dir/a.jpg")
            group["keypoints"], group["scores"], group["image_size"] = xy.astype(np.float16), np.arange(8.0), [width, height]
            group["descriptors"] = np.zeros((256, 8), np.float16)
    else:
        with open(path, "wb") as stream:
            np.savez(stream, keypoints=np.column_stack([xy, np.arange(8) + 9]), scores=np.arange(8.0), imsize=(width, height))
    features, dropped = F.read_keypoints(path, "dir/a.jpg", (width, height))
    assert dropped == 4 and features.descriptors.shape == (4, 0)
    np.testing.assert_allclose(features.keypoints, xy[keep], atol=0.02)
    np.testing.assert_array_equal(features.scores, keep)
    assert features.scales is None if form == "hdf5" else list(features.scales) == [9, 10, 12, 16]
    with pytest.raises(UserError, match=r"dir/a\.jpg.* image of 40 x 30 px, but this one has 30 x 40 px"):
        F.read_keypoints(path, "dir/a.jpg", (height, width))


def test_keypoints_of_dense_matching_in_lightglue_or_hloc_names(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for key in ("score", "keypoint_scores"):
            file[f"{key}/keypoints"], file[f"{key}/{key}"] = np.ones((2, 2)), [3.0, 4.0]
    for key in ("score", "keypoint_scores"):
        assert list(F.read_hdf5(tmp_path / "f.h5", key).scores) == [3, 4]


@pytest.mark.parametrize("scales", [True, False])
def test_kapture(tmp_path, scales):
    features = make(scales=scales)
    assert F.write_kapture(tmp_path, "cam/a.jpg", features, "pump") and not F.write_kapture(tmp_path, "cam/a.jpg", features, "pump")
    F.write_kapture(tmp_path, "cam/b.jpg", make(0, scales=scales), "pump")

    def table(part):
        lines = (tmp_path / "reconstruction" / part / "pump" / f"{part}.txt").read_text().splitlines()
        assert lines[0] == "# kapture format: 1.1"
        (line,) = [line for line in lines if not line.startswith("#")]
        return [field.strip() for field in line.split(",")]

    name, dtype, size = table("keypoints")
    rows = np.fromfile(tmp_path / "reconstruction/keypoints/pump/cam/a.jpg.kpt", np.dtype(dtype).newbyteorder("<")).reshape(-1, int(size))
    np.testing.assert_array_equal(rows[:, :2], features.keypoints)
    assert name == "pump" and int(size) == (3 if scales else 2)
    name, dtype, size, kind, metric = table("descriptors")
    rows = np.fromfile(tmp_path / "reconstruction/descriptors/pump/cam/a.jpg.desc", np.dtype(dtype).newbyteorder("<")).reshape(-1, int(size))
    np.testing.assert_array_equal(rows, features.descriptors)
    assert (name, int(size), kind, metric) == ("pump", 128, "pump", "L2")
    assert (tmp_path / "reconstruction/keypoints/pump/cam/b.jpg.kpt").stat().st_size == 0
    with pytest.raises(UserError, match="comma"):
        F.write_kapture(tmp_path, "a,b.jpg", features)
    with pytest.raises(UserError, match=r"descriptors\.txt describes other features"):
        F.write_kapture(tmp_path, "c.jpg", make(width=64, scales=scales), "pump")


def test_imc(tmp_path):
    images = {"set_100/a.jpg": make(), "b.png": make(9, seed=1)}
    for name, features in images.items():
        assert F.write_imc(tmp_path, name, features) and not F.write_imc(tmp_path, name, features)
    for part in ("keypoints", "descriptors", "scores", "scales"):
        with h5py.File(tmp_path / f"{part}.h5") as file:
            assert set(file) == {"a", "b"}
            np.testing.assert_array_equal(file["a"], getattr(images["set_100/a.jpg"], part))
    with pytest.raises(UserError, match=r"holds another image of the stem 'a' than set_101/a\.jpg"):
        F.write_imc(tmp_path, "set_101/a.jpg", make(seed=3))
    with pytest.raises(UserError, match="8001 keypoints, but the challenge takes at most 8000"):
        F.write_imc(tmp_path, "c.jpg", make(8001))
    with pytest.raises(UserError, match="516 bytes, but the challenge takes at most 512"):
        F.write_imc(tmp_path, "c.jpg", make(width=129))
    with pytest.raises(UserError, match="63 numbers"):
        F.write_imc(tmp_path, "c.jpg", make(width=63))
    assert F.write_imc(tmp_path, "c.jpg", make(width=256), custom_matches=True)


@pytest.mark.parametrize("scales", [True, False])
def test_eth(tmp_path, scales):
    features = make(scales=scales)
    assert F.write_eth(tmp_path, "0001.png", features) and not F.write_eth(tmp_path, "0001.png", features)
    data = (tmp_path / "keypoints" / "0001.png.bin").read_bytes()
    assert struct.unpack("<ii", data[:8]) == (11, 4) and len(data) == 8 + 11 * 16
    for row in range(11):
        x, y, scale, orientation = struct.unpack_from("<ffff", data, 8 + 16 * row)
        assert (x, y) == tuple(features.keypoints[row]) and scale == (features.scales[row] if scales else 1) and orientation == 0
    data = (tmp_path / "descriptors" / "0001.png.bin").read_bytes()
    assert struct.unpack("<ii", data[:8]) == (11, 128)
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", offset=8).reshape(11, 128), features.descriptors)
    with pytest.raises(UserError, match="lies in a folder"):
        F.write_eth(tmp_path, "dir/0001.png", features)
