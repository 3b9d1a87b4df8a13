"""How long the run of tools/gpu_day is made."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import gpu_day

from jaxdesc import config


def test_steps_fill_the_time_that_is_left():
    assert gpu_day.planned_steps(700, images_per_s=640, images_per_step=64, left_s=1000) == 700 + 9300


@pytest.mark.parametrize("left_s", [0, -50, 1])
def test_the_learning_rate_has_time_to_fall(left_s):
    """Not more than four fifths are over, so the run may be given the new length."""
    steps = gpu_day.planned_steps(701, 640, 64, left_s)
    assert steps - steps // 5 >= 701


def test_images_of_a_step_are_those_of_every_kind():
    values = config.as_dict(config.load("configs/pump.py:shipped"))
    assert gpu_day.images_per_step(values) == 2 * (24 + 8)
