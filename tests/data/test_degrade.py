"""Light, blur and compression against scipy, OpenCV, Pillow's JPEG and closed forms."""

import io
from dataclasses import replace

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy.ndimage import gaussian_filter

from jaxdesc.data import degrade
from jaxdesc.data.kinds import CropConfig, HomographyPairs
from jaxdesc.types import Canvas

CFG = CropConfig(crop_px=64)
FULL, SPARED = 1.0, 0.25  # numbers that mean the full strength, and none


def photograph(side=64, at=(100, 150)):
    return skimage.data.astronaut()[at[0] : at[0] + side, at[1] : at[1] + side] / np.float32(255)


@pytest.mark.parametrize("sigma", [0.7, 1.5, 2.5])
def test_blur_is_a_gaussian(sigma):
    image = photograph()
    cfg = replace(CFG, blur_px=sigma)
    found = degrade.blur(jnp.array([FULL, SPARED, 0.3]), image, cfg)
    oracle = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="reflect", truncate=8)
    # a sampled Gaussian and a sampled transform differ where sigma is below a pixel
    np.testing.assert_allclose(found, oracle, atol=2e-2 if sigma < 1 else 1e-4)


@pytest.mark.parametrize("direction", [0.0, 0.5])
def test_motion_weakens_waves_as_a_mean_over_a_stroke_does(direction):
    """The mean of cos(2 pi f x) over a length l is sinc(l f) cos(2 pi f x)."""
    side, f, length = 96, 1 / 16, 6.0
    wave = np.cos(2 * np.pi * f * (np.arange(side) + 0.5))
    image = np.broadcast_to((0.5 + 0.4 * wave)[None, :, None], (side, side, 3)).astype(np.float32)
    cfg = replace(CFG, motion_px=length)
    found = degrade.blur(jnp.array([SPARED, FULL, direction]), image, cfg)
    weaker = np.sinc(length * f) if direction == 0 else 1.0  # across the wave, or along it
    middle = slice(24, -24)
    oracle = 0.5 + 0.4 * weaker * wave
    np.testing.assert_allclose(found[middle, middle, 1], np.tile(oracle[middle], (48, 1)), atol=2e-3)


@pytest.mark.parametrize("quality", [10, 30, 75, 90])
@pytest.mark.parametrize("side", [64, 61])
def test_compression_is_that_of_a_jpeg_file(quality, side):
    image = photograph(side)
    file = io.BytesIO()
    levels = Image.fromarray(np.round(255 * image).astype(np.uint8))
    levels.save(file, "JPEG", quality=quality, subsampling=0)
    oracle = np.asarray(Image.open(file), np.float32)
    found = 255 * degrade.compress(jnp.array([FULL, 0, 0]), image, replace(CFG, jpeg_quality=quality))
    assert np.abs(oracle - 255 * image).mean() > 1  # it does something
    # files round luma, chroma, waves and colours to whole numbers
    assert np.abs((found - oracle) @ degrade.YCBCR[0]).mean() < 0.9
    assert np.abs(found - oracle).mean() < 1.1


def test_blocks_begin_anywhere():
    image, cfg = photograph(), replace(CFG, jpeg_quality=10)
    at_three = degrade.compress(jnp.array([FULL, 3.5 / 8, 3.5 / 8]), image, cfg)
    shifted = np.roll(image, (3, 3), (0, 1))
    oracle = np.roll(degrade.compress(jnp.array([FULL, 0, 0]), shifted, cfg), (-3, -3), (0, 1))
    np.testing.assert_allclose(at_three, oracle, atol=1e-5)


def test_light_is_a_smooth_factor_and_an_exponent():
    image, rng = photograph(), np.random.default_rng(0)
    knots = rng.uniform(size=(3, 3)).astype(np.float32)
    cfg = replace(CFG, shade=0.6, gamma=2.0)
    field = cv2.resize(2 * knots - 1, (64, 64), interpolation=cv2.INTER_LINEAR)[..., None]
    shaded = np.clip(image * (1 + 0.6 * field), 0, 1)
    for bend, exponent in ((0.0, 0.5), (1.0, 2.0), (0.6, 1.0), (0.125, 2**-0.5)):
        u = jnp.array([*knots.ravel(), FULL, bend])
        np.testing.assert_allclose(
            degrade.light(u, image, cfg), np.maximum(shaded, 1e-4) ** exponent, atol=1e-5
        )


def test_half_of_the_images_are_spared():
    u = jnp.linspace(0, 1, 1001)
    found = np.asarray(degrade.strength(u))
    assert (found[:501] == 0).all()
    np.testing.assert_allclose(found[501:], 2 * np.asarray(u)[501:] - 1, atol=1e-6)


class Spared(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_what_is_spared_or_not_asked_for_is_left_as_it_is(self):
        image = photograph()
        wild = replace(CFG, shade=0.9, gamma=3.0, blur_px=3.0, motion_px=9.0, jpeg_quality=10)
        spared = jnp.full(degrade.LIGHT + degrade.BLUR + degrade.JPEG, SPARED)
        spared = spared.at[degrade.LIGHT - 1].set(0.5)  # the exponent's middle
        for cfg, u, tolerance in ((wild, spared, 1e-5), (CFG, jnp.ones_like(spared), 0)):

            def changed(image, u=u, cfg=cfg):
                some = degrade.Changes(cfg, u)
                return some.compressed(some.blurred(some.lit(image)))

            found = self.variant(changed)(image)
            np.testing.assert_allclose(found, np.maximum(image, 1e-4) if tolerance else image, atol=tolerance)


def batch(cfg, step=None, n=4, tilt=0.5):
    image = np.zeros((n, 128, 128, 3), np.uint8)
    image[:, :120, :112] = np.round(255 * photograph(128)[:120, :112])
    canvas = Canvas(jnp.array(image), jnp.tile(jnp.array([120, 112]), (n, 1)))
    draw = jax.jit(HomographyPairs(tilt=tilt).draw, static_argnums=3)
    return draw(jax.random.key(1), canvas, jnp.arange(n), cfg, step)


def test_both_crops_of_a_pair_change_and_differently():
    still = CropConfig(
        crop_px=64, min_side_px=112, max_side_px=112, noise=0, rotation_deg=0, aspect=1,
        crop_scale=1, flip_probability=0,
    )  # fmt: skip
    plain = batch(still, n=16, tilt=0.0)
    changed = batch(replace(still, jpeg_quality=10), n=16, tilt=0.0)
    moved1, moved2 = (
        np.abs(a - b).max((1, 2, 3)) > 0.02
        for a, b in ((plain.image1, changed.image1), (plain.image2, changed.image2))
    )
    for moved in (moved1, moved2):
        assert 2 <= moved.sum() <= 14
    assert (moved1 != moved2).any()
    np.testing.assert_array_equal(plain.H_1to2, changed.H_1to2)


def test_geometry_grows_with_the_steps():
    """None at step 0, the whole of it from `ramp_steps` on, and in between in between."""
    cfg = CropConfig(crop_px=32, min_side_px=60, max_side_px=240, noise=0)
    ramp = replace(cfg, ramp_steps=100)

    def wildness(H):
        scale = np.log(np.abs(np.linalg.det(np.asarray(H)[:, :2, :2]))) / 2
        return np.abs(scale).mean(), np.abs(np.asarray(H)[:, 2, :2]).mean()

    whole = wildness(batch(cfg, n=32).H_1to2)
    start, half = (wildness(batch(ramp, jnp.array(s), n=32).H_1to2) for s in (0, 50))
    assert max(start) < 1e-3
    assert all(0.2 * b < a < 0.9 * b for a, b in zip(half, whole, strict=True))
    for step in (100, 1000):
        chex.assert_trees_all_close(batch(ramp, jnp.array(step)), batch(cfg), atol=1e-5)
    chex.assert_trees_all_close(batch(ramp), batch(cfg), atol=1e-5)  # held-out pairs
