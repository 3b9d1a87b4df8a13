"""Backbones from a run of CAPS: a workdir's best checkpoint, averaged parameters, a weight file; what does not fit."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdesc.config import OptimConfig
from jaxdesc.store import weights
from jaxdesc.store.checkpoint import Checkpoints
from jaxdesc.store.pretrained import pretrained
from jaxdesc.training.optim import make_optimizer
from jaxdesc.training.step import new_state
from jaxdesc.types import UserError


def resnet(seed, blocks=("layer1_0", "layer2_0", "layer3_0"), width=2):
    """Parameters and statistics in the form of `nets.resnet.ResNet`'s; few of them."""
    rng = np.random.default_rng(seed)
    params = {"conv1": {"kernel": rng.normal(size=(7, 7, 3, width)).astype(np.float32)}}
    stats = {"bn1": {"norm": {"mean": rng.normal(size=width).astype(np.float32)}}}
    for i, block in enumerate(blocks):
        params[block] = {"conv1": {"kernel": rng.normal(size=(3, 3, width, width * (i + 1))).astype(np.float32)}}
        stats[block] = {"bn1": {"norm": {"mean": rng.normal(size=width * (i + 1)).astype(np.float32)}}}
    return params, stats


def variables_of(seed, frozen=("conv1", "layer1_0"), **shape):
    """Of a method that distils: a part of the backbone rests, a part learns, and there is a head."""
    params, stats = resnet(seed, **shape)
    rests = {name: params.pop(name) for name in frozen}
    return {"params": {"backbone": params, "head": {"bias": np.zeros(3)}}, "frozen": {"backbone": rests}, "batch_stats": {"backbone": stats, "bn": np.ones(2)}}


def workdir(path, seeds, scores, ema=0.0, name="caps"):
    """A run with a checkpoint a seed."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"method_name": name, "method": {}}))
    optimizer = make_optimizer(OptimConfig(ema_decay=ema), 10)
    with Checkpoints(path / "checkpoints", 5) as checkpoints:
        for step, (seed, score) in enumerate(zip(seeds, scores, strict=True)):
            params, stats = resnet(seed)
            state = new_state({"params": {"backbone": params, "decoder": {"bias": np.ones(2)}}, "batch_stats": {"backbone": stats}}, optimizer)
            if ema:  # the average stays behind
                state = state.replace(params={**state.params, "backbone": resnet(99)[0]})
            checkpoints.save(state.replace(step=np.int32(step)), step, {"pck@5px": score})
    return path


def same(found, seed):
    """The backbone is that of the seed."""
    ours = flatten_dict({**found["params"]["backbone"], **found["frozen"]["backbone"]}), flatten_dict(found["batch_stats"]["backbone"])
    for tree, truth in zip(ours, map(flatten_dict, resnet(seed)), strict=True):
        assert tree.keys() == truth.keys()
        for path in truth:
            np.testing.assert_array_equal(tree[path], truth[path])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_best_checkpoint_of_a_run(tmp_path, ema):
    run = workdir(tmp_path / "run", [5, 6, 7], [0.1, 0.3, 0.2], ema)
    before, told = variables_of(0), []
    found = pretrained(before, f"caps:{run}", told.append)
    same(found, 6)
    assert "trained by CAPS, not on ImageNet" in told[0]
    assert found["params"]["head"] is before["params"]["head"] and found["batch_stats"]["bn"] is before["batch_stats"]["bn"]


def test_a_weight_file_and_a_network_that_ends_earlier(tmp_path):
    @dataclass
    class Config:
        width: int = 2

    params, stats = resnet(3)
    weights.save(tmp_path / "a.safetensors", "caps", Config(), {"params": {"backbone": params}, "batch_stats": {"backbone": stats}})
    same(pretrained(variables_of(0), f"caps:{tmp_path / 'a.safetensors'}", print), 3)
    shorter = pretrained(variables_of(0, blocks=("layer1_0", "layer2_0")), f"caps:{tmp_path / 'a.safetensors'}", print)
    np.testing.assert_array_equal(shorter["params"]["backbone"]["layer2_0"]["conv1"]["kernel"], params["layer2_0"]["conv1"]["kernel"])
    weights.save(tmp_path / "b.safetensors", "pump", Config(), {"params": {}})
    with pytest.raises(UserError, match=r"caps:.*b\.safetensors: .* is of the method 'pump', not of 'caps'"):
        pretrained(variables_of(0), f"caps:{tmp_path / 'b.safetensors'}", print)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"blocks": ("layer1_0", "layer2_0", "layer3_0", "layer4_0")}, r"ends with layer3, and the network's with layer4: choose activations up to layer3"),
        ({"blocks": ("layer1_0", "layer1_1", "layer2_0", "layer3_0")}, r"of another depth: layer1_1 is only in one of the two"),
        ({"width": 3}, r"of another width or kind: .*kernel is \(3, 3, 2, 4\) there and \(3, 3, 3, 6\) here"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, shape, words):
    run = workdir(tmp_path / "run", [5], [0.1])
    with pytest.raises(UserError, match=rf"config\.method\.weights = caps:.*run: .*{words}"):
        pretrained(variables_of(0, **shape), f"caps:{run}", print)


def test_what_is_no_run_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.json").write_text('{"method_name": "caps", "method": {}}')
    for name, words in (("empty", "holds no config.json"), ("young", "holds no checkpoint yet"), ("none", "no weight file")):
        with pytest.raises(UserError, match=words):
            pretrained(variables_of(0), f"caps:{tmp_path / name}", print)
    with pytest.raises(UserError, match="must be imagenet:FILE or caps:PATH"):
        pretrained(variables_of(0), "caps:", print)
