"""Lists of pairs with known relative poses: scenes, SuperGlue's and LoFTR's."""

import pickle

import cv2
import numpy as np
import pytest

from jaxdesc.datasets import pose_pairs
from jaxdesc.datasets.cameras import bare, relative
from jaxdesc.types import UserError
from tests.evals.posed_scene import write_cameras

K0 = np.array([[300.0, 0, 180.3], [0, 310.0, 120.7], [0, 0, 1]])
K1 = np.array([[420.0, 0, 200.1], [0, 400.0, 149.2], [0, 0, 1]])


def rotation(*vector):
    return cv2.Rodrigues(np.array(vector, float))[0]


def three_cameras(rng):
    return {
        name: bare(400, 300, K0, rotation(*rng.normal(0, 0.2, 3)), rng.normal(size=3), name)
        for name in ("c.png", "a.png", "b.png")
    }


def test_pairs_of_a_folder(tmp_path):
    posed = three_cameras(np.random.default_rng(6))
    write_cameras(tmp_path, posed)
    pairs = pose_pairs.read_pose_pairs(tmp_path)
    assert [pair[:2] for pair in pairs] == [
        ("a.png", "b.png"),
        ("a.png", "c.png"),
        ("b.png", "c.png"),
    ]
    np.testing.assert_allclose(pairs[1].R, posed["c.png"].R @ posed["a.png"].R.T)
    (tmp_path / "pairs.txt").write_text("c.png a.png\n")
    (pair,) = pose_pairs.read_pose_pairs(tmp_path)
    assert pair[:2] == ("c.png", "a.png")
    np.testing.assert_allclose(pair.t, relative(posed["c.png"], posed["a.png"])[1])


def test_superglue_lists(tmp_path):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation(0.2, 0.1, 0), [1, 2, 3]
    path = tmp_path / "pairs.txt"
    numbers = [*K0.ravel(), *K1.ravel(), *T.ravel()]
    line = " ".join(["x/a.jpg", "x/b.jpg", "1", "0", *(f"{v:.9f}" for v in numbers)])
    path.write_text(f"\n# a note\n{line}\n")
    (pair,) = pose_pairs.read_pose_pairs(path)
    assert pair[:2] == ("x/a.jpg", "x/b.jpg")
    for got, expected in zip(pair[2:6], (K0, K1, T[:3, :3], T[:3, 3]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-8)
    for text, message in (
        ("a.jpg b.jpg\n", "line 1: 38 fields are expected"),
        (line.replace("310.", "x310."), "must be numbers"),
        (line.replace("300.", "-300.", 1), "K must be"),
        (line.replace(f"{T[0, 0]:.9f}", "2.0"), "R must be a rotation"),
        ("# nothing\n", "holds no pair"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            pose_pairs.read_pose_pairs(path)


def megadepth(rng):
    poses = np.empty(3, object)
    for i in (0, 2):
        poses[i] = np.eye(4)
        poses[i][:3, :3], poses[i][:3, 3] = rotation(*rng.normal(size=3)), rng.normal(size=3)
    return {
        "image_paths": np.array(["a.jpg", None, "c.jpg"], object),
        "depth_paths": np.array(["a.h5", None, "c.h5"], object),
        "intrinsics": np.array([K0, None, K1], object),
        "poses": poses,
        "pair_infos": [((2, 0), np.float64(0.3), np.arange(6).reshape(3, 2))],
    }


@pytest.mark.parametrize("form", ["pickle", "npz"])
def test_megadepth_1500(tmp_path, form):
    content = megadepth(np.random.default_rng(7))
    path = tmp_path / "0015_0.1_0.3.npz"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        infos = np.empty(1, object)
        infos[0] = content["pair_infos"][0]
        np.savez(path, **{**content, "pair_infos": infos})
    (pair,) = pose_pairs.read_pose_pairs(tmp_path if form == "npz" else path)
    assert pair[:2] == ("c.jpg", "a.jpg")
    T0, T1 = content["poses"][2], content["poses"][0]
    X = np.array([0.3, -0.2, 5, 1])
    np.testing.assert_allclose(pair.R @ (T0 @ X)[:3] + pair.t, (T1 @ X)[:3])
    np.testing.assert_array_equal(pair.K0, K1)


def test_scannet_1500(tmp_path):
    rng = np.random.default_rng(8)
    T = np.column_stack([rotation(*rng.normal(size=3)), rng.normal(size=3)]).astype(np.float32)
    np.savez(
        tmp_path / "test.npz",
        name=np.array([[707, 0, 15, 585]], np.uint16),
        rel_pose=T.reshape(1, 12),
    )
    np.savez(tmp_path / "intrinsics.npz", scene0707_00=K0)
    (pair,) = pose_pairs.read_pose_pairs(tmp_path / "test.npz")
    assert pair[:2] == ("scene0707_00/color/15.jpg", "scene0707_00/color/585.jpg")
    np.testing.assert_array_equal(np.column_stack([pair.R, pair.t]), T)
    np.savez(tmp_path / "intrinsics.npz", scene0001_00=K0)
    with pytest.raises(UserError, match="no calibration of scene0707_00"):
        pose_pairs.read_pose_pairs(tmp_path / "test.npz")
    np.savez(tmp_path / "test.npz", other=K0)
    with pytest.raises(UserError, match="not an index of MegaDepth-1500"):
        pose_pairs.read_pose_pairs(tmp_path / "test.npz")
