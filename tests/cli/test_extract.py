"""jaxdesc extract as a user meets it."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from jaxdesc.matching import keypoints
from jaxdesc.predict import predictor
from jaxdesc.predict.predictor import SCALES, Predictor
from jaxdesc.store import features
from jaxdesc.store.features import Features
from tests.cli.test_match import verb, weight_file  # noqa: F401, fixtures
from tests.predict.test_predictor import noise

NAMES = ("a.png", "b.jpg", "sub/c.png")


@pytest.fixture
def extract(verb):  # noqa: F811
    return lambda *arguments, status=None: verb(*arguments, status=status, verb="extract")


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them nested, and one without any structure."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(noise(96, 112 + 8 * i, i)).save(root / name)
    Image.new("RGB", (64, 64), "gray").save(root / "flat.png")
    return root


@pytest.fixture
def calls(monkeypatch):
    """The images that are described."""
    made, real = [], Predictor.describe_at

    def describe_at(self, image, xy, scales=None):
        made.append(image.shape)
        return real(self, image, xy, scales)

    monkeypatch.setattr(Predictor, "describe_at", describe_at)
    return made


def test_hloc_file_of_keypoints(extract, folder, tmp_path, calls, weight_file):  # noqa: F811
    out = tmp_path / "f.h5"
    told, _ = extract(folder, "--out", out, "--max-keypoints", 50)
    assert "4 images described, 0 were there already" in told
    net = predictor.load(weight_file)
    with h5py.File(out) as file:
        for name in NAMES:
            group = file[name]
            rgb = np.asarray(Image.open(folder / name).convert("RGB"))
            assert group["keypoints"].shape == (50, 2) and group["descriptors"].shape == (6, 50)
            np.testing.assert_array_equal(group["image_size"], rgb.shape[1::-1])
            expected = net.describe_at(rgb, group["keypoints"][()], group["scales"][()])
            np.testing.assert_allclose(group["descriptors"][()].T, expected, atol=1e-3)  # float16
            best = np.sort(group["scores"][()])[::-1]
            np.testing.assert_array_equal(group["scores"][()], best)
            kept = keypoints.find("hessian").detect(rgb, 50)
            np.testing.assert_array_equal(group["keypoints"][()], kept.xy_px)
        assert file["flat.png/keypoints"].shape == (0, 2) and file["flat.png/descriptors"].shape == (6, 0)
    count = len(calls)
    os.remove(folder / "flat.png")
    Image.fromarray(noise(64, 80)).save(folder / "new.png")
    told, _ = extract(folder, "--out", out, "--max-keypoints", 50)
    assert "1 images described, 3 were there already" in told and len(calls) == count + 1
    _, err = extract(folder, "--out", out, "--max-keypoints", 60, status=2)
    assert "was made with other settings (max_keypoints was 50 and is now 60)" in err
    told, _ = extract(folder, "--out", out, "--max-keypoints", 60, "--overwrite")
    assert "4 images described" in told
    _, err = extract(folder, "--out", out, "--max-keypoints", 60, "--keypoints", "sift", status=2)
    assert "keypoints was 'hessian' and is now 'sift'" in err
    note = json.loads((tmp_path / "f.h5.json").read_text())
    (tmp_path / "f.h5.json").write_text(json.dumps(note | {"keypoints_version": 0}))
    _, err = extract(folder, "--out", out, "--max-keypoints", 60, status=2)
    assert "with other settings (keypoints_version was 0 and is now 1)" in err
    (tmp_path / "f.h5.json").unlink()
    _, err = extract(folder, "--out", out, "--max-keypoints", 60, status=2)
    assert "f.h5 exists already" in err


def test_one_image_grid_and_all_scales(extract, folder, tmp_path):
    extract(folder / "a.png", "--out", tmp_path / "f.h5", "--keypoints", "grid", "--max-keypoints", 30, "--scales", "all")
    assert features.list_names(tmp_path / "f.h5") == {"a.png"}
    found = features.read_hdf5(tmp_path / "f.h5", "a.png")
    grid = keypoints.grid((96, 112), 30).xy_px
    np.testing.assert_array_equal(found.keypoints, np.repeat(grid, 7, axis=0))
    np.testing.assert_allclose(found.scales, np.tile(32 / np.array(SCALES), len(grid)), rtol=1e-6)
    assert found.descriptors.shape == (7 * len(grid), 6)


def test_storage_of_descriptors(extract, folder, tmp_path):
    """Each storage is read back to the same descriptors, within what it can hold; other formats have none to choose."""
    found = {}
    for storage in features.STORAGES:
        out = tmp_path / f"{storage}.h5"
        extract(folder / "a.png", "--out", out, "--keypoints", "grid", "--max-keypoints", 30, "--storage", storage)
        found[storage] = features.read_hdf5(out, "a.png").descriptors
        with h5py.File(out) as file:
            assert file["a.png/descriptors"].dtype == storage and ("descriptor_scales" in file["a.png"]) == (storage == "int8")
    for storage, atol in (("float16", 5e-4), ("int8", 0.5 / 127 + 1e-3)):
        assert 0 < abs(found[storage] - found["float32"]).max() < atol
    _, err = extract(folder / "a.png", "--out", tmp_path / "int8.h5", "--keypoints", "grid", "--max-keypoints", 30, status=2)
    assert "storage was 'int8' and is now 'float16'" in err
    _, err = extract(folder / "a.png", "--out", tmp_path / "k", "--format", "kapture", "--storage", "int8", status=2)
    assert "--storage int8 is for --format hloc and colmap" in err


def test_keypoints_of_a_file(extract, folder, tmp_path, weight_file):  # noqa: F811
    source = tmp_path / "k.h5"
    rng = np.random.default_rng(0)
    for i, name in enumerate((*NAMES, "flat.png")):
        size = (64, 64) if name == "flat.png" else (112 + 8 * i, 96)
        xy = rng.uniform(0, 63, (10, 2)).astype(np.float32)
        xy[3], xy[4] = (-0.6, 5), (5, size[1])  # outside
        features.write_hdf5(source, name, Features(xy, np.zeros((10, 3), np.float32), np.arange(10, dtype=np.float32), None, size))
    told, err = extract(folder, "--out", tmp_path / "f.h5", "--keypoints", source, "--max-keypoints", 5)
    assert "4 images described" in told and "8 keypoints outside their images dropped" in err
    given, found = (features.read_hdf5(path, "a.png") for path in (source, tmp_path / "f.h5"))
    np.testing.assert_array_equal(found.keypoints, given.keypoints[5:])  # the five best
    assert found.scales is None
    dense = predictor.load(weight_file).describe(folder / "a.png")
    expected = predictor.load(weight_file).describe_at(folder / "a.png", given.keypoints[5:])
    assert dense.shape == (96, 112, 6)
    np.testing.assert_allclose(found.descriptors, expected, atol=1e-3)
    Image.fromarray(noise(50, 60)).save(folder / "a.png")
    _, err = extract(folder, "--out", tmp_path / "g.h5", "--keypoints", source, status=2)
    assert "belong to an image of 112 x 96 px, but this one has 60 x 50 px" in err
    Image.fromarray(noise(50, 60)).save(folder / "new.png")
    _, err = extract(folder, "--out", tmp_path / "h.h5", "--keypoints", source, status=2)
    assert "holds no keypoints of 1 of the 5 images, such as new.png" in err and not (tmp_path / "h.h5").exists()


@pytest.mark.parametrize("kind", ["npz", "kapture", "imc", "eth"])
def test_folders_of_other_tools(extract, folder, tmp_path, calls, kind, monkeypatch):
    monkeypatch.setattr(features, "write_imc", lambda *arguments, real=features.write_imc: real(*_wide(arguments)))
    if kind == "eth":  # flat folders only
        shutil.move(folder / "sub/c.png", folder / "c.png")
    out = folder if kind == "npz" else tmp_path / "out"
    arguments = (folder, "--out", out, "--format", kind, "--max-keypoints", 9)
    told, _ = extract(*arguments)
    assert "4 images described" in told
    if kind == "npz":
        assert features.read_npz(folder / "sub/c.png.jaxdesc").descriptors.shape == (9, 6)
    elif kind == "kapture":
        assert (out / "reconstruction/keypoints/jaxdesc/sub/c.png.kpt").stat().st_size == 9 * 3 * 4
    elif kind == "imc":
        with h5py.File(out / "keypoints.h5") as file:
            assert set(file) == {"a", "b", "c", "flat"} and file["c"].shape == (9, 2)
    else:
        assert (out / "descriptors/c.png.bin").stat().st_size == 8 + 9 * 6 * 4
    count = len(calls)
    told, _ = extract(*arguments)
    assert "0 images described, 4 were there already" in told and len(calls) == count == 4
    _, err = extract(*arguments, "--scales", "all", status=2)
    assert "other settings (scales was 'own' and is now 'all')" in err
    _, err = extract(*arguments, "--overwrite", status=2)
    assert "is a folder, which is not overwritten" in err


def _wide(arguments):
    """The challenge takes no descriptors of 6 numbers."""
    out, name, found = arguments
    return out, name, Features(found.keypoints, np.tile(found.descriptors, 11), found.scores, found.scales, found.image_size)


def test_colmap_database(extract, folder, tmp_path):
    pytest.importorskip("pycolmap")
    out = tmp_path / "d.db"
    extract(folder, "--out", out, "--format", "colmap", "--max-keypoints", 9)
    database = sqlite3.connect(out)
    rows = database.execute("select name, rows, cols, data from images join keypoints using (image_id)").fetchall()
    database.close()
    found = features.read_hdf5(tmp_path / "d.h5", "sub/c.png")
    stored = next(np.frombuffer(data, np.float32).reshape(height, width) for name, height, width, data in rows if name == "sub/c.png")
    np.testing.assert_array_equal(stored[:, :2], found.keypoints + np.float32(0.5))
    assert len(rows) == 4
    _, err = extract(folder, "--out", out, "--format", "colmap", "--max-keypoints", 9, status=2)
    assert "d.db exists already" in err
    told, _ = extract(folder, "--out", out, "--format", "colmap", "--max-keypoints", 9, "--overwrite")
    assert "4 images described" in told


def test_unreadable_images_are_named(extract, folder, tmp_path):
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    told, err = extract(folder, "--out", tmp_path / "f.h5")
    assert "3 images described" in told and "skipped: b.jpg: " in err
    assert features.list_names(tmp_path / "f.h5") == {"a.png", "sub/c.png", "flat.png"}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_text("junk")
    _, err = extract(tmp_path / "bad", "--out", tmp_path / "g.h5", status=2)
    assert "None of the 1 images of " in err and "x.png: it is not an image in a known format" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--out", "f.h5"], "There is no image and no folder nowhere"),
        (["empty", "--out", "f.h5"], "empty holds no image"),
        (["images", "--out", "f.npz"], "must end in .h5 for --format hloc"),
        (["images", "--out", "f.h5", "--format", "colmap"], "must end in .db for --format colmap"),
        (["images", "--out", "images/a.png", "--format", "npz"], "a.png is a file; --format npz writes into a folder"),
        (["images", "--out", "f.h5", "--keypoints", "orb"], "--keypoints orb must be hessian, hessian:SIGMA,SIGMA.., sift, grid or own, or a file"),
        (["images", "--out", "f.h5", "--keypoints", "hessian:1.2;3"], "hessian:1.2;3 are malformed"),
        (["images", "--out", "f.h5", "--keypoints", "hessian:90"], "The scales of hessian, 90, must"),
        (["images", "--out", "f.h5", "--keypoints", "own"], "pump with these weights has no detector"),
        (["images", "--out", "f.h5", "--keypoints", "images/a.png"], "a.png is not an HDF5 file"),
        (["images", "--out", "f.h5", "--max-keypoints", "0"], "--max-keypoints 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(extract, folder, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    _, err = extract(*arguments, status=2)
    assert re.search(words, err) and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_killed_run_leaves_a_readable_file_and_goes_on(extract, folder, tmp_path, weight_file):  # noqa: F811
    out = tmp_path / "f.h5"
    code = f"""
import os, signal, sys, numpy as np
from jaxdesc.__main__ import main
from jaxdesc.predict.predictor import Predictor
calls = []
def describe_at(self, image, xy, scales):
    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    return np.zeros((len(xy), 6), np.float32)
Predictor.describe_at = describe_at
sys.argv = ["jaxdesc", "extract", {str(folder)!r}, "--out", {str(out)!r}, "--weights", {weight_file!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(features.list_names(out)) == 2
    told, _ = extract(folder, "--out", out)
    assert "2 images described, 2 were there already" in told
