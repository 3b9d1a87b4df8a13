"""Keypoint pairs: what training reads, what is drawn on the device, and how it is scored."""

import itertools
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxdesc import config
from jaxdesc.config import DrawConfig, Source
from jaxdesc.data.host import to_canvas
from jaxdesc.data.kinds import DataConfig, KeypointPairs
from jaxdesc.data.kinds.keypoints import RawKeypointPair
from jaxdesc.data.pipeline import open_data
from jaxdesc.data.warps import WarpConfig
from jaxdesc.training.step import validation_step
from jaxdesc.types import KeypointPair, UserError
from tests.data import test_semantic as folders
from tests.data.kinds.test_posed import flat_maps, posed, slow_found, toy

CONFIGS = Path(__file__).parents[3] / "configs"
SIDE, K = 32, 12
folder, masked = folders.folder, folders.masked  # fixtures

# ---- on the host


def test_pairs_without_masks_are_all_object(masked, folder, tmp_path):
    sources = (Source("masks", str(masked)), Source("photos", str(folder)))
    data = DataConfig(
        keypoints=KeypointPairs(sources=sources, per_batch=4, common_keypoints=4),
        canvas_px=64,
        threads=1,
        cache=str(tmp_path),
    )
    raw, _ = open_data(data, 0).held_out(3)["keypoints"]
    assert raw.warped.tolist() == [False, True, False]
    for k in range(3):
        for area in (raw.mask1[k], raw.mask2[k]):
            assert area.shape == (64, 64) and area.all() == raw.warped[k]
    assert not raw.mask1[0][:40].all() and raw.mask1[0][40:].all()


def test_batches_of_both_sorts(folder, tmp_path):
    sources = (Source("keypoints", str(folder)), Source("photos", str(folder)))
    data = DataConfig(
        keypoints=KeypointPairs(sources=sources, per_batch=4, common_keypoints=2),
        canvas_px=64,
        threads=2,
        cache=str(tmp_path),
    )
    stream = open_data(data, 3)
    batches = list(itertools.islice(stream.batches(0), 3))
    raw, slot = batches[0]["keypoints"]
    assert set(batches[0]) == {"keypoints"} and slot.tolist() == [0, 1, 2, 3]
    chex.assert_shape(
        [raw.canvas1.image, raw.xy1_px, raw.valid, raw.flip],
        [(4, 64, 64, 3), (4, 2, 2), (4, 2), (4,)],
    )
    chex.assert_type(
        [raw.canvas1.image, raw.xy1_px, raw.valid, raw.flip, raw.warped],
        [np.uint8, np.float32, bool, bool, bool],
    )
    chex.assert_trees_all_equal(batches[2], next(open_data(data, 3).batches(2)))
    warped = np.concatenate([batch["keypoints"][0].warped for batch in batches])
    valid = np.concatenate([batch["keypoints"][0].valid for batch in batches])
    assert (
        0 < warped.sum() < len(warped) and not valid[warped].any() and valid[~warped].any(1).all()
    )
    held_out, _ = stream.held_out(3)["keypoints"]
    assert held_out.warped.tolist() == [False, True, False]
    with pytest.raises(
        UserError,
        match=r"config\.data\.keypoints\.per_batch = 4 is not a multiple of the 3 processes",
    ):
        stream.batches(0, 0, 3)


def test_sources_of_photographs_and_of_objects():
    sources = tuple(Source(kind, "x") for kind in ("photos", "masks", "embedded", "pf-pascal"))
    pairs = KeypointPairs(sources=sources, per_batch=3)
    alone, objects = pairs.photographs_alone(), pairs.of_objects()
    assert [source.kind for source in alone.sources] == ["photos", "embedded"]
    assert [source.kind for source in objects.sources] == ["masks", "pf-pascal"]
    assert alone.per_batch == objects.per_batch == 3


# ---- on the device

PAIRS = KeypointPairs(image_px=SIDE, warp=WarpConfig(bend=0.05))
draw = jax.jit(partial(PAIRS.draw, cfg=DrawConfig(flip_probability=0.5)))


def ramp(height, width):
    """Red grows along x, green along y: a pixel says where it lies in the photograph, in unit coordinates."""
    y, x = np.mgrid[:height, :width]
    return (
        np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, 0 * x], -1)
        .round()
        .astype(np.uint8)
    )


def raw_pair(size1=(40, 64), size2=(64, 30), flip=False, warped=False):
    rng = np.random.default_rng(0)
    xy1, xy2 = (
        rng.uniform(0, [s[1] - 1, s[0] - 1], (K, 2)).astype(np.float32) for s in (size1, size2)
    )
    canvases = [to_canvas(ramp(*size), 64) for size in (size1, size2)]
    return RawKeypointPair(*canvases, xy1, xy2, np.arange(K) < 7, np.bool_(flip), np.bool_(warped))


def drawn(seed, *raws, slots=(0, 1, 2, 3)):
    """Four pairs, one after the other, and which of them are mirrored."""
    raw = jax.tree.map(lambda *leaves: np.stack(leaves), *raws)
    out = jax.tree.map(np.asarray, draw(jax.random.key(seed), raw, np.array(slots, np.int32)))
    left, right = (out.image2[:, SIDE // 2, column, 0] for column in (0, -1))
    pairs = (jax.tree.map(lambda x, b=b: x[b], out) for b in range(4))
    return list(zip(pairs, left > right, strict=True))


def read(image, xy):
    """Red and green at pixels (N, 2): bilinear."""
    x, y = np.clip(xy, 0, SIDE - 1.001).T
    i, j, a, b = y.astype(int), x.astype(int), (y % 1)[:, None], (x % 1)[:, None]
    image = image[..., :2]
    return (image[i, j] * (1 - b) + image[i, j + 1] * b) * (1 - a) + (
        image[i + 1, j] * (1 - b) + image[i + 1, j + 1] * b
    ) * a


def inner(xy):
    return ((xy > 1) & (xy < SIDE - 2)).all(1)


def test_annotated_pairs_are_squashed_and_mirrored():
    raw, listed = raw_pair(), raw_pair(flip=True)
    flips = []
    for seed in range(4):
        pairs = drawn(seed, raw, raw, raw, raw)
        opposite = [flip for _, flip in drawn(seed, listed, listed, listed, listed)]
        flips += [flip for _, flip in pairs]
        assert [not flip for flip in opposite] == flips[-4:], (
            "the list's flip is on top of a random one"
        )
        for pair, flip in pairs:
            for image, xy, given, (h, w) in (
                (pair.image1, pair.xy1_px, raw.xy1_px, (40, 64)),
                (pair.image2, pair.xy2_px, raw.xy2_px, (64, 30)),
            ):
                unit = (given + 0.5) / [w, h]
                expected = np.where([flip, False], 1 - unit, unit) * SIDE - 0.5
                np.testing.assert_allclose(xy[:7], expected[:7], atol=1e-4)
                np.testing.assert_allclose(
                    read(image, xy[:7])[inner(xy[:7])], unit[:7][inner(xy[:7])], atol=0.02
                )
                assert (
                    image.shape == (SIDE, SIDE, 3) and inner(xy[:7]).sum() > 3 and not xy[7:].any()
                )
            np.testing.assert_array_equal(pair.valid, np.arange(K) < 7)
    assert 0 < sum(flips) < len(flips)


def test_held_out_objects_are_squashed_as_in_use():
    """Averaged over areas on the host, as the predictor does; a list's mirroring stays."""
    raws = (raw_pair(), raw_pair(flip=True), raw_pair((40, 64), (40, 64), warped=True), raw_pair())
    raw = jax.tree.map(lambda *leaves: np.stack(leaves), *raws)
    noise = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    raw = raw.replace(canvas1=raw.canvas1.replace(image=noise))
    still = jax.jit(partial(PAIRS.draw, cfg=DrawConfig(flip_probability=0.0)))
    drawn = still(jax.random.key(0), raw, np.arange(4))
    found = PAIRS.to_score(drawn, raw)
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
        np.testing.assert_allclose(
            right, np.broadcast_to(np.arange(SIDE) >= SIDE / 2, (SIDE, SIDE)), atol=1e-3
        )
        np.testing.assert_allclose(
            pair.mask2,
            np.broadcast_to(np.arange(SIDE)[:, None] >= SIDE / 2, (SIDE, SIDE)),
            atol=1e-3,
        )
        np.testing.assert_array_equal(pair.mask1 > 0.5, pair.image1[..., 0] > 0.5)
    assert 0 < sum(flips) < len(flips)


# ---- scores


def test_scores_of_keypoint_pairs_against_numpy():
    n, maps, given = 20, (flat_maps(1, (10, 14, 5)), flat_maps(2, (10, 14, 5))), posed(20)
    found = slow_found(given, *maps)
    error = np.random.default_rng(3).uniform(0, 10, (2, n, 1))  # 0.1 of 56 px count
    common = {
        "image1": given.image1,
        "image2": given.image2,
        "xy1_px": given.xy1_px,
        "valid": given.valid,
        "slot": given.slot,
    }
    pair = KeypointPair(xy2_px=(found + error * [0.8, -0.6]).astype(np.float32), **common)

    def loss(variables, batch, key, train):
        assert not train
        return batch["keypoints"].xy1_px[:, 0, 0], (
            {"seen": batch["keypoints"].xy1_px.sum((1, 2))},
            None,
        )

    scores, _ = jax.jit(
        partial(validation_step, method=toy(*maps)._replace(loss=loss), scores=KeypointPairs.scores)
    )({}, pair)
    assert set(scores) == {"pck@0.05", "pck@0.1", "pck@0.15", "seen", "loss"}
    for alpha in (0.05, 0.1, 0.15):
        shares = [(error[b, pair.valid[b]] <= alpha * 56).mean() for b in range(2)]
        np.testing.assert_allclose(scores[f"pck@{alpha}"], np.mean(shares), rtol=1e-5)
    assert 0.3 < scores["pck@0.1"] < 0.8
    np.testing.assert_allclose(scores["seen"], pair.xy1_px.sum() / 2, rtol=1e-5)
    np.testing.assert_allclose(scores["loss"], pair.xy1_px[:, 0, 0].mean(), rtol=1e-5)
    unknown, matches = jax.jit(
        partial(validation_step, method=toy(*maps)._replace(loss=loss), scores=KeypointPairs.scores)
    )({}, pair.replace(xy2_px=None))
    assert set(unknown) == {"seen", "loss"}
    assert (
        KeypointPairs.correct(
            jax.tree.map(lambda x: x[0], pair.replace(xy2_px=None)),
            jax.tree.map(lambda x: x[0], matches),
        ).tolist()
        == pair.valid[0].tolist()
    )

    def transfer(variables, image1, image2, xy1):
        return xy1 + 1.0, xy1[:, 0]

    exact = pair.replace(xy2_px=pair.xy1_px + np.float32([1, 1 + 0.07 * 56]))
    scores, matches = jax.jit(
        partial(
            validation_step,
            method=toy(*maps)._replace(loss=loss, transfer=transfer),
            scores=KeypointPairs.scores,
        )
    )({}, exact)
    assert [float(scores[f"pck@{alpha}"]) for alpha in (0.05, 0.1, 0.15)] == [0, 1, 1]
    np.testing.assert_array_equal(matches.score, pair.xy1_px[..., 0])


# ---- configurations


@pytest.mark.parametrize(
    ("variant", "dim"),
    [("", 64), (":paper", 1024), (":smoke", 4), (":dim=16", 16), (":paper,dim=64", 64)],
)
def test_configurations(variant, dim):
    cfg = config.load(f"{CONFIGS / 'cold.py'}{variant}")
    assert cfg.method.dim == dim
    assert cfg.data.keypoints.image_px == cfg.method.image_px


@pytest.mark.parametrize(
    ("variant", "overrides", "words"),
    [
        (":dim=3", {}, "must be at least 4: the paper"),
        (":dim=", {}, "has no variant 'dim='"),
        (":paper,dim=x", {}, "has no variant"),
        ("", {"data.keypoints.image_px": "96"}, r"config\.data\.keypoints\.image_px = 96"),
        (
            "",
            {"data.keypoints.warp.scale": "1.2,0.8"},
            r"config\.data\.keypoints\.warp\.scale",
        ),
        ("", {"data.keypoints.sources": ""}, r"config\.data\.keypoints\.sources is empty"),
        ("", {"method.taps": "layer9"}, r"config\.method\.taps"),
    ],
)
def test_impossible_configurations_are_named(variant, overrides, words):
    with pytest.raises(UserError, match=words):
        config.load(f"{CONFIGS / 'cold.py'}{variant}", overrides)
