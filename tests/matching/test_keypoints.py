"""Detectors by name; SIFT and the grid."""

import cv2
import numpy as np
import pytest

from jaxdesc import cli
from jaxdesc.errors import UserError
from jaxdesc.evals.features import FeatureOptions
from jaxdesc.matching import keypoints
from tests.predict.test_predictor import noise


def test_sift_finds_blobs_where_they_are():
    y, x = np.mgrid[:120, :150]
    for centre, sigma in (((60, 50), 3), ((60.5, 50.25), 4), ((70, 61.75), 6)):
        blob = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
        found = keypoints.sift(np.stack([blob.astype(np.uint8)] * 3, -1), 5)
        np.testing.assert_allclose(found.xy_px[0], centre, atol=0.06)
        # a blob answers to a difference of Gaussians of about its own sigma; the support is 12 of those
        assert 0.75 * 12 * sigma < found.scale_px[0] < 1.1 * 12 * sigma
        assert len(np.unique(found.xy_px, axis=0)) == len(found.xy_px), (
            "orientations are not told apart"
        )


def test_sift_keeps_the_best():
    rgb = noise(120, 150)
    every, some = keypoints.sift(rgb, 10**6), keypoints.sift(rgb, 20)
    assert len(every.score) > 40 and len(some.score) == 20
    np.testing.assert_array_equal(some.score, np.sort(every.score)[::-1][:20])


def test_sift_counts_places_not_orientations():
    """The strongest different places that OpenCV's default finds, a quarter of a pixel back."""
    rgb = noise(120, 150)
    raw = cv2.SIFT_create().detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    contrast = {}
    for point in raw:
        contrast[point.pt] = max(point.response, contrast.get(point.pt, 0))
    strongest = sorted(contrast, key=contrast.get, reverse=True)[:40]
    assert len(contrast) < len(raw) and len(strongest) == 40
    found = keypoints.sift(rgb, 40)
    np.testing.assert_allclose(found.xy_px, np.array(strongest) - 0.25, atol=1e-5)


def test_grid():
    np.testing.assert_array_equal(
        keypoints.grid((9, 13), 100).xy_px, [[x, y] for y in (2, 6) for x in (2, 6, 10)]
    )
    found = keypoints.grid((480, 640), 1000)
    assert (
        700 < len(found.xy_px) <= 1000
        and (found.xy_px >= 0).all()
        and (found.xy_px < [640, 480]).all()
    )


@pytest.mark.parametrize("name", ["hessian", "hessian:1.2,2", "sift", "grid"])
def test_every_detector_takes_bytes_and_floats(name):
    rgb, detect = noise(70, 90), keypoints.find(name).detect
    of_bytes, of_floats = detect(rgb, 30), detect(rgb / np.float32(255), 30)
    np.testing.assert_allclose(of_floats.xy_px, of_bytes.xy_px, atol=1e-3)
    assert 0 < len(of_bytes.score) <= 30 and of_bytes.valid.all()
    for column, width in (("xy_px", (2,)), ("scale_px", ()), ("score", ())):
        values = getattr(of_bytes, column)
        assert values.dtype == np.float32 and values.shape == (len(of_bytes.score), *width)


def test_scales_are_part_of_hessians_name():
    two = keypoints.find("hessian:1.5,3").detect(noise(90, 100), 500)
    assert set(two.scale_px) == {18, 36}
    assert keypoints.find("orb") is None and not keypoints.is_detector("hessians.h5")
    assert keypoints.is_detector("own") and keypoints.find("own") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hessian:", "The keypoints hessian: are malformed: write hessian:1.2,1.7"),
        ("hessian:1.2;3", "hessian:1.2;3 are malformed"),
        ("hessian:1.2,0.1", "The scales of hessian, 1.2, 0.1, must be"),
        ("hessian:nan", "must be one or several numbers from 0.5 to 8 px"),
    ],
)
def test_scales_that_are_none(name, words):
    with pytest.raises(UserError, match=words):
        keypoints.find(name)


def test_a_file_remembers_which_version_found_its_keypoints(monkeypatch):
    before = keypoints.settings("hessian:2"), keypoints.settings("sift")
    assert before[1] == {"keypoints": "sift", "keypoints_version": keypoints.SIFT_VERSION}
    monkeypatch.setattr(keypoints.hessian, "VERSION", keypoints.hessian.VERSION + 1)
    after = keypoints.settings("hessian:2"), keypoints.settings("sift")
    assert after[0] != before[0] and after[1] == before[1]
    assert keypoints.settings("a.h5") == {"keypoints": "a.h5"}


def test_verbs_and_evaluations_have_one_default():
    """They repeat it, as they are not to load what knows it."""
    assert cli.DETECTOR == FeatureOptions().keypoints == keypoints.DEFAULT
