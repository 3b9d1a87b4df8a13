"""Versions of weight files and of workdirs."""

import json
from pathlib import Path

import jax
import pytest

from jaxdesc import config
from jaxdesc.predict import predictor
from jaxdesc.store import weights
from jaxdesc.training import loop
from jaxdesc.types import UserError
from tests.predict.test_predictor import TINY

FORMAT2 = Path(__file__).parents[1] / "data" / "kinds" / "format2"


def test_weight_files_of_every_version(tmp_path, monkeypatch):
    """Today's say so; those of formats 1 and 2 load as before; those of a later one are refused."""
    net = predictor.untrained("pump", **TINY)
    for version in range(1, config.FORMAT_VERSION + 2):
        monkeypatch.setattr(weights, "FORMAT_VERSION", version)
        path = tmp_path / f"{version}.safetensors"
        weights.save(path, "pump", net.config, jax.device_get(net.variables))
        if version <= config.FORMAT_VERSION:
            assert weights.load(path).version == version
            assert predictor.load(path).digest == net.digest
        else:
            with pytest.raises(UserError, match=rf"is of format {version}, .* update jaxdesc"):
                predictor.load(path)


def test_workdirs_of_every_version(tmp_path):
    """One without a version is taken and gets it; one of a later version is left alone."""
    cfg = config.load("configs/gsf.py:smoke")
    loop.claim(tmp_path, cfg)
    path = tmp_path / "config.json"
    values = json.loads((FORMAT2 / "gsf.json").read_text())
    del values["format_version"]
    values["draw"]["noise"] = 25.0  # which no pair of GSF has
    path.write_text(json.dumps(values))
    loop.claim(tmp_path, cfg)
    assert json.loads(path.read_text())["format_version"] == config.FORMAT_VERSION
    later = json.dumps({**values, "format_version": 99})
    path.write_text(later)
    for read in (lambda: loop.claim(tmp_path, cfg), lambda: predictor.load(tmp_path)):
        with pytest.raises(UserError, match=r"is of format 99, .* update jaxdesc"):
            read()
    assert path.read_text() == later
    path.write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        loop.claim(tmp_path, cfg)


@pytest.mark.parametrize("method", ["pump", "caps"])
def test_runs_whose_pairs_are_drawn_otherwise_now_do_not_go_on(tmp_path, method):
    cfg = config.load(f"configs/{method}.py:smoke")
    loop.claim(tmp_path, cfg)
    loop.claim(tmp_path, cfg)
    values = json.loads((FORMAT2 / f"{method}.json").read_text())
    del values["format_version"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="drew its pairs otherwise"):
        loop.claim(tmp_path, cfg)
