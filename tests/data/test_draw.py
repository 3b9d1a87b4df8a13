import dataclasses
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from jaxdesc.config import DataConfig, DrawConfig, Source
from jaxdesc.data import draw
from jaxdesc.data.pipeline import open_data
from jaxdesc.ops.geometry import apply_homography
from jaxdesc.types import Canvas, RawPair

CFG = DrawConfig(crop_px=32, min_side_px=40, max_side_px=80, noise=0, swap_probability=0, flip_probability=0)
STILL = dataclasses.replace(CFG, tilt=0.0, rotation_deg=0.0, aspect=1.0, crop_scale=1.0)
drawn = jax.jit(draw.draw_batch, static_argnums=2)


def photographs(n=2, side=96, h=80, w=88):
    y, x = np.mgrid[:h, :w]
    image = np.zeros((n, side, side, 3), np.uint8)
    for i in range(n):
        image[i, :h, :w] = np.stack([127 + 120 * np.sin(x / (9 + i)), 127 + 120 * np.cos(y / 8), 127 + 60 * np.sin((x + y) / 11)], -1).astype(np.uint8)
    return Canvas(image=jnp.array(image), size_hw=jnp.tile(jnp.array([h, w]), (n, 1)))


def synthetic(cfg, seed=0, n=2, slots=None):
    slots = jnp.arange(n) if slots is None else slots
    return drawn(jax.random.key(seed), {"synthetic": (photographs(n), slots)}, cfg)["synthetic"]


@pytest.mark.parametrize("flags", [{}, {"swap_probability": 1.0}, {"flip_probability": 1.0}, {"swap_probability": 1.0, "flip_probability": 1.0}])
def test_the_homography_relates_the_two_crops(flags):
    """Colours at p in image 1 and at H p in image 2 agree wherever H p lies inside."""
    pair = synthetic(dataclasses.replace(CFG, **flags), n=4)
    assert pair.image1.shape == (4, 32, 32, 3)
    assert (np.abs(pair.H_1to2[:, 2, :2]).max(-1) > 1e-5).all()  # one of the two is tilted
    shared = 0
    for i in range(4):
        y, x = np.mgrid[2:30, 2:30]
        q = np.asarray(apply_homography(pair.H_1to2[i], jnp.stack([x, y], -1).astype(jnp.float32)))
        inside = ((q >= 1) & (q <= 29)).all(-1)
        nearest = np.round(q[inside]).astype(int)
        first, second = np.asarray(pair.image1[i])[2:30, 2:30][inside], np.asarray(pair.image2[i])[nearest[:, 1], nearest[:, 0]]
        lit = (first.min(-1) > 0.02) & (second.min(-1) > 0.02)  # not beyond the photograph
        shared += lit.sum()
        if lit.any():
            assert np.median(np.abs(first - second)[lit]) < 0.04
    assert shared > 300


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
    [(DrawConfig(), 1024), (DrawConfig(crop_px=128, min_side_px=256, max_side_px=768), 512)],
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
        lambda raw: draw.draw_batch(jax.random.key(0), raw, cfg)["synthetic"].H_1to2
    )({"synthetic": (photos, jnp.arange(160))})
    scales, views = np.transpose([scale_and_view(H, cfg.crop_px) for H in homographies])
    assert (np.abs(np.log(scales)) > np.log(1.5)).mean() <= 0.02
    assert (views < 0.25).mean() <= 0.01
    assert np.log(scales).std() > 0.1  # the jitter is there


def test_draws_follow_the_slot_not_the_place():
    """An example looks the same wherever it stands in a device's rows; another slot or step looks different."""
    both = synthetic(CFG, n=2)
    reversed_rows = jax.tree.map(lambda x: x[::-1], photographs(2)), jnp.array([1, 0])
    swapped = drawn(jax.random.key(0), {"synthetic": reversed_rows}, CFG)["synthetic"]
    np.testing.assert_allclose(both.image2[0], swapped.image2[1], atol=1e-6)
    assert float(jnp.abs(both.H_1to2[0] - synthetic(CFG, seed=1).H_1to2[0]).max()) > 1e-3
    assert float(jnp.abs(both.H_1to2[0] - synthetic(CFG, slots=jnp.array([5, 6])).H_1to2[0]).max()) > 1e-3


def test_real_pairs_see_the_same_part():
    """Two copies of one photograph with sparse correspondences: the crops overlap and carry no homography."""
    canvases = photographs(6)
    rng = np.random.default_rng(0)
    points = rng.uniform([0, 0], [88, 80], (6, 20, 2)).astype(np.float32)
    raw = RawPair(
        canvas1=canvases,
        canvas2=canvases,
        xy12_px=jnp.array(np.tile(points, 2)),
        log2_scale_1to2=jnp.zeros((6, 20)),
        turns_1to2=jnp.zeros((6, 20), jnp.int32),
        valid=jnp.arange(20)[None] < jnp.array([20, 15, 10, 4, 1, 0])[:, None],
    )
    cfg = dataclasses.replace(CFG, tilt=0.0, rotation_deg=0.0, aspect=1.0)
    pair = drawn(jax.random.key(0), {"real": (raw, jnp.arange(6))}, cfg)["real"]
    assert pair.H_1to2 is None
    chex.assert_tree_all_finite((pair.image1, pair.image2))
    assert float(pair.image1.min()) > 0 and float(pair.image1.mean()) > 0.3  # windows stay inside the photograph


SCENE = np.asarray(Image.open(Path(skimage.data.__file__).parent / "astronaut.png"))[
    80:180, 160:280
]
VIEWS = {  # image 2 of image 1 (100 rows, 120 columns), where a place (x, y) lies in it, code
    "clockwise": (lambda a: np.rot90(a, -1), lambda x, y: (99 - y, x), 2),
    "counter": (lambda a: np.rot90(a), lambda x, y: (y, 119 - x), 6),
    "around": (lambda a: np.rot90(a, 2), lambda x, y: (119 - x, 99 - y), 4),
    "twice": (lambda a: a.repeat(2, 0).repeat(2, 1), lambda x, y: (2 * x + 0.5, 2 * y + 0.5), 16),
    "half_clockwise": (
        lambda a: np.rot90(a[::2, ::2], -1),
        lambda x, y: (49 - y / 2, x / 2),
        -16 + 2,
    ),
}


@pytest.mark.parametrize("coded", [True, False])
def test_real_crops_are_upright_and_of_one_scale(tmp_path, coded):
    """Image 2 turned clockwise as seen (np.rot90(k=-1)) has code 2: its crop is turned back, and
    its window is as large as it has to be. Without codes the correspondences say the same."""
    os.mkdir(tmp_path / "corres")
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    xy1 = np.random.default_rng(0).uniform([30, 30], [90, 70], (40, 2))
    for name, (change, place, code) in VIEWS.items():
        Image.fromarray(np.ascontiguousarray(change(SCENE))).save(tmp_path / f"{name}.png")
        rows = np.array([[x, y, *place(x, y), 1.0, code] for x, y in xy1])
        np.save(tmp_path / "corres" / f"a_{name}.npy", rows if coded else rows[:, :4])
    (tmp_path / "pairs.txt").write_text("".join(f"a.png {name}.png\n" for name in VIEWS))
    data = DataConfig(
        real=(Source("pairs", str(tmp_path)),),
        synthetic_per_batch=0,
        real_per_batch=5,
        canvas_px=240,
        cache=str(tmp_path / "cache"),
    )
    raw = next(open_data(data, 0).batches(0))
    for swap in (0.0, 1.0):
        pair = drawn(
            jax.random.key(0),
            raw,
            dataclasses.replace(STILL, min_side_px=100, max_side_px=100, swap_probability=swap),
        )["real"]
        for one, two in zip(np.asarray(pair.image1), np.asarray(pair.image2), strict=True):
            assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.9


def test_windows_overlap_better_with_more_trials():
    rng = np.random.default_rng(0)
    xy = jnp.array(rng.uniform(0, 200, (64, 2)), jnp.float32)
    size = jnp.array([200.0, 200.0])

    def shared(trials):
        cfg = dataclasses.replace(CFG, trials=trials, crop_px=64)

        def one(key):
            common = draw.Common(xy, xy, jnp.ones(64), jnp.ones(64, bool))
            u = jax.random.uniform(key, (trials, draw.TRIAL))
            w1, w2, _ = draw.choose_windows(u, common, size, size, cfg)
            low, high = jnp.maximum(w1[:2], w2[:2]), jnp.minimum(w1[:2] + w1[2], w2[:2] + w2[2])
            return jnp.prod(jnp.maximum(high - low, 0)) / jnp.maximum(w1[2], w2[2]) ** 2

        return float(jax.vmap(one)(jax.random.split(jax.random.key(0), 64)).mean())

    assert shared(5) > shared(1) > 0.5


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_change_changes_colours_only(field):
    plain, changed = synthetic(CFG), synthetic(dataclasses.replace(CFG, **{field: 0.4}))
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
        STILL, min_side_px=163, max_side_px=163, noise=DrawConfig().noise, swap_probability=swap
    )
    pair = drawn(jax.random.key(0), {"synthetic": (photos, jnp.arange(96))}, cfg)["synthetic"]
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
    pair = drawn(jax.random.key(0), {"real": (raw, jnp.arange(8))}, cfg)["real"]
    np.testing.assert_allclose(
        pair.image1, np.broadcast_to([0, 0, 200 / 255], pair.image1.shape), atol=1e-5
    )
    red, _, blue = np.moveaxis(np.asarray(pair.image2), -1, 0)
    assert not blue.any() and red.max() > 0.78 and (red == 0).mean() > 0.01


def test_rescaling_is_log_uniform_within_its_bounds():
    numbers = jax.random.uniform(jax.random.key(0), (500, draw.FRAME))
    cfg = dataclasses.replace(CFG, aspect=1.0)
    sizes = jax.vmap(lambda u: draw.random_frame(u, jnp.array([300.0, 200.0]), cfg)[1])(numbers)
    short = np.asarray(sizes.min(-1))
    assert 40 <= short.min() < 43 and 75 < short.max() <= 80.01
    np.testing.assert_allclose(np.log(short).mean(), (np.log(40) + np.log(80)) / 2, atol=0.03)
    np.testing.assert_allclose(sizes[:, 0] / sizes[:, 1], 1.5, rtol=1e-4)
