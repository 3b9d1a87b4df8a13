"""jaxdesc evaluate as a user meets it."""

import dataclasses
import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from jaxdesc.cli import flags
from jaxdesc.evals import PROTOCOLS, load
from jaxdesc.predict import predictor
from jaxdesc.store import weights
from tests.cli import call


@pytest.fixture
def evaluate(monkeypatch, capsys):
    def run(*arguments, status=None):
        """Runs the verb; returns (stdout, stderr). A failure is one sentence."""
        out, err = call(monkeypatch, capsys, "evaluate", *arguments, status=status)
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
    scene = ("homography", "--data", data, "--out", tmp_path / "o")
    for arguments, sentence in (
        (("homography", "--data", tmp_path / "none", "--out", tmp_path / "o"), "There is no folder --data"),
        (("homography", "--out", tmp_path / "o"), "--data DIR is needed"),
        ((*scene, "--top", 0), "--top = 0 must be at least 1"),
        ((*scene, "--ransac-px", "wide"), "--ransac-px = 'wide' is not of type float"),
        ((*scene, "--estimator", "usac"), "--estimator = 'usac' must be one of cv2-ransac"),
        ((*scene, "--method", "rootsift", "--weights", "w"), "rootsift needs no weights"),
        (("dense", "--data", data, "--out", tmp_path / "o"), "are required: --dataset"),
        (("homography", "--data", data), "are required: --out"),
        ((*scene, "--features", tmp_path / "none.h5"), "There are no predictions"),
        ((*scene, "--features", data / "v_shift" / "1.png"), "is not an HDF5 file"),
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
        shown = " ".join(told.split())
        for field in dataclasses.fields(load(name).Options):
            told_here = f"{flags.flag(field)} " in shown and field.metadata["doc"] in shown
            assert told_here == (field.metadata["flag"] is not None), (name, field.name)


def test_flags_of_a_method_go_to_its_matches(evaluate, data, tmp_path):
    """They are answered by the method whose weights are given, and recorded."""
    cold = predictor.untrained("cold", backbone="resnet10", width=4, dim=5, image_px=40)
    weights.save(tmp_path / "w.safetensors", "cold", cold.config, jax.device_get(cold.variables))
    data_words = ("dense", "--dataset", "hpatches", "--data", data)
    words = (*data_words, "--out", tmp_path / "out", "--weights", tmp_path / "w.safetensors")
    _, err = evaluate(*words, "--max-scale", 1, status=2)
    assert "cold does not match with --max-scale: it has --side, --one-way." in err
    _, err = evaluate(*words, "--side", 0, status=2)
    assert "--side = 0 must be at least" in err
    told, _ = evaluate(*words, "--side", 64, "--one-way", "--max-side", 100)
    assert "`aepe/hpatches-original`" in told
    made = json.loads((tmp_path / "out" / "flow" / "jaxdesc.json").read_text())
    assert (made["side_px"], made["mutual"], made["max_side"]) == (64, False, 100)
    predictions = ("--features", tmp_path / "out" / "flow", "--label", "flow")
    told, _ = evaluate(*data_words, "--out", tmp_path / "again", *predictions)
    assert "| flow | hpatches (5 pairs) |" in told


def test_a_program_scores_as_the_verb_does_and_loads_no_jax(evaluate, data, tmp_path):
    evaluate("homography", "--data", data, "--method", "rootsift", "--out", tmp_path)
    code = (
        "import sys; from jaxdesc.evals import PROTOCOLS, homography, load\n"
        "for name in PROTOCOLS: load(name)\n"
        "first, *_ = homography.score(homography.Options(data=sys.argv[1]), sys.argv[2])\n"
        "print(first.config_hash, first.method, first.values, 'jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(data), str(tmp_path / "features.h5")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (path,) = tmp_path.glob("mma_d2_*.json")
    made = json.loads(path.read_text())
    assert told == f"{made['config_hash']} rootsift {made['values']} False\n"


def test_scoring_from_a_file_loads_no_jax(evaluate, data, tmp_path):
    evaluate("homography", "--data", data, "--method", "rootsift", "--out", tmp_path / "out")
    code = "import sys; from jaxdesc.__main__ import main; main(); print('jax' in sys.modules, 'cv2' in sys.modules)"
    arguments = ["evaluate", "homography", "--data", str(data), "--features", str(tmp_path / "out" / "features.h5"), "--out", str(tmp_path / "again")]
    told = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "False True", told
