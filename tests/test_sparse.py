"""Keypoints matched in the scales and rotations that dense matches vote for."""

import cv2
import numpy as np
import pytest
import skimage

from jaxdesc import predictor, sparse
from jaxdesc.ops.matching import encode_pose
from jaxdesc.predictor import Matches, Predictor
from jaxdesc.store.features import Features


def votes(monkeypatch, *counts):
    """Dense matches as if `count` of them had the pose (scale, rotation), for each ((scale, rotation), count)."""
    codes = np.concatenate([np.full(count, encode_pose(*pose)) for pose, count in counts] or [np.zeros(0)]).astype(np.int32)
    ends = np.zeros((len(codes), 2), np.float32)
    monkeypatch.setattr(Predictor, "match_with", lambda *_: Matches(ends, ends, np.ones(len(codes), np.float32), codes))


@pytest.fixture(scope="module")
def net():
    return predictor.load()


def features(xy):
    return Features(np.asarray(xy, np.float32), np.zeros((len(xy), 0), np.float32), np.ones(len(xy)), None, None)


def photograph():
    return cv2.imread(f"{skimage.__path__[0]}/data/chelsea.png")[40:232, 60:316, ::-1].copy()  # 192 x 256


def test_poses_are_voted_for(net, monkeypatch):
    image = np.zeros((128, 256, 3), np.uint8)
    search = net.options(max_scale=2, max_rotation_deg=180)
    votes(monkeypatch, ((1.0, 0.0), 3), ((0.5, 90.0), 20), ((2.0, -45.0), 5), ((1.0, 180.0), 4))
    assert sparse.voted(net, image, image, search) == [(0.5, 90.0), (2.0, -45.0)]  # the others have less than a quarter of 20
    large = np.zeros((256, 512, 3), np.uint8)  # the search saw it at half of its size
    assert sparse.voted(net, large, image, search) == [(0.25, 90.0), (1.0, -45.0)]
    assert sparse.voted(net, image, large, search) == [(1.0, 90.0), (4.0, -45.0)]
    assert sparse.voted(net, image, image, net.options(max_scale=1)) == [(1.0, 0.0)]
    votes(monkeypatch)
    assert sparse.voted(net, image, image, search) == [(1.0, 0.0)]


@pytest.mark.parametrize(("scale", "rotation"), [(0.5, 90.0), (2.0, -90.0), (1.0, 180.0)])
def test_keypoints_of_a_turned_and_resized_image_are_found_in_its_pose(net, monkeypatch, scale, rotation):
    large = photograph()
    small = cv2.resize(large, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    image1, image2 = (small, large) if scale == 2 else (large, small if scale == 0.5 else large)
    turned = np.ascontiguousarray(np.rot90(image2, round(-rotation / 90)))  # clockwise on a screen
    h, w = image2.shape[:2]
    rng = np.random.default_rng(0)
    xy1 = rng.uniform(12, np.array(image1.shape[1::-1]) - 13, (150, 2))
    x, y = ((xy1 + 0.5) * scale - 0.5).T
    xy2 = np.column_stack({90.0: (h - 1 - y, x), -90.0: (y, w - 1 - x), 180.0: (w - 1 - x, h - 1 - y)}[rotation])
    shuffled = rng.permutation(150)

    def right(options):
        indices, similarity = sparse.matched(net, image1, features(xy1), turned, features(xy2[shuffled]), options)
        assert (np.diff(indices[:, 0]) > 0).all() and len(np.unique(indices[:, 1])) == len(indices) and (similarity <= 1 + 1e-5).all()
        return int((shuffled[indices[:, 1]] == indices[:, 0]).sum())

    votes(monkeypatch, ((scale, rotation), 9), ((1.0, 0.0), 3))
    assert right(net.options(max_scale=2, max_rotation_deg=180)) > 90 > 45 > right(net.options(max_scale=1))


def test_without_keypoints_there_is_no_match(net):
    image, none = photograph(), features(np.zeros((0, 2)))
    indices, similarity = sparse.matched(net, image, none, image, features([[9, 9]]), net.options())
    assert indices.shape == (0, 2) and similarity.shape == (0,)
