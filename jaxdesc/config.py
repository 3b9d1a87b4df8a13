"""Typed experiment configurations: every field says its unit, and `validate` names the field that is wrong."""

import dataclasses
import importlib.machinery
import importlib.util
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxdesc.errors import UserError

FORMAT_VERSION = 3  # of workdirs and weight files


def option(
    default: Any,
    doc: str,
    *,
    above=None,
    at_least=None,
    at_most=None,
    choices=None,
    absent=None,
    flag: str | None = "",
    unit: str = "",
    scale: float = 1,
) -> Any:
    """A dataclass field with its unit or meaning and the values that it may take.

    Args:
      default: `dataclasses.MISSING` for a field that must be given.
      absent: what a file means that was written before the field existed, where that is not
        the default, see `absent_values`.
      flag, unit: the verbs' --FLAG UNIT, where it is not the field's name, see `flags`; a flag of
        None: there is none.
      scale: what the flag's number is multiplied by.
    """
    bounds = {"above": above, "at_least": at_least, "at_most": at_most, "choices": choices}
    metadata = {"doc": doc, "absent": absent, **bounds, "flag": flag, "unit": unit, "scale": scale}
    return dataclasses.field(default=default, metadata=metadata)


def absent_values(kind: type) -> dict[str, Any]:
    """{field: value} that a file without these fields means, where it is not the default."""
    found = {field.name: field.metadata.get("absent") for field in dataclasses.fields(kind)}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Options:
    """How two images are matched; a method's MatchOptions are a subclass with fields by `option`.

    Raises:
      UserError: naming the field that is wrong.
    """

    def __post_init__(self):
        validate_fields(self, "MatchOptions")


@dataclass(frozen=True)
class Source:
    """Where photographs come from; on a command line `kind:path@weight`, several joined by commas."""

    kind: str = option("embedded", "one of the sources that the kind of pair knows by name")
    path: str = option("", "folder; empty for embedded data and for scenes rendered from it")
    weight: float = option(
        1.0, "fraction of the draws, relative to the other sources of the list", above=0
    )

    @classmethod
    def parse(cls, text: str) -> "Source":
        kind, _, rest = text.strip().partition(":")
        path, at, weight = rest.rpartition("@") if rest else kind.rpartition("@")
        if not at:
            return cls(kind=kind, path=rest)
        try:
            number = float(weight)
        except ValueError:  # an @ of the path itself
            return cls(kind=kind, path=rest)
        return cls(kind=kind, path=path, weight=number) if rest else cls(kind=path, weight=number)


@dataclass(frozen=True)
class DrawConfig:
    """How pairs of any kind are drawn on the device; what a kind needs more is a subclass."""

    flip_probability: float = option(0.5, "both images are mirrored", at_least=0, at_most=1)
    brightness: float = option(
        0.0, "colour jitter of both images, factor within 1 +- this", at_least=0, at_most=1
    )
    contrast: float = option(
        0.0, "colour jitter of both images, factor within 1 +- this", at_least=0, at_most=1
    )
    saturation: float = option(
        0.0, "colour jitter of both images, factor within 1 +- this", at_least=0, at_most=1
    )
    hue: float = option(
        0.0, "colour jitter of both images, turns within +- this", at_least=0, at_most=0.5
    )

    def undistorted(self) -> typing.Self:
        """How held-out pairs are drawn: geometry stays, colours are those of the files.

        Nothing is mirrored but what a data set's list asks for.
        """
        colours = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
        return dataclasses.replace(self, **colours, flip_probability=0.0)

    def check(self) -> None:
        """What `option` cannot say; raises UserError naming the field of config.draw."""


@dataclass(frozen=True)
class PairsConfig:
    """What every kind of training pair is configured by; see `jaxdesc.data.kind.Kind`.

    Attributes:
      Draw: what config.draw is where pairs of the kind are drawn.
      scored: whether enough is known of its pairs to score a method by those held out.
    """

    Draw: typing.ClassVar[type[DrawConfig]] = DrawConfig
    scored: typing.ClassVar[bool] = True

    sources: tuple[Source, ...] = option((Source(),), "where the pairs come from")
    per_batch: int = option(
        8,
        "pairs of a batch, over all devices; 0: steps see none, those held out are scored",
        at_least=0,
    )

    def check(self, where: str) -> None:
        """What `option` cannot say; raises UserError naming the field, `where` and its name."""


@dataclass(frozen=True)
class HostConfig:
    """How the host reads; `jaxdesc.data.kinds.DataConfig` adds a field for each kind of pair."""

    canvas_px: int = option(
        1024,
        "longer side of a photograph on the device; larger ones are shrunk on the host",
        at_least=32,
    )
    cache: str = option(
        "", "folder of prepared datasets; empty: $JAXDESC_CACHE or ~/.cache/jaxdesc"
    )
    threads: int = option(8, "host threads that decode", at_least=1)
    keep_mb: int = option(
        1024,
        "decoded photographs that stay in the host's memory, MiB; others are decoded at every "
        "visit",
        at_least=0,
    )
    prefetch: int = option(2, "batches that wait ready", at_least=1)

    def kinds(self) -> dict[str, Any]:
        """{name: `jaxdesc.data.kind.Kind`} of the kinds of pair that it has, in their order."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in values if isinstance(value, PairsConfig)}

    def pairs_per_batch(self) -> dict[str, int]:
        """Pairs of each kind that a batch has, {"posed": 8}; kinds that it lacks are absent."""
        return {name: kind.per_batch for name, kind in self.kinds().items() if kind.per_batch}


@dataclass(frozen=True)
class OptimConfig:
    name: str = option("adam", "how parameters are updated: adam, weight decay coupled; adamw, decoupled; sgd, with momentum", choices=("adam", "adamw", "sgd"))
    learning_rate: float = option(1e-4, "size of the updates", above=0)
    schedule: str = option("constant", "of the learning rate over the run", choices=("constant", "cosine", "trapezoid", "halving"))
    halving_steps: int = option(80_000, "updates between halvings of the learning rate (schedule = halving)", above=0)
    warmup_steps: int = option(0, "updates of linear warm-up", at_least=0)
    weight_decay: float = option(5e-4, "share of the parameters that is added to the gradient (adamw: to the update)", at_least=0)
    momentum: float = option(0.0, "of sgd", at_least=0, at_most=1)
    b1: float = option(0.9, "decay of Adam's first moment", at_least=0, at_most=1)
    b2: float = option(0.999, "decay of Adam's second moment", at_least=0, at_most=1)
    eps: float = option(1e-8, "Adam's epsilon", above=0)
    clip_norm: float = option(0.0, "greatest global norm of the gradient; 0: not clipped", at_least=0)
    ema_decay: float = option(0.0, "decay of the running mean of the parameters that is validated and exported; 0: off", at_least=0, at_most=1)


@dataclass(frozen=True)
class TrainConfig:
    steps: int = option(50_000, "updates of the run", at_least=1)
    seed: int = option(0, "of parameters, data order and every random draw", at_least=0)
    accumulate: int = option(1, "parts that each device's batch is worked through in, to save memory", at_least=1)


@dataclass(frozen=True)
class ReportConfig:
    """What a run writes and when; may differ when a run is resumed."""

    log_every: int = option(10, "steps between lines of metrics", at_least=1)
    validate_every: int = option(1000, "steps between validations and pictures", at_least=1)
    validation_pairs: int = option(16, "fixed held-out pairs of each kind that can be scored", at_least=1)
    pictured_pairs: int = option(
        16, "training pairs that pairs.png shows as the loss sees them; 0: no such picture", at_least=0
    )
    checkpoint_every: int = option(500, "steps between checkpoints", at_least=1)
    keep_last: int = option(3, "newest checkpoints kept, beside the best one", at_least=1)


@dataclass(frozen=True)
class ExperimentConfig:
    method: Any = option(None, "the method's own Config")
    data: Any = option(None, "what batches are made of, a jaxdesc.data.kinds.DataConfig")
    draw: DrawConfig = DrawConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    report: ReportConfig = ReportConfig()


class Stage(NamedTuple):
    """A stretch of a run; its optimiser and learning rate begin anew."""

    name: str
    start: int  # first update, counted from 0
    steps: int
    data: HostConfig  # what its batches are made of
    pairs: str = ""  # a word for these pairs, where the stages' differ
    options: Mapping[str, Any] = types.MappingProxyType({})  # of the method's build
    rates: Callable[[Any], Any] | None = (
        None  # from a tree of the parameters to what their updates are multiplied by; None: 1. All of a run's stages have it, or none
    )


class MethodConfig:
    """What a method's configuration is a subclass of: a frozen dataclass with fields by `option`.

    Attributes:
      name: of the method.
      kinds: of training pair that its loss takes, by their names in config.data.
      weights: what training starts from, a field of those that take a spec as `store.pretrained`
        does; None: the method always starts from random numbers.
      backbone: the network's name, a field of those that have a choice.
      calibrates: fields that are 0 where `calibrated` is to choose them before the first step.
    """

    name: typing.ClassVar[str]
    kinds: typing.ClassVar[tuple[str, ...]] = ()
    weights = None
    backbone = ""
    calibrates: typing.ClassVar[tuple[str, ...]] = ()

    def plan(self, config: ExperimentConfig) -> tuple[Stage, ...]:
        """The stages of a run in their order, which together take config.train.steps."""
        return (Stage("", 0, config.train.steps, config.data),)

    def check(self) -> None:
        """What `option` cannot say of these fields; raises UserError naming one."""

    def validate(self, config: ExperimentConfig) -> None:
        """What these fields owe the others of a training; raises UserError naming one."""

    @classmethod
    def check_file(cls, fields: Mapping[str, Any], version: int, where: Any) -> None:
        """Refuses a file of an older format that may not hold what it says.

        Args:
          fields: of the configuration, as the file has them. version: format_version.
        Raises:
          UserError: naming the file, `where`.
        """

    def calibrated(self, variables: Any, batch: Any, say: Callable[[str], None]) -> "MethodConfig":
        """The configuration with the fields of `calibrates` chosen.

        Args:
          variables: what training starts from. batch: held-out pairs of the last stage.
          say: is told in a sentence what was chosen.
        """
        return self


def _type_matches(value: Any, annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin is tuple:
        inner, *rest = typing.get_args(annotation)
        if rest == [Ellipsis]:
            return isinstance(value, tuple) and all(_type_matches(v, inner) for v in value)
        return isinstance(value, tuple) and len(value) == 1 + len(rest) and all(map(_type_matches, value, (inner, *rest)))
    if origin in (typing.Union, types.UnionType):
        return any(_type_matches(value, a) for a in typing.get_args(annotation))
    if annotation is Any:
        return dataclasses.is_dataclass(value)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("jaxdesc.config.", "")


def validate_fields(config: Any, where: str) -> None:
    """Checks the types and the bounds of a dataclass's fields; raises UserError naming one."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = f"{where}.{field.name}", getattr(config, field.name)
        validate_value(value, hints[field.name], field.metadata, name)
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                validate_fields(part, name)


def validate_value(value: Any, annotation: Any, rule: Mapping[str, Any], name: str) -> None:
    """Checks one field's type and the bounds of its metadata; raises UserError calling it `name`.

    Choices hold for every part of a tuple.
    """
    if not _type_matches(value, annotation):
        raise UserError(f"{name} = {value!r} is not of type {_name(annotation)}.")
    parts = value if isinstance(value, tuple) else (value,)
    for bound, holds, words in (
        ("above", lambda b: value > b, "above"),
        ("at_least", lambda b: value >= b, "at least"),
        ("at_most", lambda b: value <= b, "at most"),
        ("choices", lambda b: all(part in b for part in parts), "one of"),
    ):
        limit = rule.get(bound)
        if limit is not None and value is not None and not holds(limit):
            shown = ", ".join(limit) if bound == "choices" else limit
            raise UserError(f"{name} = {value!r} must be {words} {shown}.")


def validate(config: ExperimentConfig) -> ExperimentConfig:
    """Checks types, ranges and what fields owe each other; returns the configuration.

    Raises:
      UserError: naming the field, its value and what it may be.
    """
    if not isinstance(config, ExperimentConfig):
        raise UserError(f"get_config must return an ExperimentConfig, not {type(config).__name__}.")
    if not isinstance(config.method, MethodConfig):
        kind = type(config.method).__name__
        raise UserError(f"config.method must be a method's configuration, not {kind}.")
    if not isinstance(config.data, HostConfig):
        kind = type(config.data).__name__
        raise UserError(f"config.data must be a jaxdesc.data.kinds.DataConfig, not {kind}.")
    validate_fields(config, "config")
    check_data(config)
    optim, train = config.optim, config.train
    if optim.warmup_steps > train.steps:
        raise UserError(f"config.optim.warmup_steps = {optim.warmup_steps} is greater than config.train.steps = {train.steps}.")
    config.method.check()
    config.method.validate(config)
    return config


def check_data(config: ExperimentConfig) -> None:
    """Refuses pairs that the method cannot take, that are drawn otherwise or that do not divide."""
    data, draw, method = config.data, config.draw, config.method
    kinds = data.kinds()
    takes = f"the loss of {method.name} takes {' and '.join(method.kinds) or 'none'}"
    if not kinds:
        raise UserError(f"config.data has no kind of pair: {takes}.")
    if strange := [name for name in kinds if name not in method.kinds]:
        raise UserError(f"config.data has {strange[0]} pairs, but {takes}.")
    if not data.pairs_per_batch():
        names = " and ".join(f"config.data.{name}.per_batch" for name in kinds)
        raise UserError(f"{names} {'is' if len(kinds) == 1 else 'are'} 0: a batch needs a pair.")
    if not any(kind.scored for kind in kinds.values()):
        raise UserError(
            f"config.data has no pairs to score by, as nothing is known of {' and '.join(kinds)}: "
            "add another kind, with per_batch = 0 if steps shall not see it."
        )
    if data.canvas_px % 8:
        raise UserError(
            f"config.data.canvas_px = {data.canvas_px} is not a multiple of 8, as the halved "
            "copies need."
        )
    for name, kind in kinds.items():
        where = f"config.data.{name}"
        if not isinstance(draw, kind.Draw):
            raise UserError(
                f"config.draw is a {type(draw).__name__}, but {where} needs a {kind.Draw.__name__}."
            )
        if not kind.sources:
            raise UserError(f"{where}.sources is empty: name a source, or leave {where} out.")
        if kind.per_batch % config.train.accumulate:
            raise UserError(
                f"{where}.per_batch = {kind.per_batch} is not a multiple of "
                f"config.train.accumulate = {config.train.accumulate}."
            )
        kind.check(where)
    if type(draw) not in [kind.Draw for kind in kinds.values()]:
        wanted = next(iter(kinds.values())).Draw.__name__
        raise UserError(
            f"config.draw is a {type(draw).__name__}, of which {' and '.join(kinds)} pairs do not "
            f"use every field: make it a {wanted}."
        )
    draw.check()


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with the package, by name: "pump", "caps", ..."""
    here = Path(__file__).parent
    folders = here / "configs", here.parent / "configs"  # as installed, and of a clone
    folder = next(filter(Path.is_dir, folders), here)
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def _file(text: str) -> Path:
    """A file, or the shipped configuration of that name.

    Raises:
      UserError: there is neither.
    """
    path, known = Path(text), shipped_configs()
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"There is no configuration file {path}.")
    if text not in known:
        raise UserError(f"There is no configuration {text!r}; there are {', '.join(known)}, or name a file.")
    return known[text]


def load(spec: str, overrides: dict[str, str] | None = None) -> ExperimentConfig:
    """Reads `file.py`, or `pump` and its like, which come with the package; both with `:variant`
    behind. Sets the overrides {"data.canvas_px": "512", ...} and validates.

    Raises:
      UserError: for a missing file, a file that is not Python, an unknown variant or field, a wrong value.
    """
    file, _, variant = spec.rpartition(":") if ":" in Path(spec).name else (spec, "", "")
    path = _file(file)
    module_spec = importlib.util.spec_from_file_location("jaxdesc_config", path, loader=importlib.machinery.SourceFileLoader("jaxdesc_config", str(path)))
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        get_config = module.get_config
        config = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except SyntaxError as e:
        raise UserError(f"{path} is not Python: {e.msg} in line {e.lineno}.") from e
    except AttributeError as e:
        raise UserError(f"{path} does not define what a configuration needs: {e}.") from e
    except Exception as e:  # whatever a user's file raises is told in a sentence; misspelt fields arrive here as TypeError
        raise UserError(f"{path} does not make a configuration: {type(e).__name__}: {e}.") from e
    for field, text in (overrides or {}).items():
        config = override(config, field, text)
    return validate(config)


def override(config: Any, field: str, text: str, where: str = "config") -> Any:
    """The configuration with `field` ("optim.learning_rate") set to what `text` says in the field's type."""
    name, _, rest = field.partition(".")
    known = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if name not in known:
        raise UserError(f"{where} has no field {name!r}; it has {', '.join(known)}." if known else f"{where} has no fields.")
    current = getattr(config, name)
    if rest and current is None:
        present = [name for name in known if dataclasses.is_dataclass(getattr(config, name))]
        has = f"{where} has {' and '.join(present)}" if present else f"{where} has none"
        raise UserError(f"{where}.{name} is not part of this configuration: {has}.")
    if rest:
        return dataclasses.replace(config, **{name: override(current, rest, text, f"{where}.{name}")})
    annotation = typing.get_type_hints(type(config))[name]
    return dataclasses.replace(config, **{name: parse_value(text, annotation, f"{where}.{name}")})


def parse_value(text: str, annotation: Any, name: str) -> Any:
    """What a command line's text says in a field's type; raises UserError naming it.

    An empty text, or none, is None where the type has it.
    """
    if annotation == tuple[Source, ...]:
        return tuple(Source.parse(part) for part in text.split(",") if part.strip())
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)
        return tuple(parse_value(part, inner[0], name) for part in text.split(",") if part.strip())
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = typing.get_args(annotation)
        if text in ("", "none") and type(None) in kinds:
            return None
        return parse_value(text, next(k for k in kinds if k is not type(None)), name)
    if dataclasses.is_dataclass(annotation):
        first = dataclasses.fields(annotation)[0].name
        raise UserError(f"{name} is a group of fields: set one of them, as {name}.{first}.")
    if annotation is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if annotation is str:
        return text
    try:
        return annotation(text)
    except (TypeError, ValueError):
        raise UserError(f"{name} = {text!r} is not of type {_name(annotation)}.") from None


def cache_folder(cache: str = "") -> Path:
    """What may be made again: prepared datasets and compiled programs. `cache`, else $JAXDESC_CACHE, else ~/.cache/jaxdesc."""
    return Path(cache or os.environ.get("JAXDESC_CACHE", "") or "~/.cache/jaxdesc").expanduser()


def as_dict(config: Any) -> dict:
    """Plain values, for JSON; the method's section says which method it is."""
    head = {"format_version": FORMAT_VERSION, "method_name": config.method.name}
    return {**head, **dataclasses.asdict(config)}


def version_of(values: Mapping[str, Any], where: Any) -> int:
    """The format_version of a workdir's config.json, 1 before there was one.

    Raises:
      UserError: a later version of jaxdesc wrote it.
    """
    version = values.get("format_version", 1)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{where} is of format {version!r}, and this version of jaxdesc reads up to "
            f"{FORMAT_VERSION}: update jaxdesc."
        )
    return version
