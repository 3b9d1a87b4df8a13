"""Calibrated images as files give them, and how one pose lies to another."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxdesc.datasets import cameras
from jaxdesc.datasets.cameras import bare
from jaxdesc.types import UserError

K = np.array([[300.0, 0, 180.3], [0, 310.0, 120.7], [0, 0, 1]])


def random_rotation(rng):
    return Rotation.from_rotvec(rng.normal(size=3)).as_matrix()


def test_angle_of_a_rotation():
    rng = np.random.default_rng(0)
    for angle in (0.0, 1e-4, 1.0, 79.0, 179.999, 180.0):
        axis = rng.normal(size=3)
        R = Rotation.from_rotvec(np.radians(angle) * axis / np.linalg.norm(axis)).as_matrix()
        np.testing.assert_allclose(cameras.angle_deg(R), angle, atol=1e-6)


def test_relative_pose_centre_and_extent():
    rng = np.random.default_rng(1)
    one, two = (bare(9, 9, K, random_rotation(rng), rng.normal(size=3), "") for _ in range(2))
    X = rng.normal(size=3)
    R, t = cameras.relative(one, two)
    np.testing.assert_allclose(R @ (one.R @ X + one.t) + t, two.R @ X + two.t)
    centres = cameras.centre(np.stack([one.R, two.R]), np.stack([one.t, two.t]))
    np.testing.assert_allclose(one.R @ centres[0] + one.t, 0, atol=1e-12)
    far = cameras.Pose(np.eye(3), -centres[0] - [0, 0, 100])
    assert cameras.extent([one, two, far]) == pytest.approx(
        max(100, np.linalg.norm(centres[1] - centres[0] - [0, 0, 100]))
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0.jpg 96 64 100", r"img_cam\.txt, line 2, is not a name and the 18 numbers"),
        (
            " ".join(["0.jpg", "96", "64", "1", "1", "1", "1", *["2"] * 12]),
            r"img_cam\.txt, line 2, has an R that is not a rotation",
        ),
        (
            "0.jpg 96 64 -9 100 46 33 1 0 0 0 1 0 0 0 1 0 0 0",
            r"img_cam\.txt, line 2, has a size, focal length or pose",
        ),
        ("# nothing", r"img_cam\.txt names no image"),
    ],
)
def test_wrong_camera_files(tmp_path, line, words):
    (tmp_path / "img_cam.txt").write_text(f"# header\n{line}\n")
    with pytest.raises(UserError, match=words):
        cameras.read_img_cam(tmp_path / "img_cam.txt")
