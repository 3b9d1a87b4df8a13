"""Posed pairs: cameras as files give them, and the pairs that are kept."""

import itertools
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxdesc.data.builders import colmap, embedded, posed
from jaxdesc.datasets.cameras import Camera, extent, relative
from jaxdesc.datasets.scenes import read_model
from jaxdesc.types import UserError

SCENES = Path(__file__).parents[2] / "../shared/data/scenes"
POSED = Path(__file__).parents[2] / "../shared/data/posed"
WIDTH, HEIGHT, POINTS = 96, 64, 60


def looking_at(centre, target, roll=0.0):
    """R, t of a camera."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    R = Rotation.from_euler("z", roll).as_matrix() @ np.stack([right, np.cross(forward, right), forward])
    return R, -R @ centre


def project(K, R, t, X):
    """Pixels of one point after the other."""
    rows = []
    for point in X:
        x = K @ (R @ point + t)
        rows.append(x[:2] / x[2])
    return np.array(rows)


class World:
    """Random points before cameras on a line; every camera sees all points; the first ones are triangulated."""

    def __init__(self, views, seed=0):
        rng = np.random.default_rng(seed)
        self.X = rng.uniform([-1.5, -1, 5], [1.5, 1, 8], (POINTS, 3))
        self.K = np.array([[100.0, 0, 46.3], [0, 110.0, 33.1], [0, 0, 1]])
        self.names = [f"view {i}.jpg" for i in range(views)]
        self.poses = [looking_at(np.array([0.5 * i - 1, 0.1 * i, 0.0]), np.array([0, 0, 6.0]), 0.1 * i) for i in range(views)]
        self.xy = [project(self.K, R, t, self.X) for R, t in self.poses]

    def write_text(self, folder, model="PINHOLE", names=None, rotation=None):
        """A COLMAP model: pixel centres at 0.5; a third of the features has no 3-D point."""
        folder.mkdir(parents=True, exist_ok=True)
        fx, fy, (cx, cy) = self.K[0, 0], self.K[1, 1], self.K[:2, 2] + 0.5
        (folder / "cameras.txt").write_text(f"# a comment\n3 {model} {WIDTH} {HEIGHT} {fx} {fy} {cx} {cy}\n")
        lines = ["# two lines for each image"]
        for i, (name, (R, t), xy) in enumerate(zip(names or self.names, self.poses, self.xy, strict=True)):
            x, y, z, w = Rotation.from_matrix(R).as_quat() if rotation is None else rotation
            lines.append(f"{i + 1} {w} {x} {y} {z} {t[0]} {t[1]} {t[2]} 3 {name}")
            lines.append(" ".join(f"{x + 0.5} {y + 0.5} {-1 if p % 3 == 0 else p + 10}" for p, (x, y) in enumerate(xy)))
        (folder / "images.txt").write_text("\n".join(lines) + "\n")
        tracks = [" ".join(f"{i + 1} {p}" for i in range(len(self.names))) for p in range(POINTS)]
        rows = [f"{p + 10} {X[0]} {X[1]} {X[2]} 1 2 3 0.5 {tracks[p]}" for p, X in enumerate(self.X) if p % 3]
        (folder / "points3D.txt").write_text("\n".join(rows) + "\n")

    def write_images(self, folder, size=(WIDTH, HEIGHT)):
        folder.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(self.names):
            noise = np.random.default_rng(i).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
            Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=95)

    def write(self, folder, **model):
        self.write_images(folder / "images")
        self.write_text(folder / "sparse", **model)
        return folder


def damage(folder, how):
    world = World(2)
    world.write(folder)
    if how == "distorted":
        (folder / "sparse/cameras.txt").write_text("3 SIMPLE_RADIAL 96 64 100 48 32 0.1\n")
    elif how == "binary distorted":
        cameras_bin = struct.pack("<QiiQQ8d", 1, 3, 4, 96, 64, *range(8))
        (folder / "sparse/cameras.bin").write_bytes(cameras_bin)
        (folder / "sparse/images.bin").write_bytes(struct.pack("<Qi7di", 1, 1, 1, 0, 0, 0, 0, 0, 0, 3) + b"view 0.jpg\0" + struct.pack("<Q", 0))
        (folder / "sparse/points3D.bin").write_bytes(struct.pack("<Q", 0))
    elif how == "unknown model":
        damage(folder, "binary distorted")
        (folder / "sparse/cameras.bin").write_bytes(struct.pack("<QiiQQ", 1, 3, 77, 96, 64))
    elif how == "cut off":
        damage(folder, "binary distorted")
        (folder / "sparse/images.bin").write_bytes((folder / "sparse/images.bin").read_bytes()[:-10])
    elif how == "empty":
        (folder / "sparse/images.txt").write_text("# nothing\n")
    elif how == "no points":
        (folder / "sparse/points3D.txt").unlink()
    elif how == "missing image":
        (folder / "images/view 1.jpg").unlink()
    elif how == "other size":
        world.write_images(folder / "images", (HEIGHT, WIDTH))
    elif how == "turned":
        world.poses[1] = looking_at(np.array([5.0, 0, 6]), np.array([0, 0, 6.0]))
        world.write_text(folder / "sparse")
    elif how == "one place":
        world.poses[1] = (world.poses[1][0], world.poses[1][0] @ world.poses[0][0].T @ world.poses[0][1])
        world.write_text(folder / "sparse")
    elif how == "behind":
        R, t = world.poses[1]
        world.poses[1] = (R, t - [0, 0, 12.0])
        world.write_text(folder / "sparse")
    elif how == "no rotation":
        world.write_text(folder / "sparse", rotation=(0, 0, 0, 0))
    elif how == "nothing":
        shutil.rmtree(folder / "sparse")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("distorted", "the camera of view 0.jpg is SIMPLE_RADIAL, but PINHOLE is needed: undistort the images first"),
        ("binary distorted", "the camera of view 0.jpg is OPENCV, but PINHOLE is needed: undistort"),
        ("unknown model", "has a camera of model number 77, but PINHOLE is needed: undistort"),
        ("cut off", "sparse holds a damaged COLMAP model"),
        ("empty", "sparse is empty: no image has a pose"),
        ("no points", r"is not a whole COLMAP model: it has no points3D\.txt"),
        ("missing image", r"sparse lists the image view 1\.jpg, but there is no .*images/view 1\.jpg"),
        ("other size", r"view 0\.jpg is 64x96 px, but its camera 96x64 px.*EXIF"),
        ("no rotation", r"the camera of view 0\.jpg has a size, focal length or pose that is not a positive or finite number"),
        ("turned", "None of the 1 pairs of scene can be used: 1 turned by more than 80 degrees"),
        ("one place", "None of the 1 pairs of scene can be used: 1 taken from one place"),
        ("behind", r"sparse: view 1\.jpg sees 40 points, of which 40 lie behind its camera: poses must be x_cam = R X \+ t"),
        ("nothing", r"has neither images/ with a COLMAP model in sparse/ or a cameras\.json"),
    ],
)
def test_wrong_models_are_refused(tmp_path, how, words):
    damage(tmp_path / "scene", how)
    with pytest.raises(UserError, match=words) as error:
        colmap.open_posed(str(tmp_path / "scene"), 512, str(tmp_path / "cache"))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def camera_entry(**changes):
    return {"K": [[90, 0, 40], [0, 90, 30], [0, 0, 1]], "R": np.eye(3).tolist(), "t": [0, 0, 1], "width": 96, "height": 64, **changes}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("{", r"cameras\.json does not give a K, R, t, width and height for each image name"),
        ([], "does not give"),
        ({}, "names no image"),
        ({"a.jpg": {"K": [[1]]}}, "it has no field 'width'"),
        ({"a.jpg": camera_entry(t=[0, 1])}, "does not give"),
        ({"a.jpg": camera_entry(R=(2 * np.eye(3)).tolist())}, r"the camera of a\.jpg has an R that is not a rotation"),
        ({"a.jpg": camera_entry(R=np.diag([1, 1, -1]).tolist())}, r"the camera of a\.jpg has an R that is not a rotation"),
        ({"a.jpg": camera_entry(K=[[0, 0, 40], [0, 90, 30], [0, 0, 1]])}, "not a positive or finite number"),
        ({"a.jpg": camera_entry(K=[[90, 0, 40], [0, 90, 30], [0, 0.1, 1]])}, r"the K of a\.jpg is not \[\[fx, skew, cx\]"),
        ({"a.jpg": camera_entry()}, r"cameras\.json lists the image a\.jpg, but there is no"),
    ],
)
def test_wrong_cameras_json_is_refused(tmp_path, entries, words):
    (tmp_path / "images").mkdir()
    (tmp_path / "cameras.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    with pytest.raises(UserError, match=words):
        colmap.open_posed(str(tmp_path), 512, str(tmp_path / "cache"))


def test_cameras_json_without_pairs_guesses_those_with_a_common_view(tmp_path):
    """Three cameras side by side and one that looks away: of six pairs, the three of the first three."""
    world = World(4)
    world.poses[3] = looking_at(np.array([0.3, 0, 0]), np.array([6.0, 0, 3.0]))
    world.write_images(tmp_path / "images")
    entries = {
        name: camera_entry(K=world.K.tolist(), R=R.tolist(), t=(4 * t).tolist()) for name, (R, t) in zip(world.names, world.poses, strict=True)
    }  # 4: the scene is within the cameras' largest distance
    (tmp_path / "cameras.json").write_text(json.dumps(entries))
    opened = colmap.open_posed(str(tmp_path), 512, str(tmp_path / "cache"))
    stored = [(int(p["index1"]), int(p["index2"])) for p in (*opened.validation, *opened.train)]
    assert sorted(stored) == [(0, 1), (0, 2), (1, 2)] and not len(opened.train[0]["known_1to2"])
    assert "3 without a common view at depths up to" in opened.report[1]


def scene_of(angles=(), centres=(), **fields):
    """Cameras turned about y by these angles."""
    found = {}
    for i, (angle, x) in enumerate(zip(angles, centres, strict=True)):
        R = Rotation.from_euler("y", angle, degrees=True).as_matrix()
        found[str(i)] = Camera(WIDTH, HEIGHT, World(1).K, R, -R @ np.array([x, 0, 0.0]), np.zeros((0, 2)), np.zeros(0, np.int64))
    every = list(itertools.combinations(found, 2))
    return posed.Scene(
        **{"files": {}, "cameras": found, "pairs": every, "point_depth": 0},
        **{"match": posed.no_match, "detect": True, "guess": False, "dropped": {}, **fields},
    )


def test_which_pairs_are_kept(monkeypatch):
    chosen = posed.choose(scene_of((0, 70, 79.9, 81, 160), (0, 1, 2, 3, 2), dropped={"listed twice": 2}))
    assert chosen.pairs == [("0", "1"), ("0", "2"), ("1", "2"), ("1", "3"), ("2", "3"), ("3", "4")]
    assert chosen.dropped == {"listed twice": 2, "turned by more than 80 degrees": 4}
    chosen = posed.choose(scene_of((0, 10, 20), (0, 1e-7, 1)))
    assert chosen.pairs == [("0", "2"), ("1", "2")] and chosen.dropped == {"taken from one place": 1}
    for place in (3.3, 1e4 / 3):  # from one place but for rounding, and nothing tells how large the scene is
        chosen = posed.choose(scene_of((0, 10, 25), (place, place, place)))
        assert not chosen.pairs and chosen.dropped == {"taken from one place": 3}
    monkeypatch.setattr(posed, "MAX_PAIRS", 7)
    many = posed.choose(scene_of(range(8), range(8)))
    assert len(set(many.pairs)) == 7 and many.pairs == sorted(many.pairs) and many.dropped == {"beyond 7 of a scene": 21}


def test_points_behind_a_camera_are_not_seen_by_it():
    world = World(2)
    points = dict(enumerate(world.X))
    (R, t), xy = world.poses[0], world.xy[0]
    for p in (3, 17):
        points[p] = R.T @ (np.array([0.1, 0.2, -2.0]) - t)  # two metres behind
    camera = colmap.in_front(Camera(WIDTH, HEIGHT, world.K, R, t, xy, np.arange(POINTS)), points, "a.jpg")
    kept = [p for p in range(POINTS) if p not in (3, 17)]
    np.testing.assert_array_equal(camera.point, kept)
    np.testing.assert_array_equal(camera.xy_px, xy[kept])


def test_one_wrong_point_does_not_decide_the_depth_of_a_scene(tmp_path):
    """A point a thousand times as far as the others, seen by both cameras."""
    world = World(2)
    world.write(tmp_path)
    depth = colmap.read_scene(tmp_path, tmp_path, partial=False).point_depth
    assert 0.97 * max(posed_depths(world)) < depth < max(posed_depths(world))
    camera, (R, t) = world.K, world.poses[0]
    many = [R.T @ (np.array([0, 0, z]) - t) for z in [*np.linspace(5, 8, 999), 8000.0]]
    seen = Camera(WIDTH, HEIGHT, camera, R, t, np.zeros((1000, 2)), np.arange(1000))
    found = posed.far_depth(colmap.depths([seen], dict(enumerate(many))))
    np.testing.assert_allclose(found, 5 + 3 * 0.99, atol=0.01)
    assert posed.far_depth(colmap.depths([seen], {})) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes of one model each, of 5 views."""
    root = tmp_path_factory.mktemp("posed") / "scenes"
    for i in range(2):
        World(5, i).write(root / f"scene{i}")
    return root


@pytest.fixture(scope="module")
def opened(folder, tmp_path_factory):
    return colmap.open_posed(str(folder), 48, str(tmp_path_factory.mktemp("cache")))


def test_stored_pairs_are_right_in_stored_pixels(opened):
    """Half the size: known matches are where the world's points project with the stored calibration and pose; poses have unit baselines."""
    assert len(opened.train) + len(opened.validation) == 20 and len(opened.validation) == 1 and len(opened.images) == len(opened.views) == 10
    assert opened.images[0]["image"].shape == (32, 48, 3)
    assert "19 posed pairs of 10 photographs, 1 held out" in opened.report[0] and len(opened.report) == 1
    worlds = [World(5, i) for i in range(2)]
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    for pair in (opened.validation[0], *opened.train):
        first, second = ({**opened.views[int(pair[i])], **opened.images[int(pair[i])]} for i in ("index1", "index2"))
        names = [os.fsdecode(view["name"]) for view in (first, second)]
        assert names[0][:6] == names[1][:6] and names[0][6] == "/"
        world = worlds[int(names[0][5])]
        i1, i2 = (world.names.index(name.rpartition("/")[2]) for name in names)
        np.testing.assert_allclose(first["K"], half @ world.K, atol=1e-4)
        (R1, t1), (R2, t2) = world.poses[i1], world.poses[i2]
        length = np.linalg.norm(R1.T @ t1 - R2.T @ t2)
        np.testing.assert_allclose(np.linalg.norm(pair["t_1to2"]), 1, atol=1e-6)
        assert len(pair["known_1to2"]) == len(pair["known_2to1"]) == 40
        X = world.X[[p for p in range(POINTS) if p % 3]] @ R1.T + t1
        X2 = X @ pair["R_1to2"].T + length * pair["t_1to2"]
        projected = X2 @ second["K"].T
        np.testing.assert_allclose(pair["xy_1to2"], projected[:, :2] / projected[:, 2:], atol=1e-3)
        projected = X @ first["K"].T
        np.testing.assert_allclose(first["xy_px"][pair["known_1to2"]], projected[:, :2] / projected[:, 2:], atol=1e-3)
        np.testing.assert_allclose(pair["xy_2to1"], first["xy_px"][pair["known_1to2"]], atol=1e-5)
        np.testing.assert_allclose(pair["spread"] * length, np.hypot(2, 0.4), rtol=1e-5)
        far = np.quantile(posed_depths(world), 0.99)
        np.testing.assert_allclose(pair["point_depth"] * length, far, rtol=1e-5)
        assert len(first["xy_px"]) > 40  # SIFT's join them
    np.testing.assert_allclose(opened.angles_deg, [pair["angle_deg"] for pair in opened.train], rtol=1e-6)


def posed_depths(world):
    return [(R @ world.X[p] + t)[2] for R, t in world.poses for p in range(POINTS) if p % 3]


def test_pairs_prepared_with_other_depths_are_prepared_anew(tmp_path):
    """What an earlier version left in the cache, in a folder of its version, is not read."""
    world = World(3)
    world.write(tmp_path / "scene")
    colmap.open_posed(str(tmp_path / "scene"), 48, str(tmp_path / "cache"))
    (stored,) = (tmp_path / "cache").glob("*/posed_pairs/*")
    assert stored.name == "2.0.0"
    for record in stored.glob("*array_record*"):
        record.write_bytes(b"of another layout")
    stored.rename(stored.with_name("1.0.0"))
    opened = colmap.open_posed(str(tmp_path / "scene"), 48, str(tmp_path / "cache"))
    assert opened.train[0]["spread"] > 0 and stored.is_dir()


def test_listed_pairs_and_few_common_points(tmp_path):
    world = World(4)
    world.write(tmp_path / "scene")
    text = (tmp_path / "scene/sparse/images.txt").read_text().splitlines()
    text[8] = " ".join("-1" if i % 3 == 2 and i > 50 else word for i, word in enumerate(text[8].split()))  # of view 3's points the first 11 are left
    (tmp_path / "scene/sparse/images.txt").write_text("\n".join(text))
    opened = colmap.open_posed(str(tmp_path / "scene"), 512, str(tmp_path / "cache"))
    assert len(opened.train) + len(opened.validation) == 3 and "3 with fewer than 30 common points" in opened.report[1]
    for i, name in enumerate(world.names):
        (tmp_path / f"scene/images/{name}").rename(tmp_path / f"scene/images/{i}.jpg")
    world.write_text(tmp_path / "scene/sparse", names=[f"{i}.jpg" for i in range(4)])
    (tmp_path / "scene/pairs.txt").write_text("0.jpg 3.jpg\n3.jpg 0.jpg\n2.jpg 1.jpg\n")
    opened = colmap.open_posed(str(tmp_path / "scene"), 512, str(tmp_path / "cache"))
    assert len(opened.train) + len(opened.validation) == 2 and "1 listed twice" in opened.report[1]


# --- real cameras ---


def test_motorcycle(tmp_path):
    opened = embedded.open_posed("", 741, str(tmp_path))
    assert len(opened.train) == len(opened.validation) == 1 and "1 posed pairs of 2 photographs" in opened.report[0]
    pair = opened.train[0]
    for direction, one, two in (("1to2", 0, 1), ("2to1", 1, 0)):
        xy1, xy2 = opened.views[one]["xy_px"][pair[f"known_{direction}"]], pair[f"xy_{direction}"]
        assert len(xy1) > 500
        np.testing.assert_array_equal(xy1[:, 1], xy2[:, 1])
        colours = [opened.images[i]["image"][np.rint(xy[:, 1]).astype(int), np.rint(xy[:, 0]).astype(int)].astype(float) for i, xy in ((one, xy1), (two, xy2))]
        off = [np.median(np.abs(colours[0] - np.roll(colours[1], shift, 0)).mean(1)) for shift in (0, 1)]
        assert off[0] < 12 < 40 < off[1]  # the same things, as against any others
        assert ((xy1 - xy2)[:, 0] * (1 if one == 0 else -1)).min() > 0
    # depth from the disparity, by the calibration's own formula, projects to the match
    xy1, xy2 = opened.views[0]["xy_px"][pair["known_1to2"]], pair["xy_1to2"]
    depth = 994.978 / (xy1[:, 0] - xy2[:, 0] + 31.086)  # baselines
    points = np.concatenate([xy1, np.ones((len(xy1), 1))], 1) @ np.linalg.inv(opened.views[0]["K"]).T * depth[:, None]
    projected = (points + pair["t_1to2"]) @ opened.views[1]["K"].T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], xy2, atol=0.02)
    np.testing.assert_allclose(pair["spread"], 1, rtol=1e-6)
    assert (depth <= pair["point_depth"]).mean() > 0.98 and pair["point_depth"] < 1.5 * depth.max()
    with pytest.raises(UserError, match="embedded:here is no folder"):
        embedded.open_posed("here", 741, str(tmp_path))


@pytest.mark.skipif(not SCENES.is_dir(), reason="no ../shared/data/scenes")
@pytest.mark.parametrize("name", ["banana", "stone_sign", "boruszyn"])
def test_epipolar_distance_of_known_matches_in_real_scenes(name):
    """The median of every scene is below a pixel."""
    chosen = posed.choose(colmap.read_scene(SCENES / name, SCENES / name, partial=False))
    distances = []
    for name1, name2 in chosen.pairs[:: max(1, len(chosen.pairs) // 20)]:
        one, two = (chosen.scene.cameras[name] for name in (name1, name2))
        R, t = relative(one, two)
        tx = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
        F = np.linalg.inv(two.K).T @ tx @ R @ np.linalg.inv(one.K)
        index, xy2 = chosen.scene.match(name1, name2)
        assert len(index) >= 30
        for x1, x2 in zip(one.xy_px[index], xy2, strict=True):
            line = F @ [*x1, 1]
            distances.append(abs(line @ [*x2, 1]) / np.hypot(*line[:2]))
    assert np.median(distances) < 0.5, np.median(distances)


@pytest.mark.skipif(not POSED.is_dir(), reason="no ../shared/data/posed")
def test_real_cameras_json():
    scene = colmap.read_scene(POSED / "fountain-P11", POSED / "fountain-P11", partial=False)
    chosen = posed.choose(scene)
    assert len(scene.cameras) == 11 and 30 < len(chosen.pairs) <= 55


@pytest.mark.skipif(not SCENES.is_dir(), reason="no ../shared/data/scenes")
@pytest.mark.parametrize(
    ("name", "far", "deepest"),
    [("banana", 1.45, 1.53), ("boruszyn", 1.21, 1.92), ("drone_park_01", 0.57, 3.6)],
)
def test_depths_of_real_scenes(name, far, deepest):
    """In units of the largest distance of two cameras: of drone_park_01 a few points decide the
    greatest depth, not the one that counts."""
    scene = colmap.read_scene(SCENES / name, SCENES / name, partial=False)
    model = read_model(SCENES / name)
    spread = extent(scene.cameras.values())
    found = np.array([scene.point_depth, colmap.depths(scene.cameras.values(), model.points).max()])
    np.testing.assert_allclose(found / spread, [far, deepest], atol=0.01)
