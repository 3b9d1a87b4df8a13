"""Keypoint pairs: what is read, held out and left out, and what is drawn on the device."""

import itertools
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jaxdesc import config
from jaxdesc.config import DataConfig, DrawConfig, Source, WarpConfig
from jaxdesc.data.builders import semantic as builder
from jaxdesc.data.draw import draw_batch
from jaxdesc.data.pipeline import open_data, to_canvas
from jaxdesc.data.semantic_draw import RawKeypointPair, as_in_use
from jaxdesc.datasets.semantic import with_masks
from jaxdesc.types import UserError

WILLOW = Path(__file__).parents[2] / "../shared/data/willow"
CONFIGS = Path(__file__).parents[2] / "configs"
SIDE, K = 32, 12


def image(path, wh, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", wh, (value, 100, 7)).save(path)


def names(dataset):
    """The red value of both images of every pair: the images' own numbers."""
    return [(int(p["image1"][0, 0, 0]), int(p["image2"][0, 0, 0])) for p in every(dataset)]


def every(dataset):
    return [dataset[i] for i in range(len(dataset))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 6 and one of 3 images of 80 x 50 px; image n has the red value n and the keypoints (n, 1), (2 n, 5), (3, n)."""
    root = tmp_path_factory.mktemp("keypoints")
    for number, name in enumerate([f"{c}/{i}" for c, n in (("a", 6), ("b", 6), ("c", 3)) for i in range(n)], start=1):
        image(root / f"{name}.png", (80, 50), number)
        (root / f"{name}.txt").write_text(f"{number} 1\n{2 * number} 5\n3 {number}\n")
    (root / "a" / "0.txt").write_text("1 1\n81.6 5\n3 1\n")  # outside by more than annotations that count from 1 may be
    (root / "b" / "0.txt").write_text("-9 1\n-9 5\n3 99\n")  # all of them
    return root


@pytest.fixture(scope="module")
def opened(folder, tmp_path_factory):
    return builder.open_annotated("keypoints", str(folder), 64, str(tmp_path_factory.mktemp("cache")))


def test_folder_of_keypoints(opened):
    train, validation = names(opened.train), names(opened.validation)
    seen, held_out = ({n for pair in pairs for n in pair} for pairs in (train, validation))
    assert not seen & held_out and {13, 14, 15} <= seen and held_out == {1, 3}
    assert (len(train), len(validation)) == (12 + 12 + 6, 2), (
        "4, 4 and 3 images that train; of b one of the two that are held out, image 7, has no keypoint left"
    )
    for pairs in (opened.train, opened.validation):
        for p, (a, b) in zip(every(pairs), names(pairs), strict=True):
            assert p["image1"].shape == (40, 64, 3) and not p["warped"] and not p["flip"]
            for xy, n in ((p["xy1_px"], a), (p["xy2_px"], b)):
                expected = np.array([[n, 1], [2 * n, 5], [3, n]])[[0, 2] if 1 in (a, b) else slice(None)]
                np.testing.assert_allclose(xy, (expected + 0.5) * 0.8 - 0.5, atol=1e-4)


def test_what_was_left_out_is_told(opened):
    first, *more = opened.report
    assert "keypoint pairs of 15 photographs" in first and "held out" in first
    assert any("of a held-out photograph with another" in line and "without common keypoints" in line for line in more)
    assert any("keypoints lie outside their images and are left out" in line for line in more)


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    """NC-Net's lists: that for training without coordinates and with flips; keypoints in MATLAB files, NaN where one lacks; pair 1-3 has none in common."""
    root = tmp_path_factory.mktemp("pascal")
    kps = {1: [[1, 2], [30, 4], [np.nan, np.nan]], 2: [[5, 6], [7, 8], [9, 10]], 3: [[np.nan] * 2, [np.nan] * 2, [20, 30]]}
    for n, points in kps.items():
        image(root / "JPEGImages" / f"{n}.png", (60, 40), n)
        (root / "Annotations" / "bus").mkdir(parents=True, exist_ok=True)
        savemat(root / "Annotations" / "bus" / f"{n}.mat", {"kps": np.array(points, float), "bbox": np.array([[1, 2, 30, 20]])})
    rows = "x/JPEGImages/1.png,x/JPEGImages/2.png,6,0\nx/JPEGImages/1.png,x/JPEGImages/2.png,6,1\nx/JPEGImages/1.png,x/JPEGImages/3.png,6,0\n"
    (root / "train_pairs.csv").write_text("source_image,target_image,class,flip\n" + rows)
    (root / "val_pairs.csv").write_text("source_image,target_image,class,XA,YA,XB,YB\nJPEGImages/2.png,JPEGImages/3.png,6,9;-1,10;-1,20;-1,30;-1\n")
    return root


def test_pf_pascal_lists(pascal, tmp_path):
    found = builder.open_annotated("pf-pascal", str(pascal), 64, str(tmp_path))
    assert names(found.train) == [(1, 2), (1, 2)] and names(found.validation) == [(2, 3)]
    assert [p["flip"] for p in every(found.train)] == [False, True] and not found.validation[0]["flip"]
    np.testing.assert_array_equal(found.train[1]["xy1_px"], [[1, 2], [30, 4]])
    np.testing.assert_array_equal(found.train[1]["xy2_px"], [[5, 6], [7, 8]])
    np.testing.assert_array_equal(found.validation[0]["xy2_px"], [[20, 30]])
    assert any("1 without common keypoints" in line for line in found.report)
    (pascal / "Annotations" / "bus" / "2.mat").rename(pascal / "2.hidden")
    with pytest.raises(UserError, match=r"train_pairs\.csv, line 2: the list has no columns XA, .* Annotations/<class>/2\.mat"):
        builder.open_annotated("pf-pascal", str(pascal), 64, str(tmp_path))
    (pascal / "2.hidden").rename(pascal / "Annotations" / "bus" / "2.mat")


def test_mistakes_are_sentences(folder, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        builder.open_annotated("keypoints", str(tmp_path / "none"), 64, str(tmp_path))
    with pytest.raises(UserError, match="outlines"):
        builder.OPEN["caltech"]("x", 64, "")
    data = DataConfig(semantic=(Source("willows", "x"),), synthetic_per_batch=0, real_per_batch=0, semantic_per_batch=2)
    with pytest.raises(UserError, match=r"config\.data\.semantic names a source of kind 'willows'; it may be embedded, photos, keypoints"):
        open_data(data, 0)
    for n in (1, 2):
        image(tmp_path / "k" / "c" / f"{n}.png", (60, 40), n)
        (tmp_path / "k" / "c" / f"{n}.txt").write_text("99 99\n")
    with pytest.raises(UserError, match=r"None of the 2 train pairs of k_keypoints can be used: 2 without common keypoints"):
        builder.open_annotated("keypoints", str(tmp_path / "k"), 64, str(tmp_path / "cache"))


# ---- masks


def mask(path, pixels, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).convert(mode).save(path)


BOX = np.zeros((50, 80), np.uint8)
BOX[10:30, 20:40] = 7  # of photographs of 80 x 50 px; once they are shrunk to 64 x 40, rows 8 to 23, columns 16 to 31


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Images 1 to 5 of one category, with masks; the first two have keypoints too."""
    root = tmp_path_factory.mktemp("masked")
    for n in range(1, 6):
        image(root / "images" / "cat" / f"{n}.png", (80, 50), n)
        mask(root / "masks" / "cat" / f"{n}.png", np.roll(BOX, n, 1))
    for n in (1, 2):
        (root / "images" / "cat" / f"{n}.txt").write_text(f"{n} 1\n4 5\n")
    listed = "\n".join(f"cat/{a}.png cat/{b}.png" for a in range(1, 6) for b in range(1, 6))  # half of them are the same the other way round
    (root / "pairs.txt").write_text(listed)
    return root


@pytest.fixture(scope="module")
def masked_set(masked, tmp_path_factory):
    return builder.open_annotated("masks", str(masked), 64, str(tmp_path_factory.mktemp("cache")))


def test_folder_with_masks(masked_set):
    found = every(masked_set.train) + every(masked_set.validation)
    pairs = names(masked_set.train) + names(masked_set.validation)
    held_out = {n for pair in names(masked_set.validation) for n in pair}
    assert len(held_out) == 2 and sorted(pairs) == sorted(
        (a, b) for a in range(1, 6) for b in range(1, 6) if a != b and ({a, b} <= held_out or not {a, b} & held_out)
    )
    for p, ends in zip(found, pairs, strict=True):
        for i, n in enumerate(ends, 1):
            assert p[f"mask{i}"].dtype == bool and p[f"mask{i}"].shape == (40, 64)
            slow = np.roll(BOX, n, 1) > 0
            for y, x in ((7, 20), (8, 20), (23, 20), (24, 20), (12, 14), (12, 22), (12, 30), (12, 38)):
                over = slow[int(y * 1.25 + 0.625), int(x * 1.25 + 0.625)]  # the pixel that the middle of the small one lies on
                assert p[f"mask{i}"][y, x] == over
        assert len(p["xy1_px"]) == len(p["xy2_px"]) == (2 if set(ends) == {1, 2} else 0), "keypoints are not needed"
    assert masked_set.masked and any(f"{len(found)} of the {len(found)} pairs have masks" in line for line in masked_set.report)


def test_pairs_without_masks_are_all_object(masked, folder, tmp_path):
    data = DataConfig(
        semantic=(Source("masks", str(masked)), Source("photos", str(folder))),
        **{"synthetic_per_batch": 0, "real_per_batch": 0, "semantic_per_batch": 4, "canvas_px": 64, "common_keypoints": 4, "threads": 1},
        cache=str(tmp_path),
    )
    raw = open_data(data, 0).validation_semantic(3)
    assert raw.warped.tolist() == [False, True, False]
    for k in range(3):
        for area in (raw.mask1[k], raw.mask2[k]):
            assert area.shape == (64, 64) and area.all() == raw.warped[k]
    assert not raw.mask1[0][:40].all() and raw.mask1[0][40:].all()


def test_pf_pascal_with_voc_masks(pascal, tmp_path):
    """Masks are of the pair's class, 6 being bus; pairs with masks need no keypoints in common, and no annotations at all."""
    root = tmp_path / "pascal"
    shutil.copytree(pascal, root)
    classes = np.zeros((40, 60), np.uint8)
    classes[:20, :30], classes[20:] = 6, 15
    for n in (1, 2, 3):
        mask(root / "VOC2012" / "SegmentationClass" / f"{n}.png", classes, "P")
    found = builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))
    assert names(found.train) == [(1, 2), (1, 2), (1, 3)] and found.masked
    np.testing.assert_array_equal(found.train[0]["mask1"], classes == 6)
    shutil.rmtree(root / "Annotations")
    bare = builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))
    assert names(bare.train) == names(found.train) and bare.train[0]["xy1_px"].shape == (0, 2)
    listed = (root / "train_pairs.csv").read_text()
    (root / "train_pairs.csv").write_text(listed.replace(",6,", ",22,"))
    with pytest.raises(UserError, match=r"train_pairs\.csv, line 2: the class '22' is none of PASCAL VOC's"):
        builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))
    (root / "train_pairs.csv").write_text(listed.replace(",6,", ",bicycle,"))
    with pytest.raises(UserError, match=r"The mask .*1\.png is empty: no pixel has the number 2 of the object's class"):
        builder.open_annotated("pf-pascal", str(root), 64, str(tmp_path / "cache"))


def test_keypoints_beside_masks_must_agree(masked, tmp_path):
    root = tmp_path / "masked"
    shutil.copytree(masked, root)
    for text in ("1 1 2 2\n", "1 x\n"):
        (root / "images" / "cat" / "2.txt").write_text(text)
        with pytest.raises(UserError, match=r"2\.txt is malformed"):
            with_masks(root)
    (root / "images" / "cat" / "2.txt").write_text("1 1\n")
    with pytest.raises(UserError, match=r"1\.txt and .*2\.txt have 2 and 1 rows"):
        with_masks(root)


# ---- batches


def test_batches_of_both_sorts(folder, tmp_path):
    data = DataConfig(
        semantic=(Source("keypoints", str(folder)), Source("photos", str(folder))),
        **{"synthetic_per_batch": 0, "real_per_batch": 0, "semantic_per_batch": 4, "canvas_px": 64, "common_keypoints": 2, "threads": 2},
        cache=str(tmp_path),
    )
    stream = open_data(data, 3)
    batches = list(itertools.islice(stream.batches(0), 3))
    raw, slot = batches[0]["semantic"]
    assert set(batches[0]) == {"semantic"} and slot.tolist() == [0, 1, 2, 3]
    chex.assert_shape([raw.canvas1.image, raw.xy1_px, raw.valid, raw.flip], [(4, 64, 64, 3), (4, 2, 2), (4, 2), (4,)])
    chex.assert_type([raw.canvas1.image, raw.xy1_px, raw.valid, raw.flip, raw.warped], [np.uint8, np.float32, bool, bool, bool])
    chex.assert_trees_all_equal(batches[2], next(open_data(data, 3).batches(2)))
    warped = np.concatenate([batch["semantic"][0].warped for batch in batches])
    valid = np.concatenate([batch["semantic"][0].valid for batch in batches])
    assert 0 < warped.sum() < len(warped) and not valid[warped].any() and valid[~warped].any(1).all()
    held_out = stream.validation_semantic(3)
    assert held_out.warped.tolist() == [False, True, False]
    with pytest.raises(UserError, match=r"config\.data\.semantic_per_batch = 4 is not a multiple of the 3 processes"):
        stream.batches(0, 0, 3)


# ---- drawing

CFG = DrawConfig(crop_px=SIDE, flip_probability=0.5, warp=WarpConfig(bend=0.05))
draw = jax.jit(partial(draw_batch, cfg=CFG))


def ramp(height, width):
    """Red grows along x, green along y: a pixel says where it lies in the photograph, in unit coordinates."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, 0 * x], -1).round().astype(np.uint8)


def raw_pair(size1=(40, 64), size2=(64, 30), flip=False, warped=False):
    rng = np.random.default_rng(0)
    xy1, xy2 = (rng.uniform(0, [s[1] - 1, s[0] - 1], (K, 2)).astype(np.float32) for s in (size1, size2))
    canvases = [to_canvas(ramp(*size), 64) for size in (size1, size2)]
    return RawKeypointPair(*canvases, xy1, xy2, np.arange(K) < 7, np.bool_(flip), np.bool_(warped))


def drawn(seed, *raws, slots=(0, 1, 2, 3)):
    """Four pairs, one after the other, and which of them are mirrored."""
    raw = jax.tree.map(lambda *leaves: np.stack(leaves), *raws)
    out = jax.tree.map(np.asarray, draw(jax.random.key(seed), {"semantic": (raw, np.array(slots, np.int32))})["semantic"])
    return [(jax.tree.map(lambda x: x[b], out), out.image2[b, SIDE // 2, 0, 0] > out.image2[b, SIDE // 2, -1, 0]) for b in range(4)]  # noqa: B023


def read(image, xy):
    """Red and green at pixels (N, 2): bilinear."""
    x, y = np.clip(xy, 0, SIDE - 1.001).T
    i, j, a, b = y.astype(int), x.astype(int), (y % 1)[:, None], (x % 1)[:, None]
    image = image[..., :2]
    return (image[i, j] * (1 - b) + image[i, j + 1] * b) * (1 - a) + (image[i + 1, j] * (1 - b) + image[i + 1, j + 1] * b) * a


def inner(xy):
    return ((xy > 1) & (xy < SIDE - 2)).all(1)


def test_annotated_pairs_are_squashed_and_mirrored():
    raw, listed = raw_pair(), raw_pair(flip=True)
    flips = []
    for seed in range(4):
        pairs = drawn(seed, raw, raw, raw, raw)
        opposite = [flip for _, flip in drawn(seed, listed, listed, listed, listed)]
        flips += [flip for _, flip in pairs]
        assert [not flip for flip in opposite] == flips[-4:], "the list's flip is on top of a random one"
        for pair, flip in pairs:
            for image, xy, given, (h, w) in ((pair.image1, pair.xy1_px, raw.xy1_px, (40, 64)), (pair.image2, pair.xy2_px, raw.xy2_px, (64, 30))):
                unit = (given + 0.5) / [w, h]
                expected = np.where([flip, False], 1 - unit, unit) * SIDE - 0.5
                np.testing.assert_allclose(xy[:7], expected[:7], atol=1e-4)
                np.testing.assert_allclose(read(image, xy[:7])[inner(xy[:7])], unit[:7][inner(xy[:7])], atol=0.02)
                assert image.shape == (SIDE, SIDE, 3) and inner(xy[:7]).sum() > 3 and not xy[7:].any()
            np.testing.assert_array_equal(pair.valid, np.arange(K) < 7)
    assert 0 < sum(flips) < len(flips)


def test_held_out_objects_are_squashed_as_in_use():
    """Averaged over areas on the host, as the predictor does; a list's mirroring stays."""
    raws = (raw_pair(), raw_pair(flip=True), raw_pair((40, 64), (40, 64), warped=True), raw_pair())
    raw = jax.tree.map(lambda *leaves: np.stack(leaves), *raws)
    noise = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    raw = raw.replace(canvas1=raw.canvas1.replace(image=noise))
    still = jax.jit(partial(draw_batch, cfg=replace(CFG, flip_probability=0.0)))
    drawn = still(jax.random.key(0), {"semantic": (raw, np.arange(4))})["semantic"]
    found = as_in_use(drawn, raw)
    for i, mirrored in ((0, False), (1, True), (3, False)):
        photo = raw.canvas1.image[i, :40, :64] / np.float32(255)
        rows = photo.reshape(40, 64 // 2, 2, 3).mean(2)[:, :: -1 if mirrored else 1]
        columns = np.repeat(rows, 4, 0).reshape(SIDE, 5, SIDE, 3).mean(1)  # 160 / 5 rows
        np.testing.assert_allclose(found.image1[i], columns, atol=1e-6)
        assert np.abs(drawn.image1[i] - columns).mean() > 0.01
    np.testing.assert_array_equal(found.image1[2], drawn.image1[2])


def test_warped_photographs_show_the_same_at_their_keypoints():
    raw = raw_pair((40, 64), (40, 64), warped=True)
    missing = 0
    for pair, flip in drawn(0, raw, raw, raw, raw) + drawn(1, raw, raw, raw, raw):
        xy1, xy2 = pair.xy1_px[pair.valid], pair.xy2_px[pair.valid]
        missing += 9 - pair.valid.sum()
        assert not pair.valid[9:].any(), "3 x 3 points of 12"
        assert ((xy2 >= -0.5) & (xy2 <= SIDE - 0.5)).all() and np.abs(xy1 - xy2).max() > 0.5
        seen = read(pair.image2, xy2)[inner(xy2)]
        np.testing.assert_allclose(read(pair.image1, xy1)[inner(xy2)], seen, atol=0.02)
        across = (xy2[inner(xy2), 0] + 0.5) / SIDE
        np.testing.assert_allclose(seen[:, 0], 1 - across if flip else across, atol=0.02)
    assert missing > 0


def test_a_pair_is_drawn_by_its_slot():
    warped, plain = raw_pair((40, 64), (40, 64), warped=True), raw_pair()
    one = [pair for pair, _ in drawn(5, warped, plain, warped, warped, slots=(4, 7, 2, 9))]
    other = [pair for pair, _ in drawn(5, warped, plain, warped, plain, slots=(2, 7, 4, 1))]
    for i, j in ((0, 2), (2, 0), (1, 1)):
        np.testing.assert_allclose(one[i].image1, other[j].image1, atol=1e-6)
        np.testing.assert_allclose(one[i].xy2_px, other[j].xy2_px, atol=1e-4)
    assert np.abs(one[0].image1 - one[2].image1).max() > 0.05 and one[0].slot == 4


def test_masks_are_drawn_along():
    """Masks of what is right of the middle, of 64 columns, and below the middle: they are squashed and mirrored as the images are."""
    areas = np.ones((2, 64, 64), bool)
    areas[0, :, :32], areas[1, :32] = False, False
    raw = raw_pair((40, 64), (64, 30)).replace(mask1=areas[0], mask2=areas[1])
    flips = []
    for pair, flip in drawn(0, raw, raw, raw, raw):
        flips.append(flip)
        assert pair.mask1.shape == pair.mask2.shape == (SIDE, SIDE)
        right = pair.mask1[:, ::-1] if flip else pair.mask1
        np.testing.assert_allclose(right, np.broadcast_to(np.arange(SIDE) >= SIDE / 2, (SIDE, SIDE)), atol=1e-3)
        np.testing.assert_allclose(pair.mask2, np.broadcast_to(np.arange(SIDE)[:, None] >= SIDE / 2, (SIDE, SIDE)), atol=1e-3)
        np.testing.assert_array_equal(pair.mask1 > 0.5, pair.image1[..., 0] > 0.5)
    assert 0 < sum(flips) < len(flips)


# ---- configurations


@pytest.mark.parametrize(("variant", "dim"), [("", 64), (":paper", 1024), (":smoke", 4), (":dim=16", 16), (":paper,dim=64", 64)])
def test_configurations(variant, dim):
    cfg = config.load(f"{CONFIGS / 'cold.py'}{variant}")
    assert cfg.method.dim == dim and cfg.draw.crop_px == cfg.method.image_px and cfg.data.semantic_per_batch > 0


@pytest.mark.parametrize(
    ("variant", "overrides", "words"),
    [
        (":dim=3", {}, "must be at least 4: the paper"),
        (":dim=", {}, "has no variant 'dim='"),
        (":paper,dim=x", {}, "has no variant"),
        ("", {"draw.crop_px": "96"}, r"config\.draw\.crop_px = 96"),
        ("", {"draw.warp.scale": "1.2,0.8"}, r"config\.draw\.warp\.scale"),
        ("", {"data.semantic": ""}, r"config\.data\.semantic is empty"),
        ("", {"method.taps": "layer9"}, r"config\.method\.taps"),
    ],
)
def test_impossible_configurations_are_named(variant, overrides, words):
    with pytest.raises(UserError, match=words):
        config.load(f"{CONFIGS / 'cold.py'}{variant}", overrides)


@pytest.mark.skipif(not WILLOW.is_dir(), reason=f"{WILLOW} is not there")
def test_willow_on_disk(tmp_path):
    found = builder.open_annotated("keypoints", str(WILLOW), 320, str(tmp_path))
    assert len(found.train) == 7 * 7 * 6 and len(found.validation) == 7 * 3 * 2
    assert found.train[0]["xy1_px"].shape == (10, 2)
