"""Keypoints matched in the scale and rotation in which two images agree best."""

import cv2
import numpy as np
import pytest
import skimage

from jaxdesc.predict import predictor, sparse
from jaxdesc.store.features import Features

COUNT = 200


@pytest.fixture(scope="module")
def net():
    return predictor.load()


def photograph(height=192, width=256):
    return cv2.imread(f"{skimage.__path__[0]}/data/chelsea.png")[40 : 40 + height, 60 : 60 + width, ::-1].copy()


def features(xy):
    return Features(np.asarray(xy, np.float32), np.zeros((len(xy), 0), np.float32), np.ones(len(xy), np.float32), None, None)


def turned(image, scale, rotation_deg, size):
    """The image about its centre, and the map of points; a displacement d becomes scale * R(rotation) d."""
    t, centre = np.radians(rotation_deg), (np.array(image.shape[1::-1]) - 1) / 2
    A = scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    b = (np.array(size) - 1) / 2 - A @ centre
    smooth = cv2.GaussianBlur(image, (0, 0), 0.4 / scale) if scale < 1 else image
    return cv2.warpAffine(smooth, np.column_stack([A, b]), size), lambda xy: xy @ A.T + b


@pytest.mark.parametrize(("scale", "rotation", "size"), [(0.6, 100.0, (192, 192)), (1.7, -60.0, (320, 320))])
def test_keypoints_of_a_turned_and_resized_image_are_found(net, scale, rotation, size):
    image1, rng = photograph(), np.random.default_rng(0)
    image2, there = turned(image1, scale, rotation, size)
    xy1 = rng.uniform(8, np.array(image1.shape[1::-1]) - 9, (COUNT, 2))
    shuffled = rng.permutation(COUNT)
    found1, found2 = features(xy1), features(there(xy1)[shuffled])
    inside = ((found2.keypoints >= 0) & (found2.keypoints < size)).all(1)
    found2, shuffled = found2.take(inside), shuffled[inside]

    def right(options):
        indices, similarity = sparse.matched(net, image1, found1, image2, found2, options)
        assert (np.diff(indices[:, 0]) > 0).all() and len(np.unique(indices[:, 1])) == len(indices) and (similarity <= 1 + 1e-5).all()
        return (shuffled[indices[:, 1]] == indices[:, 0]).sum() / len(found2)

    search = net.options(max_scale=2, max_rotation_deg=90)
    np.testing.assert_allclose(sparse.pose(net, image1, found1, image2, found2, search), (scale, rotation), rtol=0.03)
    assert right(search) > 0.7 > 0.2 > right(net.options(max_scale=1))


def test_the_scale_is_that_of_the_images_as_given(net):
    """Image 2 is image 1 enlarged twice, so that the search sees the same picture."""
    image1 = photograph()
    image2 = cv2.resize(image1, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    xy1 = np.random.default_rng(0).uniform(8, np.array(image1.shape[1::-1]) - 9, (COUNT, 2))
    scale, rotation = sparse.pose(net, image1, features(xy1), image2, features(2 * xy1 + 0.5), net.options(max_scale=1.5))
    assert scale == pytest.approx(2, rel=0.02) and rotation == 0


def test_images_that_do_not_agree_stay_as_they_are(net):
    noise = np.random.default_rng(0).integers(0, 255, (2, 128, 128, 3)).astype(np.uint8)
    few = features([[20, 20], [60, 70], [90, 40], [30, 100]])
    assert sparse.pose(net, noise[0], few, noise[1], few, net.options(max_scale=1.5)) == (1.0, 0.0)
    assert sparse.pose(net, noise[0], few, noise[1], few, net.options(max_scale=1)) == (1.0, 0.0)


def test_a_crowd_of_keypoints_is_no_scale():
    """Any matches into few pixels agree with the similarity transform that shrinks image 1 to a point."""
    rng = np.random.default_rng(0)
    spread, crowd = features(rng.uniform(0, 256, (60, 2))), features(128 + rng.uniform(-3, 3, (60, 2)))

    class OnlyAtHalfScale:
        def describe_at(self, image, xy, diameters):
            return np.eye(60) if len(image) < 256 else rng.normal(size=(60, 60))

    image = np.zeros((256, 256, 3), np.uint8)
    options = predictor.load().options(max_scale=2)
    assert sparse.pose(OnlyAtHalfScale(), image, spread, image, crowd, options) == (1.0, 0.0)


def test_without_keypoints_there_is_no_match(net):
    image, none = photograph(64, 64), features(np.zeros((0, 2)))
    indices, similarity = sparse.matched(net, image, none, image, features([[9, 9]]), net.options())
    assert indices.shape == (0, 2) and similarity.shape == (0,)
