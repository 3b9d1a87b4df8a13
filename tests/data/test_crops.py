"""Crops of two photographs: windows, frames, noise and colours, recomputed slowly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdesc.data import crops
from jaxdesc.data.crops import CropConfig
from jaxdesc.data.kinds import HomographyPairs, UnlabelledPairs
from jaxdesc.types import Canvas, RawPair

CFG = CropConfig(
    crop_px=32, min_side_px=40, max_side_px=80, noise=0, swap_probability=0, flip_probability=0
)
STILL = dataclasses.replace(CFG, rotation_deg=0.0, aspect=1.0, crop_scale=1.0)


def drawn(kind, *arguments):
    return jax.jit(kind.draw, static_argnums=3)(*arguments)


def photographs(n=2, side=96, h=80, w=88):
    y, x = np.mgrid[:h, :w]
    image = np.zeros((n, side, side, 3), np.uint8)
    for i in range(n):
        image[i, :h, :w] = np.stack(
            [
                127 + 120 * np.sin(x / (9 + i)),
                127 + 120 * np.cos(y / 8),
                127 + 60 * np.sin((x + y) / 11),
            ],
            -1,
        ).astype(np.uint8)
    return Canvas(image=jnp.array(image), size_hw=jnp.tile(jnp.array([h, w]), (n, 1)))


def warped(cfg, seed=0, n=2, slots=None):
    slots = jnp.arange(n) if slots is None else slots
    return drawn(HomographyPairs(), jax.random.key(seed), photographs(n), slots, cfg)


def scale_and_view(H, crop):
    """Of two crops related by H, in float64: the median change of length over what both show,
    and the smaller of the two parts that each shows of the other; every fourth pixel counts."""
    H = np.asarray(H, np.float64)
    grid = np.mgrid[:crop:4, :crop:4][::-1].reshape(2, -1) + 1.5
    points = np.vstack([grid, np.ones(grid.shape[1])])

    def seen(A):
        x, y, w = A @ points
        return (
            (w > 0)
            & (np.abs(x / w - (crop - 1) / 2) <= crop / 2)
            & (np.abs(y / w - (crop - 1) / 2) <= crop / 2)
        )

    back = np.linalg.inv(H)
    forth, w = seen(H), H[2] @ points
    lengths = np.sqrt(np.abs(np.linalg.det(H) / w**3))
    return np.median(lengths[forth]) if forth.any() else np.inf, min(
        forth.mean(), seen(back / back[2, 2]).mean()
    )


@pytest.mark.parametrize(
    ("cfg", "canvas"),
    [(CropConfig(), 1024), (CropConfig(crop_px=128, min_side_px=256, max_side_px=768), 512)],
)
def test_crops_of_a_pair_show_the_same_part_at_the_same_scale(cfg, canvas):
    """With the paper's and the default's sizes: of 160 pairs at most 2 % differ in scale by more
    than 1.5, and at most 1 % share less than a quarter of a crop. Drawing looks at sizes only."""
    rng = np.random.default_rng(0)
    sizes = np.rint(canvas * np.stack([np.ones(160), rng.uniform(0.56, 0.8, 160)], -1)).astype(
        np.int32
    )
    sizes[::4] = sizes[::4, ::-1]
    photos = Canvas(image=jnp.zeros((160, 16, 16, 3), jnp.uint8), size_hw=jnp.array(sizes[:, ::-1]))
    homographies = jax.jit(
        lambda raw: HomographyPairs().draw(jax.random.key(0), raw, jnp.arange(160), cfg).H_1to2
    )(photos)
    scales, views = np.transpose([scale_and_view(H, cfg.crop_px) for H in homographies])
    assert (np.abs(np.log(scales)) > np.log(1.5)).mean() <= 0.02
    assert (views < 0.25).mean() <= 0.01
    assert np.log(scales).std() > 0.1  # the jitter is there


def test_windows_overlap_better_with_more_trials():
    rng = np.random.default_rng(0)
    xy = jnp.array(rng.uniform(0, 200, (64, 2)), jnp.float32)
    size = jnp.array([200.0, 200.0])

    def shared(trials):
        cfg = dataclasses.replace(CFG, trials=trials, crop_px=64)

        def one(key):
            common = crops.Common(xy, xy, jnp.ones(64), jnp.ones(64, bool))
            u = jax.random.uniform(key, (trials, crops.TRIAL))
            w1, w2, _ = crops.choose_windows(u, common, size, size, cfg)
            low, high = jnp.maximum(w1[:2], w2[:2]), jnp.minimum(w1[:2] + w1[2], w2[:2] + w2[2])
            return jnp.prod(jnp.maximum(high - low, 0)) / jnp.maximum(w1[2], w2[2]) ** 2

        return float(jax.vmap(one)(jax.random.split(jax.random.key(0), 64)).mean())

    assert shared(5) > shared(1) > 0.5


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_changes_colours_only(field):
    plain, changed = warped(CFG), warped(dataclasses.replace(CFG, **{field: 0.4}))
    np.testing.assert_allclose(plain.H_1to2, changed.H_1to2)
    assert float(jnp.abs(plain.image1 - changed.image1).mean()) > 0.005
    assert float(changed.image1.min()) >= 0 and float(changed.image1.max()) <= 1


@pytest.mark.parametrize("swap", [0.0, 1.0])
def test_noise_lies_on_the_pixels_of_image_2_and_is_resampled_with_its_crop(swap):
    """Gray photographs of 163, 82 and 41 px, rescaled to 163: the window of image 2 is one,
    two and four crops wide, at any place. Its noise is within +- 12.5, and has half and a
    quarter of the deviation where 2 x 2 and 4 x 4 pixels make one; images 1 have none. Where
    a pixel is a pixel, the deviation is 12.5 / sqrt(3), less where windows lie between them."""
    sides = np.repeat([163, 82, 41], 32)
    photos = Canvas(
        jnp.full((96, 176, 176, 3), 128, jnp.uint8), jnp.array(np.stack([sides, sides], -1))
    )
    cfg = dataclasses.replace(
        STILL, min_side_px=163, max_side_px=163, noise=CropConfig().noise, swap_probability=swap
    )
    pair = drawn(HomographyPairs(tilt=0.0), jax.random.key(0), photos, jnp.arange(96), cfg)
    np.testing.assert_allclose(pair.image1, 128 / 255, atol=1e-6)
    noise = (np.asarray(pair.image2) * 255 - 128).reshape(3, -1)
    assert 12 < np.abs(noise[0]).max() <= 12.5 + 1e-3
    deviations = noise.std(1)
    assert 0.5 * 12.5 / 3**0.5 < deviations[0] <= 12.5 / 3**0.5 * 1.01
    np.testing.assert_allclose(deviations[1:] / deviations[0], [1 / 2, 1 / 4], rtol=0.2)


def test_images_change_places_before_one_is_changed():
    """Photograph A is red and B blue: after the swap B is image 1, as it is, and A is image 2,
    turned: its frame is black where a corner of the photograph has turned in."""
    canvases = [
        Canvas(jnp.full((8, 96, 96, 3), jnp.array(colour, jnp.uint8)), jnp.full((8, 2), 96))
        for colour in ((200, 0, 0), (0, 0, 200))
    ]
    corner = jnp.full((8, 1, 4), 3.0)  # both windows lie in a corner
    raw = RawPair(
        *canvases,
        xy12_px=corner,
        log2_scale_1to2=jnp.zeros((8, 1)),
        turns_1to2=jnp.zeros((8, 1), jnp.int32),
        valid=jnp.ones((8, 1), bool),
    )
    cfg = dataclasses.replace(
        STILL, rotation_deg=20.0, min_side_px=96, max_side_px=96, swap_probability=1.0
    )
    pair = drawn(UnlabelledPairs(), jax.random.key(0), raw, jnp.arange(8), cfg)
    np.testing.assert_allclose(
        pair.image1, np.broadcast_to([0, 0, 200 / 255], pair.image1.shape), atol=1e-5
    )
    red, _, blue = np.moveaxis(np.asarray(pair.image2), -1, 0)
    assert not blue.any() and red.max() > 0.78 and (red == 0).mean() > 0.01


def test_rescaling_is_log_uniform_within_its_bounds():
    numbers = jax.random.uniform(jax.random.key(0), (500, crops.FRAME))
    cfg = dataclasses.replace(CFG, aspect=1.0)
    sizes = jax.vmap(lambda u: crops.random_frame(u, jnp.array([300.0, 200.0]), cfg)[1])(numbers)
    short = np.asarray(sizes.min(-1))
    assert 40 <= short.min() < 43 and 75 < short.max() <= 80.01
    np.testing.assert_allclose(np.log(short).mean(), (np.log(40) + np.log(80)) / 2, atol=0.03)
    np.testing.assert_allclose(sizes[:, 0] / sizes[:, 1], 1.5, rtol=1e-4)
