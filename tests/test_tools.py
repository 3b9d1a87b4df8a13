"""What developers run by hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np

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
