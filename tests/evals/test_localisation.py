"""Localisation: exact features find exact poses, half a pixel shows, what has no pose counts as lost; Aachen's folder and files."""

import shutil
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxdesc.datasets.cameras import Pose
from jaxdesc.datasets.scenes import read_cameras
from jaxdesc.evals import localisation, matched, queries, registration
from jaxdesc.store import colmap
from jaxdesc.types import UserError
from tests.evals import posed_scene

pycolmap = pytest.importorskip("pycolmap")


def options(data, **more):
    return localisation.Options(data=data, out=data / "out", label="truth", **more)


def read_poses(path):
    """Name -> R, t of a submission, without the program's own quaternions."""
    poses = {}
    for line in path.read_text().splitlines():
        name, *numbers = line.split()
        w, x, y, z, *t = map(float, numbers)
        R = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        poses[name] = np.array(R), np.array(t)
    return poses


def test_exact_features_find_the_queries_and_half_a_pixel_shows(tmp_path):
    place = posed_scene.make()
    posed_scene.write_cameras(tmp_path, place.cameras)
    file = posed_scene.write_features(tmp_path / "f.h5", place, lost=("7.png",), shift={"5.png": 0.5})
    metric, relative = localisation.score(options(tmp_path, hold_out=2), file)
    assert (metric.protocol, relative.protocol) == ("localisation/colmap-pnp@12px", "localisation-extent/colmap-pnp@12px")
    items = metric.per_item
    assert set(items) == {"1.png", "3.png", "5.png", "7.png"}
    for name in ("1.png", "3.png"):
        assert items[name]["distance"] < 1e-4 and items[name]["rotation_deg"] < 1e-3 and items[name]["inliers"] == items[name]["points"] == 150
    assert items["5.png"]["rotation_deg"] > 0.05, "half a pixel of 300 is a tenth of a degree"
    assert np.isinf(items["7.png"]["distance"]) or items["7.png"]["distance"] > 0.5
    assert metric.values["0.25m,2deg"] == relative.values["1%,5deg"] == 0.75 and metric.values["map_points"] == 150
    extent = max(np.linalg.norm(a.R.T @ a.t - b.R.T @ b.t) for a in place.cameras.values() for b in place.cameras.values())
    assert metric.settings["extent"] == pytest.approx(extent) and metric.settings["unit"] == "metre"
    lower, upper = sorted(items[name]["distance"] for name in items)[1:3]
    assert relative.values["median_distance_%"] == pytest.approx(100 * (lower + upper) / 2 / extent)
    poses = read_poses(tmp_path / "out" / f"poses_{tmp_path.name}.txt")
    np.testing.assert_allclose(poses["3.png"][0], place.cameras["3.png"].R, atol=1e-4)
    np.testing.assert_allclose(poses["3.png"][1], place.cameras["3.png"].t, atol=1e-3)
    with pytest.raises(UserError, match="must be at least 2"):
        localisation.score(options(tmp_path, hold_out=1), file)
    with pytest.raises(UserError, match=r"too few to hold out every 9-th"):
        localisation.score(options(tmp_path, hold_out=9), file)
    place.cameras["0.png"] = place.cameras["0.png"]._replace(width=720, height=480)
    posed_scene.write_cameras(tmp_path, place.cameras)
    with pytest.raises(UserError, match=r"the features of 0\.png belong to an image of 360 x 240 px, but its camera to one of 720 x 480"):
        localisation.score(options(tmp_path), file)


def test_a_scene_of_arbitrary_scale_tells_no_metres(tmp_path):
    place = posed_scene.make()
    known = {name: registration.pinhole(camera, 1) for name, camera in place.cameras.items()}
    registration.write_model(tmp_path / "sparse", known, {name: Pose(c.R, c.t) for name, c in place.cameras.items()})
    read = read_cameras(tmp_path)
    assert set(read) == set(place.cameras)
    np.testing.assert_allclose(read["4.png"].K, posed_scene.K)
    (tmp_path / "pairs.txt").write_text("0.png 1.png\n2.png 0.png\n2.png 1.png\n4.png 0.png\n1.png 3.png\n3.png 7.png\n")
    scene = queries.read(tmp_path, 4)
    assert scene.queries == ["3.png", "7.png"] and not scene.metric and queries.read(tmp_path, 4, metric=True).metric
    assert scene.map_pairs == [("0.png", "1.png"), ("2.png", "0.png"), ("2.png", "1.png"), ("4.png", "0.png")]
    assert scene.query_pairs == [("3.png", "1.png")], "a query against a query says nothing"
    assert len({camera.camera_id for camera in scene.cameras.values()}) == 1
    file = posed_scene.write_features(tmp_path / "f.h5", place)
    (relative,) = localisation.score(options(tmp_path, hold_out=4), file)
    assert relative.protocol.startswith("localisation-extent/") and relative.settings["unit"].startswith("arbitrary")
    assert relative.values["localised"] == relative.values["5%,10deg"] == 0.5, "7.png has no pair with a reference"
    assert relative.per_item["7.png"]["points"] == 0 and relative.per_item["3.png"]["distance"] < 1e-3
    assert all("m," not in key for key in relative.values)


def test_seen_points_against_loops():
    rng = np.random.default_rng(0)
    ids = {name: rng.integers(-1, 6, 9) for name in "ab"}
    rows = {name: np.column_stack([rng.integers(0, 7, 12), rng.integers(0, 9, 12)]) for name in "ab"}
    positions = {i: rng.normal(size=3) for i in range(6)}
    xy = rng.normal(size=(7, 2))
    features = type("F", (), {"keypoints": xy})
    source = matched.Matched(lambda name: features, lambda q, r: rows[r], {})
    got_xy, got_xyz = localisation.seen_points("q", ["a", "b"], source, ids, positions)
    expected = {(int(i), int(ids[name][j])) for name in "ab" for i, j in rows[name] if ids[name][j] >= 0}
    assert len(expected) < 24 and len(got_xy) == len(expected)
    assert {(*p, *q) for p, q in zip(got_xy.tolist(), got_xyz.tolist(), strict=True)} == {(*xy[i], *positions[k]) for i, k in expected}
    assert [len(a) for a in localisation.seen_points("q", [], source, ids, positions)] == [0, 0]


def test_shares_within_both_thresholds():
    d, a = np.array([0.25, 0.1, 3, np.inf]), np.array([2.0, 2.1, 0, np.inf])
    assert [localisation.within(d, a, *limits) for limits in ((0.25, 2), (0.25, 5), (5, 10))] == [0.25, 0.5, 0.75]


def test_absolute_pose_of_too_few_or_senseless_points():
    camera = registration.pinhole(posed_scene.make().cameras["0.png"], 1)
    rng = np.random.default_rng(0)
    assert registration.absolute_pose(camera, np.zeros((3, 2)), np.zeros((3, 3)), 12.0) is None
    for xy, xyz in ((rng.uniform(0, 200, (9, 2)), np.zeros((9, 3))), (np.zeros((9, 2)), rng.normal(size=(9, 3)))):
        found = registration.absolute_pose(camera, xy, xyz, 12.0)
        assert found is None or np.isfinite(found[0].R).all()


def test_keypoints_and_mapping_helpers():
    lazy = matched.Lazy("ab", str.upper)
    assert dict(lazy) == {"a": "A", "b": "B"} and len(lazy) == 2
    with pytest.raises(KeyError):
        lazy["c"]


# ---- Aachen


def aachen(folder, place, model=False):
    """The benchmark's folder for eight images, of which 3 and 6 are queries at night."""
    night = {"3.png", "6.png"}
    name_of = {name: f"query/night/x/{name}" if name in night else f"db/{name}" for name in place.cameras}
    distorted = pycolmap.Camera(model="SIMPLE_RADIAL", width=360, height=240, params=[305, 180.8, 121.2, 0.0])
    camera = {name: registration.pinhole(c, 1) for name, c in place.cameras.items()}
    colmap.write_database(
        folder / "database.db",
        {name_of[name]: distorted if name in night else camera[name] for name in camera},
        {name_of[name]: np.zeros((0, 2)) for name in camera},
        {},
    )
    (folder / "queries").mkdir()
    lines = [f"{name_of[name]} PINHOLE 360 240 300 310 180.8 121.2\n" for name in sorted(night)]
    (folder / "queries" / "night_time_queries_with_intrinsics.txt").write_text("# a note\n" + "".join(lines) + "query/night/x/other.png PINHOLE 9 9 9 9 4 4\n")
    days = [name for name in place.cameras if name not in night]
    pairs = [(name_of[a], name_of[b]) for i, a in enumerate(days) for b in days[i + 1 :]] + [(name_of[d], name_of[q]) for d in days for q in sorted(night)]
    (folder / "image_pairs_to_match.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    if model:
        poses = {name_of[d]: Pose(place.cameras[d].R, place.cameras[d].t) for d in days}
        registration.write_model(folder / "3D-models" / "v1_1", {name_of[d]: camera[d] for d in days}, poses)
    else:
        rows = []
        for day in days:
            c = place.cameras[day]
            q = Rotation.from_matrix(c.R).as_quat(scalar_first=True)
            rows.append(" ".join([name_of[day], "300", *(repr(float(v)) for v in (*q, *(-c.R.T @ c.t))), "0", "0"]))
        (folder / "3D-models").mkdir()
        (folder / "3D-models" / "aachen.nvm").write_text(f"NVM_V3 \n\n{len(rows)}\n" + "\n".join(rows) + "\n\n0\n")
    return name_of, posed_scene.Place(
        place.points, place.cameras, {name_of[n]: r for n, r in place.rows.items()}, {name_of[n]: xy for n, xy in place.xy.items()}
    )


def test_aachen_from_the_folder_to_the_submission(tmp_path):
    place = posed_scene.make()
    name_of, renamed = aachen(tmp_path, place)
    scene = queries.read(tmp_path, 5)
    assert scene.queries == ["query/night/x/3.png", "query/night/x/6.png"] and len(scene.poses) == 6 and scene.truth == {} and scene.metric
    assert len(scene.map_pairs) == 15 and len(scene.query_pairs) == 12 and all(q in scene.queries for q, _ in scene.query_pairs)
    assert scene.cameras["query/night/x/3.png"].model_name == "PINHOLE", "the list of queries decides"
    for name in scene.poses:
        np.testing.assert_allclose(scene.poses[name].R, place.cameras[name.removeprefix("db/")].R, atol=1e-12)
        np.testing.assert_allclose(scene.poses[name].t, place.cameras[name.removeprefix("db/")].t, atol=1e-12)
    file = posed_scene.write_features(tmp_path / "f.h5", renamed)
    (found,) = localisation.score(options(tmp_path), file)
    assert found.values["localised"] == 1 and found.values["map_points"] == 150 and "server" in found.settings["truth"]
    poses = read_poses(tmp_path / "out" / "poses_Aachen_Day-Night.txt")
    assert set(poses) == {"3.png", "6.png"}, "names go without their folders"
    for name, (R, t) in poses.items():
        np.testing.assert_allclose(R, place.cameras[name].R, atol=1e-4)
        np.testing.assert_allclose(t, place.cameras[name].t, atol=1e-3)
    shutil.rmtree(tmp_path / "3D-models")
    with pytest.raises(UserError, match=r"holds neither a COLMAP model nor an \.nvm"):
        queries.read(tmp_path, 5)
    assert name_of["0.png"] == "db/0.png"


def test_aachen_with_a_colmap_model_and_parts_missing(tmp_path):
    place = posed_scene.make(count=3)
    aachen(tmp_path, place, model=True)
    scene = queries.read(tmp_path, 5)
    np.testing.assert_allclose(scene.poses["db/2.png"].t, place.cameras["2.png"].t, atol=1e-12)
    path = tmp_path / "queries" / "night_time_queries_with_intrinsics.txt"
    kept = path.read_text()
    for text, message in (
        ("a.png PINHOLE 10 10 9 9 5\n", r"line 1: `name MODEL width height parameters` is expected"),
        ("a.png NO_SUCH 10 10 9\n", "line 1"),
        ("a.png PINHOLE ten 10 9 9 5 5\n", "line 1"),
        ("a.png PINHOLE 10 10 9 9 5 5\n", "names an image of night_time_queries"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            queries.read(tmp_path, 5)
    path.unlink()
    with pytest.raises(UserError, match=r"holds no \*_with_intrinsics\.txt"):
        queries.read(tmp_path, 5)
    path.write_text(kept)
    (tmp_path / "database.db").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"database\.db is no COLMAP database"):
        queries.read(tmp_path, 5)
    (tmp_path / "database.db").unlink()
    with pytest.raises(UserError, match=r"There is no database .*database\.db"):
        queries.read(tmp_path, 5)


def test_names_of_a_submission_stay_apart():
    pose = Pose(np.eye(3), np.array([1.0, 2, 3]))
    assert queries.pose_lines({"a/x.png": pose}) == "x.png 1 0 0 0 1 2 3\n"
    assert [line.split()[0] for line in queries.pose_lines({"a/x.png": pose, "b/x.png": pose}).splitlines()] == ["a/x.png", "b/x.png"]


def test_a_missing_pycolmap_is_one_sentence(tmp_path, monkeypatch):
    posed_scene.write_cameras(tmp_path, posed_scene.make(count=3).cameras)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UserError, match=r"pip install jaxdesc\[colmap\]"):
        queries.read(tmp_path, 5)
