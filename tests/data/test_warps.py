"""Warped photographs: their pixels and their true positions must tell the same story, slowly recomputed."""

from functools import partial

import jax
import numpy as np

from jaxdesc.config import DrawConfig
from jaxdesc.data.kinds.keypoints import KeypointPairs, RawKeypointPair
from jaxdesc.data.warps import WarpConfig, random_warp
from jaxdesc.ops import resample, tps
from jaxdesc.types import Canvas

SIDE, CELLS = 48, 6
CFG = WarpConfig()
STILL = DrawConfig(flip_probability=0.0)
warped_pairs = jax.jit(partial(KeypointPairs(image_px=SIDE, warp=CFG).draw, cfg=STILL))
HW = np.array([[96, 128], [120, 72], [128, 128]], np.int32)


def ramps():
    """Photographs whose red and green say where they are: R = x / W, G = y / H of the pixel's centre."""
    images = np.zeros((3, 128, 128, 3), np.uint8)
    for image, (h, w) in zip(images, HW, strict=True):
        y, x = np.mgrid[:h, :w]
        image[:h, :w] = np.stack([255 * (x + 0.5) / w, 255 * (y + 0.5) / h, 128 + 0 * x], -1).round()
    return Canvas(images, HW)


def draw(key, photos, slot):
    """Warped pairs with a keypoint at the centre of every cell."""
    zeros, no = np.zeros((len(slot), CELLS**2, 2), np.float32), np.zeros(len(slot), bool)
    return warped_pairs(key, RawKeypointPair(photos, photos, zeros, zeros, np.zeros(zeros.shape[:2], bool), no, ~no), slot)


PAIR = draw(jax.random.key(3), ramps(), np.array([0, 5, 9], np.int32))


def test_pixels_show_what_the_true_positions_say():
    """Colours of image 1 at a cell's centre name the place in the photograph that the warp sends the cell to."""
    for b in range(3):
        truth = (np.asarray(PAIR.xy2_px[b]) + 0.5) / SIDE
        margin = (np.abs(truth - 0.5) < 0.45).all(1) & np.asarray(PAIR.valid[b])
        x, y = np.asarray(PAIR.xy1_px[b]).T
        corners = np.asarray(PAIR.image1[b])[np.floor(y).astype(int)[:, None] + [0, 0, 1, 1], np.floor(x).astype(int)[:, None] + [0, 1, 0, 1]]
        np.testing.assert_allclose(corners.mean(1)[margin, :2], truth[margin], atol=0.01)  # cells of 8 px: their centres lie between four pixels
        assert margin.sum() > 10
        still = (np.mgrid[:SIDE, :SIDE][::-1].transpose(1, 2, 0) + 0.5) / SIDE
        inner = slice(3, -3)
        np.testing.assert_allclose(PAIR.image2[b][inner, inner, :2], still[inner, inner], atol=0.01)
    np.testing.assert_allclose(np.asarray(PAIR.image1)[..., 2], 128 / 255, atol=1e-3)  # no black border, mirrored or not


def test_validity_is_being_on_the_photograph():
    xy2 = np.asarray(PAIR.xy2_px)
    valid = np.asarray(PAIR.valid)
    assert ((xy2 >= -0.51) & (xy2 <= SIDE - 0.49)).all() and valid.any() and not valid.all()
    expected = np.array([[8 * u + 3.5, 8 * v + 3.5] for v in range(CELLS) for u in range(CELLS)])
    for b in range(3):
        np.testing.assert_allclose(PAIR.xy1_px[b][valid[b]], expected[valid[b]], atol=1e-5)


def test_draws_depend_on_key_and_slot_alone():
    raw = ramps()
    again = draw(jax.random.key(3), Canvas(raw.image[::-1], HW[::-1]), np.array([9, 5, 0], np.int32))
    np.testing.assert_array_equal(PAIR.xy2_px, again.xy2_px[::-1])
    other = draw(jax.random.key(4), raw, np.array([0, 5, 9], np.int32))
    assert np.abs(np.asarray(other.xy2_px - PAIR.xy2_px)).max() > 1
    assert np.abs(np.asarray(PAIR.xy2_px[0] - PAIR.xy2_px[1])).max() > 1


def test_ranges_of_the_warps():
    A, moved = (np.asarray(x) for x in jax.jit(jax.vmap(partial(random_warp, cfg=CFG)))(jax.random.split(jax.random.key(0), 4000)))
    scale = np.hypot(A[:, 0, 0], A[:, 1, 0])
    angle = np.degrees(np.arctan2(A[:, 1, 0], A[:, 0, 0]))
    shift = A[:, :, :2] @ [0.5, 0.5] + A[:, :, 2] - 0.5
    for values, low, high in ((scale, 0.8, 1.2), (angle, -10, 10), (moved, -0.1, 0.1)):
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.03 * (high - low))
        np.testing.assert_allclose(values.std(), (high - low) / 12**0.5, rtol=0.05)  # uniform
    assert np.abs(shift).max() <= 0.15 + 1e-5
    np.testing.assert_allclose((np.abs(shift) > 0.0749).mean(), 0.3173, atol=0.03)  # beyond one standard deviation
    np.testing.assert_allclose((np.abs(shift) > 0.1499).mean(), 0.0455, atol=0.01)  # cut off at two
    assert moved.shape == (4000, 9, 2)


def test_shrinking_averages():
    """Stripes of one pixel become gray where eight pixels fall on one sample, and stay stripes where one does."""
    canvas = np.zeros((64, 64, 3), np.uint8)
    canvas[:, ::2] = 255
    size = np.array([64, 64])
    seen = jax.jit(resample.resample)
    whole = tps.px_from_unit(tps.unit_grid(8, 8), size)
    np.testing.assert_allclose(resample.detail_of(whole), 3, atol=1e-5)
    np.testing.assert_allclose(seen(canvas, size, whole, resample.detail_of(whole)), 0.5, atol=0.01)
    part = whole / 8
    np.testing.assert_allclose(resample.detail_of(part), 0, atol=1e-5)
    columns = np.asarray(part)[0, :, 0]
    stripes = np.interp(columns, np.arange(64), np.arange(64) % 2 == 0)
    np.testing.assert_allclose(seen(canvas, size, part, resample.detail_of(part))[3, :, 0], stripes, atol=1e-4)
