"""jaxdesc benchmark: what it measures, and on which data; how long anything takes is not asserted."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxdesc import timing
from jaxdesc.cli import benchmark
from jaxdesc.config import Source
from jaxdesc.method import Method
from jaxdesc.methods import METHODS
from tests.cli import call


@pytest.fixture
def verb(monkeypatch, capsys, tmp_path):
    def run(*arguments, status=None):
        return call(monkeypatch, capsys, "benchmark", *arguments, status=status)

    monkeypatch.setenv("JAXDESC_CACHE", str(tmp_path))
    return run


def test_sources_without_a_folder_are_stood_in_for(capsys):
    args = benchmark.flags().parse_args(["step", "--config", "configs/caps.py:paper"])
    args.overrides = {"train.accumulate": "6", "data.threads": "3"}
    cfg = benchmark.configuration(args)
    data = benchmark.with_data(cfg.data)
    assert data.posed == dataclasses.replace(cfg.data.posed, sources=(Source(),))
    assert (cfg.train.accumulate, data.threads, data.posed.hw) == (6, 3, (480, 640))
    said = "config.data.posed.sources names no folder for megadepth: embedded data stands in.\n"
    assert capsys.readouterr().out == said
    args.overrides = {"data.posed.sources": "rendered,colmap:HERE@2"}
    given = benchmark.configuration(args).data
    assert given.posed.sources == (Source("rendered"), Source("colmap", "HERE", 2.0))
    assert benchmark.with_data(given) == given and not capsys.readouterr().out


def test_a_step_of_posed_pairs(verb, monkeypatch):
    """With a network of three parameters: the means of the images' channels, weighted."""
    updates = []

    def loss(variables, batch, key, train):
        pair = batch["posed"]
        jax.debug.callback(updates.append, pair.image1.shape)
        per_example = ((pair.image1 - pair.image2).mean((1, 2)) @ variables["params"]) ** 2
        return per_example, ({}, {})

    small = Method(lambda key, batch: {"params": jnp.ones(3)}, loss, lambda variables, images: images @ variables["params"][:, None], grid=None, match=None)
    definition = METHODS["caps"]._replace(build=lambda config, axis_name: small)
    monkeypatch.setitem(METHODS, "caps", definition)
    monkeypatch.setattr(benchmark, "resident_bytes", lambda peak=False: 50 * 2**20 if peak else 8 * 2**20)
    out, _ = verb("step", "--config", "configs/caps.py:smoke", "--config.train.accumulate=2", "--repeat", 1, "--cold")
    step, forward = (next(line for line in out.splitlines() if line.startswith(name)) for name in ("step, ", "  of which the network"))
    assert step.startswith("step, 2 pairs of 64x48 px, in 2 parts ") and " x " in forward and "  of which drawing the pairs" in out
    assert [tuple(map(int, shape)) for shape in updates] == [(1, 48, 64, 3)] * 2  # one update, cold, in two parts
    planned = int(re.search(r"memory: (\d+) MiB of temporaries are planned, the process grew by 42 MiB", out)[1])
    assert f" {planned} MiB " in step and out.splitlines()[-1].endswith("; 3 parameters")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["losses", "--config.train.steps=3"], "--config.train.steps is for step and data: losses reads no configuration."),
        (["step", "--config.train.stops=3"], "config.train has no field 'stops'"),
        (["data", "--wrong"], "Unknown argument '--wrong'"),
        (["step", "--config", "configs/none.py"], "There is no configuration file configs/none.py"),
    ],
)
def test_mistakes_are_one_sentence(verb, arguments, words):
    out, err = verb(*arguments, status=2)
    assert not out and err.startswith("jaxdesc: ") and words in err and err.count("\n") == 1


def test_detectors_beside_sifts(verb, monkeypatch):
    seconds = iter([0.2, 0.05, 0.1])
    counted = []

    def cpu_seconds(function, repeat):
        counted.append((len(function().score), repeat))
        return next(seconds)

    monkeypatch.setattr(benchmark, "cpu_seconds", cpu_seconds)
    out, _ = verb("keypoints", "--repeat", 3)
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["sift", "hessian", "hessian:1.2,1.7,2.4,3.4"]
    ratios = [("200.0", "1.00"), ("50.0", "0.25"), ("100.0", "0.50")]
    assert [(row[1], row[3]) for row in rows] == ratios
    assert all(300 < count <= 2000 and repeat == 3 for count, repeat in counted)


def test_cpu_seconds_is_the_median_of_the_calls_after_the_first(monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 23.0, 30.0, 31.0])
    monkeypatch.setattr(timing.time, "process_time", lambda: next(clock))
    calls = []
    assert timing.cpu_seconds(lambda: calls.append(1), 3) == 1.0 and len(calls) == 4
