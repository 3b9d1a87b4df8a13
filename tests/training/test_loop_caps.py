"""Posed pairs through the training loop: the smoke configuration as a user runs it, and how validation scores them."""

import dataclasses
import json
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import jaxdesc
from jaxdesc import config
from jaxdesc.data.draw import draw_batch
from jaxdesc.data.posed_draw import RawPosedPair
from jaxdesc.data.semantic_draw import RawKeypointPair
from jaxdesc.method import Method
from jaxdesc.methods import METHODS
from jaxdesc.nets.torch_names import resnet_name
from jaxdesc.ops.sampling import aligned_grid
from jaxdesc.store.checkpoint import Checkpoints
from jaxdesc.training import loop
from jaxdesc.training.step import right, validation_step
from jaxdesc.types import Canvas, Correspondences, KeypointPair, Pair, PosedPair, TrainState, UserError

CAPS = "configs/caps.py"


def smoke(cache):
    return config.load(f"{CAPS}:smoke", {"data.cache": str(cache)})


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Of the eight: the notebook's program, which is then compiled already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.jax, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caps")
    scores = loop.run(smoke(folder / "cache"), folder / "run")
    return folder / "run", scores, folder / "cache"


def state_of(workdir, step):
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        return jax.tree.map(np.asarray, checkpoints._manager.restore(step)["state"])


def test_a_run_on_posed_pairs_leaves_what_it_promises(trained):
    workdir, scores, _ = trained
    assert {"config.json", "curve.png", "matches_000000.png", "matches_000002.png", "tensorboard"} <= {p.name for p in workdir.iterdir()}
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train_rows, validation_rows = ([row for row in rows if row["split"] == split] for split in ("train", "validation"))
    assert [row["step"] for row in train_rows] == [1, 2] and [row["step"] for row in validation_rows] == [0, 2]
    assert {"loss", "E_coarse", "E_fine", "Y_coarse", "Y_fine", "pck@5px", "grad_norm", "images_per_s"} <= set(train_rows[0])
    parts = sum(weight * train_rows[1][name] for name, weight in (("E_coarse", 1), ("E_fine", 1), ("Y_coarse", 0.1), ("Y_fine", 0.1)))
    assert train_rows[1]["loss"] == pytest.approx(parts, rel=1e-4)
    assert {name: validation_rows[1][name] for name in scores} == pytest.approx(scores, rel=1e-5) and set(scores) == {"pck@5px", "epipolar_px"}
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (2, 2)


def test_a_resumed_run_ends_where_the_whole_one_does(trained, tmp_path, capsys):
    workdir, _, cache = trained
    shutil.copytree(workdir, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "2")
    loop.run(smoke(cache), tmp_path / "part")
    out = capsys.readouterr().out
    assert "embedded: 1 posed pairs of 2 photographs" in out and "at step 1" in out and "RANDOM" not in out
    whole, part = state_of(workdir, 2), state_of(tmp_path / "part", 2)
    assert any(leaf.any() for leaf in jax.tree.leaves(whole["opt_state"]))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_workdir_is_loaded_and_matches(trained):
    predictor = jaxdesc.load(trained[0])
    assert (predictor.name, predictor.dim) == ("caps", 12)
    np.testing.assert_array_equal(
        predictor.variables["params"]["conv_fine"]["conv"]["kernel"], state_of(trained[0], 2)["params"]["conv_fine"]["conv"]["kernel"]
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    matches = predictor.match(image, image)
    assert len(matches.xy1) > 100
    np.testing.assert_array_equal(matches.xy1, matches.xy2)


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
    xy1, xy2 = (rng.uniform(0, [hw[1] - 1, hw[0] - 1], (2, n, 2)).astype(np.float32) for _ in range(2))
    image = np.zeros((2, *hw, 3), np.float32)
    valid = np.arange(n) % 5 > 0
    truth = {"xy2_px": xy2, "known": np.stack([valid & (np.arange(n) % 3 > 0), np.zeros(n, bool)])} if known else {"xy2_px": None, "known": None}
    return PosedPair(image1=image, image2=image, F_1to2=F, xy1_px=xy1, valid=np.stack([valid, ~valid]), slot=np.arange(2, dtype=np.int32), **truth)


def slow_found(pair, map1, map2):
    """For every query the place of the cell of map 2 that is most like map 1 there, corners aligned, by loops."""
    (h, w, _), (rows, columns) = map1.shape, pair.image1.shape[1:3]
    found = np.zeros_like(pair.xy1_px)
    for b in range(2):
        for i, (x, y) in enumerate(pair.xy1_px[b].astype(np.float64)):
            x, y = x * (w - 1) / (columns - 1), y * (h - 1) / (rows - 1)
            tents = np.clip(1 - abs(np.arange(h) - y), 0, None)[:, None] * np.clip(1 - abs(np.arange(w) - x), 0, None)
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
    scores, matches = jax.jit(partial(validation_step, method=toy(*maps)))({}, pair)
    np.testing.assert_allclose(np.asarray(matches.xy2_px)[pair.valid], found[pair.valid], atol=1e-3)
    np.testing.assert_array_equal(matches.valid, pair.valid)
    good = np.linalg.norm(noise, axis=-1) <= 5
    assert 0.2 < good[0][pair.known[0]].mean() < 0.9
    np.testing.assert_allclose(scores["pck@5px"], good[0][pair.known[0]].mean(), rtol=1e-5)  # nothing is known of the second pair: it does not count
    means = [np.mean([slow_distance(pair.F_1to2[b], pair.xy1_px[b, i], found[b, i]) for i in np.flatnonzero(pair.valid[b])]) for b in range(2)]
    np.testing.assert_allclose(scores["epipolar_px"], np.mean(means), rtol=1e-3)
    for b in range(2):
        one, seen = jax.tree.map(lambda x, b=b: np.asarray(x[b]), (pair, matches))
        on_line = [slow_distance(one.F_1to2, one.xy1_px[i], found[b, i]) <= 5 for i in range(n)]
        np.testing.assert_array_equal(right(one, seen)[one.valid], np.where(one.known, good[b], on_line)[one.valid])
        np.testing.assert_array_equal(right(one.replace(xy2_px=None, known=None), seen)[one.valid], np.array(on_line)[one.valid])


def test_the_same_map_finds_every_cell_and_unknown_truth_has_no_score():
    pair, points = posed(9, hw=(37, 53), known=False), np.arange(9)
    pair = pair.replace(xy1_px=np.tile(np.stack([points % 3 * 26.0, points // 3 * 18.0], 1).astype(np.float32), (2, 1, 1)))
    same = flat_maps(1, (7, 9, 16))  # cells are 52 / 8 and 36 / 6 px apart: 26 = 4 x 6.5 and 18 = 3 x 6
    same /= np.linalg.norm(same, axis=-1, keepdims=True)
    scores, matches = jax.jit(partial(validation_step, method=toy(same, same)))({}, pair)
    np.testing.assert_allclose(matches.xy2_px[pair.valid], pair.xy1_px[pair.valid], atol=1e-3)
    assert set(scores) == {"epipolar_px"}


def test_scores_of_keypoint_pairs_against_numpy():
    n, maps, given = 20, (flat_maps(1, (10, 14, 5)), flat_maps(2, (10, 14, 5))), posed(20)
    found = slow_found(given, *maps)
    error = np.random.default_rng(3).uniform(0, 10, (2, n, 1))  # 0.1 of 56 px count
    common = {"image1": given.image1, "image2": given.image2, "xy1_px": given.xy1_px, "valid": given.valid, "slot": given.slot}
    pair = KeypointPair(xy2_px=(found + error * [0.8, -0.6]).astype(np.float32), **common)

    def loss(variables, batch, key, train):
        assert not train
        return batch["semantic"].xy1_px[:, 0, 0], ({"seen": batch["semantic"].xy1_px.sum((1, 2))}, None)

    scores, _ = jax.jit(partial(validation_step, method=toy(*maps)._replace(loss=loss)))({}, pair)
    assert set(scores) == {"pck@0.05", "pck@0.1", "pck@0.15", "seen", "loss"}
    for alpha in (0.05, 0.1, 0.15):
        shares = [(error[b, pair.valid[b]] <= alpha * 56).mean() for b in range(2)]
        np.testing.assert_allclose(scores[f"pck@{alpha}"], np.mean(shares), rtol=1e-5)
    assert 0.3 < scores["pck@0.1"] < 0.8
    np.testing.assert_allclose(scores["seen"], pair.xy1_px.sum() / 2, rtol=1e-5)
    np.testing.assert_allclose(scores["loss"], pair.xy1_px[:, 0, 0].mean(), rtol=1e-5)
    unknown, matches = jax.jit(partial(validation_step, method=toy(*maps)._replace(loss=loss)))({}, pair.replace(xy2_px=None))
    assert set(unknown) == {"seen", "loss"}
    assert right(jax.tree.map(lambda x: x[0], pair.replace(xy2_px=None)), jax.tree.map(lambda x: x[0], matches)).tolist() == pair.valid[0].tolist()

    def transfer(variables, image1, image2, xy1):
        return xy1 + 1.0, xy1[:, 0]

    exact = pair.replace(xy2_px=pair.xy1_px + np.float32([1, 1 + 0.07 * 56]))
    scores, matches = jax.jit(partial(validation_step, method=toy(*maps)._replace(loss=loss, transfer=transfer)))({}, exact)
    assert [float(scores[f"pck@{alpha}"]) for alpha in (0.05, 0.1, 0.15)] == [0, 1, 1]
    np.testing.assert_array_equal(matches.score, pair.xy1_px[..., 0])


def test_a_homographys_matches_are_right_within_three_pixels():
    H = np.array([[1, 0, 4], [0, 1, -2], [0, 0, 1.0]], np.float32)
    pair = Pair(image1=None, image2=None, H_1to2=H, slot=None)
    xy1 = np.array([[5, 5], [10, 8], [3, 9.0]], np.float32)
    xy2 = xy1 + np.array([[4, -2], [4, 0.9], [4, 1.1]], np.float32)
    row = np.zeros(3)
    assert right(pair, Correspondences(xy1, xy2, row, row, row)).tolist() == [True, True, False]


# ---- the loop's parts


def test_a_batchs_parts_and_their_devices(monkeypatch):
    monkeypatch.setattr(loop.jax, "device_count", lambda: 8)
    cfg = config.load(f"{CAPS}:smoke")
    assert loop.pairs_per_batch(cfg.data) == {"posed": 2}
    assert loop.pairs_per_batch(config.load("configs/pump.py").data) == {"synthetic": 4, "real": 4}
    assert len(loop.devices_for(cfg)) == 2  # of 8 virtual ones
    mixed = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, synthetic_per_batch=3))
    assert len(loop.devices_for(mixed)) == 1


def test_processes_that_cannot_share_a_batch_name_its_fields(monkeypatch):
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.jax, "device_count", lambda: 8)
    with pytest.raises(UserError, match=r"Batches of 2 pairs .* over 8 devices: change config\.data\.posed_per_batch or config\.train\.accumulate"):
        loop.devices_for(config.load(f"{CAPS}:smoke"))


@pytest.mark.parametrize(("parts", "asked"), [({"real": 1}, {"synthetic"}), ({"posed": 2}, {"posed"}), ({"synthetic": 1, "posed": 2}, {"synthetic", "posed"})])
def test_what_a_run_is_validated_on(parts, asked):
    count, seen = 2, {}

    def draw(key, raw):
        return {part: posed(4) if part == "posed" else value for part, (value, _) in raw.items()}

    def photographs(n):
        seen["synthetic"] = n
        return np.zeros(n)

    def views(n):
        seen["posed"] = n
        return np.zeros(n)

    batch = loop.validation_batch(SimpleNamespace(validation_photos=photographs, validation_posed=views), parts, count, draw)
    assert set(batch) == asked and seen == dict.fromkeys(asked, count)


def test_held_out_pairs_keep_their_colours_and_are_not_mirrored():
    """Photographs whose red grows to the right and whose green is the same all over, drawn as a
    training with every change of colours, noise and mirroring would validate on them."""
    colours = dict.fromkeys(("brightness", "contrast", "saturation"), 1.0)
    wild = config.DrawConfig(
        **{"crop_px": 32, "posed_hw": (32, 32), "queries": 4, "tilt": 0.0, "rotation_deg": 0.0},
        **{"hue": 0.5, "noise": 200.0, "flip_probability": 1.0, "prune": False, **colours},
        warp=config.WarpConfig(angle_deg=0.0, bend=0.0),
    )
    n, grown = 3, np.broadcast_to(np.linspace(20, 200, 64), (64, 64)).astype(np.uint8)
    photo = np.stack([grown, np.full_like(grown, 102), np.zeros_like(grown)], -1)
    canvas = Canvas(np.stack([photo] * n), np.full((n, 2), 64, np.int32))
    K, points = np.stack([np.diag([60.0, 60.0, 1.0])] * n), np.full((n, 4, 2), 30.0, np.float32)
    yes = np.ones((n, 4), bool)
    turn, along = np.stack([np.eye(3)] * n), np.tile([1.0, 0.0, 0.0], (n, 1))
    spread, depth = np.ones(n), np.full(n, 9.0)
    seen = (points, yes, points, yes)
    views = RawPosedPair(canvas, canvas, K, K, turn, along, spread, depth, *seen)
    warped = np.array([True, False, False])
    objects = RawKeypointPair(canvas, canvas, points, points, yes, np.zeros(n, bool), warped)
    data = SimpleNamespace(
        validation_photos=lambda n: canvas,
        validation_posed=lambda n: views,
        validation_semantic=lambda n: objects,
    )
    draw = partial(draw_batch, cfg=loop.undistorted(wild))
    batch = loop.validation_batch(data, ("synthetic", "posed", "semantic"), n, draw)
    assert len(batch) == 3
    for part, pairs in batch.items():
        for image in (*np.asarray(pairs.image1), *np.asarray(pairs.image2)):
            seen = image[4:-4, 4:-4]  # beyond its edges a warped copy is black
            np.testing.assert_allclose(seen[..., 1], 0.4, atol=0.005, err_msg=part)
            assert (np.diff(seen[..., 0], axis=1) > 0).mean() > 0.9, part


def test_truth_that_no_pair_knows_is_left_out():
    def draw(key, raw):
        return {"posed": posed(4).replace(known=raw["posed"][0])}

    data = SimpleNamespace(validation_posed=lambda n: np.zeros((n, 4), bool))
    assert loop.validation_batch(data, {"posed"}, 2, draw)["posed"].xy2_px is None
    data = SimpleNamespace(validation_posed=lambda n: np.eye(n, 4, dtype=bool))
    assert loop.validation_batch(data, {"posed"}, 2, draw)["posed"].known.sum() == 2


def test_pruning_that_leaves_nothing_is_said(trained, tmp_path):
    """The stereo pair's scene begins at many times the distance of its two cameras."""
    changes = {"data.cache": str(trained[2]), "draw.prune_depth": "cameras"}
    cfg = config.load(f"{CAPS}:smoke", changes)
    with pytest.raises(UserError, match=r"^config\.draw\.prune_depth: pruning leaves no query"):
        loop.run(cfg, tmp_path / "run")


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([{"pck@5px": 0.1, "epipolar_px": 1.0}, {"pck@5px": 0.3, "epipolar_px": 9.0}, {"pck@5px": 0.2, "epipolar_px": 5.0}], 2),
        ([{"epipolar_px": 7.0}, {"epipolar_px": 3.0}, {"epipolar_px": 4.0}], 2),
        ([{"loss": 7.0, "L_sil": 0.1}, {"loss": 3.0, "L_sil": 0.3}, {"loss": 4.0, "L_sil": 0.2}], 2),
    ],
)
def test_the_best_checkpoint_follows_the_runs_own_score(tmp_path, scores, best):
    with Checkpoints(tmp_path / "c", keep_last=1) as checkpoints:
        for step, metrics in enumerate(scores, 1):
            checkpoints.save(TrainState(step=np.int32(step), params={"w": np.zeros(2)}, model_state={}, opt_state=()), step, metrics)
    with Checkpoints(tmp_path / "c", keep_last=1) as checkpoints:
        assert checkpoints.best() == best and checkpoints.steps() == [best, 3]


def test_training_starts_from_a_resnets_weights(tmp_path):
    cfg = config.load(f"{CAPS}:smoke")
    method, optimizer, rng = METHODS["caps"].build(cfg.method), optax.adam(1e-3), np.random.default_rng(0)
    image = jnp.zeros((1, 32, 32, 3))
    like = jax.eval_shape(method.init, jax.random.key(0), {"posed": Pair(image1=image, image2=image, H_1to2=None, slot=None)})
    state = loop.new_state(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like), optimizer)
    tensors = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(like[collection]["backbone"]):
            shape = [leaf.shape[i] for i in (3, 2, 0, 1)] if len(leaf.shape) == 4 else leaf.shape
            tensors[resnet_name("/".join(k.key for k in path))] = rng.normal(size=shape).astype(np.float32)
    save_file(tensors, tmp_path / "resnet.safetensors")
    told = []
    started = loop.with_pretrained(state, f"imagenet:{tmp_path / 'resnet.safetensors'}", optimizer, told.append)
    assert len(told) == 1 and "starts from" in told[0]
    np.testing.assert_array_equal(started.params["backbone"]["conv1"]["kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0))
    assert not np.asarray(started.params["conv_fine"]["conv"]["kernel"]).any() and jax.tree.structure(started) == jax.tree.structure(state)
    with pytest.raises(UserError, match=r"config\.method\.weights = imagenet:.*nowhere\.pth"):
        loop.with_pretrained(state, f"imagenet:{tmp_path / 'nowhere.pth'}", optimizer, told.append)


# ---- configurations


def test_variants_and_noise_levels():
    for variant in ("default", "paper", "smoke"):
        cfg = config.load(f"{CAPS}:{variant}")
        assert loop.pairs_per_batch(cfg.data).keys() == {"posed"}
    assert config.load(CAPS, {"data.pose_noise": "2.5,1"}).data.pose_noise == (2.5, 1.0)
    with pytest.raises(UserError, match="no variant 'papr'; it has default, paper, smoke"):
        config.load(f"{CAPS}:papr")


def test_paper_variant_is_the_published_recipe():
    cfg = config.load(f"{CAPS}:paper")
    assert (cfg.data.posed_per_batch, cfg.train.steps, cfg.draw.queries, cfg.draw.posed_hw) == (6, 200_000, 500, (480, 640))
    assert (cfg.optim.learning_rate, cfg.optim.schedule, cfg.optim.halving_steps) == (1e-4, "halving", 80_000)
    assert (cfg.draw.brightness, cfg.draw.contrast, cfg.draw.saturation, cfg.draw.hue) == (1, 1, 1, 0.4)
    assert (cfg.method.backbone, cfg.method.decoder, cfg.data.pose_noise, cfg.data.curriculum) == ("resnet50", "paper", (0, 0), 0)
    assert (cfg.method.weights_over, cfg.draw.prune_depth) == ("pair", "cameras")
