"""Posed pairs: cameras as files give them, the pairs that are kept, what training reads, and what is drawn on the device."""

import dataclasses
import itertools
import json
import os
import shutil
import struct
from collections import Counter
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxdesc import config
from jaxdesc.config import DataConfig, DrawConfig, ExperimentConfig, MethodConfig, Source
from jaxdesc.data import posed_draw
from jaxdesc.data.builders import colmap, embedded, posed
from jaxdesc.data.draw import draw_batch
from jaxdesc.data.pipeline import _PosedViews, open_data
from jaxdesc.data.posed_draw import RawPosedPair
from jaxdesc.datasets.cameras import Camera
from jaxdesc.datasets.scenes import read_model
from jaxdesc.types import Canvas, UserError

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


def test_depths_that_queries_are_pruned_by():
    """The paper's, 1e-3 and 1 times the largest distance of two cameras, or up to the points."""
    assert posed.spread(scene_of((0, 0, 0), (0, 4, 1)).cameras.values()) == 4
    np.testing.assert_allclose(posed_draw.depth_range(4.0, 30.0, "cameras"), [0.004, 4], rtol=1e-6)
    np.testing.assert_allclose(posed_draw.depth_range(4.0, 30.0, "points"), [0.004, 30], rtol=1e-6)
    np.testing.assert_allclose(posed_draw.depth_range(4.0, 3.0, "points"), [0.004, 3], rtol=1e-6)
    np.testing.assert_allclose(posed_draw.depth_range(4.0, 0.0, "points"), [0.004, 4], rtol=1e-6)


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


def test_angle_of_a_rotation():
    rng = np.random.default_rng(0)
    for angle in (0.0, 1e-4, 1.0, 79.0, 179.999, 180.0):
        axis = rng.normal(size=3)
        R = Rotation.from_rotvec(np.radians(angle) * axis / np.linalg.norm(axis)).as_matrix()
        np.testing.assert_allclose(posed.angle_deg(R), angle, atol=1e-6)


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


def pipeline(folder, tmp_path, **fields):
    changes = {"posed_per_batch": 4, "synthetic_per_batch": 0, "real_per_batch": 0, "canvas_px": 48, "keypoints": 30, "threads": 2}
    cache = str(tmp_path / "cache")
    return DataConfig(posed=(Source("colmap", str(folder)),), cache=cache, **{**changes, **fields})


def take(data, start, count, *process):
    return list(itertools.islice(data.batches(start, *process), count))


def test_batches_are_a_function_of_seed_and_position(folder, tmp_path):
    data = open_data(pipeline(folder, tmp_path, pose_noise=(5.0, 2.5)), 3)
    walked = take(data, 0, 6)
    raw, slot = walked[0]["posed"]
    chex.assert_shape([raw.canvas1.image, raw.K1, raw.t_1to2, raw.xy1_px, raw.known], [(4, 48, 48, 3), (4, 3, 3), (4, 3), (4, 30, 2), (4, 30)])
    chex.assert_type([raw.canvas2.image, raw.R_1to2, raw.t_1to2, raw.xy2_px, raw.valid, slot], [np.uint8, np.float32, np.float32, np.float32, bool, np.int32])
    assert slot.tolist() == [0, 1, 2, 3] and raw.valid.all() and 0 < raw.known.sum() < raw.known.size
    chex.assert_trees_all_equal(take(data, 4, 2), walked[4:])
    halves = [take(data, 0, 2, p, 2) for p in range(2)]
    chex.assert_trees_all_equal(jax.tree.map(lambda *parts: np.concatenate(parts), *(h[1] for h in halves)), walked[1])
    assert not np.array_equal(raw.R_1to2, take(open_data(pipeline(folder, tmp_path), 3), 0, 1)[0]["posed"][0].R_1to2)
    with pytest.raises(UserError, match=r"config\.data\.posed_per_batch = 4 is not a multiple of the 3 processes"):
        take(data, 0, 1, 0, 3)
    held_out = data.validation_posed(3)
    chex.assert_shape(held_out.canvas1.image, (3, 48, 48, 3))
    chex.assert_trees_all_equal(held_out.K1[0], held_out.K1[1])  # one pair is held out
    for name in ("R_1to2", "t_1to2"):
        np.testing.assert_array_equal(getattr(held_out, name)[2], data.posed_sets[0].validation[0][name])  # without noise


def test_both_directions_are_one_geometry(folder, tmp_path):
    """Element 2 i + 1 is 2 i backwards, noise included; its known matches are the other's."""
    data = open_data(pipeline(folder, tmp_path), 0)
    views = _PosedViews(data.posed_sets[0].train, data.posed_sets[0], (5.0, 2.5), (1, 2))
    plain = _PosedViews(data.posed_sets[0].train, data.posed_sets[0], (0.0, 0.0), (1, 2))
    assert len(views) == 38
    turned, moved = [], []
    for i in range(0, 38, 2):
        there, back, true = views[i], views[i + 1], plain[i]
        np.testing.assert_array_equal(there["image1"], back["image2"])
        np.testing.assert_allclose(back["R_1to2"] @ there["R_1to2"], np.eye(3), atol=1e-5)
        np.testing.assert_allclose(back["R_1to2"] @ there["t_1to2"] + back["t_1to2"], 0, atol=1e-5)
        np.testing.assert_allclose(there["xy2_px"][there["known"]], back["xy1_px"][back["known"]], atol=1e-4)
        turned.append(posed.angle_deg(there["R_1to2"] @ true["R_1to2"].T))
        moved.append(np.abs(there["t_1to2"] - true["t_1to2"]).max())
        np.testing.assert_array_equal(there["R_1to2"], views[i]["R_1to2"])  # the pair's own, at every visit
    assert 3.0 < max(turned) <= 5.0 + 1e-3 and min(turned) < 2.0 and len(set(turned)) == 19
    assert 0.01 < max(moved) < 0.05


def test_curriculum_lets_in_larger_rotations_step_by_step(folder, tmp_path):
    data = open_data(pipeline(folder, tmp_path, curriculum=10), 0)
    angles = np.sort(data.posed_sets[0].angles_deg)
    seen = np.array([[posed.angle_deg(R) for R in batch["posed"][0].R_1to2] for batch in take(data, 0, 25)])
    for j, angle in enumerate(seen[:10].ravel()):
        assert angle <= angles[int(np.ceil(len(angles) * (j + 1) / 40)) - 1] + 1e-3
    assert seen[:3].max() < seen[10:].max() and np.unique(seen[10:].round(3)).size == 10
    chex.assert_trees_all_equal(take(data, 7, 5), take(data, 5, 7)[2:])


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("data", {"pose_noise": (-1.0, 0.0)}, r"config\.data\.pose_noise = \(-1\.0, 0\.0\) must be at least 0"),
        ("data", {"pose_noise": (1.0,)}, r"config\.data\.pose_noise = \(1\.0,\) is not of type"),
        ("data", {"posed_per_batch": 2, "posed": ()}, r"config\.data\.posed is empty but config\.data\.posed_per_batch = 2"),
        ("draw", {"posed_hw": (8, 64)}, r"config\.draw\.posed_hw = \(8, 64\) must be at least 32"),
        ("draw", {"queries": 0}, r"config\.draw\.queries = 0 must be at least 1"),
    ],
)
def test_wrong_settings_are_named(section, changes, words):
    @dataclasses.dataclass(frozen=True)
    class Method(MethodConfig):
        name: str = "none"

    base = ExperimentConfig(method=Method())
    with pytest.raises(UserError, match=words):
        config.validate(dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **changes)}))


def test_unknown_kind(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.posed names a source of kind 'pairs'; it may be embedded, rendered, colmap, megadepth"):
        open_data(DataConfig(posed=(Source("pairs", "x"),), posed_per_batch=1, real_per_batch=0, cache=str(tmp_path)), 0)


# --- on the device ---

CFG = DrawConfig(posed_hw=(32, 48), queries=20, crop_scale=1.3, flip_probability=0.5)
SIDE, BATCH, KEYPOINTS = 64, 4, 30
draw = jax.jit(lambda key, raw, slot, cfg: draw_batch(key, {"posed": (raw, slot)}, cfg)["posed"], static_argnums=3)


def raw_batch(seed=0):
    """Views whose colours say where they were taken: red is 4 x, green is 4 y; every keypoint is a known projection; some do not exist."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    ramp = np.stack([4 * x, 4 * y, np.full_like(x, 100)], -1).astype(np.uint8)
    rows = []
    for i in range(BATCH):
        hw = np.array([[40 + i, 60], [50, 52 - i]], np.int32)
        X = rng.uniform([-2, -1.5, 4], [2, 1.5, 6], (KEYPOINTS, 3))  # some outside the images
        Ks = [np.array([[60.0 + 3 * i, 0.5, s[1] / 2], [0, 55.0, s[0] / 2], [0, 0, 1]]) for s in hw]
        R = Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix()
        t = rng.normal(size=3)
        t /= np.linalg.norm(t)
        xy1, xy2 = project(Ks[0], np.eye(3), np.zeros(3), X), project(Ks[1], R, t, X)
        canvases = [Canvas(np.where((x < s[1])[..., None] & (y < s[0])[..., None], ramp, 0).astype(np.uint8), s) for s in hw]
        valid, known = rng.random(KEYPOINTS) < 0.8, rng.random(KEYPOINTS) < 0.7
        depths = np.array(10.0), np.array(100.0)
        rows.append(RawPosedPair(*canvases, *Ks, R, t, *depths, xy1, valid, xy2, known))
    numbers = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, numbers)


def test_drawn_geometry_is_that_of_the_images():
    """Known matches lie on their epipolar lines, and the images show at query and match what the canvases show at their origins."""
    raw = raw_batch()
    flipped = set()
    for seed in range(3):
        pair = draw(jax.random.key(seed), raw, jnp.arange(BATCH), CFG)
        chex.assert_tree_all_finite(pair)
        chex.assert_shape(
            [pair.image1, pair.F_1to2, pair.xy1_px, pair.valid, pair.known], [(BATCH, 32, 48, 3), (BATCH, 3, 3), (BATCH, 20, 2), (BATCH, 20), (BATCH, 20)]
        )
        checked = 0
        for i in range(BATCH):
            flipped.add(bool(pair.image1[i, 16, 0, 0] > pair.image1[i, 16, 47, 0]))
            F = np.asarray(pair.F_1to2[i], np.float64)
            np.testing.assert_allclose(np.linalg.det(F / np.linalg.norm(F)), 0, atol=1e-6)
            assert np.isclose(F[2, 2], 1, atol=1e-6) or np.isclose(np.linalg.norm(F), 1)
            for q in np.flatnonzero(pair.known[i]):
                assert pair.valid[i, q]
                xy1, xy2 = np.asarray(pair.xy1_px[i, q], np.float64), np.asarray(pair.xy2_px[i, q], np.float64)
                line = F @ [*xy1, 1]
                assert abs(line @ [*xy2, 1]) / np.hypot(*line[:2]) < 2e-3
                at1, at2 = colour_at(pair.image1[i], xy1), colour_at(pair.image2[i], xy2)
                origin = np.argmin(np.linalg.norm(raw.xy1_px[i] - at1, axis=1))
                if at1 is not None and at2 is not None:
                    np.testing.assert_allclose(at1, raw.xy1_px[i, origin], atol=0.15)
                    np.testing.assert_allclose(at2, raw.xy2_px[i, origin], atol=0.15)
                    assert raw.valid[i, origin] and raw.known[i, origin]
                    checked += 1
        assert checked > 10
    assert flipped == {True, False}


def colour_at(image, xy):
    """Canvas position that the ramp's colour tells, by a bilinear mean of four pixels."""
    (x, y), image = xy, np.asarray(image, np.float64)
    x0, y0 = min(int(x), image.shape[1] - 2), min(int(y), image.shape[0] - 2)
    fx, fy = x - x0, y - y0
    quad = image[y0 : y0 + 2, x0 : x0 + 2]
    mean = (1 - fy) * ((1 - fx) * quad[0, 0] + fx * quad[0, 1]) + fy * ((1 - fx) * quad[1, 0] + fx * quad[1, 1])
    return mean[:2] * 255 / 4


def test_queries_lie_inside_and_their_lines_of_sight_cross_image_2():
    raw = raw_batch()
    pair = draw(jax.random.key(5), raw, jnp.arange(BATCH), CFG)
    xy1 = np.asarray(pair.xy1_px)[np.asarray(pair.valid)]
    assert (xy1 >= 0).all() and (xy1 <= [47, 31]).all() and np.asarray(pair.valid).sum() > 40
    xy2 = np.asarray(pair.xy2_px)[np.asarray(pair.known)]
    assert (xy2 >= 0).all() and (xy2 <= [47, 31]).all()
    # F belongs to the queries: each line passes through image 2, grown by a pixel
    for F, queries, valid in zip(np.asarray(pair.F_1to2, np.float64), np.asarray(pair.xy1_px), np.asarray(pair.valid), strict=True):
        for x, y in queries[valid]:
            values = [F @ [x, y, 1] @ [u, v, 1] for u in (-1, 48) for v in (-1, 32)]
            assert min(values) <= 0 <= max(values)


def test_pruning_can_be_left_out():
    """Then also points are asked for whose line of sight misses image 2; those that were asked for before still are where there is room for all."""
    raw = raw_batch()
    # as good as in the camera: most lines of sight do not reach image 2
    few = dataclasses.replace(raw, spread=np.full_like(raw.spread, 1e-3))
    pruned = draw(jax.random.key(0), few, jnp.arange(BATCH), CFG)
    free = draw(jax.random.key(0), few, jnp.arange(BATCH), dataclasses.replace(CFG, prune=False))
    assert pruned.valid.sum() < free.valid.sum() == BATCH * CFG.queries
    chex.assert_trees_all_close(pruned.F_1to2, free.F_1to2)
    points = dataclasses.replace(CFG, prune_depth="points")
    far = draw(jax.random.key(0), few, jnp.arange(BATCH), points)
    assert pruned.valid.sum() < far.valid.sum()
    few = dataclasses.replace(few, spread=raw.point_depth)  # the same, but for the least depth
    by_spread = draw(jax.random.key(0), few, jnp.arange(BATCH), CFG)
    chex.assert_trees_all_close(far.valid, by_spread.valid)


def test_draws_follow_the_slot():
    raw = raw_batch()
    order = np.array([2, 0, 3, 1])
    one = draw(jax.random.key(0), raw, jnp.arange(BATCH), CFG)
    other = draw(jax.random.key(0), jax.tree.map(lambda x: x[order], raw), jnp.asarray(order), CFG)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[order], one), other, atol=1e-5)


def test_absent_known_matches_stay_unknown():
    raw = raw_batch()
    pair = draw(jax.random.key(0), raw.replace(known=np.zeros_like(raw.known)), jnp.arange(BATCH), CFG)
    assert not pair.known.any() and pair.valid.any()
    pair = draw(jax.random.key(0), raw.replace(valid=np.zeros_like(raw.valid)), jnp.arange(BATCH), CFG)
    assert not pair.known.any() and pair.valid.any()  # uniform points stand in


def test_fundamental_matrix_against_projections():
    """x2' F x1 = 0 for projections of random points, also with skew and for a rectified pair, where F33 = 0."""
    rng = np.random.default_rng(1)
    solve = jax.jit(posed_draw.fundamental)
    for rectified in (False, True):
        K1, K2 = np.array([[500.0, 3, 320], [0, 480, 240], [0, 0, 1]]), np.array([[700.0, -2, 300], [0, 690, 250], [0, 0, 1]])
        R, t = Rotation.from_rotvec(rng.normal(0, 0.3, 3)).as_matrix(), rng.normal(size=3)
        if rectified:
            K2, R, t = K1, np.eye(3), np.array([1.0, 0, 0])
        t /= np.linalg.norm(t)
        F = np.asarray(solve(*(np.asarray(a, np.float32) for a in (K1, K2, R, t))), np.float64)
        X = rng.uniform([-2, -2, 6], [2, 2, 12], (40, 3))
        for x1, x2 in zip(project(K1, np.eye(3), np.zeros(3), X), project(K2, R, t, X), strict=True):
            line = F @ [*x1, 1]
            assert abs(line @ [*x2, 1]) / np.hypot(*line[:2]) < 1e-2
        assert np.isclose(np.linalg.norm(F), 1) if rectified else np.isclose(F[2, 2], 1, atol=1e-6)


def test_seen_within_against_a_walk_along_the_line_of_sight():
    """Brute force: some of 4,000 depths project into the image, in front of the camera."""
    rng = np.random.default_rng(0)
    seen = jax.jit(posed_draw.seen_within)
    agreed = Counter()
    for _ in range(30):
        K1, K2 = (np.array([[rng.uniform(40, 90), 0, 24], [0, rng.uniform(40, 90), 16], [0, 0, 1]]) for _ in range(2))
        R, t = Rotation.from_rotvec(rng.normal(0, 0.5, 3)).as_matrix(), rng.normal(size=3)
        t /= np.linalg.norm(t)
        depths = np.sort(10 ** rng.uniform(-2, 1.5, 2))
        xy = rng.uniform([0, 0], [47, 31], (25, 2))
        got = np.asarray(seen(*(np.asarray(a, np.float32) for a in (xy, K1, K2, R, t, depths, (48, 32)))))
        for point, answer in zip(xy, got, strict=True):
            x = K2 @ (R @ (np.linalg.inv(K1) @ [*point, 1])[:, None] * np.geomspace(*depths, 4000) + t[:, None])
            with np.errstate(divide="ignore"):
                u, v = x[:2] / x[2]

            def inside(margin, x=x, u=u, v=v):
                return bool(((x[2] > 0) & (u > -0.5 - margin) & (u < 47.5 + margin) & (v > -0.5 - margin) & (v < 31.5 + margin)).any())

            if inside(-0.3):
                assert answer
            elif not inside(0.3):
                assert not answer
            agreed[bool(answer)] += 1
    assert min(agreed.values()) > 100


@pytest.mark.parametrize("count", [10, 20])
def test_queries_are_taken_by_a_plain_rule(count):
    """Keypoints in order up to 90 %, then uniform points in order."""
    rng = np.random.default_rng(count)
    take_queries = jax.jit(posed_draw.take_queries, static_argnums=2)
    for share1, share2 in ((0.9, 0.9), (0.2, 0.9), (0.9, 0.02), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        allowed1, allowed2 = rng.random(37) < share1, rng.random(count) < share2
        expected = [i for i in range(37) if allowed1[i]][: round(0.9 * count)]
        expected = (expected + [37 + i for i in range(count) if allowed2[i]])[:count]
        expected += [37 + count] * (count - len(expected))
        assert take_queries(jnp.array(allowed1), jnp.array(allowed2), count).tolist() == expected


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
        R, t = posed.relative_pose(one, two)
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
    spread = posed.spread(scene.cameras.values())
    found = np.array([scene.point_depth, colmap.depths(scene.cameras.values(), model.points).max()])
    np.testing.assert_allclose(found / spread, [far, deepest], atol=0.01)
