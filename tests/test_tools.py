"""What developers run by hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from jaxdesc import config
from tests.predict.test_predictor import noise

ROOT = Path(__file__).parents[1]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_detectors_is_that_of_its_result_file():
    made = json.loads((ROOT / "docs/results/detectors.json").read_text())
    page = (ROOT / "docs/results/detectors.md").read_text()
    detectors = tool("detectors")
    assert page == detectors.text_of(made)
    best = made["rows"][0]["homography"]
    assert f"| {best['repeatability@3']:.3f} |" in page
    assert {row["detector"]: row["keypoints"] for row in made["rows"]} == detectors.DETECTORS


def test_shi_tomasis_corners_move_with_the_image():
    rgb = noise(90, 100)
    detect = tool("detectors").shi_tomasi
    one, other = detect(rgb[:80, :90], 500), detect(rgb[3:83, 5:95], 500)
    distance = np.linalg.norm(one.keypoints[:, None] - other.keypoints - [5, 3], axis=-1)
    inside = ((one.keypoints > 12) & (one.keypoints < [78, 68])).all(1)
    assert inside.sum() > 20 and np.mean(distance.min(1)[inside] < 0.01) > 0.8
    assert np.mean(one.keypoints % 1 != 0) > 0.9, "between the pixels"
    assert len(detect(np.zeros((40, 40, 3), np.uint8), 9)) == 0


def test_steps_of_a_gpu_day_fill_the_time_that_is_left():
    planned = tool("gpu_day").planned_steps
    assert planned(700, images_per_s=640, images_per_step=64, left_s=1000) == 700 + 9300
    for left_s in (0, -50, 1):  # not more than four fifths are over: the learning rate can still fall
        steps = planned(701, 640, 64, left_s)
        assert steps - steps // 5 >= 701


def test_images_of_a_step_of_a_gpu_day_are_those_of_every_kind():
    values = config.as_dict(config.load("configs/pump.py:shipped"))
    assert tool("gpu_day").images_per_step(values) == 2 * (24 + 8)
