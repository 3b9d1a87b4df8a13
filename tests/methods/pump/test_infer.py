import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from jaxdesc.matching.views import Crop, poses, view
from jaxdesc.methods import METHODS, pump
from jaxdesc.methods.pump import single
from jaxdesc.methods.pump.infer import match_images, predict_images_bytes
from jaxdesc.methods.pump.matching_pyramid import geometry
from jaxdesc.methods.pump.multiscale import Run, merge
from jaxdesc.methods.pump.recursive import tile_corners, tile_pairs
from jaxdesc.methods.pump.single import MatchOptions, match_descriptors, predict_bytes
from jaxdesc.ops.matching import decode_pose, encode_pose
from jaxdesc.types import Pair, UserError

FAST = {"levels": 2, "min_component": 0}  # two levels: programs that compile in a second


def texture(seed, height, width):
    x = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (2, 2, 0))
    return ((x - x.min()) / np.ptp(x)).astype(np.float32)


@jax.jit
def describe(images):
    """Random projections of 11x11 windows without their mean: what a network of one layer would see."""
    window = np.outer(*[np.exp(-(np.mgrid[-5:6] ** 2) / 12.5)] * 2)
    kernel = np.random.default_rng(0).normal(size=(11, 11, 1, 24)) * window[..., None, None]
    kernel -= kernel.mean((0, 1))
    y = jax.lax.conv_general_dilated(images.mean(-1, keepdims=True), jnp.float32(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y / (jnp.linalg.norm(y, axis=-1, keepdims=True) + 1e-3)


def units(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.array(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


# One scale


def test_descriptors_to_correspondences_whatever_the_memory():
    desc1 = units(0, 30, 42, 16)
    desc2 = jnp.roll(desc1, (3, -2), (0, 1))[:28, :39]
    rich, poor = (match_descriptors(desc1, desc2, MatchOptions(storage="float32", levels=2, memory_bytes=bytes_)) for bytes_ in (1 << 30, 1))
    kept = np.asarray(rich.valid)
    np.testing.assert_array_equal(kept, poor.valid)
    np.testing.assert_array_equal(rich.xy2_px, poor.xy2_px)
    assert kept.sum() > 30 and rich.xy1_px.shape == (7 * 10, 2) and tuple(rich.xy1_px[1]) == (6, 2)
    flow = np.asarray(rich.xy2_px - rich.xy1_px)[kept]
    assert np.mean(np.all(flow == [-2, 3], 1)) > 0.9
    assert (np.asarray(rich.score)[kept] > 0).all()


@pytest.mark.parametrize(("storage", "budget"), [("float16", 1), ("float16", 1 << 40), ("float32", 1), ("float32", 1 << 40)])
def test_memory_is_predicted(budget, storage):
    options, dim, size1, size2 = MatchOptions(storage=storage, memory_bytes=budget, levels=2), 32, (64, 96), (96, 64)
    shapes = [jax.ShapeDtypeStruct((*size, dim), jnp.float32) for size in (size1, size2)]
    keep = single._keeps(size1, size2, dim, options)
    program = single._match_fields.lower(*shapes, geometry(size1, size2, 2), None, keep=keep, dtype=jnp.dtype(storage)).compile().memory_analysis()
    measured = program.temp_size_in_bytes + program.argument_size_in_bytes + program.output_size_in_bytes
    assert keep == (budget > 1)
    assert 0.8 < predict_bytes(size1, size2, dim, options) / measured < 1.2


def test_a_program_serves_all_sizes_of_a_bucket():
    desc1, desc2 = units(1, 64, 64, 4), units(2, 64, 64, 4)
    options = MatchOptions(levels=1, memory_bytes=1 << 30)
    before = single._match_fields._cache_size()
    for size in ((64, 64), (50, 33), (41, 60)):
        found = match_descriptors(desc1, desc2, options, size1_hw=size, size2_hw=size)
        inside = np.asarray(found.xy2_px)[np.asarray(found.valid)]
        assert len(inside) and (inside < size[::-1]).all()
    assert single._match_fields._cache_size() - before == 1


# Scales and rotations


def test_poses_and_codes():
    assert poses(MatchOptions(max_scale=1)) == [(1.0, 0.0)]
    assert [round(scale, 3) for scale, _ in poses(MatchOptions())] == [0.25, 0.354, 0.5, 0.707, 1, 1.414, 2, 2.828, 4]
    rotations = [rotation for _, rotation in poses(MatchOptions(max_scale=1, max_rotation_deg=180))]
    assert rotations == [-135, -90, -45, 0, 45, 90, 135, 180]
    for scale, rotation in poses(MatchOptions(max_rotation_deg=180)):
        found = decode_pose(encode_pose(scale, rotation))
        np.testing.assert_allclose(found, (scale, rotation))
    assert encode_pose(2.0, 0.0) == 16 and encode_pose(0.5, -90.0) == -16 + 6


def turned(image, scale, rotation_deg, size_hw):
    """Image 2, in which a displacement d of image 1 is scale * R(rotation) d, and the map of points."""
    t = np.radians(rotation_deg)
    A = scale * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    c1, c2 = (np.array(size[1::-1]) / 2 - 0.5 for size in (image.shape[:2], size_hw))
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    source = (np.stack([x, y], -1) - c2) @ np.linalg.inv(A).T + c1
    smooth = gaussian_filter(image, (0.5 / scale if scale < 1 else 0,) * 2 + (0,))
    out = np.stack([map_coordinates(smooth[..., k], np.moveaxis(source, -1, 0)[::-1], order=1, mode="constant") for k in range(3)], -1)
    return out.astype(np.float32), lambda xy: (xy - c1) @ A.T + c2


@pytest.mark.parametrize(
    ("scale", "rotation", "size2", "options"),
    [
        (0.5, 0, (48, 64), {"max_scale": 2}),
        (1.0, 90, (64, 64), {"max_scale": 1, "max_rotation_deg": 90}),
        (1.0, -45, (64, 64), {"max_scale": 1, "max_rotation_deg": 45}),
    ],
)
def test_scale_and_rotation_are_found(scale, rotation, size2, options):
    image1 = texture(3, *((64, 64) if rotation else (96, 128)))
    image2, truth = turned(image1, scale, rotation, size2)
    rows = match_images(describe, image1, image2, MatchOptions(**options, **FAST))
    good = np.hypot(*(truth(rows[:, :2]) - rows[:, 2:4]).T) <= 3 / min(1, scale) ** 0.5
    code = encode_pose(scale, rotation)
    assert good.sum() > 50 and np.mean(rows[good, 5] == code) > 0.9
    assert np.mean(good[rows[:, 5] == code]) > 0.8
    back = match_images(describe, image2, image1, MatchOptions(**options, **FAST))
    good = np.hypot(*(truth(back[:, 2:4]) - back[:, :2]).T) <= 3 / min(1, scale) ** 0.5
    assert good.sum() > 50 and np.mean(back[good, 5] == encode_pose(1 / scale, -rotation)) > 0.9


def test_codes_say_how_a_picture_was_turned():
    """By libraries that say what they turn: np.rot90(k=-1) clockwise, PIL counter-clockwise."""
    image = (texture(8, 64, 64) * 255).astype(np.uint8)
    clockwise, counter = (np.ascontiguousarray(np.rot90(image, k)) for k in (-1, 1))
    slanted = np.asarray(Image.fromarray(image).rotate(-45, Image.Resampling.BILINEAR))
    options = MatchOptions(max_scale=1, max_rotation_deg=90, **FAST)
    for shown, code in ((image, 0), (slanted, 1), (clockwise, 2), (counter, 6)):
        codes = match_images(describe, image, shown, options)[:, 5]
        assert len(codes) > 50 and np.mean(codes == code) > 0.9


def test_the_better_run_wins():
    looked = view(Crop(np.zeros((64, 64, 3), np.float32)), 1.0)
    field = lambda value: np.full((16, 16), value, np.float32)  # noqa: E731
    row = lambda *values: np.array([values], np.float32)  # noqa: E731
    weak = Run(row(2, 2, 30, 30, 1.0, 0), field(1.0), field(1.0), looked, looked)
    strong = Run(row(50, 50, 10, 10, 3.0, 8), field(0.5), field(0.5), looked, looked)
    assert merge([weak, strong]).tolist() == [[50, 50, 10, 10, 3, 8], [2, 2, 30, 30, 1, 0]]
    strong.patches[0, 0] = 2  # prefers another place for the weak match's patch
    assert merge([weak, strong])[:, 4].tolist() == [3]
    strong.patches[0, 0] = 0
    strong.cells[7, 7] = 2  # and for its place in image 2
    assert merge([weak, strong])[:, 4].tolist() == [3]
    assert merge([]).shape == (0, 6)


# Tiles


def test_tiles():
    assert tile_corners((100, 64), 64).tolist() == [[0, 0], [0, 32], [0, 36]]
    assert tile_corners((30, 200), 64)[:, 0].tolist() == [0, 32, 64, 96, 128, 136]
    rows = np.zeros((40, 6))
    rows[:, 4] = 2
    rows[:, :2] = 10
    rows[:, 2:4] = 20  # all to the first tile of image 2 ...
    rows[:3, 2] = 190  # ... but three of forty: too few
    pairs = list(tile_pairs(rows, (64, 64), (64, 200), 64))
    assert [tuple(map(tuple, pair)) for pair in pairs] == [((0, 0), (0, 0))]
    rows[:4, 2] = 190
    assert len(list(tile_pairs(rows, (64, 64), (64, 200), 64))) == 2
    rows[:, 4] = 1
    assert not list(tile_pairs(rows, (64, 64), (64, 200), 64))


def test_too_large_images_are_matched_in_tiles():
    big = texture(4, 110, 140)
    image1, image2 = big[:90, :120], big[12:102, 8:128]
    options = MatchOptions(max_scale=1, **FAST)
    said, followed = [], []
    whole = match_images(describe, image1, image2, options, said.append, lambda *work: followed.append(work))
    assert not said and followed == [(128 * 128 * 128 * 128,) * 2]  # one scale, in buckets
    followed.clear()
    budget = predict_images_bytes((64, 64), (64, 64), 24, MatchOptions(max_scale=1, memory_bytes=1, **FAST))
    tiles = match_images(describe, image1, image2, MatchOptions(max_scale=1, memory_bytes=budget, **FAST), said.append, lambda *work: followed.append(work))
    assert len(said) == 1 and "tiles of 64 px" in said[0]
    done, todo = zip(*followed, strict=True)
    assert sorted(set(done)) == list(done) and done[-1] == todo[-1] > todo[0] == done[0]  # the coarse pass, then tile by tile
    for rows in (whole, tiles):
        assert np.mean(np.abs(rows[:, 2:4] + [8, 12] - rows[:, :2]).max(1) <= 1) > 0.9
    assert len(tiles) > 0.7 * len(whole) > 100
    with pytest.raises(UserError, match=r"memory_bytes"):
        match_images(describe, image1, image2, MatchOptions(memory_bytes=1000))


# The filter and the gaps


def test_the_method_matches_photographs():
    method = METHODS["pump"].build(pump.Config(hidden=16, depth=1, output_dim=8))
    image = (texture(7, 50, 70) * 255).astype(np.uint8)
    pair = Pair(image1=jnp.zeros((1, 32, 32, 3)), image2=jnp.zeros((1, 32, 32, 3)), H_1to2=None, slot=jnp.zeros(1, int))
    variables = method.init(jax.random.key(0), {"unlabelled": pair})
    found = method.match(variables, image, image, MatchOptions(max_scale=1, **FAST))
    assert found.valid.all() and len(found.score) > 30 and found.code.dtype == np.int32
    assert np.mean(np.abs(found.xy1_px - found.xy2_px).max(1) <= 1) > 0.9


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"max_scale": 0.5}, "max_scale"),
        ({"max_rotation_deg": 200}, "rotation"),
        ({"levels": -1}, "levels"),
        ({"memory_bytes": 0}, "memory"),
        ({"storage": "int8"}, "storage"),
    ],
)
def test_wrong_options_are_named(wrong, word):
    with pytest.raises(UserError, match=word):
        MatchOptions(**wrong)


def test_wrong_images_are_named():
    with pytest.raises(UserError, match=r"image2 has the shape \(5, 5\)"):
        match_images(describe, np.zeros((5, 5, 3)), np.zeros((5, 5)))
    with pytest.raises(UserError, match="too small"):
        match_descriptors(jnp.zeros((2, 9, 4)), jnp.zeros((9, 9, 4)))
