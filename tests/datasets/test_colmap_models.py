"""COLMAP models, written by hand and by COLMAP itself, as its own library reads them."""

import numpy as np
import pytest

from jaxdesc.datasets import colmap_models
from tests.data.test_posed import HEIGHT, POINTS, WIDTH, World


def close(model, world):
    assert list(model.cameras) == world.names
    for camera, (R, t), xy in zip(model.cameras.values(), world.poses, world.xy, strict=True):
        assert (camera.width, camera.height) == (WIDTH, HEIGHT)
        np.testing.assert_allclose(camera.K, world.K, atol=1e-9)
        np.testing.assert_allclose(camera.R, R, atol=1e-9)
        np.testing.assert_allclose(camera.t, t, atol=1e-9)
        assert camera.point.tolist() == [p + 10 for p in range(POINTS) if p % 3]
        np.testing.assert_allclose(camera.xy_px, xy[camera.point - 10], atol=1e-9)
        np.testing.assert_allclose(
            [model.points[int(p)] for p in camera.point], world.X[camera.point - 10], atol=1e-9
        )


def test_text_model_and_the_same_written_by_colmap(tmp_path):
    world = World(3)
    world.write_text(
        tmp_path / "text"
    )  # names with blanks, which COLMAP's own reader of text cuts short
    close(colmap_models.read_model(tmp_path / "text"), world)
    world.names = [f"sub/{i}.jpg" for i in range(3)]
    world.write_text(tmp_path / "text")
    pycolmap = pytest.importorskip("pycolmap")
    (tmp_path / "binary").mkdir()
    pycolmap.Reconstruction(tmp_path / "text").write_binary(tmp_path / "binary")
    close(colmap_models.read_model(tmp_path / "binary"), world)


def test_image_without_features_and_simple_pinhole(tmp_path):
    World(1).write_text(tmp_path)
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_PINHOLE 96 64 99 48 32\n")
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a b.jpg\n\n2 2 0 0 0 1 2 3 1 c.jpg\n\n")
    model = colmap_models.read_model(tmp_path)
    assert list(model.cameras) == ["a b.jpg", "c.jpg"] and model.cameras["c.jpg"].t.tolist() == [
        1,
        2,
        3,
    ]
    assert model.cameras["c.jpg"].K.tolist() == [
        [99, 0, 47.5],
        [0, 99, 31.5],
        [0, 0, 1],
    ] and not len(model.cameras["a b.jpg"].point)


def test_what_pycolmap_reads(tmp_path):
    """Each camera and observation, less the half pixel between the conventions."""
    pycolmap = pytest.importorskip("pycolmap")
    world = World(3)
    world.names = [f"{i}.jpg" for i in range(3)]
    world.write_text(tmp_path)
    ours, theirs = colmap_models.read_model(tmp_path), pycolmap.Reconstruction(tmp_path)
    assert len(theirs.images) == len(ours.cameras) == 3
    for image in theirs.images.values():
        camera, pose = ours.cameras[image.name], image.cam_from_world()
        np.testing.assert_allclose(camera.R, pose.rotation.matrix(), atol=1e-12)
        np.testing.assert_allclose(camera.t, pose.translation, atol=1e-12)
        K = image.camera.calibration_matrix()
        np.testing.assert_allclose(camera.K[:2, 2], K[:2, 2] - 0.5)
        np.testing.assert_allclose(np.diag(camera.K), np.diag(K))
        seen = {p.point3D_id: p.xy - 0.5 for p in image.points2D if p.has_point3D()}
        assert sorted(seen) == camera.point.tolist()
        np.testing.assert_allclose(camera.xy_px, [seen[k] for k in sorted(seen)])
    assert sorted(theirs.points3D) == sorted(ours.points)
