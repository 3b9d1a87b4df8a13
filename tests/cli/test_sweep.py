"""The verb that trains every cell of a table: what it plans, skips, says and draws; and one real sweep."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdesc import cli, figures
from jaxdesc.cli import sweep
from jaxdesc.cli.sweep import Cell, Outcome
from jaxdesc.evals import published
from jaxdesc.training import loop
from jaxdesc.types import UserError

ROOT = Path(__file__).parents[2]
SMOKE = str(ROOT / "configs" / "cold.py") + ":smoke"


def test_fields_and_values_of_a_plan(tmp_path):
    over = sweep.parse_over(["method.dim=4, 8", "optim.learning_rate=1e-3,0.01,0.1"])
    cells = sweep.plan(SMOKE, {"train.steps": "3"}, over, tmp_path)
    assert [cell.values for cell in cells] == [(dim, rate) for dim in (4, 8) for rate in (1e-3, 1e-2, 1e-1)]
    assert all((cell.config.method.dim, cell.config.optim.learning_rate, cell.config.train.steps) == (*cell.values, 3) for cell in cells)
    assert cells[3].workdir == tmp_path / "method.dim=8,optim.learning_rate=1e-3"
    assert len({cell.workdir for cell in cells}) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.dim"], r"must be FIELD=A,B"),
        (["method.dim=4,,8"], r"must be FIELD=A,B"),
        (["method.dim=4,4"], r"names a value twice"),
        (["method.dim=4", "method.dim=8"], r"names the field twice"),
        (["method.dim=4", "train.seed=1", "train.steps=2"], r"3 fields, .* a table has one or two"),
    ],
)
def test_mistakes_in_the_fields(words, said):
    with pytest.raises(UserError, match=said):
        sweep.parse_over(words)


def test_a_wrong_value_ends_a_sweep_before_anything_is_trained(tmp_path):
    for over, said in ((["method.dim=8,3"], r"dim = 3 must be at least 4"), (["method.channels=8"], r"no field 'channels'")):
        with pytest.raises(UserError, match=said):
            sweep.plan(SMOKE, {}, sweep.parse_over(over), tmp_path)
    assert not list(tmp_path.iterdir())


def ran(cell, scores):
    """What the loop leaves, as far as a sweep reads it."""
    (cell.workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "split": "validation", "pck@0.1": score, "pck@0.05": score / 2} for step, score in enumerate(scores)]
    (cell.workdir / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{"step": 1, "split": "train", "loss": 1.0}, *rows]) + '{"step": 9, "spl'
    )
    (cell.workdir / "checkpoints" / str(len(scores) - 1)).mkdir(exist_ok=True)


def test_what_is_finished_is_skipped_and_what_fails_is_missing(tmp_path, monkeypatch, capsys):
    cells = sweep.plan(SMOKE, {}, {"method.dim": ["4", "5", "6", "7"]}, tmp_path)
    for cell, scores in zip(cells, ([0.1, 0.3, 0.2], [0.1, 0.4]), strict=False):  # the second is stopped after one step of two
        loop.claim(cell.workdir, cell.config)
        ran(cell, scores)
    seen = []

    def run(cfg, workdir):
        seen.append(cfg.method.dim)
        if cfg.method.dim == 6:
            raise UserError("loss became non-finite in step 1")
        ran(next(cell for cell in cells if cell.workdir == workdir), [0.2, 0.1, 0.5])

    monkeypatch.setattr(loop, "run", run)
    failed = sweep.train(cells, ["method.dim"])
    assert seen == [5, 6, 7] and failed == {(6,): "loss became non-finite in step 1"}
    said = capsys.readouterr().err
    assert "1 of 4 trainings are finished" in said and "training 2 of 3, about 1 min left: method.dim=6" in said and "method.dim=6 failed" in said
    found = {cell.values: sweep.outcome(cell, failed.get(cell.values, "")) for cell in cells}
    assert found[(4,)] == Outcome({"pck@0.1": 0.3, "pck@0.05": 0.15}, {"pck@0.1": 0.1, "pck@0.05": 0.05}, 1, "")  # the best validation, not the last
    assert found[(7,)].step == 2 and found[(6,)].scores is None
    text = sweep.write(tmp_path, ["method.dim"], found, "pck@0.1", "here", None)
    assert "| 4 | 0.300 | 0.150 | 0.100 | 1 |" in text and "- method.dim=6: loss became non-finite" in text
    assert (tmp_path / "sweep.md").read_text() == text
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert [cell["values"]["method.dim"] for cell in kept["cells"]] == [4, 5, 6, 7] and kept["cells"][2]["scores"] is None
    assert np.asarray(Image.open(tmp_path / "sweep.png")).std() > 0
    with pytest.raises(UserError, match=r"No validation has the score 'pck@1'"):
        sweep.write(tmp_path, ["method.dim"], found, "pck@1", "here", None)
    # again: another configuration is refused, and nothing is run
    other = [Cell(cells[0].values, sweep.plan(SMOKE, {"train.seed": "3"}, {"method.dim": ["4"]}, tmp_path)[0].config, cells[0].workdir)]
    with pytest.raises(UserError, match=r"belongs to another configuration \(train\.seed"):
        sweep.train(other, ["method.dim"])


def test_what_was_never_trained_is_not_the_best(tmp_path):
    """The start scores highest here; no checkpoint of it exists, so a later validation is."""
    (cell,) = sweep.plan(SMOKE, {}, {"method.dim": ["4"]}, tmp_path)
    ran(cell, [0.9, 0.3, 0.2])
    found = sweep.outcome(cell, "")
    assert (found.scores["pck@0.1"], found.step, found.start["pck@0.1"]) == (0.3, 1, 0.9)


def test_stopping_and_failing_altogether(tmp_path, monkeypatch):
    cells = sweep.plan(SMOKE, {}, {"method.dim": ["4", "5", "6"]}, tmp_path)
    monkeypatch.setattr(loop, "run", lambda cfg, workdir: ran(cells[0], [0.1, 0.2, 0.3]) if cfg.method.dim == 4 else None)
    assert sweep.train(cells, ["method.dim"]) == {(5,): "not run yet", (6,): "not run yet"}

    def broken(cfg, workdir):
        raise UserError("no such folder")

    monkeypatch.setattr(loop, "run", broken)
    with pytest.raises(UserError, match=r"All 2 trainings failed; the first: no such folder"):
        sweep.train(cells[1:], ["method.dim"])


def test_two_fields_beside_the_published_grid():
    study = published.STUDIES["gsf-widths"]
    fields = list(study.over)
    found = {values: Outcome({"pck@0.1": 0.5}, {}, 1, "") for values in study.scores if values != (7.0, 7.0)}
    found[7.0, 7.0] = Outcome(None, {}, 0, "loss became non-finite")
    rows = sweep.table(fields, found, "pck@0.1", "here", study).splitlines()
    assert "| 5.0 | 0.500 (0.222) | 0.500 (0.318) | 0.500 (0.335) | 0.500 (0.301) |" in rows
    assert any(row.endswith("| missing (0.255) |") for row in rows)
    assert any("SPair-71k" in row and "Table 2 (a)" in row for row in rows)
    drawn = sweep.picture(fields, found, "pck@0.1", "here", study)
    assert drawn.shape[1] > drawn.shape[0] and drawn.std() > 0


def test_published_studies():
    """Cells by hand from the papers' tables."""
    channels, widths, windows = (published.STUDIES[name] for name in ("cold-channels", "gsf-widths", "gsf-windows"))
    assert list(sweep.STUDIES) == list(published.STUDIES)
    assert channels.over == {"method.dim": (4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072)}
    assert channels.scores[(64,)] == {"pck@0.05": 0.678, "pck@0.1": 0.842, "pck@0.15": 0.905}
    assert channels.others["HPF"] == (6400, {"pck@0.05": 0.601, "pck@0.1": 0.848, "pck@0.15": 0.927})
    assert widths.scores[2, 5] == {"pck@0.1": 0.298} and widths.scores[0.1, 7] == {"pck@0.1": 0.18}
    assert windows.scores[5, 5] == {"pck@0.1": 0.335} and windows.scores[11, 3] == {"pck@0.1": 0.251}
    assert all(len(study.scores) == 16 and max(study.scores.values(), key=lambda s: s["pck@0.1"]) == {"pck@0.1": 0.335} for study in (widths, windows))


def test_curves_with_names_and_numbers():
    text = figures.study_curves("method.backbone", "pck", {"ours": (0, "-", [("resnet18", 0.1), ("resnet50", 0.2)])}, {}, "words")
    wide = figures.study_curves("dim", "pck", {"ours": (0, "-", [(64, 0.2), (4, 0.1), (1024, 0.3)])}, {"other": (6400, 0.5)}, "numbers")
    assert text.shape == wide.shape and text.std() > 0 and not np.array_equal(text, wide)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workdir", "w"], "Give --config and --over, or --study."),
        (["--workdir", "w", "--study", "cold-channels", "--over", "method.taps=a"], "is over method.dim, not over method.taps"),
        (["--workdir", "w", "--config", "configs/none.py", "--over", "method.dim=4"], "There is no configuration file"),
    ],
)
def test_mistakes_on_the_command_line(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as e:
        cli.run(sweep.main)
    assert e.value.code == 2 and said in capsys.readouterr().err


def test_a_real_sweep(tmp_path, monkeypatch, capsys):
    """One training of two steps; the second call has nothing to train."""
    arguments = ["--config", SMOKE, "--over", "method.dim=4", "--workdir", str(tmp_path / "s"), f"--config.data.cache={tmp_path / 'cache'}"]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    sweep.main()
    first = capsys.readouterr()
    assert "training 1 of 1: method.dim=4" in first.err
    assert "ours: cold, resnet10, from random weights, embedded, 2 steps of 2 pairs" in first.out
    (cell,) = json.loads((tmp_path / "s" / "sweep.json").read_text())["cells"]
    assert {"pck@0.05", "pck@0.1", "pck@0.15"} <= set(cell["scores"]) == set(cell["start"])
    monkeypatch.setattr(loop, "run", None)
    sweep.main()
    again = capsys.readouterr()
    assert first.out.endswith(again.out) and "1 of 1 trainings are finished already" in again.err
