"""COLMAP databases and models: exact synthetic geometry, and a real scene where the photographs are at hand."""

import sqlite3
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxdesc.datasets.pairs import exhaustive_pairs
from jaxdesc.datasets.scenes import read_cameras, read_pairs
from jaxdesc.store import colmap
from jaxdesc.types import UserError

pycolmap = pytest.importorskip("pycolmap")
SCENE = Path(__file__).parents[3] / "shared" / "data" / "scenes" / "stone_sign"


def synthetic(tmp_path, shift):
    """Five views of 60 points, exactly projected; a model with the true poses, keypoints in our convention plus `shift`, matches."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (60, 3))
    width, height, focal = 401, 303, 350.0
    ours = np.array([[focal, 0, 200.0], [0, focal, 151.0], [0, 0, 1]])  # the centre of the picture, where the top-left pixel centre is (0, 0)
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="PINHOLE", width=width, height=height, params=[focal, focal, 200.5, 151.5], camera_id=7)
    model.add_camera_with_trivial_rig(camera)
    keypoints, poses = {}, {}
    for i in range(5):
        R = cv2.Rodrigues(np.array([0.1 * i - 0.2, 0.25 * i - 0.5, 0.05 * i]))[0]
        t = np.array([0.1, -0.05 * i, 5 + 0.1 * i])
        name = f"view/{9 - i}.jpg"  # neither sorted nor numbered as COLMAP would
        xyz = (points @ R.T + t) @ ours.T
        keypoints[name] = (xyz[:, :2] / xyz[:, 2:] + shift).astype(np.float32)
        poses[name] = (R, t)
        image = pycolmap.Image(name=name, camera_id=7, image_id=20 + i)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(R), t))
    folder = tmp_path / "model"
    folder.mkdir()
    model.write(folder)
    names = list(keypoints)
    rows = np.column_stack([np.arange(60)] * 2)
    return folder, keypoints, dict.fromkeys(exhaustive_pairs(names), rows), poses, ours


def triangulated(tmp_path, shift):
    folder, keypoints, matches, _, _ = synthetic(tmp_path, shift)
    database = tmp_path / "out" / "database.db"
    colmap.write_database(database, colmap.model_cameras(folder), keypoints, matches)
    colmap.verify(database, matches)
    return colmap.triangulate(database, folder, tmp_path, tmp_path / "sparse")


def test_exact_keypoints_triangulate_exactly_and_half_a_pixel_shows(tmp_path):
    result = triangulated(tmp_path, shift=0.0)
    assert result.num_points3D() == 60 and result.num_reg_images() == 5
    assert result.compute_mean_reprojection_error() < 2e-3  # of float32 keypoints
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    assert triangulated(wrong, shift=0.5).compute_mean_reprojection_error() > 0.02


def test_database_holds_what_colmap_expects(tmp_path):
    rng = np.random.default_rng(0)
    keypoints = {name: rng.uniform(0, 40, (n, 2)).astype(np.float32) for name, n in (("b", 7), ("a", 5), ("c", 0))}
    matches = {("a", "b"): np.array([[0, 6], [4, 2]]), ("b", "c"): np.zeros((0, 2), int)}
    colmap.write_database(tmp_path / "d.db", {"b": (40, 30), "a": (50, 30), "c": (40, 30)}, keypoints, matches)
    with sqlite3.connect(tmp_path / "d.db") as database:  # without pycolmap
        ids = dict(database.execute("select name, image_id from images"))
        assert set(ids) == {"a", "b", "c"}
        for name, xy in keypoints.items():
            (rows, columns, blob) = database.execute("select rows, cols, data from keypoints where image_id = ?", (ids[name],)).fetchone()
            assert (rows, columns) == xy.shape
            np.testing.assert_array_equal(np.frombuffer(blob or b"", "<f4").reshape(xy.shape), xy + np.float32(0.5))
        first, second = sorted((ids["a"], ids["b"]))
        (blob,) = database.execute("select data from matches where pair_id = ?", (2147483647 * first + second,)).fetchone()
        rows = np.frombuffer(blob, "<u4").reshape(-1, 2)
        np.testing.assert_array_equal(rows if ids["a"] < ids["b"] else rows[:, ::-1], [[0, 6], [4, 2]])
        cameras = database.execute("select width, height, params, model from cameras order by camera_id").fetchall()
        assert [c[:2] for c in cameras] == [(40, 30), (50, 30), (40, 30)] and {c[3] for c in cameras} == {2}
        np.testing.assert_allclose(np.frombuffer(cameras[1][2], "<f8"), [60, 25, 15, 0])
        assert database.execute("select count(*) from frames").fetchone() == database.execute("select count(*) from images").fetchone() == (3,)
    database.close()


def test_cameras_of_a_model_are_shared(tmp_path):
    folder, keypoints, matches, _, _ = synthetic(tmp_path, 0.0)
    cameras = colmap.model_cameras(folder)
    colmap.write_database(tmp_path / "d.db", cameras, keypoints, matches)
    with pycolmap.Database.open(tmp_path / "d.db") as database:
        assert database.num_cameras() == database.num_rigs() == 1 and database.num_images() == database.num_frames() == 5
        np.testing.assert_array_equal(database.read_all_cameras()[0].params, [350, 350, 200.5, 151.5])
    assert {camera.camera_id for camera in cameras.values()} == {7}, "the caller's cameras are left alone"


def test_refusals(tmp_path, monkeypatch):
    folder, keypoints, matches, _, _ = synthetic(tmp_path, 0.0)
    cameras = colmap.model_cameras(folder)
    database = tmp_path / "d.db"
    name = next(iter(keypoints))
    with pytest.raises(UserError, match=r"name an image that .*d\.db does not hold: other"):
        colmap.write_database(database, cameras, keypoints, {(name, "other"): np.zeros((1, 2), int)})
    with pytest.raises(UserError, match="point beyond the 60 keypoints"):
        colmap.write_database(database, cameras, keypoints, {pair: rows + 1 for pair, rows in matches.items()})
    assert not database.exists(), "nothing half-written is left"
    colmap.write_database(database, cameras, keypoints, matches)
    with pytest.raises(UserError, match="exists already"):
        colmap.write_database(database, cameras, keypoints, matches)
    colmap.write_database(database, cameras, keypoints, matches, overwrite=True)
    with pytest.raises(UserError, match="holds no COLMAP model"):
        colmap.load_model(tmp_path / "nowhere")
    colmap.write_database(tmp_path / "strange.db", {"x": (30, 20)}, {"x": np.zeros((1, 2))}, {})
    with pytest.raises(UserError, match="knows none of the images"):
        colmap.triangulate(tmp_path / "strange.db", folder, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="was good enough to begin a reconstruction"):
        colmap.mapping(tmp_path / "strange.db", tmp_path, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UserError, match=r"pip install jaxdesc\[colmap\]"):
        colmap.model_cameras(folder)


@pytest.mark.skipif(not SCENE.exists(), reason=f"{SCENE} is not there")
def test_a_real_scene_is_mapped_as_it_was(tmp_path):
    reference = read_cameras(SCENE)
    names = sorted(reference)[:8]
    sift = cv2.SIFT_create(1200)
    keypoints, descriptors = {}, {}
    for name in names:
        found, rows = sift.detectAndCompute(cv2.imread(str(SCENE / "images" / name), cv2.IMREAD_GRAYSCALE), None)
        keypoints[name] = np.array([k.pt for k in found], np.float32)
        descriptors[name] = np.sqrt(rows / rows.sum(1, keepdims=True))
    listed, _ = read_pairs(SCENE, reference)
    matches = {}
    for a, b in listed:
        if a in names and b in names:
            similarity = descriptors[a] @ descriptors[b].T
            best = similarity.argmax(1)
            second, first = np.partition(similarity, -2, axis=1)[:, -2:].T
            keep = (similarity.argmax(0)[best] == np.arange(len(best))) & (1 - first < 0.64 * (1 - second))
            matches[a, b] = np.column_stack([np.flatnonzero(keep), best[keep]])
    database = tmp_path / "database.db"
    colmap.write_database(database, {name: (reference[name].width, reference[name].height) for name in names}, keypoints, matches)
    colmap.verify(database, matches)
    result = colmap.mapping(database, SCENE / "images", tmp_path / "sparse")
    poses = {image.name: image.cam_from_world().rotation.matrix() for image in result.images.values() if image.has_pose}
    assert len(poses) >= 7 and result.compute_mean_reprojection_error() < 1
    for a in poses:
        for b in poses:
            turn = (poses[b] @ poses[a].T) @ (reference[b].R @ reference[a].R.T).T
            assert np.degrees(np.linalg.norm(cv2.Rodrigues(turn)[0])) < 2
    with pytest.raises(UserError, match=r"has other cameras than the model .*sparse: write it with the model's cameras"):
        colmap.triangulate(database, SCENE / "sparse", SCENE / "images", tmp_path / "again")
    cameras = colmap.model_cameras(SCENE / "sparse")
    colmap.write_database(database, {name: cameras[name] for name in names}, keypoints, matches, overwrite=True)
    colmap.verify(database, matches)
    again = colmap.triangulate(database, SCENE / "sparse", SCENE / "images", tmp_path / "again")
    assert again.num_reg_images() == 8 and again.num_points3D() > 100 and again.compute_mean_reprojection_error() < 1
