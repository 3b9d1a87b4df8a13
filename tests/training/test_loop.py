"""The training loop on the smoke configuration, as a user runs it."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxdesc import config
from jaxdesc.store.checkpoint import Checkpoints, read_run
from jaxdesc.training import loop, optim
from jaxdesc.types import TrainState, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def smoke(cache, steps=2, **overrides):
    return config.load("configs/pump.py:smoke", {"data.cache": cache, "train.steps": str(steps), **overrides})


def leaves(workdir, step):
    with Checkpoints(workdir / "checkpoints", 3) as checkpoints:
        folder = checkpoints._manager.restore(step)
    return [np.asarray(x) for x in jax.tree.leaves(folder["state"])]


def verb(*arguments, **env):
    command = [sys.executable, "-m", "jaxdesc.train", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_leaves_what_it_promises(tmp_path, cache):
    scores = loop.run(smoke(cache), tmp_path / "run")
    run = tmp_path / "run"
    assert {"config.json", "metrics.jsonl", "curve.png", "matches_000000.png", "matches_000002.png", "checkpoints", "tensorboard"} <= {
        p.name for p in run.iterdir()
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] == [1, 2]
    assert {"loss", "L_AP", "L_uniq", "grad_norm"} <= set(rows[1])
    assert set(scores) == {"mma@1px", "mma@3px", "mma@5px", "matches"}
    assert not list(run.glob("*.tmp"))
    tags = tensorboard_tags(run / "tensorboard")
    assert "validation/matches" in tags["simple_value"] and tags["image"]
    assert not tags["simple_value"] & tags["image"]


def tensorboard_tags(folder):
    """{"simple_value": names of curves, "image": names of pictures}; a record is a length of
    8 bytes and a sum of 4, an event, a sum of 4."""
    found = {"simple_value": set(), "image": set()}
    for file in folder.iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            for value in Event.FromString(data[at + 12 : at + 12 + size]).summary.value:
                found[value.WhichOneof("value")].add(value.tag)
            at += size + 16
    return found


def test_killed_and_resumed_equals_uninterrupted(tmp_path, cache):
    """kill -9 somewhere in the run; the same command goes on and ends bit by bit where an undisturbed run ends."""
    flags = ("--config", "configs/pump.py:smoke", f"--config.data.cache={cache}", "--config.train.steps=4", "--config.optim.ema_decay=0.9")
    process = verb(*flags, "--workdir", str(tmp_path / "killed"))
    deadline = time.time() + 300
    while not any((tmp_path / "killed" / "checkpoints").glob("[0-9]*")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    again, whole = (verb(*flags, "--workdir", str(tmp_path / name)) for name in ("killed", "whole"))
    for process in (again, whole):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert "mma@3px" in out
    for a, b in zip(leaves(tmp_path / "whole", 4), leaves(tmp_path / "killed", 4), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] == [1, 2, 3, 4]
    _, _, used, _ = read_run(tmp_path / "whole")  # with batch statistics of the averaged parameters' own
    with Checkpoints(tmp_path / "whole" / "checkpoints", 3) as checkpoints:
        trained = checkpoints._manager.restore(4)["state"]["model_state"]["batch_stats"]
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), used["batch_stats"], trained)
    assert min(jax.tree.leaves(differences)) > 1e-6


def test_sigterm_saves_and_exits_zero(tmp_path, cache):
    process = verb("--config", "configs/pump.py:smoke", f"--config.data.cache={cache}", "--config.train.steps=100000", "--workdir", str(tmp_path / "run"))
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.time() + 300
    while not (metrics.exists() and '"train"' in metrics.read_text()) and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "stopped by SIGTERM" in out and "Traceback" not in err
    with Checkpoints(tmp_path / "run" / "checkpoints", 3) as checkpoints:
        assert f"step {checkpoints.latest()} is saved" in out


def test_stages_begin_with_an_optimiser_of_their_own_and_resume(tmp_path, cache, monkeypatch):
    """Three steps in stages of two and one: the second one's Adam has seen one gradient; stopped between the stages, the run ends as if it had not been. Scores on
    other pairs than the last stage's are named after these pairs."""

    def plan(self, cfg):
        other = dataclasses.replace(cfg.data, prefetch=1)
        return config.Stage("first", 0, 2, other, "warped"), config.Stage("second", 2, 1, cfg.data)

    monkeypatch.setattr(config.MethodConfig, "plan", plan)
    scores = loop.run(smoke(cache, 3), tmp_path / "whole")
    names = {"mma@1px", "mma@3px", "mma@5px", "matches"}
    assert set(scores) == names | {f"warped/{name}" for name in names}
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [0, 2, 3]

    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "3")
    loop.run(smoke(cache, 3), tmp_path / "part")
    for a, b in zip(leaves(tmp_path / "whole", 3), leaves(tmp_path / "part", 3), strict=True):
        np.testing.assert_array_equal(a, b)
    counts = {step: {int(x) for x in leaves(tmp_path / "whole", step) if x.dtype.kind == "i"} for step in (2, 3)}
    assert counts == {2: {2}, 3: {1, 3}}  # step and the optimiser's own count


def test_non_finite_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, cache, monkeypatch):
    real_step = loop.train_step

    def poisoned(state, raw, **how):
        new, metrics = real_step(state, raw, **how)
        return new, {**metrics, "loss": jax.numpy.where(new.step == 3, jax.numpy.nan, metrics["loss"])}

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(UserError, match=r"loss became non-finite in step 3: .* checkpoint of step 2 is good"):
        loop.run(smoke(cache, 4), tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints", 3) as checkpoints:
        assert checkpoints.latest() == 2


def test_a_workdir_of_another_configuration_is_refused(tmp_path, cache):
    loop.claim(tmp_path, smoke(cache))
    with pytest.raises(UserError, match=r"belongs to another configuration \(optim\.learning_rate is"):
        loop.claim(tmp_path, smoke(cache, **{"optim.learning_rate": "0.5"}))
    loop.claim(tmp_path, smoke(cache, **{"report.log_every": "7"}))  # what a run reports may change


def test_the_first_pairs_are_pictured_as_the_loss_sees_them(tmp_path, cache, monkeypatch):
    seen, real = [], loop.figures.pair_sheet
    monkeypatch.setattr(loop.figures, "pair_sheet", lambda pairs: seen.append(pairs) or real(pairs))
    cfg = smoke(cache, 1, **{"report.pictured_pairs": "6"})
    loop.run(cfg, tmp_path / "run")
    assert len(seen[0]) == 6 and (tmp_path / "run" / "pairs.png").exists()
    data = loop.open_data(cfg.data, cfg.train.seed)
    first = next(data.batches(0))
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(cfg.train.seed), 0))
    drawn = jax.jit(lambda raw: loop.draw_batch(key, raw, data=cfg.data, cfg=cfg.draw, step=0))(first)
    image1 = np.concatenate([np.asarray(pairs.image1) for pairs in drawn.values()])
    np.testing.assert_allclose(np.stack([pair[0] for pair in seen[0][:4]]), image1, atol=1e-5)
    loop.run(smoke(cache, 1), tmp_path / "none")
    assert not (tmp_path / "none" / "pairs.png").exists()


@pytest.mark.parametrize(
    ("schedule", "done", "steps", "right"),
    [
        ("constant", 100, 400, True),
        ("constant", 100, 60, False),  # it has done more already
        ("halving", 100, 400, True),
        ("trapezoid", 80, 400, True),
        ("trapezoid", 81, 400, False),  # its rate has begun to fall
        ("trapezoid", 60, 75, True),
        ("trapezoid", 61, 75, False),  # it should have begun to fall
        ("cosine", 0, 400, True),
        ("cosine", 1, 400, False),
    ],
)
def test_a_run_may_be_prolonged_where_nothing_done_depends_on_its_length(schedule, done, steps, right, tmp_path, cache, capsys):
    def planned(steps):
        return smoke(cache, **{"optim.schedule": schedule, "train.steps": str(steps), "optim.warmup_steps": "0"})

    loop.claim(tmp_path, planned(100))
    (tmp_path / "checkpoints" / str(done)).mkdir(parents=True)
    if right:
        loop.claim(tmp_path, planned(steps))
        assert f"was to take 100 steps; it goes on to {steps}" in capsys.readouterr().out
        assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == steps
        rates = [optim.learning_rate(planned(n).optim, n) for n in (100, steps)]
        assert all(rates[0](step) == rates[1](step) for step in range(done))
    else:
        with pytest.raises(UserError, match=r"train\.steps is 100 there"):
            loop.claim(tmp_path, planned(steps))


def test_a_workdir_of_a_version_that_lacked_a_field_is_its_own_if_the_field_has_its_usual_value(tmp_path, cache):
    loop.claim(tmp_path, smoke(cache))
    written = json.loads((tmp_path / "config.json").read_text())
    del written["optim"]["name"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"optim\.name is 'adam' there and 'sgd' here"):
        loop.claim(tmp_path, smoke(cache, **{"optim.name": "sgd"}))
    loop.claim(tmp_path, smoke(cache))


def test_checkpoints_of_nobody_knows_what_are_refused(tmp_path, cache):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints but no config\.json"):
        loop.claim(tmp_path, smoke(cache))


def test_an_unwritable_workdir_is_told_in_a_sentence(tmp_path, cache):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        loop.claim(tmp_path / "file" / "run", smoke(cache))


def test_a_full_disk_is_told_in_a_sentence(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(UserError, match=r"The disk of .*run is full: .* run the same command again"):
        loop.run(smoke(cache), tmp_path / "run")


def test_last_and_best_checkpoints_are_kept(tmp_path):
    def state(step):
        return TrainState(step=np.int32(step), params={"w": np.float32(step)}, model_state={}, opt_state=())

    with Checkpoints(tmp_path / "c", keep_last=2) as checkpoints:
        for step, score in [(1, 0.1), (2, 0.9), (3, None), (4, 0.3)]:
            checkpoints.save(state(step), step * 10, None if score is None else {"mma@3px": score})
    with Checkpoints(tmp_path / "c", keep_last=2) as checkpoints:  # the best is remembered by a resumed run
        for step, score in [(5, None), (6, 0.2)]:
            checkpoints.save(state(step), step * 10, None if score is None else {"mma@3px": score})
    with Checkpoints(tmp_path / "c", keep_last=2) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert (checkpoints.latest(), checkpoints.best()) == (6, 2)
        restored, position = checkpoints.restore(state(0), 2)
        assert position == 20 and restored.params["w"] == 2
        with pytest.raises(UserError, match="does not fit this configuration"):
            checkpoints.restore(TrainState(step=np.int32(0), params={"other": np.zeros(3)}, model_state={}, opt_state=()))


def test_devices_that_share_the_batch_evenly():
    cfg = config.load("configs/pump.py:smoke")
    assert len(loop.devices_for(cfg)) == 2  # 2 + 2 pairs on 8 virtual devices
    assert len(loop.devices_for(dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, accumulate=2)))) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nowhere.py"], "no configuration file nowhere.py"),
        (["--config", "LICENSE"], "LICENSE is not Python"),
        (["--config", "configs/pump.py", "--config.optim.lr=1"], "config.optim has no field 'lr'"),
        (["--config", "configs/pump.py", "--steps=3"], "Unknown argument '--steps=3'"),
    ],
)
def test_mistakes_end_in_one_sentence_and_status_2(arguments, words):
    process = verb(*arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and words in err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1, err
