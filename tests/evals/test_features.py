"""Features of files."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from jaxdesc.data.nearest import mutual_nearest
from jaxdesc.evals import features
from jaxdesc.matching.keypoints import root_sift
from jaxdesc.store.features import Features, list_names, read_hdf5, top, write_hdf5, write_npz
from jaxdesc.types import UserError


def some(rng, count, width=16, size=(64, 48)):
    xy = rng.uniform(0, 40, (count, 2)).astype(np.float32)
    return Features(xy, rng.normal(size=(count, width)).astype(np.float32), rng.uniform(size=count).astype(np.float32), None, size)


def test_top_keeps_the_order():
    rng = np.random.default_rng(1)
    found = some(rng, 9)
    kept = top(found, 4)
    rows = sorted(sorted(range(9), key=lambda k: -found.scores[k])[:4])
    np.testing.assert_array_equal(kept.keypoints, found.keypoints[rows])
    assert top(found, None) is found and top(found, 20) is found


def test_reader_of_hdf5_and_npz(tmp_path):
    rng = np.random.default_rng(2)
    found = {name: some(rng, 7) for name in ("v_a/1.ppm", "v_a/2.ppm", "v_b/1.ppm")}
    for name, one in found.items():
        write_hdf5(tmp_path / "f.h5", name, one, storage="float32")
    write_npz(tmp_path / "npz", "v_a/1.ppm", found["v_a/1.ppm"], "net")
    write_npz(tmp_path / "npz", "v_a-2.ppm", found["v_a/2.ppm"], "net")  # CAPS: one flat folder
    for path, suffix, lacking in ((tmp_path / "f.h5", "", []), (tmp_path / "npz", ".net", ["v_b/1.ppm"])):
        read, absent = features.available(path, suffix, found)
        assert absent == lacking
        for name in found.keys() - set(absent):
            back = read(name)
            order = np.argsort(back.scores), np.argsort(found[name].scores)
            np.testing.assert_array_equal(back.keypoints[order[0]], found[name].keypoints[order[1]])
            np.testing.assert_allclose(np.linalg.norm(back.descriptors, axis=1), 1, atol=1e-6)
            assert mutual_nearest(back.descriptors, back.descriptors)[0].tolist() == [[k, k] for k in range(7)]
    with pytest.raises(UserError, match="--suffix"):
        features.reader(tmp_path / "npz")
    with pytest.raises(UserError, match="no file of features"):
        features.reader(tmp_path / "none.h5")
    bare, broken = some(rng, 3, 0), some(rng, 3)
    broken.descriptors[1, 2] = np.nan
    write_hdf5(tmp_path / "f.h5", "bare.png", bare)
    write_hdf5(tmp_path / "f.h5", "broken.png", broken)
    read = features.reader(tmp_path / "f.h5")
    with pytest.raises(UserError, match="no descriptors: describe them"):
        read("bare.png")
    with pytest.raises(UserError, match="NaN or infinity"):
        read("broken.png")


def test_rootsift_of_images_is_resumable(tmp_path):
    rng = np.random.default_rng(3)
    for k in range(2):
        image = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3)).astype(np.uint8), (0, 0), 1.5)
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
    options = features.FeatureOptions(method="rootsift", max_keypoints=40)
    path = features.predict(options, tmp_path, ["0.png"], tmp_path / "out")
    first = read_hdf5(path, "0.png")
    assert 10 <= len(first) <= 48 and first.descriptors.shape[1] == 128 and first.image_size == (120, 90)
    np.testing.assert_allclose(np.linalg.norm(first.descriptors, axis=1), 1, atol=2e-3)
    (tmp_path / "0.png").unlink()
    both = ["0.png", "1.png"]
    assert features.predict(options, tmp_path, both, tmp_path / "out") == path
    assert list_names(path) == set(both)
    assert features.source_of(path)["method"] == "rootsift" and features.source_of(tmp_path / "1.png") == {}
    with pytest.raises(UserError, match="other settings"):
        features.predict(replace(options, max_keypoints=50), tmp_path, ["1.png"], tmp_path / "out")
    with pytest.raises(UserError, match="needs no weights"):
        replace(options, weights="w")


def test_rootsift_finds_the_centre_of_a_blob():
    y, x = np.mgrid[:80, :100]
    blob = (40 + 180 * np.exp(-((x - 53) ** 2 + (y - 38) ** 2) / 32)).astype(np.uint8)
    found, descriptors = root_sift(np.dstack([blob] * 3), 10)
    np.testing.assert_allclose(found.xy_px[0], [53, 38], atol=0.06)
    assert len(descriptors) == len(found.xy_px) and descriptors.dtype == np.float32
    none, empty = root_sift(np.zeros((50, 60, 3), np.uint8), 10)
    assert len(none.xy_px) == 0 and empty.shape == (0, 128)


def test_a_predictor_describes_where_it_is_told(tmp_path, monkeypatch):
    from jaxdesc.predict import predictor

    rng = np.random.default_rng(4)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    asked = []

    class Told(predictor.Predictor):
        digest = "abc"

        def describe_at(self, rgb, xy, scales=None):
            asked.append((rgb.shape, xy, scales))
            return np.tile(np.float32([0.6, 0.8]), (len(xy), 1))

    small = predictor.untrained("pump", hidden=8, depth=1, kernel=3, output_dim=6)
    told = Told("pump", small.config, small.variables, "runs/x")
    monkeypatch.setattr(predictor, "load", lambda weights: told)
    options = features.FeatureOptions(weights="runs/x", max_keypoints=5, keypoints="grid")
    path = features.predict(options, tmp_path, ["a.png"], tmp_path / "grid")
    found = read_hdf5(path, "a.png")
    assert found.descriptors.shape == (len(found), 2) and len(found) <= 5 and asked[0][0] == (40, 50, 3)
    assert not asked[0][2].any() and found.scales is None, "a grid has no scales"
    assert features.source_of(path) == {
        "method": "runs/x on grid",
        "weights": "abc",
        "keypoints": "grid",
        "keypoints_version": 1,
        "max_keypoints": 5,
    }

    detected = some(rng, 12, 3, (50, 40))
    write_hdf5(tmp_path / "detected.h5", "a.png", detected, storage="float32")
    options = replace(options, keypoints=tmp_path / "detected.h5")
    found = read_hdf5(features.predict(options, tmp_path, ["a.png"], tmp_path / "file"), "a.png")
    best = np.sort(np.argsort(-detected.scores)[:5])
    np.testing.assert_array_equal(found.keypoints, detected.keypoints[best])
    with pytest.raises(UserError, match=r"no keypoints of 1 of the 2 images, such as b\.png"):
        features.predict(options, tmp_path, ["a.png", "b.png"], tmp_path / "more")
    with pytest.raises(UserError, match="there is no such file"):
        features.predict(replace(options, keypoints="dog"), tmp_path, ["a.png"], tmp_path / "dog")
