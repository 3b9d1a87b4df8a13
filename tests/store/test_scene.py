"""PUMP's features of real photographs through the files that hloc reads, into COLMAP and to a model."""

import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from jaxdesc.__main__ import main
from jaxdesc.datasets.scenes import read_cameras, read_pairs
from jaxdesc.store import colmap, matches

pytest.importorskip("pycolmap")
SCENE = Path(__file__).parents[3] / "shared" / "data" / "scenes" / "stone_sign"


@pytest.mark.skipif(not SCENE.exists(), reason=f"{SCENE} is not there")
def test_a_real_scene_is_mapped_from_pump_features(tmp_path, monkeypatch):
    reference = read_cameras(SCENE)
    names = sorted(reference)[:5]
    images = tmp_path / "images"
    images.mkdir()
    for name in names:
        (images / name).symlink_to(SCENE / "images" / name)
    features, found = tmp_path / "features.h5", tmp_path / "matches.h5"
    monkeypatch.setattr(sys, "argv", ["jaxdesc", "extract", str(images), "--out", str(features), "--max-keypoints", "1200"])
    main()
    with h5py.File(features) as file:  # by the names that hloc looks for
        keypoints = {name: file[name]["keypoints"][()] for name in names}
        descriptors = {name: file[name]["descriptors"][()].T.astype(np.float32) for name in names}
    listed = [pair for pair in read_pairs(SCENE, reference)[0] if set(pair) <= set(names)]
    for a, b in listed:
        similarity = descriptors[a] @ descriptors[b].T
        best = similarity.argmax(1)
        mutual = np.flatnonzero(similarity.argmax(0)[best] == np.arange(len(best)))
        matches.write_hdf5(found, a, b, np.column_stack([mutual, best[mutual]]), similarity.max(1)[mutual], len(best))
    rows = {}
    with h5py.File(found) as file:
        for a, b in listed:
            stored = file[f"{a}/{b}"]["matches0"][()]
            rows[a, b] = np.column_stack([np.flatnonzero(stored >= 0), stored[stored >= 0]])
    database, cameras = tmp_path / "database.db", colmap.model_cameras(SCENE / "sparse")
    colmap.write_database(database, {name: cameras[name] for name in names}, keypoints, rows)
    colmap.verify(database, rows)
    again = colmap.triangulate(database, SCENE / "sparse", SCENE / "images", tmp_path / "triangulated")
    assert again.num_points3D() > 100 and again.compute_mean_reprojection_error() < 1
    result = colmap.mapping(database, SCENE / "images", tmp_path / "sparse")
    poses = {image.name: image.cam_from_world().rotation.matrix() for image in result.images.values() if image.has_pose}
    assert len(poses) >= 4 and result.compute_mean_reprojection_error() < 1
    for a in poses:
        for b in poses:
            turn = (poses[b] @ poses[a].T) @ (reference[b].R @ reference[a].R.T).T
            assert np.degrees(np.linalg.norm(cv2.Rodrigues(turn)[0])) < 3
