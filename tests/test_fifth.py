"""A method from outside the package, installed by pip, with every verb that methods have."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jaxdesc
from jaxdesc import methods
from jaxdesc.method import Method
from tests.cli import call
from tests.cli.test_evaluate import data  # noqa: F401, a fixture
from tests.predict.test_predictor import noise

ROOT = Path(__file__).parents[1]
CONFIG = """
from dataclasses import replace

from fifth import Config
from jaxdesc.config import load


def get_config():
    base = load("{root}/configs/pump.py:smoke")
    return replace(base, method=Config(), data=replace(base.data, unlabelled=None))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which pip installed the package `fifth`."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "fifth.py"):
        (source / name).write_text((Path(__file__).parent / "fifth" / name).read_text())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *options, str(source)], check=True, capture_output=True)
    return target


@pytest.fixture
def known(installed, monkeypatch):
    """The fifth method is known by its entry point; afterwards it is not."""
    monkeypatch.syspath_prepend(installed)
    methods._installed.cache_clear()
    yield
    methods.METHODS.pop("fifth", None)
    sys.modules.pop("fifth", None)
    methods._installed.cache_clear()


@pytest.fixture
def verb(known, monkeypatch, capsys):
    def run(name, *arguments, status=None):
        out, err = call(monkeypatch, capsys, name, *arguments, status=status)
        return out + err

    return run


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate("abc"):
        Image.fromarray(noise(96, 112, 0)[4 * i :, 4 * i :]).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def weights(known, tmp_path):
    """Filters in a file as somebody else would publish them, and converted."""
    filters = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
    save_file({"filters": filters}, tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors", tmp_path / "fifth.safetensors"


def test_every_slot_is_filled(known):
    built = methods.find("fifth").build(methods.find("fifth").Config())
    assert isinstance(built, Method) and None not in built
    assert None not in methods.find("fifth")


def test_trains_and_is_loaded(verb, tmp_path):
    config, workdir = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG.format(root=ROOT))
    verb("train", "--config", config, "--workdir", workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any("distance" in str(line) for line in lines)
    net = jaxdesc.load(workdir)
    assert (net.name, net.dim, net.describe(noise(40, 50)).shape) == ("fifth", 8, (40, 50, 8))
    out = tmp_path / "packed.safetensors"
    assert "fifth, 384 parameters" in verb("convert", workdir, out)
    np.testing.assert_array_equal(
        jaxdesc.load(out).describe(noise(9, 9)), net.describe(noise(9, 9))
    )


def test_converts_matches_and_explains(verb, weights, images, tmp_path):
    theirs, ours = weights
    told = verb("convert", "--method", "fifth", theirs, ours)
    assert "licence: the fifth method's weights are nobody's" in told
    a, b = images / "a.png", images / "b.png"
    shown = {name: tmp_path / f"{name}.png" for name in ("figure", "warp", "alignment", "heatmaps")}
    files = [word for name, path in shown.items() for word in (f"--{name}", path)]
    more = ["--out", tmp_path / "m.npz", "--dense", tmp_path / "f.flo", "--query", "20", "30"]
    verb("match", a, b, "--weights", ours, *files, *more)
    rows = np.load(tmp_path / "m.npz")["corres"]
    np.testing.assert_array_equal(np.median(rows[:, :2] - rows[:, 2:4], 0), [4, 4])  # one cell
    assert np.asarray(Image.open(shown["heatmaps"])).shape == (5, 7, 3)
    verb("match", a, b, "--weights", ours, "--least", "1", "--out", tmp_path / "sure.npz")
    sure = np.load(tmp_path / "sure.npz")["corres"]
    assert 0 < len(sure) < len(rows) and sure[:, 4].min() >= 1
    (tmp_path / "points.txt").write_text("30 40\n60 20\n")
    chosen = ["--points", tmp_path / "points.txt", "--out", tmp_path / "p.npz"]
    verb("match", a, b, "--weights", ours, *chosen)
    np.testing.assert_array_equal(
        np.load(tmp_path / "p.npz")["corres"][:, :2], [[30, 40], [60, 20]]
    )
    told = verb(
        "match", a, b, "--weights", ours, "--max-rot", "90", "--out", tmp_path / "x.npz", status=2
    )
    assert "fifth does not match with --max-rot: it has --least." in told
    assert "fifth: least cosine of a match" in " ".join(verb("match", "--help", status=0).split())


def test_folders_keypoints_and_scores(verb, weights, images, data, tmp_path):  # noqa: F811
    theirs, ours = weights
    verb("convert", "--method", "fifth", theirs, ours)
    told = verb("match", images, "--weights", ours, "--out", tmp_path / "dense.h5")
    assert "3 pairs matched" in told
    keypoints = ["--keypoints", "sift", "--max-keypoints", "60", "--out", tmp_path / "sparse.h5"]
    assert "3 pairs matched" in verb("match", images, "--weights", ours, *keypoints)
    verb("extract", images, "--weights", ours, "--out", tmp_path / "features.h5")
    with h5py.File(tmp_path / "features.h5") as file:
        assert file["a.png/descriptors"].shape[0] == 6
    out = tmp_path / "scores"
    told = verb("evaluate", "homography", "--data", data, "--weights", ours, "--out", out)
    assert f"| {ours} on hessian | data (1 sequences) |" in told and (out / "results.md").exists()
    own = ["--keypoints", "own", "--max-keypoints", "7", "--out", tmp_path / "own.h5"]
    verb("extract", images, "--weights", ours, *own)
    with h5py.File(tmp_path / "own.h5") as file:
        np.testing.assert_array_equal(file["a.png/keypoints"][:, 0], 1.5 + 4 * np.arange(7))
        assert file["a.png/scales"][:].tolist() == [4] * 7
    moved = jaxdesc.load(ours).transfer(noise(96, 112), noise(96, 112), [[50.0, 40.0]])
    assert moved.shape == (1, 2)


def test_register(known):
    fifth = methods.find("fifth")
    assert jaxdesc.register(fifth) is fifth, "again is no mistake"
    with pytest.raises(jaxdesc.UserError, match="another method of the name 'fifth'"):
        jaxdesc.register(fifth._replace(published={}))
    with pytest.raises(jaxdesc.UserError, match=r"no jaxdesc\.method\.Definition"):
        jaxdesc.register("fifth")
    nothing = type("Config", (fifth.Config,), {"name": "sixth", "kinds": ()})
    with pytest.raises(jaxdesc.UserError, match="sixth names no kind of pair that its loss takes"):
        jaxdesc.register(fifth._replace(Config=nothing))
    with pytest.raises(jaxdesc.UserError, match="there are pump, caps, cold, gsf, fifth"):
        methods.find("sixth")
