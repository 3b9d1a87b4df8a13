"""Protocols of evaluation: predictions are written to a file first, the file is scored second, and scoring loads no JAX.

A protocol is a module of this folder that holds `PROTOCOL`, a `Protocol`; it is imported on use.
"""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from jaxdesc.evals.result import Result


class Protocol(NamedTuple):
    """One way to score, as two functions with a file between them."""

    name: str
    help: str  # one line
    add_flags: Callable[[argparse.ArgumentParser], None]  # its own, beside those of the verb: data, out, weights, predictions, label, overwrite
    predict: Callable[[argparse.Namespace, Path], Path]  # (flags, folder) -> the file or folder of predictions, made or completed in that folder
    score: Callable[[argparse.Namespace, Path], list[Result]]  # (flags, predictions) -> results; flags.label names their method


PROTOCOLS = {name: f"jaxdesc.evals.{name}" for name in ("homography", "pck", "dense", "relative_pose", "localisation", "sfm")}


def load(name: str) -> Protocol:
    """The protocol of this name, its module imported."""
    return import_module(PROTOCOLS[name]).PROTOCOL
