"""python -m jaxdesc.evaluate as a user meets it."""

import json
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest

from jaxdesc.evals import PROTOCOLS


@pytest.fixture
def evaluate(monkeypatch, capsys):
    def run(*arguments, status=None):
        """Runs the verb; returns (stdout, stderr). A failure is one sentence."""
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        try:
            runpy.run_module("jaxdesc.evaluate", run_name="__main__")
            code = None
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        assert code == status, err
        if status == 2 and "usage:" not in err:
            assert err.split("\n")[-2].startswith("jaxdesc: ") and err.endswith(".\n") and "Traceback" not in err, err
        return out, err

    return run


@pytest.fixture
def data(tmp_path):
    """A sequence of six views of one texture, shifted by whole pixels."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    folder = tmp_path / "data" / "v_shift"
    folder.mkdir(parents=True)
    for k in range(1, 7):
        cv2.imwrite(str(folder / f"{k}.png"), texture[k : k + 100, 2 * k : 2 * k + 130])
        if k > 1:
            np.savetxt(folder / f"H_1_{k}", [[1, 0, -2 * (k - 1)], [0, 1, -(k - 1)], [0, 0, 1]])
    return folder.parent


def test_rootsift_then_its_file_then_both_beside_each_other(evaluate, data, tmp_path):
    first, second = tmp_path / "results" / "first", tmp_path / "results" / "second"
    told, _ = evaluate("homography", "--data", data, "--method", "rootsift", "--out", first)
    assert "| rootsift | data (1 sequences) |" in told and "`homography/cv2-ransac@3px`" in told
    (made,) = first.glob("mma_d2_*.json")
    values = json.loads(made.read_text())["values"]
    assert values["MMA@1"] > 0.9 and values["matches"] > 20
    assert {path.name for path in first.glob("*.png")} == {"mma_d2.png", "mma_pump-count.png", "homography_cv2-ransac@3px.png"}
    assert "PUMP, supplementary, Table A" in (first / "results.md").read_text()

    stamp = (first / "features.h5").stat().st_mtime_ns
    evaluate("homography", "--data", data, "--features", first / "features.h5", "--out", second, "--label", "again")
    assert not (second / "features.h5").exists() and (first / "features.h5").stat().st_mtime_ns == stamp
    (again,) = second.glob("mma_d2_*.json")
    assert json.loads(again.read_text())["values"] == values

    np.save(tmp_path / "theirs.npy", np.array([{t: t * 10.0 for t in range(1, 16)}] * 2 + [[0, 0, 0]], dtype=object), allow_pickle=True)
    told, _ = evaluate("compare", first, second, tmp_path / "theirs.npy", "--out", tmp_path / "both")
    table = told.split("`mma/d2`")[1].split("`")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:5] == ["rootsift", "again", "theirs"]
    assert (tmp_path / "both" / "compare.md").exists() and (tmp_path / "both" / "mma_d2.png").exists()
    told, err = evaluate("compare", first, second, tmp_path / "both", "--protocol", "mma/d2")
    assert "homography/" not in told and "both holds no result and is passed over" in err


def test_mistakes_are_one_sentence(evaluate, data, tmp_path):
    for arguments, sentence in (
        (("homography", "--data", tmp_path / "none", "--out", tmp_path / "o"), "There is no folder --data"),
        (("homography", "--out", tmp_path / "o"), "--data DIR is needed"),
        (("homography", "--data", data, "--out", tmp_path / "o", "--features", tmp_path / "none.h5"), "There are no predictions"),
        (("homography", "--data", data, "--out", tmp_path / "o", "--features", data / "v_shift" / "1.png"), "is not an HDF5 file"),
        (("compare", data), "There is no result in"),
        (("compare", data / "v_shift" / "1.png"), "is no result"),
        (("flight", "--out", "o"), "invalid choice"),
        ((), "are required"),
    ):
        _, err = evaluate(*arguments, status=2)
        assert sentence in err, err


def test_each_protocol_says_how_it_is_used(evaluate):
    for name in PROTOCOLS:
        told, _ = evaluate(name, "--help", status=0)
        assert "--predictions" in told and "example:" in told


def test_scoring_from_a_file_loads_no_jax(evaluate, data, tmp_path):
    evaluate("homography", "--data", data, "--method", "rootsift", "--out", tmp_path / "out")
    code = "import runpy, sys; runpy.run_module('jaxdesc.evaluate', run_name='__main__'); print('jax' in sys.modules, 'cv2' in sys.modules)"
    arguments = ["homography", "--data", str(data), "--features", str(tmp_path / "out" / "features.h5"), "--out", str(tmp_path / "again")]
    told = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "False True", told
