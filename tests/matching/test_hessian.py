"""The determinant of the Hessian against loops over pixels, and what must hold of any image."""

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from jaxdesc.errors import UserError
from jaxdesc.matching import hessian as H
from tests.predict.test_predictor import noise

SIDES = (60, 75)
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def textured(seed, size_hw=SIDES):
    """Smooth noise of several sizes (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.normal(size=size_hw), s) * s for s in (1, 2, 4)]
    gray = sum(layers)
    gray = 255 * (gray - gray.min()) / np.ptp(gray)
    return np.repeat(gray.astype(np.uint8)[..., None], 3, 2)


def waves(size_hw, sigma, seed=0):
    """A sum of plane waves, and its determinant in closed form: a Gaussian weakens the wave
    cos(k x + p) to exp(-sigma^2 k^2 / 2), and two derivatives multiply it by -k_i k_j."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(float)
    image, derivatives = 0, np.zeros((3, *size_hw))
    for k1, k2, phase in rng.uniform((-1, -1, 0), (1, 1, 6), (6, 3)):
        wave = 20 * np.cos(k1 * x + k2 * y + phase)
        image = image + wave
        weak = np.exp(-(sigma**2) * (k1**2 + k2**2) / 2) * wave
        derivatives -= np.array([k1 * k1, k2 * k2, k1 * k2])[:, None, None] * weak
    xx, yy, xy = derivatives
    return image, sigma**4 * (xx * yy - xy**2)


@pytest.mark.parametrize("sigma", [1.2, 1.5, 3.4])
def test_determinant_of_plane_waves(sigma):
    image, expected = waves((61, 80), sigma)
    found = H.determinant(image.astype(np.float32), sigma)[16:-16, 16:-16]
    expected = expected[16:-16, 16:-16]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def oracle(rgb, most, sigmas):
    """Rows x, y, 12 s, R_s by loops; scipy's derivatives of Gaussians in float64."""
    gray = rgb.astype(float) @ [0.299, 0.587, 0.114]
    height, width = gray.shape
    rows = []
    for s in sigmas:
        xx, yy, xy = (
            gaussian_filter(gray, s, order=o, truncate=8) for o in ((0, 2), (2, 0), (1, 1))
        )
        R = s**4 * (xx * yy - xy**2)
        for y in range(16, height - 16):
            for x in range(16, width - 16):
                around = R[y - 1 : y + 2, x - 1 : x + 2]
                if R[y, x] > 0 and R[y, x] == around.max():
                    rows.append([*peak(around, x, y), 12 * s, R[y, x]])
    rows.sort(key=lambda row: -row[3])
    kept = []
    for row in rows:
        if all(np.hypot(row[0] - k[0], row[1] - k[1]) > 2 for k in kept):
            kept.append(row)
    return np.array(kept[:most]).reshape(-1, 4)


def peak(v, x, y):
    """The top of the parabolas through the middle row and column of 3 x 3 values."""
    tops = []
    for line in (v[1], v[:, 1]):
        a, b, _ = np.polyfit([-1, 0, 1], line, 2)
        tops.append(-b / (2 * a))
    return np.array([x, y]) + tops


@pytest.mark.parametrize("sigmas", [(1.5,), (1.2, 1.7, 2.4, 3.4)])
@pytest.mark.parametrize("seed", range(3))
def test_keypoints_are_those_of_loops(seed, sigmas):
    rgb = noise(61, 78, seed) if seed else textured(seed)
    expected = oracle(rgb, 40, sigmas)
    found = H.hessian(rgb, 40, sigmas)
    assert len(expected) > 20, "nothing is shown by a few"
    np.testing.assert_allclose(found.score, expected[:, 3], rtol=2e-3)
    np.testing.assert_allclose(found.xy_px, expected[:, :2], atol=0.02)
    np.testing.assert_allclose(found.scale_px, expected[:, 2], rtol=1e-6)


def test_blobs_are_found_where_they_are():
    y, x = np.mgrid[:80, :90]
    for centre in ((40, 35), (40.4, 35.25), (51.5, 40.1)):
        blob = 200 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 2.0**2))
        found = H.hessian(np.repeat((blob / 255).astype(np.float32)[..., None], 3, 2), 5)
        np.testing.assert_allclose(found.xy_px[0], centre, atol=0.03)


@few
@given(seeds, st.integers(0, 9), st.integers(0, 9))
def test_moving_the_image_moves_the_keypoints(seed, dx, dy):
    whole = noise(90, 95, seed % 1000)
    a, b = whole[9:81, 9:86], whole[9 - dy : 81 - dy, 9 - dx : 86 - dx]
    xy1, xy2 = H.hessian(a, 10**6).xy_px + np.array([dx, dy]), H.hessian(b, 10**6).xy_px
    low, high = np.array([27, 27]), np.array([77 - 18, 72 - 18])  # inside of both, thinning too
    xy1, xy2 = (xy[((xy > low) & (xy < high)).all(1)] for xy in (xy1, xy2))
    assert len(xy1)
    distance = np.linalg.norm(xy1[:, None] - xy2, axis=-1)
    assert np.mean(distance.min(1) < 1e-3) > 0.95, "but for chains of thinning from outside"


@few
@given(seeds)
def test_transposing_the_image_transposes_the_keypoints(seed):
    rgb = textured(seed)
    one, other = H.hessian(rgb, 500), H.hessian(rgb.swapaxes(0, 1), 500)
    np.testing.assert_allclose(np.sort(one.score), np.sort(other.score), rtol=1e-3, atol=1e-3)
    distance = np.linalg.norm(one.xy_px[:, None] - other.xy_px[:, ::-1], axis=-1)
    assert (distance.min(1) < 1e-2).all()


@few
@given(seeds, st.floats(0.1, 1))
def test_brightness_does_not_change_the_order(seed, factor):
    rgb = textured(seed).astype(np.float32) / 255
    one, other = H.hessian(rgb, 100), H.hessian(np.float32(factor) * rgb, 100)
    np.testing.assert_allclose(other.score, factor**2 * one.score, rtol=1e-3)
    chex.assert_trees_all_close(one.xy_px, other.xy_px, atol=1e-2)


@few
@given(seeds, st.integers(1, 20))
def test_the_best_ones_come_first_and_apart(seed, most):
    every, some = H.hessian(textured(seed), 10**6), H.hessian(textured(seed), most)
    assert (np.diff(every.score) <= 0).all() and len(every.score) > most
    np.testing.assert_array_equal(some.xy_px, every.xy_px[:most])
    distance = np.linalg.norm(every.xy_px[:, None] - every.xy_px, axis=-1)
    assert distance[~np.eye(len(distance), dtype=bool)].min() > H.APART_PX
    assert (every.xy_px >= 15.5).all() and (every.xy_px <= np.array(SIDES[::-1]) - 16.5).all()


@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_image_without_structure_has_no_keypoints(value):
    y, x = np.mgrid[:50, :60]
    flat = np.full((50, 60, 3), value, np.uint8)
    plane = np.repeat(((x + 2 * y) / 200).astype(np.float32)[..., None], 3, 2)
    for image in (flat, flat / np.float32(255), plane):
        chex.assert_shape(H.hessian(image, 10).xy_px, (0, 2))


@pytest.mark.parametrize("size_hw", [(1, 1), (2, 40), (32, 200), (16, 16), (33, 33), (34, 33)])
def test_tiny_images(size_hw):
    found = H.hessian(noise(*size_hw), 10)
    inside = max(size_hw[0] - 32, 0) * max(size_hw[1] - 32, 0)
    assert len(found.score) <= inside and found.xy_px.shape == (len(found.score), 2)


@pytest.mark.parametrize("sigmas", [(), (0.2,), (1.5, 9), (float("nan"),)])
def test_scales_that_are_none(sigmas):
    with pytest.raises(UserError, match="must be one or several numbers from"):
        H.hessian(noise(40, 40), 10, sigmas)
