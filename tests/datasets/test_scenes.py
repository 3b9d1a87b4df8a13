"""Posed scenes: what training and scoring take a folder for is the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxdesc.data.builders import colmap as builder
from jaxdesc.datasets import scenes
from jaxdesc.datasets.colmap_models import files_of
from jaxdesc.evals import queries
from jaxdesc.types import UserError
from tests.data.test_posed import HEIGHT, WIDTH, World
from tests.evals.posed_scene import write_cameras

K = np.array([[300.0, 0, 20.0], [0, 310.0, 15.0], [0, 0, 1]])
MODELS = ("sparse", "sparse/0", "sparse-txt", ".")
IMAGES = ("images", "imgs", ".")


def world(views=4):
    made = World(views)
    made.names = [f"{i}.jpg" for i in range(views)]
    return made


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("model", MODELS)
def test_every_layout_is_read_by_training_and_by_scoring(tmp_path, images, model):
    """Training knew no model and no images in the folder itself, scoring no sparse-txt/, imgs/."""
    made, folder = world(), tmp_path / "scene"
    made.write_images(folder / images)
    made.write_text(folder / model)
    opened = builder.open_posed(str(folder), 96, str(tmp_path / "cache"))
    assert len(opened.images) == 4 and len(opened.train) + len(opened.validation) == 6
    scene = queries.held_out(folder, 2)
    assert scene.images == folder / images and all((scene.images / n).is_file() for n in made.names)
    for name, (R, t) in zip(made.names, made.poses, strict=True):
        found = {**scene.poses, **scene.truth}[name]
        np.testing.assert_allclose(found.R, R, atol=1e-9)
        np.testing.assert_allclose(found.t, t, atol=1e-9)
    known = {
        Path(p["name"].decode()).name: v["K"]
        for p, v in zip(opened.images, opened.views, strict=True)
    }
    for name, stored in known.items():
        np.testing.assert_allclose(stored, scenes.read_cameras(folder)[name].K, atol=1e-4)


def test_cameras_that_are_written_down_come_before_a_model(tmp_path):
    """Training took the model, scoring cameras.json: one folder had two truths."""
    made, folder = world(), tmp_path / "scene"
    made.write(folder)
    model = scenes.read_model(folder)
    assert scenes.camera_file(folder) == folder / "sparse" and len(model.points) == 40
    moved = {name: c._replace(t=c.t + np.array([0.25, 0, 0])) for name, c in model.cameras.items()}
    write_cameras(folder, moved)
    assert scenes.camera_file(folder) == folder / "cameras.json"
    for found in (
        scenes.read_model(folder).cameras,
        scenes.read_cameras(folder),
        builder.read_scene(folder, folder, False).cameras,
    ):
        for name, camera in found.items():
            np.testing.assert_allclose(camera.t, moved[Path(name).name].t)
            assert (camera.width, camera.height) == (WIDTH, HEIGHT) and not len(camera.point)


def test_listed_pairs_or_all(tmp_path):
    made, folder = world(3), tmp_path / "scene"
    made.write(folder)
    assert scenes.read_pairs(folder, made.names) == (
        [("0.jpg", "1.jpg"), ("0.jpg", "2.jpg"), ("1.jpg", "2.jpg")],
        False,
    )
    (folder / "pairs.txt").write_text("2.jpg ./0.jpg\n0.jpg 2.jpg\n")
    assert scenes.read_pairs(folder, made.names) == ([("2.jpg", "0.jpg")], True)
    trained = builder.read_scene(folder, folder, False)
    assert [tuple(Path(n).name for n in pair) for pair in trained.pairs] == [("2.jpg", "0.jpg")]
    assert trained.dropped == {"listed twice": 1}


def test_a_folder_without_photographs_is_no_scene_of_a_collection(tmp_path):
    made = world()
    made.write_text(tmp_path / "all" / "one" / "sparse")
    assert not scenes.is_scene(tmp_path / "all" / "one")
    with pytest.raises(UserError, match="nor has any folder in it"):
        builder.open_posed(str(tmp_path / "all"), 96, str(tmp_path / "cache"))
    made.write_images(tmp_path / "all" / "one")
    assert scenes.is_scene(tmp_path / "all" / "one")
    assert not scenes.is_scene(tmp_path / "all")


def test_skew_is_read_but_not_scored(tmp_path):
    """Training can use it, the estimators of poses cannot."""
    skewed = K + np.array([[0, 2.0, 0], [0, 0, 0], [0, 0, 0]])
    camera = {"K": skewed.tolist(), "R": np.eye(3).tolist(), "t": [0, 0, 0]}
    (tmp_path / "cameras.json").write_text(json.dumps({"a": {**camera, "width": 9, "height": 9}}))
    np.testing.assert_array_equal(scenes.read_model(tmp_path).cameras["a"].K, skewed)
    with pytest.raises(UserError, match=r"a: K must be \[\[fx, 0, cx\]"):
        scenes.read_cameras(tmp_path)


def test_cameras_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="holds no known cameras"):
        scenes.read_cameras(tmp_path)
    good = {"K": K.tolist(), "R": np.eye(3).tolist(), "t": [0, 0, 0], "width": 40, "height": 30}
    path = tmp_path / "cameras.json"
    for content, message in (
        ("{", "does not give a K"),
        ({"a": {k: v for k, v in good.items() if k != "t"}}, "no field 't'"),
        ({"a": {**good, "R": np.diag([1, 1, -1]).tolist()}}, "not a rotation"),
    ):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError, match=message):
            scenes.read_cameras(tmp_path)


def test_a_model_needs_its_three_files(tmp_path):
    world().write_text(tmp_path / "sparse")
    assert {file.name for file in files_of(tmp_path / "sparse")} == {
        "cameras.txt",
        "images.txt",
        "points3D.txt",
    }
    (tmp_path / "sparse/points3D.txt").unlink()
    with pytest.raises(UserError, match=r"is not a whole COLMAP model: it has no points3D\.txt"):
        scenes.read_cameras(tmp_path)
