"""jaxdesc sweep --config FILE.py --over FIELD=A,B,...: a training for every value of a field, or of two, and a table and a picture of their scores."""

import argparse
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdesc import cli
from jaxdesc.errors import UserError

STUDIES = {"cold-channels": "cold", "gsf-widths": "gsf", "gsf-windows": "gsf"}  # keys of evals.published.STUDIES


def flags() -> argparse.ArgumentParser:
    parser = cli.parser(
        "sweep",
        "Trains every value of one field, or every combination of two, each in a workdir of its own; what is finished is skipped, what was stopped is resumed.",
        "jaxdesc sweep --config configs/cold.py --over method.dim=4,8,16,64 --workdir runs/dims --config.train.steps=200\n"
        "  jaxdesc sweep --study cold-channels --config configs/cold.py:paper --workdir runs/channels",
    )
    parser.add_argument("--config", metavar="NAME|FILE.py[:VARIANT]", help="configuration (of a study: its own); any field can be changed with --config.FIELD=VALUE")
    parser.add_argument("--over", action="append", default=[], metavar="FIELD=A,B,...", help="values that a field takes in turn; may be given twice")
    parser.add_argument(
        "--study", choices=tuple(STUDIES), help="of a paper: says --config, --over and --score where they are not given, and has published scores"
    )
    parser.add_argument("--score", metavar="NAME", help="of the validation, to be drawn, such as pck@0.1 (default: the one that chooses the best checkpoint)")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a folder a training, sweep.json, sweep.md and sweep.png")
    return parser


class Cell(NamedTuple):
    """One training of a sweep."""

    values: tuple  # of the fields, in the order of the fields
    config: Any  # ExperimentConfig
    workdir: Path


class Outcome(NamedTuple):
    """What became of a cell."""

    scores: dict[str, float] | None  # of the validation that chose the best checkpoint; None: the training did not come to its end
    start: dict[str, float]  # of the validation before the first step
    step: int  # of the best checkpoint
    why: str  # the scores are missing


def parse_over(words: Sequence[str]) -> dict[str, list[str]]:
    """["method.dim=4,8"] -> {"method.dim": ["4", "8"]}.

    Raises:
      UserError: a word of another form, a field or a value given twice, more than two fields.
    """
    over: dict[str, list[str]] = {}
    for word in words:
        field, _, text = word.partition("=")
        values = [value.strip() for value in text.split(",")]
        if not field or not all(values):
            raise UserError(f"--over {word} must be FIELD=A,B,..., as in method.dim=4,8,16.")
        if field in over or len(set(values)) < len(values):
            raise UserError(f"--over {word} names {'the field' if field in over else 'a value'} twice.")
        over[field] = values
    if len(over) > 2:
        raise UserError(f"--over is given for {len(over)} fields, {', '.join(over)}: a table has one or two.")
    return over


def plan(spec: str, overrides: dict[str, str], over: dict[str, list[str]], workdir: Path) -> list[Cell]:
    """The trainings, row by row; raises UserError where one of the configurations is wrong, before anything is trained."""
    from jaxdesc import config

    made = []
    for texts in itertools.product(*over.values()):
        cfg = config.load(spec, overrides | dict(zip(over, texts, strict=True)))
        name = re.sub(r"[^\w.@+=,-]+", "_", ",".join(f"{field}={text}" for field, text in zip(over, texts, strict=True)))[:200]
        made.append(Cell(tuple(value_of(cfg, field) for field in over), cfg, workdir / name))
    return made


def value_of(cfg: Any, field: str) -> Any:
    """A field of a configuration by its name, "method.dim"."""
    for name in field.split("."):
        cfg = getattr(cfg, name)
    return cfg


def validations(workdir: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl that are validations; a line that a killed run tore is passed over."""
    path, rows = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("split") == "validation":
            rows.append(row)
    return rows


def finished(cell: Cell) -> bool:
    """Whether the last step was validated and its checkpoint is complete."""
    steps = cell.config.train.steps
    return (cell.workdir / "checkpoints" / str(steps)).is_dir() and any(row["step"] == steps for row in validations(cell.workdir))


def outcome(cell: Cell, why: str) -> Outcome:
    """Reads a cell's workdir; `why` it has no score, if it has none."""
    from jaxdesc.store.checkpoint import goodness

    rows = [({name: value for name, value in row.items() if name not in ("step", "split")}, row["step"]) for row in validations(cell.workdir)]
    start = next((scores for scores, step in rows if step == 0), {})
    if not finished(cell):
        return Outcome(None, start, 0, why)
    trained = [(scores, start, step) for scores, step in rows if step]  # step 0 left no checkpoint
    return Outcome(*max(trained, key=lambda row: goodness(row[0])), "")


def train(cells: Sequence[Cell], fields: Sequence[str]) -> dict[tuple, str]:
    """Runs what is not finished, one after the other; returns {values: why} of those that failed or, after SIGTERM, were not come to.

    Raises:
      UserError: a workdir belongs to another configuration; all trainings failed (with the sentence of the first).
    """
    from jaxdesc.training import loop

    for cell in cells:
        loop.claim(cell.workdir, cell.config)
    todo = [cell for cell in cells if not finished(cell)]
    if len(todo) < len(cells):
        _say(f"{len(cells) - len(todo)} of {len(cells)} trainings are finished already")
    failed: dict[tuple, str] = {}
    begin = time.monotonic()
    for i, cell in enumerate(todo):
        left = f", about {_duration((time.monotonic() - begin) / i * (len(todo) - i))} left" if i else ""
        _say(f"training {i + 1} of {len(todo)}{left}: {_named(fields, cell.values)}")
        try:
            loop.run(cell.config, cell.workdir)
        except UserError as e:
            failed[cell.values] = str(e)
            _say(f"{_named(fields, cell.values)} failed and will be missing: {e}")
            continue
        if not finished(cell):  # stopped: the loop has said so
            return failed | {other.values: "not run yet" for other in todo[i:]}
    if todo and len(failed) == len(cells):
        raise UserError(f"All {len(cells)} trainings failed; the first: {next(iter(failed.values()))}")
    return failed


def _say(sentence: str) -> None:
    print(f"jaxdesc: {sentence}", file=sys.stderr, flush=True)


def _named(fields: Sequence[str], values: Sequence) -> str:
    return ", ".join(f"{field}={value}" for field, value in zip(fields, values, strict=True))


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"


# ---- what came out


def described(cfg: Any, fields: Sequence[str]) -> str:
    """What was run, without the fields that differ: network, what it started from, data and schedule."""
    method, pairs = cfg.method, cfg.data.pairs_per_batch()
    kinds = {name: cfg.data.kinds()[name] for name in pairs}
    sources = {name: ", ".join(f"{s.kind}:{s.path}" if s.path else s.kind for s in kind.sources) for name, kind in kinds.items()}
    parts = [
        ("method.backbone", method.backbone),
        ("method.weights", "" if method.weights is None else f"from {method.weights or 'random weights'}"),
        *((f"data.{name}.sources", text) for name, text in sources.items()),
        ("train.steps", f"{cfg.train.steps} steps of {sum(pairs.values())} pairs"),
    ]
    return ", ".join([method.name, *(text for field, text in parts if text and field not in fields)])


def table(fields: Sequence[str], found: dict[tuple, Outcome], score: str, about: str, study) -> str:
    """Markdown. One field: a row a value with all scores. Two fields: a grid of `score`. Published scores, where there are any, beside ours."""
    published = study.scores if study else {}
    lines = [f"ours: {about}; scores of the best checkpoint on held-out pairs", *([f"published: {study.about}; {study.source}"] if study else []), ""]
    if len(fields) == 1:
        names = list(dict.fromkeys(name for o in found.values() for name in (o.scores or o.start)))
        theirs = list(dict.fromkeys(name for scores in published.values() for name in scores))
        head = [fields[0], *names, f"{score} at the start", "best step", *(f"published {name}" for name in theirs)]
        rows = []
        for values, o in found.items():
            ours = [_number(o.scores, name) for name in names] if o.scores else [o.why or "missing", *[""] * (len(names) - 1)]
            rows.append(
                [str(values[0]), *ours, _number(o.start, score), str(o.step) if o.scores else "", *(_number(published.get(values, {}), n) for n in theirs)]
            )
        rows += [
            [f"{name} ({x})", *[""] * (len(names) + 2), *(_number(scores, n) for n in theirs)] for name, (x, scores) in (study.others if study else {}).items()
        ]
    else:
        columns = list(dict.fromkeys(values[1] for values in found))
        head = [f"{score}: {fields[0]} \\ {fields[1]}", *map(str, columns)]
        rows = []
        for value in dict.fromkeys(values[0] for values in found):
            cells = [(found[value, column], published.get((value, column), {})) for column in columns]
            rows.append([str(value), *(f"{_number(o.scores, score) or 'missing'}{f' ({_number(p, score)})' if p else ''}" for o, p in cells)])
        lines[-1:] = ["in brackets: published", ""] if study else [""]
    made = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in made]
    lost = [f"- {_named(fields, values)}: {o.why}" for values, o in found.items() if o.why]
    return "\n".join([*lines, *(["", "missing:", *lost] if lost else [])]) + "\n"


def _number(scores: dict[str, float] | None, name: str) -> str:
    return f"{scores[name]:.3f}" if scores and name in scores else ""


def picture(fields: Sequence[str], found: dict[tuple, Outcome], score: str, about: str, study):
    """One field: curves of all scores of the kind of `score` ("pck@..."). Two fields: a heat map, and the published one. (H, W, 3) uint8."""
    from jaxdesc import figures

    published = study.scores if study else {}
    if len(fields) == 2:
        panels = [(f"ours: {about}", {values: (o.scores or {}).get(score, math.nan) for values, o in found.items()})]
        if any(score in scores for scores in published.values()):
            panels.append((f"published: {study.about}", {values: scores[score] for values, scores in published.items() if score in scores}))
        return figures.study_grids(fields, score, panels)
    names = dict.fromkeys(name for o in found.values() for name in o.scores or {} if name.split("@")[0] == score.split("@")[0])
    curves = {}
    for i, name in enumerate(names):
        curves[f"{name}, ours"] = (i, "-", [(values[0], o.scores[name]) for values, o in found.items() if o.scores])
        if theirs := [(values[0], scores[name]) for values, scores in published.items() if name in scores]:
            curves[f"{name}, published"] = (i, "--", theirs)
    points = {name: (x, scores[score]) for name, (x, scores) in (study.others if study else {}).items() if score in scores}
    title = f"ours: {about}" + (f"\npublished: {study.about}" if study else "")
    return figures.study_curves(fields[0], score.split("@")[0], curves, points, title)


def write(workdir: Path, fields: Sequence[str], found: dict[tuple, Outcome], score: str, about: str, study) -> str:
    """sweep.json, sweep.md and sweep.png; returns the table.

    Raises:
      UserError: no validation has such a score; as `atomic`.
    """
    from PIL import Image

    from jaxdesc.store.files import atomic

    known = sorted({name for o in found.values() for name in (o.scores or {})})
    if known and score not in known:
        raise UserError(f"No validation has the score {score!r}; there are {', '.join(known)}.")
    text = table(fields, found, score, about, study)
    cells = [{"values": dict(zip(fields, values, strict=True)), **o._asdict()} for values, o in found.items()]
    with atomic(workdir / "sweep.json") as temporary:
        temporary.write_text(json.dumps({"about": about, "score": score, "cells": cells}, indent=1), encoding="utf-8")
    with atomic(workdir / "sweep.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    if known:
        with atomic(workdir / "sweep.png") as temporary:
            Image.fromarray(picture(fields, found, score, about, study)).save(temporary)
    return text


def main() -> None:
    args, unknown = flags().parse_known_args()
    overrides = cli.parse_overrides(unknown)
    from jaxdesc.evals import published

    study = published.STUDIES[args.study] if args.study else None
    over = parse_over(args.over)
    if study and not over:
        over = {field: [f"{value:g}" for value in values] for field, values in study.over.items()}
    if study and list(over) != list(study.over):
        raise UserError(f"--study {args.study} is over {' and '.join(study.over)}, not over {' and '.join(over)}: leave --over out, or --study.")
    spec = args.config or (STUDIES[args.study] if args.study else None)
    if not spec or not over:
        raise UserError("Give --config and --over, or --study.")
    cli.use_compilation_cache()
    from jaxdesc.store.checkpoint import BEST

    fields, workdir = list(over), Path(args.workdir)
    cells = plan(spec, overrides, over, workdir)
    failed = train(cells, fields)
    found = {cell.values: outcome(cell, failed.get(cell.values, "")) for cell in cells}
    scored = next((o.scores for o in found.values() if o.scores), {})
    score = args.score or (study.score if study else next((name for name in BEST if name in scored), "score"))
    print(write(workdir, fields, found, score, described(cells[0].config, fields), study))
    print(workdir)
