"""The one imperative training loop."""

import collections
import errno
import itertools
import json
import math
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from jaxdesc import config as configs
from jaxdesc import figures, methods
from jaxdesc.data.draw import draw_batch, held_out_batch
from jaxdesc.data.kinds import formats
from jaxdesc.data.pipeline import open_data
from jaxdesc.method import Definition
from jaxdesc.store.checkpoint import Checkpoints
from jaxdesc.store.files import atomic
from jaxdesc.store.pretrained import pretrained
from jaxdesc.training.optim import kept_average, make_optimizer, with_model_state
from jaxdesc.training.report import Reporter
from jaxdesc.training.step import AXIS, draw_keys, inference_variables, init_state, new_state, settle_statistics, train_step, validation_step
from jaxdesc.types import Correspondences, RawBatch, TrainState, UserError

IN_FLIGHT = 2  # steps that may run ahead of the metrics that the host reads
SETTLING = 20  # batches that the averaged parameters see for their batch statistics


def claim(workdir: Path, cfg: configs.ExperimentConfig) -> None:
    """Makes the folder and ties it to the configuration, as `recalled` gives it.

    Raises:
      UserError: it cannot be written to, or belongs to another configuration (naming the first field that differs).
    """
    cfg = recalled(cfg, workdir)
    usual_data = type(cfg.data)(**{name: type(kind)() for name, kind in cfg.data.kinds().items()})
    plain = configs.ExperimentConfig(type(cfg.method)(), usual_data, type(cfg.draw)())
    ours, usual = (json.loads(json.dumps(configs.as_dict(c))) for c in (cfg, plain))
    usual["method"] |= configs.absent_values(type(cfg.method))
    path = workdir / "config.json"
    if path.exists():
        try:
            theirs = dict(json.loads(path.read_text()))
            theirs["method"].keys(), theirs["data"].keys(), theirs["draw"].keys()
            theirs = formats.upgraded(theirs, configs.version_of(theirs, path), workdir)
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise UserError(f"{path} is damaged: delete it or choose another --workdir.") from e
        for name, mine, other in _differences(ours, theirs, usual):
            if name == "train.steps" and _may_be_prolonged(cfg, other, workdir):
                print(f"{workdir} was to take {other} steps; it goes on to {mine}.")
            elif not name.startswith("report."):
                raise UserError(f"{workdir} belongs to another configuration ({name} is {other!r} there and {mine!r} here): choose another --workdir.")
    elif any((workdir / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{workdir} holds checkpoints but no config.json, so that nothing says what they are of: delete it or choose another --workdir.")
    record(workdir, cfg)


def _may_be_prolonged(cfg: configs.ExperimentConfig, steps: int, workdir: Path) -> bool:
    """Whether a run that was to take so many steps could as well have been begun with the new
    number: nothing that it has done depends on it.

    Its learning rate was constant, or halved at fixed steps; or it falls in the last fifth
    (trapezoid), in the old plan as in the new one, and has not yet begun to.
    """
    if len(cfg.method.plan(cfg)) > 1 or not isinstance(steps, int):
        return False
    done = max((int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*")), default=0)
    end = min(steps, cfg.train.steps)
    same_until = {"constant": end, "halving": end, "trapezoid": end - max(end // 5, 1)}
    return done <= same_until.get(cfg.optim.schedule, 0)


def record(workdir: Path, cfg: configs.ExperimentConfig) -> None:
    """Writes config.json; raises UserError as `atomic`."""
    with atomic(workdir / "config.json") as temporary:
        temporary.write_text(json.dumps(configs.as_dict(cfg), indent=1))


def recalled(cfg: configs.ExperimentConfig, workdir: Path) -> configs.ExperimentConfig:
    """The configuration with the numbers that the run in a workdir has chosen.

    These are the fields that the method's Config names in `calibrates`, where they are 0
    here and the workdir's config.json holds a number, see `calibrated`.
    """
    try:
        written = json.loads((workdir / "config.json").read_text())["method"]
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or `claim` will say so
        return cfg
    ours = vars(cfg.method)
    names = cfg.method.calibrates
    known = {name: written[name] for name in names if not ours[name] and written.get(name)}
    return replace(cfg, method=replace(cfg.method, **known)) if known else cfg


def _differences(ours: dict, theirs: dict, usual: dict, prefix: str = ""):
    """(name, our value, theirs) of the fields that differ; one that they were written without, by an earlier version, had its usual value."""
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name, usual.get(name))
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from _differences(mine, other, usual.get(name, {}), f"{prefix}{name}.")
        elif mine != other:
            yield f"{prefix}{name}", mine, other


def devices_for(cfg: configs.ExperimentConfig) -> list[jax.Device]:
    """The devices to train on: all of them, or in one process as many as share the batch evenly."""
    counts = cfg.data.pairs_per_batch()

    def fits(devices):
        return all(n % (devices * cfg.train.accumulate) == 0 for n in counts.values())

    if jax.process_count() == 1:
        return jax.devices()[: next(n for n in range(jax.device_count(), 0, -1) if fits(n))]
    if not fits(jax.device_count()):
        raise UserError(
            f"Batches of {' and '.join(map(str, counts.values()))} pairs in {cfg.train.accumulate} part(s) do not divide over {jax.device_count()} devices: "
            f"change {', '.join(f'config.data.{kind}.per_batch' for kind in counts)} or config.train.accumulate."
        )
    return jax.devices()


def parallel(step: Callable, devices: list[jax.Device]) -> Callable:
    """The one place where a step meets devices: state and batch have a leading axis of local devices, the old state is given up."""
    return jax.pmap(step, axis_name=AXIS, donate_argnums=0, devices=devices)


def replicate(state: TrainState, devices: list[jax.Device]) -> TrainState:
    """A copy for each device, placed as the parallel step leaves it: placed otherwise, the second step would be compiled anew."""
    local = len(devices) // jax.process_count()
    spread = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(spread, np.broadcast_to(x, (local, *np.shape(x)))), state)


class _Stop:
    """SIGTERM and Ctrl-C ask the loop to save and leave; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.signal = None
        self._old = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for s, handler in self._old.items():
            signal.signal(s, handler)

    def _note(self, number, _frame):
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


def _split(raw: RawBatch, devices: int) -> RawBatch:
    return jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), raw)


def _finite_or_raise(step: int, metrics: dict[str, float], checkpoints: Checkpoints) -> None:
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        last = checkpoints.latest()
        kept = f"the checkpoint of step {last} is good" if last is not None else "no checkpoint had been written yet"
        raise UserError(f"{', '.join(wrong)} became non-finite in step {step}: training stopped, {kept}; try a smaller config.optim.learning_rate.")


def with_pretrained(state: TrainState, spec: str, optimizer: optax.GradientTransformation, say: Callable[[str], None]) -> TrainState:
    """The state of step 0 with the variables that `spec`, config.method.weights, names put in; see `store.pretrained`, also for errors."""
    return new_state(pretrained({"params": state.params, **state.model_state}, spec, say), optimizer)


def run(cfg: configs.ExperimentConfig, workdir: str | Path) -> dict[str, float]:
    """Trains, resuming whatever the workdir holds; returns the last validation's metrics.

    The workdir gets config.json, metrics.jsonl, tensorboard/, checkpoints/, pictures of matches and curve.png. A run of several stages, see `config.MethodConfig.plan`, is
    validated on the held-out pairs of all of them, and before and after each; scores on other pairs than the last stage's are named after those pairs.

    Raises:
      UserError: unusable data, a workdir of another configuration, a non-finite loss.
    """
    workdir = Path(workdir)
    cfg = recalled(configs.validate(cfg), workdir)
    main = jax.process_index() == 0
    plan = cfg.method.plan(cfg)
    sources = {part: open_data(part, cfg.train.seed) for part in dict.fromkeys(stage.data for stage in plan)}
    if main:
        claim(workdir, cfg)
        for line in dict.fromkeys(line for data in sources.values() for line in data.report):
            print(line)

    definition = methods.find(cfg.method.name)
    build = definition.build
    devices = devices_for(cfg)
    local = len(devices) // jax.process_count()
    pairs = plan[0].data.pairs_per_batch()
    kinds = {name: kind for stage in plan for name, kind in stage.data.kinds().items()}
    prefixes = {stage.data: "" if stage.data == plan[-1].data else f"{stage.pairs}/" for stage in plan}
    validations = {
        prefixes[part]: held_out_batch(data, cfg.draw, cfg.report.validation_pairs)
        for part, data in sources.items()
    }
    optimizers = [make_optimizer(cfg.optim, stage.steps, stage.rates) for stage in plan]

    with Checkpoints(workdir / "checkpoints", cfg.report.keep_last) as checkpoints, _Stop() as stop:
        position, say = 0, print if main else lambda sentence: None
        state = jax.jit(partial(init_state, build(cfg.method), optimizers[0], seed=cfg.train.seed))(validations[prefixes[plan[0].data]])
        if checkpoints.latest() is not None:
            state, position = checkpoints.restore(state)
            if main:
                done = int(state.step) >= cfg.train.steps
                print(f"{workdir} is finished at step {int(state.step)}" if done else f"resuming {workdir} at step {int(state.step)}")
        elif cfg.method.weights is not None:
            state = with_pretrained(state, cfg.method.weights, optimizers[0], say)
        start = int(state.step)
        if start == 0 and cfg.method.calibrates:
            method = cfg.method.calibrated(inference_variables(state), validations[""], say)
            cfg = replace(cfg, method=method)
            if main:
                record(workdir, cfg)
        validate = jax.jit(
            partial(validation_step, method=build(cfg.method)), static_argnames="scores"
        )
        reporter = Reporter(workdir, start, cfg.train.steps, 2 * sum(pairs.values()), enabled=main)
        state = replicate(state, devices)
        pending: collections.deque = collections.deque()
        scores: dict[str, float] = {}
        step = start

        def current():
            """One device's copy of the state; all are equal."""
            return jax.tree.map(lambda x: x.addressable_data(0)[0], state)

        def settle(keep: int) -> None:
            """Reads the metrics of all but the newest `keep` steps, and with them whether training is still sound."""
            while len(pending) > keep:
                step, metrics = pending.popleft()
                values = {name: float(value.addressable_data(0)[0]) for name, value in metrics.items()}
                _finite_or_raise(step, values, checkpoints)
                reporter.step(step, values["loss"])
                if step % cfg.report.log_every == 0 or step == cfg.train.steps:
                    reporter.metrics(step, values)

        def average_settled(parallel_settle: Callable, batches: Iterable[RawBatch]) -> TrainState:
            """The state with batch statistics for the averaged parameters, begun from those of
            the trained ones. Batches are drawn in slots of their own."""
            settled = state.replace(opt_state=with_model_state(state.opt_state, jax.tree.map(jnp.copy, state.model_state)))
            for i, raw in enumerate(itertools.islice(batches, SETTLING), 1):
                first = np.int32(i * sum(pairs.values()))
                raw = {part: (photos, first + slot) for part, (photos, slot) in raw.items()}
                settled = parallel_settle(settled, _split(raw, local))
            return settled

        def evaluate(step: int) -> None:
            settle(0)
            matches = {}
            for prefix, parts in validations.items():
                for kind, known in parts.items():
                    variables = inference_variables(current())
                    found = validate(variables, known, scores=kinds[kind].scores)
                    values, matches[prefix, kind] = found
                    scores.update({prefix + name: float(value) for name, value in values.items()})
            reporter.metrics(step, scores, "validation")
            if main:
                prefix, kind = shown = next(key for key in matches if not key[0])
                known = validations[prefix][kind]
                picture = _picture(known, matches[shown], kinds[kind].correct)
                _save_png(workdir / f"matches_{step:06d}.png", picture)
                reporter.image(step, "pictures/matches", picture)
                reporter.say(f"step {step}: " + ", ".join(f"{name} {value:.3f}{_published(definition, name)}" for name, value in scores.items()))
            reporter.pause_clock()

        def save(metrics=None) -> None:
            settle(0)
            checkpoints.save(current(), position, metrics)
            reporter.pause_clock()

        try:
            if start == 0:
                evaluate(0)
            for stage, optimizer in zip(plan, optimizers, strict=True):
                end = stage.start + stage.steps
                if step >= end or stop.signal is not None:
                    continue
                if main and stage.name:
                    reporter.say(f"stage {stage.name}, steps {stage.start + 1} to {end}")
                if 0 < step == stage.start:
                    state = replicate(begun_anew(current(), optimizer), devices)
                method = build(cfg.method, axis_name=AXIS, **stage.options)
                draw = partial(draw_batch, data=stage.data, cfg=cfg.draw)
                how = partial(partial, method=method, draw=draw, seed=cfg.train.seed)
                parallel_step = parallel(how(train_step, optimizer=optimizer, accumulate=cfg.train.accumulate), devices)
                parallel_settle = parallel(how(settle_statistics), devices)
                batches_from = partial(sources[stage.data].batches, process_index=jax.process_index(), process_count=jax.process_count())
                if main and position == 0 and cfg.report.pictured_pairs:
                    sheet = drawn_pairs(batches_from(0), draw, cfg.train.seed, cfg.report.pictured_pairs)
                    _save_png(workdir / "pairs.png", figures.pair_sheet(sheet))
                batches = batches_from(position)
                while step < end and stop.signal is None:
                    state, metrics = parallel_step(state, _split(next(batches), local))
                    step, position = step + 1, position + 1
                    pending.append((step, metrics))
                    settle(IN_FLIGHT)
                    if step % cfg.report.validate_every == 0 or step == end:
                        if state.model_state and kept_average(state.opt_state):
                            settle(0)
                            state = average_settled(parallel_settle, batches_from(position))
                        evaluate(step)
                        save(dict(scores))
                    elif step % cfg.report.checkpoint_every == 0:
                        save()
            save()
            if main and step == cfg.train.steps:
                _save_png(workdir / "curve.png", figures.training_curve(workdir / "metrics.jsonl"))
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"The disk of {workdir} is full: free some space and run the same command again, complete checkpoints are kept.") from e
        finally:
            reporter.close()
    if stop.signal is not None and step < cfg.train.steps:
        print(f"stopped by {signal.Signals(stop.signal).name}: step {step} is saved; the same command goes on from there")
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
    return scores


def drawn_pairs(batches: Iterable[RawBatch], draw: Callable, seed: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images 1 and 2 of the first `count` pairs that training sees, kind by kind."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    drawn = jax.jit(lambda step, raw: draw(draw_keys(seed, step)[0], raw, step=step))
    for step, raw in enumerate(batches):
        for pairs in drawn(jnp.int32(step), raw).values():
            found.extend(zip(np.asarray(pairs.image1), np.asarray(pairs.image2), strict=True))
        if len(found) >= count:
            return found[:count]
    return found


def begun_anew(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """The state with which a stage begins: nothing but the optimiser's memory is lost."""
    return new_state({"params": state.params, **state.model_state}, optimizer).replace(step=state.step)


def _published(definition: Definition, name: str) -> str:
    """What the paper reports beside a score, if the method knows it."""
    value = definition.published.get(name)
    return "" if value is None else f" (paper: {value:g})"


def _picture(validation: Any, matches: Correspondences, correct: Callable[..., Any]) -> np.ndarray:
    """The matches of the first held-out pair of a kind; green where they are correct."""
    pair, found = jax.tree.map(lambda x: np.asarray(x[0]), (validation, matches))
    kept = found.valid
    return figures.side_by_side(
        pair.image1,
        pair.image2,
        found.xy1_px[kept],
        found.xy2_px[kept],
        np.asarray(correct(pair, found))[kept],
    )


def _save_png(path: Path, picture: np.ndarray) -> None:
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary)
