"""Runs that earlier versions began: files as format 2 wrote them, under format2/."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdesc import config
from jaxdesc.data.kinds.formats import upgraded
from jaxdesc.store.checkpoint import Checkpoints
from jaxdesc.training import loop
from jaxdesc.types import UserError

FILES = Path(__file__).parent / "format2"
RUNS = {
    "pump": "pump:smoke",
    "pump_u": "pump:u",
    "caps": "caps:smoke",
    "cold": "cold:smoke",
    "gsf": "gsf:smoke",
    "gsf_b": "gsf:paper",
}
HOST = [f"data.{name}" for name in ("canvas_px", "cache", "threads", "keep_mb", "prefetch")]
COLOURS = ["flip_probability", "brightness", "contrast", "saturation", "hue"]
CROPS = [
    *("crop_px", "rotation_deg", "min_side_px", "max_side_px", "aspect", "crop_scale", "trials"),
    *("noise", "swap_probability", "ramp_steps"),
    *("shade", "gamma", "blur_px", "motion_px", "jpeg_quality"),
]
PUMP = {f"draw.{name}": f"draw.{name}" for name in COLOURS + CROPS} | {
    "data.homography.sources": "data.synthetic",
    "data.homography.per_batch": "data.synthetic_per_batch",
    "data.homography.tilt": "draw.tilt",
    "data.unlabelled.sources": "data.real",
    "data.unlabelled.per_batch": "data.real_per_batch",
    "data.unlabelled.correspondences": "data.correspondences",
    "data.posed": None,
    "data.keypoints": None,
}
PLAIN = {f"draw.{name}": f"draw.{name}" for name in COLOURS}
NOT_POSED = dict.fromkeys(["data.homography", "data.unlabelled", "data.keypoints"])
CAPS = {**PLAIN, **NOT_POSED} | {
    "data.posed.sources": "data.posed",
    "data.posed.per_batch": "data.posed_per_batch",
    "data.posed.hw": "draw.posed_hw",
    "data.posed.zoom": "draw.crop_scale",
    "data.posed.queries": "draw.queries",
    "data.posed.candidates": "data.keypoints",
    "data.posed.prune": "draw.prune",
    "data.posed.prune_depth": "draw.prune_depth",
    "data.posed.pose_noise": "data.pose_noise",
    "data.posed.curriculum": "data.curriculum",
}
COLD = PLAIN | dict.fromkeys(["data.homography", "data.unlabelled", "data.posed"])
COLD |= {
    "data.keypoints.sources": "data.semantic",
    "data.keypoints.per_batch": "data.semantic_per_batch",
    "data.keypoints.image_px": "draw.crop_px",
    "data.keypoints.common_keypoints": "data.common_keypoints",
    **{
        f"data.keypoints.warp.{name}": f"draw.warp.{name}"
        for name in ("shift", "shift_std", "angle_deg", "scale", "bend", "control")
    },
}
PLACES = {"pump": PUMP, "pump_u": PUMP, "caps": CAPS, "cold": COLD, "gsf": COLD, "gsf_b": COLD}


def written(name):
    return json.loads((FILES / f"{name}.json").read_text())


def leaves(values, prefix=""):
    """{"data.posed.hw": [48, 64], ...}; lists are values."""
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {
        k: v for key, value in values.items() for k, v in leaves(value, f"{prefix}{key}.").items()
    }


def drawn(values):
    """The fields that say which pairs there are and how they are drawn."""
    return {path for path in values if path.startswith(("data.", "draw."))}


@pytest.mark.parametrize("name", RUNS)
def test_every_field_finds_its_place(name):
    """Nothing is lost that a kind of the run uses, and nothing else is there."""
    old, new = leaves(written(name)), leaves(upgraded(written(name), 2, Path("run")))
    fields = drawn(new)
    places = dict(PLACES[name])
    if name == "gsf_b":  # all three stages
        both = old["data.synthetic"] + old["data.semantic"]
        assert new["data.keypoints.sources"] == both and len(both) == 2
        del new["data.keypoints.sources"], places["data.keypoints.sources"]
    expected = {
        **{k: v for k, v in old.items() if k.split(".")[0] not in ("data", "draw")},
        **{path: old[path] for path in HOST},
        **{path: place and old[place] for path, place in places.items()},
        "format_version": 3,
    }
    assert new == expected
    spec = f"configs/{RUNS[name].replace(':', '.py:')}"
    today = leaves(json.loads(json.dumps(config.as_dict(config.load(spec)))))
    assert fields == drawn(today)


def test_fields_of_before_they_existed_stay_out():
    old = written("pump")
    del old["draw"]["jpeg_quality"], old["draw"]["tilt"], old["data"]["correspondences"]
    new = upgraded(old, 2, Path("run"))
    assert "jpeg_quality" not in new["draw"] and "tilt" not in new["data"]["homography"]
    assert "correspondences" not in new["data"]["unlabelled"]


def test_unlabelled_pairs_alone_were_scored_by_photographs():
    old = written("pump_u")
    assert old["data"]["synthetic_per_batch"] == 0
    old["data"]["synthetic"] = []
    found = upgraded(old, 2, Path("run"))["data"]["homography"]
    assert found["sources"] == [{"kind": "embedded", "path": "", "weight": 1.0}]
    old["data"]["real_per_batch"], old["data"]["synthetic_per_batch"] = 0, 8
    assert upgraded(old, 2, Path("run"))["data"]["unlabelled"] is None


def test_a_damaged_file_of_format_2_is_told_in_a_sentence(tmp_path):
    old = written("pump")
    old["data"]["real_per_batch"] = "two"
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        loop.claim(tmp_path, config.load("configs/pump.py:smoke"))


@pytest.mark.parametrize("name", ["pump", "caps", "cold", "gsf"])
def test_a_run_of_format_2_is_gone_on_with(name, tmp_path):
    """By the same configuration in today's words, and by no other."""
    field, value = {
        "pump": ("data.homography.tilt", "0.3"),
        "caps": ("data.posed.queries", "9"),
    }.get(name, ("data.keypoints.warp.bend", "0.3"))
    spec = f"configs/{RUNS[name].replace(':', '.py:')}"
    shutil.copy(FILES / f"{name}.json", tmp_path / "config.json")
    with pytest.raises(UserError, match=rf"belongs to another configuration \({field} is"):
        loop.claim(tmp_path, config.load(spec, {field: value}))
    assert json.loads((tmp_path / "config.json").read_text()) == written(name)
    loop.claim(tmp_path, config.load(spec))
    now = json.loads((tmp_path / "config.json").read_text())
    assert now == json.loads(json.dumps(config.as_dict(config.load(spec))))


def test_a_resumed_run_of_format_2_ends_where_the_whole_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.jax, "device_count", lambda: 1)
    cache = str(tmp_path / "cache")
    cfg = config.load("configs/cold.py:smoke", {"data.cache": cache})
    loop.run(cfg, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "2")
    old = written("cold")
    old["data"]["cache"] = cache
    (tmp_path / "part" / "config.json").write_text(json.dumps(old))
    loop.run(cfg, tmp_path / "part")

    def state(run):
        with Checkpoints(tmp_path / run / "checkpoints", 3) as checkpoints:
            return jax.tree.leaves(checkpoints._manager.restore(2)["state"])

    for a, b in zip(state("whole"), state("part"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "goes_on"), [("pump", False), ("pump_u", False), ("caps", False), ("cold", True)]
)
def test_format_1_goes_on_where_pairs_are_drawn_as_then(name, goes_on):
    old = written(name)
    del old["format_version"]
    if goes_on:
        old["draw"]["noise"] = 25.0  # of no pair of the run
        assert "noise" not in upgraded(old, 1, Path("run"))["draw"]
        return
    with pytest.raises(UserError, match="drew its pairs otherwise"):
        upgraded(old, 1, Path("run"))
    if name == "caps":
        old["draw"]["prune"] = False
        assert upgraded(old, 1, Path("run"))["data"]["posed"]["prune"] is False
