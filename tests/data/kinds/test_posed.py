"""Posed pairs: what training reads, what is drawn on the device, and how it is scored."""

import dataclasses
import itertools
from functools import partial
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxdesc import config
from jaxdesc.config import DrawConfig, ExperimentConfig, MethodConfig, Source
from jaxdesc.data.builders import colmap
from jaxdesc.data.kinds import DataConfig, PosedPairs
from jaxdesc.data.kinds.posed import RawPosedPair, Views, take_queries
from jaxdesc.data.pipeline import open_data
from jaxdesc.datasets.cameras import angle_deg
from jaxdesc.method import Method
from jaxdesc.ops.sampling import aligned_grid
from jaxdesc.training.step import validation_step
from jaxdesc.types import Canvas, PosedPair, UserError
from tests.data import test_posed as scenes

folder, project = scenes.folder, scenes.project  # a fixture, and the oracle of its images

# ---- on the host


def pipeline(folder, tmp_path, **fields):
    sources = (Source("colmap", str(folder)),)
    pairs = PosedPairs(sources=sources, per_batch=4, candidates=30, **fields)
    return DataConfig(posed=pairs, canvas_px=48, threads=2, cache=str(tmp_path / "cache"))


def source(folder, tmp_path):
    """What the run reads, as it is stored."""
    return colmap.open_posed(str(folder), 48, str(tmp_path / "cache"))


def take(data, start, count, *process):
    return list(itertools.islice(data.batches(start, *process), count))


def test_batches_are_a_function_of_seed_and_position(folder, tmp_path):
    data = open_data(pipeline(folder, tmp_path, pose_noise=(5.0, 2.5)), 3)
    walked = take(data, 0, 6)
    raw, slot = walked[0]["posed"]
    chex.assert_shape(
        [raw.canvas1.image, raw.K1, raw.t_1to2, raw.xy1_px, raw.known],
        [(4, 48, 48, 3), (4, 3, 3), (4, 3), (4, 30, 2), (4, 30)],
    )
    chex.assert_type(
        [raw.canvas2.image, raw.R_1to2, raw.t_1to2, raw.xy2_px, raw.valid, slot],
        [np.uint8, np.float32, np.float32, np.float32, bool, np.int32],
    )
    assert (
        slot.tolist() == [0, 1, 2, 3] and raw.valid.all() and 0 < raw.known.sum() < raw.known.size
    )
    chex.assert_trees_all_equal(take(data, 4, 2), walked[4:])
    halves = [take(data, 0, 2, p, 2) for p in range(2)]
    chex.assert_trees_all_equal(
        jax.tree.map(lambda *parts: np.concatenate(parts), *(h[1] for h in halves)), walked[1]
    )
    assert not np.array_equal(
        raw.R_1to2, take(open_data(pipeline(folder, tmp_path), 3), 0, 1)[0]["posed"][0].R_1to2
    )
    with pytest.raises(
        UserError, match=r"config\.data\.posed\.per_batch = 4 is not a multiple of the 3 processes"
    ):
        take(data, 0, 1, 0, 3)
    held_out, _ = data.held_out(3)["posed"]
    chex.assert_shape(held_out.canvas1.image, (3, 48, 48, 3))
    chex.assert_trees_all_equal(held_out.K1[0], held_out.K1[1])  # one pair is held out
    for name in ("R_1to2", "t_1to2"):
        np.testing.assert_array_equal(
            getattr(held_out, name)[2], source(folder, tmp_path).validation[0][name]
        )  # without noise


def test_both_directions_are_one_geometry(folder, tmp_path):
    """Element 2 i + 1 is 2 i backwards, noise included; its known matches are the other's."""
    stored = source(folder, tmp_path)
    views = Views(stored.train, stored, (5.0, 2.5), (1, 2))
    plain = Views(stored.train, stored, (0.0, 0.0), (1, 2))
    assert len(views) == 38
    turned, moved = [], []
    for i in range(0, 38, 2):
        there, back, true = views[i], views[i + 1], plain[i]
        np.testing.assert_array_equal(there["image1"], back["image2"])
        np.testing.assert_allclose(back["R_1to2"] @ there["R_1to2"], np.eye(3), atol=1e-5)
        np.testing.assert_allclose(back["R_1to2"] @ there["t_1to2"] + back["t_1to2"], 0, atol=1e-5)
        np.testing.assert_allclose(
            there["xy2_px"][there["known"]], back["xy1_px"][back["known"]], atol=1e-4
        )
        turned.append(angle_deg(there["R_1to2"] @ true["R_1to2"].T))
        moved.append(np.abs(there["t_1to2"] - true["t_1to2"]).max())
        np.testing.assert_array_equal(
            there["R_1to2"], views[i]["R_1to2"]
        )  # the pair's own, at every visit
    assert 3.0 < max(turned) <= 5.0 + 1e-3 and min(turned) < 2.0 and len(set(turned)) == 19
    assert 0.01 < max(moved) < 0.05


def test_curriculum_lets_in_larger_rotations_step_by_step(folder, tmp_path):
    data = open_data(pipeline(folder, tmp_path, curriculum=10), 0)
    angles = np.sort(source(folder, tmp_path).angles_deg)
    seen = np.array(
        [[angle_deg(R) for R in batch["posed"][0].R_1to2] for batch in take(data, 0, 25)]
    )
    for j, angle in enumerate(seen[:10].ravel()):
        assert angle <= angles[int(np.ceil(len(angles) * (j + 1) / 40)) - 1] + 1e-3
    assert seen[:3].max() < seen[10:].max() and np.unique(seen[10:].round(3)).size == 10
    chex.assert_trees_all_equal(take(data, 7, 5), take(data, 5, 7)[2:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pose_noise": (-1.0, 0.0)}, r"pose_noise = \(-1\.0, 0\.0\) must be at least 0"),
        ({"pose_noise": (1.0,)}, r"pose_noise = \(1\.0,\) is not of type"),
        ({"sources": ()}, r"sources is empty"),
        ({"hw": (8, 64)}, r"hw = \(8, 64\) must be at least 32"),
        ({"queries": 0}, r"queries = 0 must be at least 1"),
    ],
)
def test_wrong_settings_are_named(changes, words):
    @dataclasses.dataclass(frozen=True)
    class Method(MethodConfig):
        name: ClassVar[str] = "none"
        kinds: ClassVar[tuple[str, ...]] = ("posed",)

    def validated(**changes):
        return config.validate(ExperimentConfig(Method(), DataConfig(posed=PosedPairs(**changes))))

    validated()
    with pytest.raises(UserError, match=rf"config\.data\.posed\.{words}"):
        validated(**changes)


def test_unknown_kind(tmp_path):
    with pytest.raises(
        UserError,
        match=r"config\.data\.posed\.sources names a source of kind 'pairs'; it may be embedded, rendered, colmap, megadepth",
    ):
        wrong = PosedPairs(sources=(Source("pairs", "x"),), per_batch=1)
        open_data(DataConfig(posed=wrong, cache=str(tmp_path)), 0)


# ---- on the device

PAIRS = PosedPairs(hw=(32, 48), queries=20, zoom=1.3)
SIDE, BATCH, KEYPOINTS = 64, 4, 30


@partial(jax.jit, static_argnums=3)
def draw(key, raw, slot, pairs=PAIRS):
    return pairs.draw(key, raw, slot, DrawConfig(flip_probability=0.5))


def raw_batch(seed=0):
    """Views whose colours say where they were taken: red is 4 x, green is 4 y; every keypoint is a known projection; some do not exist."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    ramp = np.stack([4 * x, 4 * y, np.full_like(x, 100)], -1).astype(np.uint8)
    rows = []
    for i in range(BATCH):
        hw = np.array([[40 + i, 60], [50, 52 - i]], np.int32)
        X = rng.uniform([-2, -1.5, 4], [2, 1.5, 6], (KEYPOINTS, 3))  # some outside the images
        Ks = [np.array([[60.0 + 3 * i, 0.5, s[1] / 2], [0, 55.0, s[0] / 2], [0, 0, 1]]) for s in hw]
        R = Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix()
        t = rng.normal(size=3)
        t /= np.linalg.norm(t)
        xy1, xy2 = project(Ks[0], np.eye(3), np.zeros(3), X), project(Ks[1], R, t, X)
        canvases = [
            Canvas(
                np.where((x < s[1])[..., None] & (y < s[0])[..., None], ramp, 0).astype(np.uint8), s
            )
            for s in hw
        ]
        valid, known = rng.random(KEYPOINTS) < 0.8, rng.random(KEYPOINTS) < 0.7
        depths = np.array(10.0), np.array(100.0)
        rows.append(RawPosedPair(*canvases, *Ks, R, t, *depths, xy1, valid, xy2, known))
    numbers = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, numbers)


def test_drawn_geometry_is_that_of_the_images():
    """Known matches lie on their epipolar lines, and the images show at query and match what the canvases show at their origins."""
    raw = raw_batch()
    flipped = set()
    for seed in range(3):
        pair = draw(jax.random.key(seed), raw, jnp.arange(BATCH))
        chex.assert_tree_all_finite(pair)
        chex.assert_shape(
            [pair.image1, pair.F_1to2, pair.xy1_px, pair.valid, pair.known],
            [(BATCH, 32, 48, 3), (BATCH, 3, 3), (BATCH, 20, 2), (BATCH, 20), (BATCH, 20)],
        )
        checked = 0
        for i in range(BATCH):
            flipped.add(bool(pair.image1[i, 16, 0, 0] > pair.image1[i, 16, 47, 0]))
            F = np.asarray(pair.F_1to2[i], np.float64)
            np.testing.assert_allclose(np.linalg.det(F / np.linalg.norm(F)), 0, atol=1e-6)
            assert np.isclose(F[2, 2], 1, atol=1e-6) or np.isclose(np.linalg.norm(F), 1)
            for q in np.flatnonzero(pair.known[i]):
                assert pair.valid[i, q]
                xy1, xy2 = (
                    np.asarray(pair.xy1_px[i, q], np.float64),
                    np.asarray(pair.xy2_px[i, q], np.float64),
                )
                line = F @ [*xy1, 1]
                assert abs(line @ [*xy2, 1]) / np.hypot(*line[:2]) < 2e-3
                at1, at2 = colour_at(pair.image1[i], xy1), colour_at(pair.image2[i], xy2)
                origin = np.argmin(np.linalg.norm(raw.xy1_px[i] - at1, axis=1))
                if at1 is not None and at2 is not None:
                    np.testing.assert_allclose(at1, raw.xy1_px[i, origin], atol=0.15)
                    np.testing.assert_allclose(at2, raw.xy2_px[i, origin], atol=0.15)
                    assert raw.valid[i, origin] and raw.known[i, origin]
                    checked += 1
        assert checked > 10
    assert flipped == {True, False}


def colour_at(image, xy):
    """Canvas position that the ramp's colour tells, by a bilinear mean of four pixels."""
    (x, y), image = xy, np.asarray(image, np.float64)
    x0, y0 = min(int(x), image.shape[1] - 2), min(int(y), image.shape[0] - 2)
    fx, fy = x - x0, y - y0
    quad = image[y0 : y0 + 2, x0 : x0 + 2]
    mean = (1 - fy) * ((1 - fx) * quad[0, 0] + fx * quad[0, 1]) + fy * (
        (1 - fx) * quad[1, 0] + fx * quad[1, 1]
    )
    return mean[:2] * 255 / 4


def test_queries_lie_inside_and_their_lines_of_sight_cross_image_2():
    raw = raw_batch()
    pair = draw(jax.random.key(5), raw, jnp.arange(BATCH))
    xy1 = np.asarray(pair.xy1_px)[np.asarray(pair.valid)]
    assert (xy1 >= 0).all() and (xy1 <= [47, 31]).all() and np.asarray(pair.valid).sum() > 40
    xy2 = np.asarray(pair.xy2_px)[np.asarray(pair.known)]
    assert (xy2 >= 0).all() and (xy2 <= [47, 31]).all()
    # F belongs to the queries: each line passes through image 2, grown by a pixel
    for F, queries, valid in zip(
        np.asarray(pair.F_1to2, np.float64),
        np.asarray(pair.xy1_px),
        np.asarray(pair.valid),
        strict=True,
    ):
        for x, y in queries[valid]:
            values = [F @ [x, y, 1] @ [u, v, 1] for u in (-1, 48) for v in (-1, 32)]
            assert min(values) <= 0 <= max(values)


def test_pruning_can_be_left_out():
    """Then also points are asked for whose line of sight misses image 2; those that were asked for before still are where there is room for all."""
    raw = raw_batch()
    # as good as in the camera: most lines of sight do not reach image 2
    few = dataclasses.replace(raw, spread=np.full_like(raw.spread, 1e-3))
    pruned = draw(jax.random.key(0), few, jnp.arange(BATCH))
    free = draw(jax.random.key(0), few, jnp.arange(BATCH), dataclasses.replace(PAIRS, prune=False))
    assert pruned.valid.sum() < free.valid.sum() == BATCH * PAIRS.queries
    chex.assert_trees_all_close(pruned.F_1to2, free.F_1to2)
    points = dataclasses.replace(PAIRS, prune_depth="points")
    far = draw(jax.random.key(0), few, jnp.arange(BATCH), points)
    assert pruned.valid.sum() < far.valid.sum()
    few = dataclasses.replace(few, spread=raw.point_depth)  # the same, but for the least depth
    by_spread = draw(jax.random.key(0), few, jnp.arange(BATCH))
    chex.assert_trees_all_close(far.valid, by_spread.valid)


def test_draws_follow_the_slot():
    raw = raw_batch()
    order = np.array([2, 0, 3, 1])
    one = draw(jax.random.key(0), raw, jnp.arange(BATCH))
    other = draw(jax.random.key(0), jax.tree.map(lambda x: x[order], raw), jnp.asarray(order))
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[order], one), other, atol=1e-5)


def test_absent_known_matches_stay_unknown():
    raw = raw_batch()
    pair = draw(jax.random.key(0), raw.replace(known=np.zeros_like(raw.known)), jnp.arange(BATCH))
    assert not pair.known.any() and pair.valid.any()
    pair = draw(jax.random.key(0), raw.replace(valid=np.zeros_like(raw.valid)), jnp.arange(BATCH))
    assert not pair.known.any() and pair.valid.any()  # uniform points stand in


@pytest.mark.parametrize("count", [10, 20])
def test_queries_are_taken_by_a_plain_rule(count):
    """Keypoints in order up to 90 %, then uniform points in order."""
    rng = np.random.default_rng(count)
    taken = jax.jit(take_queries, static_argnums=2)
    for share1, share2 in ((0.9, 0.9), (0.2, 0.9), (0.9, 0.02), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        allowed1, allowed2 = rng.random(37) < share1, rng.random(count) < share2
        expected = [i for i in range(37) if allowed1[i]][: round(0.9 * count)]
        expected = (expected + [37 + i for i in range(count) if allowed2[i]])[:count]
        expected += [37 + count] * (count - len(expected))
        assert taken(jnp.array(allowed1), jnp.array(allowed2), count).tolist() == expected


# ---- scores


def flat_maps(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def toy(map1, map2):
    """A method whose maps are given, whatever the images; of a frame that the paper's network would have at a quarter of the size."""
    return Method(
        init=None,
        loss=None,
        describe=lambda variables, images: jnp.stack([map1, map2]),
        grid=lambda *size_hw: aligned_grid(size_hw, map1.shape[:2]),
        match=None,
    )


def posed(n, seed=0, hw=(40, 56), known=True):
    rng = np.random.default_rng(seed)
    F = rng.normal(size=(2, 3, 3)).astype(np.float32)
    xy1, xy2 = (
        rng.uniform(0, [hw[1] - 1, hw[0] - 1], (2, n, 2)).astype(np.float32) for _ in range(2)
    )
    image = np.zeros((2, *hw, 3), np.float32)
    valid = np.arange(n) % 5 > 0
    truth = (
        {"xy2_px": xy2, "known": np.stack([valid & (np.arange(n) % 3 > 0), np.zeros(n, bool)])}
        if known
        else {"xy2_px": None, "known": None}
    )
    return PosedPair(
        image1=image,
        image2=image,
        F_1to2=F,
        xy1_px=xy1,
        valid=np.stack([valid, ~valid]),
        slot=np.arange(2, dtype=np.int32),
        **truth,
    )


def slow_found(pair, map1, map2):
    """For every query the place of the cell of map 2 that is most like map 1 there, corners aligned, by loops."""
    (h, w, _), (rows, columns) = map1.shape, pair.image1.shape[1:3]
    found = np.zeros_like(pair.xy1_px)
    for b in range(2):
        for i, (x, y) in enumerate(pair.xy1_px[b].astype(np.float64)):
            x, y = x * (w - 1) / (columns - 1), y * (h - 1) / (rows - 1)
            tents = np.clip(1 - abs(np.arange(h) - y), 0, None)[:, None] * np.clip(
                1 - abs(np.arange(w) - x), 0, None
            )
            query = np.einsum("hw,hwd->d", tents, map1)
            row, column = np.unravel_index((map2 @ query).argmax(), (h, w))
            found[b, i] = column * (columns - 1) / (w - 1), row * (rows - 1) / (h - 1)
    return found


def slow_distance(F, xy1, xy2):
    line = F @ np.append(xy1, 1.0)
    return abs(np.append(xy2, 1.0) @ line) / np.hypot(*line[:2])


def test_scores_of_posed_pairs_against_numpy():
    n, maps = 30, (flat_maps(1, (10, 14, 5)), flat_maps(2, (10, 14, 5)))
    pair = posed(n)
    found = slow_found(pair, *maps)
    noise = np.random.default_rng(3).uniform(0, 8, (2, n, 1)) * [0.6, 0.8]  # errors of 0 to 8 px
    pair = pair.replace(xy2_px=(found + noise).astype(np.float32))
    scores, matches = jax.jit(
        partial(validation_step, method=toy(*maps), scores=PosedPairs.scores)
    )({}, pair)
    np.testing.assert_allclose(np.asarray(matches.xy2_px)[pair.valid], found[pair.valid], atol=1e-3)
    np.testing.assert_array_equal(matches.valid, pair.valid)
    good = np.linalg.norm(noise, axis=-1) <= 5
    assert 0.2 < good[0][pair.known[0]].mean() < 0.9
    np.testing.assert_allclose(
        scores["pck@5px"], good[0][pair.known[0]].mean(), rtol=1e-5
    )  # nothing is known of the second pair: it does not count
    means = [
        np.mean(
            [
                slow_distance(pair.F_1to2[b], pair.xy1_px[b, i], found[b, i])
                for i in np.flatnonzero(pair.valid[b])
            ]
        )
        for b in range(2)
    ]
    np.testing.assert_allclose(scores["epipolar_px"], np.mean(means), rtol=1e-3)
    for b in range(2):
        one, seen = jax.tree.map(lambda x, b=b: np.asarray(x[b]), (pair, matches))
        on_line = [slow_distance(one.F_1to2, one.xy1_px[i], found[b, i]) <= 5 for i in range(n)]
        np.testing.assert_array_equal(
            PosedPairs.correct(one, seen)[one.valid],
            np.where(one.known, good[b], on_line)[one.valid],
        )
        np.testing.assert_array_equal(
            PosedPairs.correct(one.replace(xy2_px=None, known=None), seen)[one.valid],
            np.array(on_line)[one.valid],
        )


def test_the_same_map_finds_every_cell_and_unknown_truth_has_no_score():
    pair, points = posed(9, hw=(37, 53), known=False), np.arange(9)
    pair = pair.replace(
        xy1_px=np.tile(
            np.stack([points % 3 * 26.0, points // 3 * 18.0], 1).astype(np.float32), (2, 1, 1)
        )
    )
    same = flat_maps(
        1, (7, 9, 16)
    )  # cells are 52 / 8 and 36 / 6 px apart: 26 = 4 x 6.5 and 18 = 3 x 6
    same /= np.linalg.norm(same, axis=-1, keepdims=True)
    scores, matches = jax.jit(
        partial(validation_step, method=toy(same, same), scores=PosedPairs.scores)
    )({}, pair)
    np.testing.assert_allclose(matches.xy2_px[pair.valid], pair.xy1_px[pair.valid], atol=1e-3)
    assert set(scores) == {"epipolar_px"}
