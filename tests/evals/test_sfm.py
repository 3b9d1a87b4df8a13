"""Structure from motion: a known place comes out whole, its figures as counted by hand, its cloud as files; and nothing comes out of noise."""


import h5py
import numpy as np
import pytest
from PIL import Image

from jaxdesc.datasets import cameras
from jaxdesc.evals import cloud, sfm
from jaxdesc.store import features as feature_files
from jaxdesc.types import UserError
from tests.evals import posed_scene

pycolmap = pytest.importorskip("pycolmap")


def options(data, out="", **more):
    return sfm.Options(data=data, out=out, label="truth", **more)


def test_a_known_place_comes_out_whole(tmp_path):
    place = posed_scene.make()
    (tmp_path / "images").mkdir()
    posed_scene.write_images(tmp_path / "images", place.cameras)
    posed_scene.write_cameras(tmp_path, place.cameras)
    file = posed_scene.write_features(tmp_path / "f.h5", place, blank=("7.png",))
    out = tmp_path / "out"
    (found,) = sfm.score(options(tmp_path, out), file)
    assert found.protocol == "sfm/colmap-incremental" and found.settings["pairs"] == "exhaustive" and found.settings["cameras"] == "known, refined"
    values = found.values
    assert values["registered"] == 7 and values["registered_share"] == 7 / 8 and values["points"] == 150
    assert values["observations"] == 7 * 150 and values["track_length"] == 7 and values["observations_per_image"] == 150
    assert values["reprojection_px"] < 0.02

    model = pycolmap.Reconstruction(out / f"sparse_{tmp_path.name}")
    errors = []  # by our camera model, on our pixels, whatever pycolmap says
    for image in model.images.values():
        if image.has_pose:
            K, pose = image.camera.calibration_matrix(), image.cam_from_world()
            for k, point in enumerate(image.points2D):
                xyz = K @ (pose.rotation.matrix() @ model.points3D[point.point3D_id].xyz + pose.translation)
                errors.append(np.linalg.norm(xyz[:2] / xyz[2] - 0.5 - place.xy[image.name][k]))
    assert len(errors) == 1050 and np.mean(errors) == pytest.approx(values["reprojection_px"], abs=1e-4)
    assert {image.name for image in model.images.values() if image.has_pose} == set(place.cameras) - {"7.png"}

    ply = (out / f"cloud_{tmp_path.name}.ply").read_bytes()
    assert ply.startswith(b"ply") and b"element vertex 150\n" in ply
    picture = np.array(Image.open(out / f"cloud_{tmp_path.name}.png").convert("RGB")).astype(int)
    drawn = sfm.as_cloud(model)
    assert drawn.xyz.shape == (150, 3) and len(drawn.R) == len(drawn.aspect) == 7
    assert np.abs(np.median(drawn.rgb, axis=0) - [200, 30, 60]).max() < 4, "colours come from the images"
    assert (np.abs(picture - [200, 30, 60]).max(-1) < 12).sum() > 300, "and are in the picture"
    assert (np.abs(picture - [0xD6, 0x27, 0x28]).max(-1) < 25).sum() > 300, "with the cameras"

    (again,) = sfm.score(options(tmp_path, out), file)
    assert again.values == values, "the seed is fixed, and what was written is replaced"
    assert sorted(path.name for path in out.iterdir()) == [f"cloud_{tmp_path.name}.ply", f"cloud_{tmp_path.name}.png", f"sparse_{tmp_path.name}"]


def test_nothing_comes_out_of_noise(tmp_path):
    place = posed_scene.make(count=40, names=("0.png", "1.png", "2.png"))
    posed_scene.write_images(tmp_path, place.cameras)
    posed_scene.write_cameras(tmp_path, place.cameras)
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n")
    file = posed_scene.write_features(tmp_path / "f.h5", place, lost=place.cameras)
    (found,) = sfm.score(options(tmp_path, tmp_path / "out", cameras="guessed"), file)
    assert found.values["registered"] == found.values["points"] == 0 and np.isnan(found.values["reprojection_px"])
    assert found.settings["pairs"] == "of pairs.txt" and found.settings["cameras"].startswith("guessed")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_said(tmp_path):
    place = posed_scene.make(count=5, names=("0.png", "1.png"))
    posed_scene.write_images(tmp_path, place.cameras)
    file = posed_scene.write_features(tmp_path / "f.h5", place)
    with pytest.raises(UserError, match="holds no known cameras"):
        sfm.score(options(tmp_path, cameras="known"), file)
    place.cameras.pop("1.png")
    posed_scene.write_cameras(tmp_path, place.cameras)
    with pytest.raises(UserError, match=r"knows no camera of 1 of the 2 images, such as 1\.png: take --cameras guessed"):
        sfm.score(options(tmp_path), file)
    posed_scene.write_images(tmp_path, ["new.png"])
    with pytest.raises(UserError, match=r"holds no features of 1 of the 3 images, such as new\.png"):
        sfm.score(options(tmp_path, cameras="guessed"), file)
    with pytest.raises(UserError, match="name their folder with --data"):
        sfm.score(options(""), file)
    bare = tmp_path / "bare.h5"
    for name in ("0.png", "1.png", "new.png"):
        feature_files.write_hdf5(bare, name, feature_files.Features(np.zeros((3, 2)), np.ones((3, 4)), np.ones(3), None, (9, 9)))
    with h5py.File(bare, "r+") as opened:
        del opened["0.png/image_size"]
    with pytest.raises(UserError, match=r"features of 0\.png do not say how large the image is"):
        sfm.score(options(tmp_path, cameras="guessed"), bare)


# ---- the picture


def looking(directions, up):
    """Cameras (C, 3, 3) that look along `directions` with their y axis away from `up` as far as can be."""
    rows = []
    for z in np.asarray(directions, float):
        z = z / np.linalg.norm(z)
        x = np.cross(z, up)
        x = x / np.linalg.norm(x)
        rows.append(np.stack([x, np.cross(z, x), z]))
    return np.array(rows)


def test_axes_follow_the_cameras():
    up = np.array([0.3, -0.2, 0.9])
    up /= np.linalg.norm(up)
    front = np.cross(up, [1.0, 0, 0])
    front /= np.linalg.norm(front)
    R = looking([front + 0.2 * s * np.cross(up, front) - 0.1 * up for s in (-1, 0, 1)], up)
    np.testing.assert_allclose(np.linalg.det(R), 1)
    right, found_up, forward = cloud.axes_of(R)
    assert found_up @ up > 0.98 and forward @ front > 0.98
    np.testing.assert_allclose(np.cross(right, found_up), -forward, atol=1e-12)  # as seen: x right, y up, looking along forward
    assert right @ R[1, 0] > 0.99, "right is the cameras' right"
    around = looking([np.cos(a) * front + np.sin(a) * np.cross(up, front) for a in np.arange(0, 2 * np.pi, np.pi / 4)], up)
    for cameras_ in (around, np.concatenate([np.eye(3)[None], np.diag([-1.0, -1, 1])[None]])):
        axes = cloud.axes_of(cameras_)
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(abs(cloud.axes_of(around)[1] @ up), 1)


def test_frusta_project_onto_the_corners_of_the_image():
    place = posed_scene.make(count=2, names=("a", "b"))
    K = np.array([[300.0, 0, 180], [0, 300, 120], [0, 0, 1]])  # a frustum has its principal point in the middle
    R, t = (np.stack([getattr(c, key) for c in place.cameras.values()]) for key in ("R", "t"))
    made = cloud.Cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), R, t, np.array([[360, 240]] * 2) / 300)
    lines = cloud.frusta(made, depth=0.7)
    for i in range(2):
        np.testing.assert_allclose(lines[i, :4, 0], np.tile(cameras.centre(R[i], t[i]), (4, 1)))
        xyz = (lines[i, :4, 1] @ R[i].T + t[i]) @ K.T
        np.testing.assert_allclose(xyz[:, 2], 0.7)
        np.testing.assert_allclose(xyz[:, :2] / 0.7, [[0, 0], [360, 0], [360, 240], [0, 240]], atol=1e-9)
        np.testing.assert_allclose(lines[i, 4:, 0], lines[i, :4, 1])
        np.testing.assert_allclose(lines[i, 4:, 1], np.roll(lines[i, :4, 1], -1, axis=0))


def test_bounds_leave_far_points_out_and_no_camera():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-1, 1, (200, 3)), [[500.0, 0, 0], [0, 0, -80]]])
    low, high = cloud.bounds(points, np.array([[0, 9.0, 0], [0, 0, -0.1]]))
    np.testing.assert_allclose(low, points[:200].min(0))
    np.testing.assert_allclose(high, [points[:200, 0].max(), 9, points[:200, 2].max()])
    low, high = cloud.bounds(np.zeros((0, 3)), np.array([[0, 9.0, 0], [0, 0, -0.1]]))
    np.testing.assert_array_equal([low, high], [[0, 0, -0.1], [0, 9, 0]])
