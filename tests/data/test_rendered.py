"""Rendered scenes: depth, pictures and known matches against a caster of single rays in world space."""

import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxdesc.data import render
from jaxdesc.data.builders import embedded, posed, rendered
from jaxdesc.datasets.cameras import Camera
from jaxdesc.types import UserError

HW = (24, 32)
draw = jax.jit(render.render, static_argnums=6)


def met(rectangles, centre, direction):
    """The nearest rectangle that a ray from `centre` meets: (distance in units of the direction, number), (inf, -1) for none."""
    o, a, b = (np.asarray(part, np.float64) for part in rectangles[:3])
    normal = np.cross(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (normal * (o - centre)).sum(1) / (normal @ direction)
        p = centre + distance[:, None] * direction - o
        s, t = ((p * edge).sum(1) / (edge * edge).sum(1) for edge in (a, b))
    distance = np.where((distance > 1e-6) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1), distance, np.inf)
    number = int(distance.argmin())
    return (distance[number], number) if np.isfinite(distance[number]) else (np.inf, -1)


def ray(K, R, t, x, y):
    """Centre of the camera and direction, of depth 1, through a pixel."""
    return -R.T @ t, R.T @ (np.linalg.inv(K) @ [x, y, 1])


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(3)
    rectangles = rendered.room(rng, 4)
    textures = rng.integers(0, 256, (4, rendered.TEXTURE_PX // 8, rendered.TEXTURE_PX // 8, 3), dtype=np.uint8)
    textures = np.stack([np.asarray(Image.fromarray(t).resize((rendered.TEXTURE_PX,) * 2, Image.Resampling.BICUBIC)) for t in textures])
    return rectangles, textures, rendered.walk(rng, rectangles, 3, HW)


def singles(camera):
    return [np.asarray(a, np.float32) for a in camera]


def test_depth_against_a_caster_of_single_rays(scene):
    rectangles, textures, cameras = scene
    met_numbers = set()
    for K, R, t in cameras:
        _, depth = draw(rectangles, textures, np.ones(len(rectangles.origin), np.float32), *singles((K, R, t)), HW)
        edges = 0
        for y in range(HW[0]):
            for x in range(HW[1]):
                expected, number = met(rectangles, *ray(K, R, t, x, y))
                met_numbers.add(number)
                if abs(depth[y, x] - expected) > 1e-3 * expected:  # only where a ray grazes an edge, to float32's precision
                    around = [met(rectangles, *ray(K, R, t, x + dx, y + dy))[1] for dx in (-0.01, 0.01) for dy in (-0.01, 0.01)]
                    assert len(set(around)) > 1
                    edges += 1
        assert edges < 5
    assert -1 not in met_numbers and len(met_numbers) > 8  # a room is closed


def test_every_side_has_its_colour_and_shade(scene):
    """With textures of one colour each, a pixel whose surroundings show one rectangle has its colour times its shade."""
    rectangles, _, cameras = scene
    colours = np.array([[250, 10, 20], [30, 240, 40], [50, 60, 230], [128, 128, 128]], np.uint8)
    textures = np.broadcast_to(colours[:, None, None], (4, rendered.TEXTURE_PX, rendered.TEXTURE_PX, 3))
    shade = np.random.default_rng(0).uniform(0.5, 1.2, len(rectangles.origin)).astype(np.float32)
    K, R, t = cameras[0]
    picture, _ = draw(rectangles, textures, shade, *singles((K, R, t)), HW)
    checked = 0
    for y in range(0, HW[0], 2):
        for x in range(0, HW[1], 2):
            around = {met(rectangles, *ray(K, R, t, x + dx, y + dy))[1] for dx in (-0.5, 0.5) for dy in (-0.5, 0.5)}
            if len(around) == 1:
                number = around.pop()
                np.testing.assert_allclose(picture[y, x], np.clip(colours[rectangles.texture[number]] / 255 * shade[number], 0, 1), atol=2e-3)
                checked += 1
    assert checked > 100


def board(texture_px, window):
    """One rectangle, 2 m by 1.5 m, 4 m before a camera at the origin that it fills exactly."""
    rectangles = render.Rectangles(*(np.array(p, np.float32) for p in ([[-1, -0.75, 4]], [[2, 0, 0]], [[0, 1.5, 0]])), np.zeros(1, np.int32), window)
    K = np.array([[4 * HW[1] / 2, 0, HW[1] / 2 - 0.5], [0, 4 * HW[0] / 1.5, HW[0] / 2 - 0.5], [0, 0, 1]])
    return rectangles, singles((K, np.eye(3), np.zeros(3)))


def test_texture_is_seen_where_its_window_says():
    """A board that fills the picture, two texture pixels to a pixel: the picture is the mean of the 2x2 pixels, give or take the filter."""
    y, x = np.mgrid[:512, :512]
    texture = np.stack([x // 2, y // 2, np.full_like(x, 77)], -1).astype(np.uint8)[None]
    rectangles, camera = board(512, np.array([[100 - 0.5, 200 - 0.5, 2 * HW[1], 2 * HW[0]]], np.float32))
    picture, depth = draw(rectangles, texture, np.ones(1, np.float32), *camera, HW)
    np.testing.assert_allclose(depth, 4, rtol=1e-5)
    expected = texture[0, 200 : 200 + 2 * HW[0], 100 : 100 + 2 * HW[1]].reshape(HW[0], 2, HW[1], 2, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(picture[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1.1 / 255)


def test_shrunk_texture_does_not_alias():
    noise = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)
    rectangles, camera = board(512, np.array([[8, 8, 16 * HW[1] - 32, 16 * HW[0] - 32]], np.float32))
    picture, _ = draw(rectangles, noise, np.ones(1, np.float32), *camera, HW)
    np.testing.assert_allclose(np.asarray(picture).mean(), 0.5, atol=0.01)
    assert np.asarray(picture)[1:-1, 1:-1].std() < 0.05  # single texture pixels deviate by 0.29


def test_behind_the_camera_and_beside_everything_is_black():
    rectangles, (K, R, _) = board(512, np.array([[8, 8, 400, 300]], np.float32))
    white = np.full((1, 512, 512, 3), 255, np.uint8)
    picture, depth = draw(rectangles, white, np.ones(1, np.float32), K, R, np.array([0, 0, -8], np.float32), HW)
    assert not np.asarray(picture).any() and not np.asarray(depth).any()
    picture, depth = draw(rectangles, white, np.ones(1, np.float32), K, R, np.array([1, 0, 0], np.float32), HW)
    assert not np.asarray(picture)[:, :15].any() and np.asarray(picture)[:, 17:].min() > 0.99 and np.isfinite(picture).all()


def test_known_matches_against_single_rays(scene):
    """A keypoint is matched where its point projects, if that is inside image 2 and nothing stands before it; else it is not."""
    rectangles, _, walked = scene
    rng = np.random.default_rng(1)
    found = {}
    for i, (K, R, t) in enumerate(walked):
        found[str(i)] = Camera(HW[1], HW[0], K, R, t, rng.uniform([0, 0], [HW[1] - 1, HW[0] - 1], (150, 2)), np.arange(150))
    reasons = {"seen": 0, "outside": 0, "hidden": 0}
    for one, two in (("0", "1"), ("1", "2"), ("2", "0")):
        index, xy2 = rendered.visible(rectangles, found, one, two)
        matched = dict(zip(index.tolist(), xy2, strict=True))
        first, second = found[one], found[two]
        for k, (x, y) in enumerate(first.xy_px):
            centre, direction = ray(first.K, first.R, first.t, x, y)
            distance, _ = met(rectangles, centre, direction)
            X = centre + distance * direction
            in_two = second.R @ X + second.t
            u, v, w = second.K @ in_two
            inside = w > 0 and 0 <= u / w <= HW[1] - 1 and 0 <= v / w <= HW[0] - 1
            hidden = inside and met(rectangles, -second.R.T @ second.t, X + second.R.T @ second.t)[0] < 0.99
            reason = "outside" if not inside else "hidden" if hidden else "seen"
            reasons[reason] += 1
            assert (k in matched) == (reason == "seen"), (one, two, k, reason)
            if k in matched:
                np.testing.assert_allclose(matched[k], [u / w, v / w], atol=0.02)
    assert min(reasons.values()) > 5, reasons


def test_rooms_and_walks_are_sound():
    """Rectangles have right angles, windows lie on their textures, cameras are rotations inside the room that look at it, whatever the draw."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rectangles = rendered.room(rng, 5)
        np.testing.assert_allclose((rectangles.edge1 * rectangles.edge2).sum(1), 0, atol=1e-5)
        x, y, w, h = rectangles.window.T
        assert min(x.min(), y.min(), w.min(), h.min()) > 0 and max((x + w).max(), (y + h).max()) <= rendered.TEXTURE_PX - 8 + 1e-3
        half = np.abs(rectangles.origin[:6]).max(0)
        for K, R, t in rendered.walk(rng, rectangles, 4, HW):
            np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
            assert np.linalg.det(R) > 0 and (np.abs(R.T @ t) < half).all() and K[0, 0] > 0
            assert Rotation.from_matrix(R).magnitude() < np.pi / 2  # forward stays forward


def test_scenes_are_prepared_once_and_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr(rendered, "MIN_COMMON", 5)
    monkeypatch.setattr(rendered, "HELD_OUT", 2)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    files = embedded.textures()
    opened = rendered.prepare(files, "", 96, str(tmp_path), 2, 3)
    assert len(opened.images) == 6 and 3 <= len(opened.train) + len(opened.validation) <= 6
    assert opened.images[0]["image"].shape == (72, 96, 3) and opened.images[0]["image"].std() > 10
    assert all(left.name.endswith("tfds") for left in (tmp_path / "temporary").iterdir())  # tfds leaves empty folders of its own
    for pair in opened.validation:  # the second room and nothing else, which is not trained on
        assert [os.fsdecode(opened.images[int(pair[i])]["name"])[:8] for i in ("index1", "index2")] == ["scene001"] * 2
    assert len(opened.validation) and len(opened.train)
    for pair in opened.train:
        names = [os.fsdecode(opened.images[int(pair[i])]["name"]) for i in ("index1", "index2")]
        assert names[0][:8] == names[1][:8] == "scene000"
        one, two = (opened.views[int(pair[i])] for i in ("index1", "index2"))
        x1, x2 = one["xy_px"][pair["known_1to2"]], pair["xy_1to2"]
        t = pair["t_1to2"]
        E = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]]) @ pair["R_1to2"]
        F = np.linalg.inv(two["K"]).T @ E @ np.linalg.inv(one["K"])
        lines = np.concatenate([x1, np.ones((len(x1), 1))], 1) @ F.T
        distance = np.abs((lines[:, :2] * x2).sum(1) + lines[:, 2]) / np.linalg.norm(lines[:, :2], axis=1)
        assert len(x1) >= 5 and distance.max() < 0.05
    monkeypatch.setattr(rendered, "_picture", None)  # prepared: not rendered again
    again = rendered.prepare(files, "", 96, str(tmp_path), 2, 3)
    np.testing.assert_array_equal(again.images[1]["image"], opened.images[1]["image"])


def test_textures_from_a_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 40), (9, 200, 30)).save(tmp_path / "photos/green.png")
    (tmp_path / "photos/broken.jpg").write_text("no picture")
    files = {name: tmp_path / "photos" / name for name in ("green.png", "broken.jpg")}
    textures = rendered.read_textures(files, np.random.default_rng(0))
    assert textures.shape == (rendered.TEXTURES, rendered.TEXTURE_PX, rendered.TEXTURE_PX, 3) and (textures == [9, 200, 30]).all()
    with pytest.raises(UserError, match="None of the 1 photographs for the rendered scenes can be read"):
        rendered.read_textures({"broken.jpg": files["broken.jpg"]}, np.random.default_rng(0))
    with pytest.raises(UserError, match="There is no folder"):
        rendered.open_posed(str(tmp_path / "missing"), 96, str(tmp_path))


def test_no_pair_in_common(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot be written to .*config\.data\.cache"):
        rendered.prepare(embedded.textures(), "", 96, str(Path(__file__)), 1, 2)
    monkeypatch.setattr(rendered, "MIN_COMMON", 2000)
    with pytest.raises(UserError, match="None of the 1 pairs of rendered can be used: 1 with fewer than 2000 common points"):
        rendered.prepare(embedded.textures(), "", 96, str(tmp_path), 1, 2)
    assert posed.counts({"a": 0, "b": 2}) == "2 b"
