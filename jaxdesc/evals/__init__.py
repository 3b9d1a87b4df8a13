"""Protocols of evaluation: predictions are written to a file first, the file is scored second, and scoring loads no JAX.

A protocol is a module of this folder that holds `Options`, `predict` and `score`, and the three as
`PROTOCOL`, a `Protocol`; it is imported on use.
"""

import dataclasses
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from jaxdesc.errors import UserError
from jaxdesc.evals.options import EvalOptions
from jaxdesc.evals.result import Result


class Protocol(NamedTuple):
    """One way to score, as two functions with a file between them."""

    name: str
    help: str  # one line
    Options: type[EvalOptions]
    predict: Callable[[Any, Path], Path]
    """(options, folder) -> the file or folder of predictions, made or completed in that folder"""
    score: Callable[[Any, Path], list[Result]]  # (options, predictions) -> results
    matches: bool = False
    """Whether it predicts by a method's matches. Its options then have a field `matching`: values
    for fields of the method's MatchOptions."""


PROTOCOLS = {name: f"jaxdesc.evals.{name}" for name in ("homography", "pck", "dense", "relative_pose", "localisation", "sfm")}


def load(name: str) -> Protocol:
    """The protocol of this name, its module imported."""
    return import_module(PROTOCOLS[name]).PROTOCOL


def evaluate(
    protocol: Protocol, options: EvalOptions, predictions: Path | str | None = None
) -> list[Result]:
    """Predicts into `options.out`, unless there are predictions, and scores them.

    Results say how long either took.

    Raises:
      UserError: as the protocol; there are no such predictions, and no folder for new ones.
    """
    timings, start = {}, time.perf_counter()
    if predictions is None:
        if not options.out:
            raise UserError("--out DIR is needed: the folder of the predictions.")
        predictions = protocol.predict(options, Path(options.out))
        timings["predict_s"] = time.perf_counter() - start
    elif not Path(predictions).exists():
        raise UserError(f"There are no predictions {predictions}.")
    start = time.perf_counter()
    results = protocol.score(options, Path(predictions))
    timings["score_s"] = time.perf_counter() - start
    return [dataclasses.replace(found, timings={**timings, **found.timings}) for found in results]
