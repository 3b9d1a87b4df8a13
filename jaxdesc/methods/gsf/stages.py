"""The stages of GSF's training as a function of the step: which pairs, which losses, which parameters. GSF, supplementary 1 and 2.

A1  synthetic pairs (photographs and warps of them), W_P alone learns, from L_P, with features that are constants
A2  synthetic pairs, everything learns, from L
B   real pairs of objects of one category, everything learns, from L

The supplementary states the two objectives and that synthetic pairs come first; this order of three is a decision.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from jaxdesc.config import HostConfig
from jaxdesc.types import UserError


class Stage(NamedTuple):
    """A stretch of a run; its optimiser and its learning rate begin anew."""

    name: str
    source: str  # "synthetic", photographs and warps of them, or "real", pairs of objects
    pruning_only: bool
    start: int  # first step
    steps: int


KINDS = {"A1": ("synthetic", True), "A2": ("synthetic", False), "B": ("real", False)}
LACKING = {
    "synthetic": "add photographs to be warped, embedded or photos:FOLDER",
    "real": "add pairs of objects, such as masks:FOLDER",
}


def schedule(names: tuple[str, ...], shares: tuple[float, ...], steps: int) -> tuple[Stage, ...]:
    """Stages of relative lengths `shares` that together take `steps` steps; one that would take none is left out.

    Raises:
      UserError: a stage that does not exist; shares that are not as many as the names, or not above 0.
    """
    if unknown := [name for name in names if name not in KINDS]:
        raise UserError(f"config.method.stages names {unknown[0]!r}; there are {', '.join(KINDS)}.")
    if not names:
        raise UserError(f"config.method.stages is empty; there are {', '.join(KINDS)}.")
    if len(shares) != len(names) or min(shares) <= 0:
        raise UserError(f"config.method.stage_shares = {shares} must be one number above 0 for each of config.method.stages = {', '.join(names)}.")
    ends = [round(steps * sum(shares[: i + 1]) / sum(shares)) for i in range(len(names))]
    starts = [0, *ends[:-1]]
    return tuple(Stage(name, *KINDS[name], start, end - start) for name, start, end in zip(names, starts, ends, strict=True) if end > start)


def data_of(stage: Stage, data: HostConfig) -> HostConfig:
    """What the batches of a stage are made of: keypoint pairs from the stage's own sources."""
    pairs = data.keypoints
    synthetic = stage.source == "synthetic"
    own = pairs.photographs_alone() if synthetic else pairs.of_objects()
    return dataclasses.replace(data, keypoints=own)


def rates(params: Any, stage: Stage, backbone_rate: float) -> Any:
    """What an update of each parameter is multiplied by in a stage, in the tree of the parameters: 0 where it rests, `backbone_rate` for W_F, else 1."""

    def rate(path, _):
        module = path[0].key
        if stage.pruning_only:
            return 1.0 if module == "pruning" else 0.0
        return backbone_rate if module == "backbone" else 1.0

    return jax.tree_util.tree_map_with_path(rate, params)
