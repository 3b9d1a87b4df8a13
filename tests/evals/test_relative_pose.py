"""Relative pose: known cameras and points, oracles by other formulas, degenerate scenes."""

import sys

import cv2
import numpy as np
import pytest

from jaxdesc.datasets.cameras import angle_deg, bare
from jaxdesc.evals import relative_pose, result, two_view
from jaxdesc.evals.relative_pose import at_long_side
from jaxdesc.store import features as feature_files
from jaxdesc.store import matches as match_files
from jaxdesc.types import UserError
from tests.evals.posed_scene import write_cameras

K0 = np.array([[300.0, 0, 180.3], [0, 310.0, 120.7], [0, 0, 1]])
K1 = np.array([[420.0, 0, 200.1], [0, 400.0, 149.2], [0, 0, 1]])


def rotation(*vector):
    return cv2.Rodrigues(np.array(vector, float))[0]


def project(points, K, R, t):
    xyz = (points @ R.T + t) @ K.T
    return xyz[:, :2] / xyz[:, 2:]


def scene(rng, count=80):
    """Points in front of two cameras and the second one's pose from the first."""
    points = np.column_stack([rng.uniform(-2, 2, count), rng.uniform(-1.5, 1.5, count), rng.uniform(4, 9, count)])
    return points, rotation(0.1, -0.3, 0.05), np.array([1.2, -0.1, 0.4])


# ---- errors


def test_angles_against_quaternions_and_arccos():
    rng = np.random.default_rng(0)
    for angle in (0.0, 1e-7, 0.01, 1.0, 2.5, np.pi - 1e-6, np.pi):
        axis = rng.normal(size=3)
        R = rotation(*rng.normal(size=3))
        turned = R @ rotation(*(axis / np.linalg.norm(axis) * angle))
        assert angle_deg(R.T @ turned) == pytest.approx(np.degrees(angle), abs=1e-6)
    a, b = rng.normal(size=(2, 3))
    exact = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    assert two_view.direction_angle_deg(a, b) == pytest.approx(min(exact, 180 - exact)) == pytest.approx(two_view.direction_angle_deg(-7 * a, b))
    assert two_view.direction_angle_deg(a, np.zeros(3)) == 0 and two_view.direction_angle_deg(np.zeros(3), b) == 90
    assert two_view.pose_error(None, R, a) == (np.inf, np.inf)
    assert two_view.PoseError(*two_view.pose_error((R, -a), R, a)) == pytest.approx((0, 0), abs=1e-9)


def auc_oracle(errors, threshold):
    """Area below the polyline by summing thin columns."""
    known = sorted(e for e in errors if e < threshold)
    x, y = [0, *known, threshold], [0, *((k + 1) / len(errors) for k in range(len(known))), len(known) / len(errors)]
    middles = (np.arange(400000) + 0.5) / 400000 * threshold
    return np.interp(middles, x, y).mean()


def test_auc_against_thin_columns_and_by_hand():
    rng = np.random.default_rng(2)
    for errors in (rng.uniform(0, 30, 37), np.append(rng.uniform(0, 8, 5), [np.inf] * 4), [np.inf] * 3, [0.5]):
        np.testing.assert_allclose(two_view.error_auc(errors, (5, 10, 20)), [auc_oracle(errors, t) for t in (5, 10, 20)], atol=2e-5)
    np.testing.assert_array_equal(two_view.error_auc([0.0, 0.0], (5,)), [1])
    np.testing.assert_allclose(two_view.error_auc([1.0, np.inf], (2,)), [(0.5 * 0.5 + 0.5) / 2])  # up to 0.5 at 1, level up to 2
    np.testing.assert_array_equal(two_view.error_auc([5.0], (5,)), [0])  # an error at the threshold is not below it


def test_symmetric_epipolar_against_distances_to_lines():
    rng = np.random.default_rng(3)
    points, R, t = scene(rng, 13)
    xy0, xy1 = project(points, K0, np.eye(3), np.zeros(3)), project(points, K1, R, t)
    assert two_view.symmetric_epipolar(xy0, xy1, K0, K1, R, t).max() < 1e-20
    xy1 = xy1 + rng.normal(0, 5, xy1.shape)
    got = two_view.symmetric_epipolar(xy0, xy1, K0, K1, R, 3 * t)
    for i in range(13):  # two points of each line by projecting a ray, without E
        ray0 = np.append(two_view.normalised(xy0, K0)[i], 1)
        a, b = (project(depth * ray0[None], np.eye(3), R, t)[0] for depth in (2, 7))
        ray1 = np.append(two_view.normalised(xy1, K1)[i], 1)
        c, d = (project((R.T @ (depth * ray1 - t))[None], np.eye(3), np.eye(3), np.zeros(3))[0] for depth in (2, 7))
        squares = [np.linalg.det([q - p, x - p]) ** 2 / np.sum((q - p) ** 2) for p, q, x in ((a, b, ray1[:2]), (c, d, ray0[:2]))]
        assert got[i] == pytest.approx(sum(squares))
    assert np.isinf(two_view.symmetric_epipolar(xy0, xy1, K0, K1, R, np.zeros(3))).all()


# ---- estimators


def available():
    names = ["cv2-ransac", "cv2-magsac"]
    try:
        import poselib  # noqa: F401
    except ImportError:
        return names
    return [*names, "poselib"]


@pytest.mark.parametrize("name", available())
def test_estimators_find_the_pose_among_wrong_matches(name):
    rng = np.random.default_rng(4)
    points, R, t = scene(rng, 200)
    xy0, xy1 = project(points, K0, np.eye(3), np.zeros(3)), project(points, K1, R, t)
    noisy = xy1 + rng.normal(0, 0.3, xy1.shape)
    noisy[:60] = rng.uniform(0, 300, (60, 2))
    estimate = two_view.estimator(name, 1.0)
    error = two_view.pose_error(estimate(xy0, noisy, K0, K1), R, t)
    assert error.rotation_deg < 0.6 and error.translation_deg < 2.5
    wrong_K = two_view.pose_error(estimate(xy0, noisy, K1, K0), R, t)
    assert max(wrong_K) > max(error), "the calibrations are used, each for its image"


@pytest.mark.parametrize("name", available())
def test_degenerate_geometry_never_crashes(name):
    rng = np.random.default_rng(5)
    points, R, t = scene(rng, 60)
    planar = points * [1, 1, 0] + [0, 0, 6]
    estimate = two_view.estimator(name, 1.0)
    xy0 = project(points, K0, np.eye(3), np.zeros(3))
    plane = estimate(project(planar, K0, np.eye(3), np.zeros(3)), project(planar, K1, R, t), K0, K1)  # two poses are right
    turned = estimate(xy0, project(points, K1, R, np.zeros(3)), K0, K1)  # every direction is right, and with it other rotations
    for pose, true in ((plane, t), (turned, np.zeros(3))):
        if pose is not None:  # as MAGSAC may decide
            np.testing.assert_allclose(pose[0] @ pose[0].T, np.eye(3), atol=1e-6)
            assert np.isfinite(two_view.pose_error(pose, R, true)).all()
    xy = rng.uniform(0, 300, (60, 2))
    for few in (0, 1, 4):
        assert estimate(xy[:few], xy[:few], K0, K1) is None
    line = np.linspace(0, 1, 20)[:, None] * [100.0, 50.0]
    for xy0, xy1 in ((xy, xy), (xy[:1].repeat(9, 0), xy[:1].repeat(9, 0)), (xy, xy[:1].repeat(60, 0)), (xy[:5], xy[5:10]), (line, line), (line, line + 3)):
        pose = estimate(xy0, xy1, K0, K1)
        assert pose is None or (np.isfinite(pose[0]).all() and np.isfinite(pose[1]).all() and pose[1].shape == (3,))


def test_a_missing_poselib_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    with pytest.raises(UserError, match="pip install poselib"):
        two_view.estimator("poselib", 1.0)


# ---- the protocol


def options(data, **more):
    return relative_pose.Options(data=data, label="truth", **more)


def projected_scene(folder, seed=9, count=120):
    """Three cameras and features made by projection: the descriptor of a point is the same in each, its row is not."""
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(-2, 2, count), rng.uniform(-1.5, 1.5, count), rng.uniform(4, 9, count)])
    descriptors = rng.normal(size=(count, 16))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    posed = {}
    for i, c in enumerate("abc"):
        R, t = rotation(*rng.normal(0, 0.15, 3)), np.array([0.8 * i, rng.normal(), 0.3])
        posed[f"{c}.png"] = bare(400, 300, K0, R, t, c)
    write_cameras(folder, posed)
    orders = {}
    for name, camera in posed.items():
        orders[name] = rng.permutation(count)
        found = feature_files.Features(
            project(points, camera.K, camera.R, camera.t)[orders[name]].astype(np.float32),
            descriptors[orders[name]].astype(np.float32),
            np.ones(count, np.float32),
            None,
            (400, 300),
        )
        feature_files.write_hdf5(folder / "features.h5", name, found, storage="float32")
    return posed, orders


def test_exact_features_score_one(tmp_path):
    projected_scene(tmp_path)
    found = {
        r.protocol: r for r in relative_pose.score(options(tmp_path), tmp_path / "features.h5")
    }
    assert set(found) == {"auc/cv2-ransac@1px", "pose-accuracy/cv2-ransac@1px", "precision/sym-epipolar2@0.0005"}
    auc = found["auc/cv2-ransac@1px"]
    assert auc.values["auc@5"] > 0.99 and auc.values["failed"] == 0 and auc.dataset == tmp_path.name and auc.method == "truth"
    assert auc.curve.y["recall"][-1] == 1 and set(auc.per_item) == {"a.png b.png", "a.png c.png", "b.png c.png"}
    accuracy = found["pose-accuracy/cv2-ransac@1px"].values
    assert accuracy["rotation@5"] == accuracy["translation@10"] == 1 and accuracy["median_translation_deg"] < 0.1
    assert found["precision/sym-epipolar2@0.0005"].values == {"precision": 1, "matching_score": 1, "matches": 120}
    path = result.write(auc, tmp_path)
    assert result.read(path, "auc/cv2-ransac@1px").values == auc.values


def test_matches_from_a_file_count_and_failures_are_infinite(tmp_path):
    _, orders = projected_scene(tmp_path)
    where = {name: np.argsort(order) for name, order in orders.items()}

    def write(a, b, points):
        match_files.write_hdf5(tmp_path / "m.h5", a, b, np.column_stack([where[a][points], where[b][points]]), np.ones(len(points)), 120)

    write("a.png", "b.png", np.arange(90))
    write("c.png", "a.png", np.arange(3))  # too few, and in the other order than the pair
    chosen = options(tmp_path, matches=tmp_path / "m.h5", long_side=200, threshold=0.5)
    with pytest.raises(UserError, match=r"no `matches0` of the pair b\.png c\.png"):
        relative_pose.score(chosen, tmp_path / "features.h5")
    match_files.write_hdf5(tmp_path / "m.h5", "b.png", "c.png", np.zeros((0, 2), int), np.zeros(0), 120)
    auc, accuracy, precision = relative_pose.score(chosen, tmp_path / "features.h5")
    assert auc.protocol == "auc/cv2-ransac@0.5px-200"
    assert auc.values["failed"] == pytest.approx(2 / 3) and 0.32 < auc.values["auc@5"] <= 1 / 3
    assert np.isinf(accuracy.values["median_rotation_deg"]) and accuracy.values["rotation@5"] == pytest.approx(1 / 3)
    assert precision.per_item["a.png c.png"] == {"matches": 3, "right": 3, "precision": 1, "matching_score": 3 / 120}
    assert precision.per_item["b.png c.png"]["precision"] == 0
    assert result.read(result.write(accuracy, tmp_path)).values["median_rotation_deg"] == np.inf
    feature_files.write_hdf5(tmp_path / "other.h5", "a.png", feature_files.Features(np.zeros((5, 2)), np.zeros((5, 4)), np.ones(5), None, (400, 300)))
    with pytest.raises(UserError, match=r"holds no features of 2 of the 3 images, such as b\.png"):
        relative_pose.score(chosen, tmp_path / "other.h5")


def test_features_without_descriptors_npz_folders_and_foreign_matches(tmp_path):
    posed, orders = projected_scene(tmp_path)
    points = np.arange(120)
    for a, b in (("a.png", "b.png"), ("a.png", "c.png"), ("b.png", "c.png")):
        rows = np.column_stack([np.argsort(orders[name])[points] for name in (a, b)])
        match_files.write_hdf5(tmp_path / "m.h5", a, b, rows, np.ones(120), 120)
    for name in posed:
        found = feature_files.read_hdf5(tmp_path / "features.h5", name)
        feature_files.write_npz(tmp_path / "npz", name, found, "test")
        for file, kept in (("bare.h5", found), ("few.h5", found.take(np.arange(50)))):
            bare = feature_files.Features(kept.keypoints, np.zeros((len(kept), 0), np.float32), kept.scores, None, (400, 300))
            feature_files.write_hdf5(tmp_path / file, name, bare)
    with_matches = options(tmp_path, matches=tmp_path / "m.h5")
    every = {"precision": 1, "matching_score": 1, "matches": 120}
    npz = options(tmp_path, suffix=".test")
    for chosen, predictions in ((with_matches, "bare.h5"), (npz, "npz")):
        assert relative_pose.score(chosen, tmp_path / predictions)[2].values == every
    with pytest.raises(UserError, match=r"the matches of a\.png b\.png point beyond the 50 keypoints of a\.png"):
        relative_pose.score(with_matches, tmp_path / "few.h5")
    with pytest.raises(UserError, match="no descriptors"):
        relative_pose.score(options(tmp_path), tmp_path / "bare.h5")
    with pytest.raises(UserError, match="There is no file --matches"):
        relative_pose.score(options(tmp_path, matches="nowhere.h5"), tmp_path / "bare.h5")
    with pytest.raises(UserError, match="with --data or a list with --pairs"):
        relative_pose.score(options(""), tmp_path / "bare.h5")


def test_a_resized_calibration_projects_onto_resized_pixels():
    rng = np.random.default_rng(10)
    points, R, t = scene(rng, 7)
    xy, K = at_long_side(project(points, K0, R, t), K0, (400, 300), 100)
    np.testing.assert_allclose(project(points, K, R, t), xy)
    np.testing.assert_allclose(xy, (project(points, K0, R, t) + 0.5) / 4 - 0.5)
