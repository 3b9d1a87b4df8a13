"""Posed pairs through the training loop: the smoke configuration as a user runs it, and how validation scores them."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import jaxdesc
from jaxdesc import config
from jaxdesc.data.kinds import HomographyPairs
from jaxdesc.methods import METHODS
from jaxdesc.nets.torch_names import resnet_name
from jaxdesc.store.checkpoint import Checkpoints
from jaxdesc.training import loop
from jaxdesc.types import Pair, TrainState, UserError

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


# ---- the loop's parts


def test_a_batchs_parts_and_their_devices(monkeypatch):
    monkeypatch.setattr(loop.jax, "device_count", lambda: 8)
    cfg = config.load(f"{CAPS}:smoke")
    assert cfg.data.pairs_per_batch() == {"posed": 2}
    both = config.load("configs/pump.py").data.pairs_per_batch()
    assert both == {"homography": 4, "unlabelled": 4}
    assert len(loop.devices_for(cfg)) == 2  # of 8 virtual ones
    more = dataclasses.replace(cfg.data, homography=HomographyPairs(per_batch=3))
    mixed = dataclasses.replace(cfg, data=more)
    assert len(loop.devices_for(mixed)) == 1


def test_processes_that_cannot_share_a_batch_name_its_fields(monkeypatch):
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.jax, "device_count", lambda: 8)
    with pytest.raises(UserError, match=r"Batches of 2 pairs .* over 8 devices: change config\.data\.posed\.per_batch or config\.train\.accumulate"):
        loop.devices_for(config.load(f"{CAPS}:smoke"))


def test_pruning_that_leaves_nothing_is_said(trained, tmp_path):
    """The stereo pair's scene begins at many times the distance of its two cameras."""
    changes = {"data.cache": str(trained[2]), "data.posed.prune_depth": "cameras"}
    cfg = config.load(f"{CAPS}:smoke", changes)
    with pytest.raises(UserError, match=r"^config\.data\.posed\.prune_depth: pruning leaves no query"):
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
        assert cfg.data.kinds().keys() == {"posed"}
    noisy = config.load(CAPS, {"data.posed.pose_noise": "2.5,1"})
    assert noisy.data.posed.pose_noise == (2.5, 1.0)
    with pytest.raises(UserError, match="no variant 'papr'; it has default, paper, smoke"):
        config.load(f"{CAPS}:papr")


def test_paper_variant_is_the_published_recipe():
    cfg = config.load(f"{CAPS}:paper")
    pairs = cfg.data.posed
    assert (pairs.per_batch, cfg.train.steps) == (6, 200_000)
    assert (pairs.queries, pairs.hw, pairs.zoom, pairs.prune_depth) == (500, (480, 640), 1, "cameras")
    assert (pairs.pose_noise, pairs.curriculum) == ((0, 0), 0)
    assert (cfg.optim.learning_rate, cfg.optim.schedule, cfg.optim.halving_steps) == (1e-4, "halving", 80_000)
    assert (cfg.draw.brightness, cfg.draw.contrast, cfg.draw.saturation, cfg.draw.hue) == (1, 1, 1, 0.4)
    method = cfg.method
    assert (method.backbone, method.decoder, method.weights_over) == ("resnet50", "paper", "pair")
