"""Checkpoints of a run: the newest few and the best one, written in the background by orbax."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxdesc.config import version_of
from jaxdesc.types import TrainState, UserError

BEST = {
    "mma@3px": 1,
    "pck@5px": 1,
    "pck@0.1": 1,
    "epipolar_px": -1,
    "loss": -1,
}  # the best checkpoint is chosen by the first of these that a run has; -1: the smaller, the better


def goodness(metrics: dict[str, float]) -> float:
    """What the best checkpoint has most of, from the metrics of a validation."""
    return next(sign * metrics[name] for name, sign in BEST.items() if name in metrics)


class Checkpoints:
    """A folder of checkpoints; use as a context manager, leaving it waits for writing to finish.

    Each holds the state (step, params, model_state, opt_state) and the data position. A checkpoint appears under its step's name only when it is complete.
    """

    def __init__(self, folder: Path, keep_last: int):
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep_last),
                checkpoint_managers.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # best_fn is what makes the metrics be written; which checkpoints stay is the policy's
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=goodness, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step whose validation scored highest; None if none was validated."""
        scored = {step: goodness(metrics) for step in self.steps() if (metrics := self._manager.metrics(step))}
        return max(scored, key=scored.get) if scored else None

    def save(self, state: TrainState, position: int, metrics: dict[str, float] | None = None) -> None:
        """Starts writing; `position` is the index of the next batch. A step that is already there is not written again."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(_plain(state)), data=ocp.args.JsonSave({"position": position}))
        self._manager.save(step, args=args, metrics=metrics)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, int]:
        """The state of a step (default: the newest) with the structure of `like`, and the data position.

        Raises:
          UserError: the checkpoint was made by another network or optimiser.
        """
        step = self.latest() if step is None else step
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_plain(like)), data=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"Checkpoint {self._manager.directory}/{step} does not fit this configuration: {str(e).splitlines()[0]}") from e
        fields = {name: jax.tree.unflatten(jax.tree.structure(getattr(like, name)), jax.tree.leaves(part)) for name, part in restored["state"].items()}
        return TrainState(**fields), restored["data"]["position"]


class Reader(Checkpoints):
    """Checkpoints of a run that may still be writing: nothing is cleaned up."""

    def __init__(self, folder: Path):
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(), options=ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        )

    def variables(self) -> dict[str, Any] | None:
        """Variables of the best checkpoint, or of the newest one if none was validated, as training used them for validation, whatever the network was; None: there is
        no checkpoint."""
        step = self.best()
        step = self.latest() if step is None else step
        if step is None:
            return None
        state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
        averages = [part for part in state["opt_state"] if isinstance(part, dict) and "average" in part]
        used = averages[0] if averages else {"average": state["params"]}
        return {"params": used["average"], **(used.get("model_state") or state["model_state"])}


def read_run(workdir: Path) -> tuple[str, dict[str, Any], dict[str, Any], int]:
    """Method, fields of its Config, variables (`Reader.variables`) and format_version of a run.

    Raises:
      UserError: it is no workdir, its config.json is damaged, or it holds no checkpoint.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise UserError(f"{workdir} is not the workdir of a training run: it holds no config.json.")
    try:
        values = json.loads(file.read_text())
        name, fields = values["method_name"], values["method"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} is damaged: {type(e).__name__}: {e}.") from e
    version = version_of(values, file)
    variables = None
    if (workdir / "checkpoints").is_dir():
        with Reader(workdir / "checkpoints") as checkpoints:
            variables = checkpoints.variables()
    if variables is None:
        raise UserError(f"{workdir} holds no checkpoint yet: let the training run longer.")
    return name, fields, variables, version


def _plain(state: TrainState) -> dict[str, Any]:
    return {field.name: jax.tree.map(np.asarray, getattr(state, field.name)) for field in dataclasses.fields(state)}
