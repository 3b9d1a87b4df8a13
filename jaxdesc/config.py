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

FORMAT_VERSION = 2  # of workdirs and weight files


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

    kind: str = option(
        "embedded",
        "photographs: embedded, photos; pairs: embedded, pairs, sfm120k; posed pairs: embedded, rendered, colmap, megadepth; keypoint pairs: embedded, photos, keypoints, masks, pf-pascal, pf-willow, spair",
    )
    path: str = option("", "folder; empty for embedded data and for scenes rendered from it")
    weight: float = option(1.0, "share of the draws, relative to the other sources of the list", above=0)

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
class DataConfig:
    """What the host reads."""

    synthetic: tuple[Source, ...] = option((Source(),), "photographs that are paired with a warped copy of themselves")
    real: tuple[Source, ...] = option((Source(),), "pairs of photographs of one place, unlabelled")
    posed: tuple[Source, ...] = option((Source("rendered", weight=15.0), Source()), "pairs of views with known cameras")
    semantic: tuple[Source, ...] = option((Source(),), "pairs with common keypoints; photographs are paired with a warped copy of themselves")
    synthetic_per_batch: int = option(8, "synthetic pairs of a batch, over all devices", at_least=0)
    real_per_batch: int = option(8, "real pairs of a batch, over all devices", at_least=0)
    posed_per_batch: int = option(0, "posed pairs of a batch, over all devices", at_least=0)
    semantic_per_batch: int = option(0, "keypoint pairs of a batch, over all devices", at_least=0)
    canvas_px: int = option(1024, "longer side of a photograph on the device; larger ones are shrunk on the host", at_least=32)
    correspondences: int = option(128, "correspondences of a real pair that travel to aim its crops", at_least=4)
    keypoints: int = option(4500, "keypoints of image 1 of a posed pair that travel as candidates for its queries", at_least=1)
    common_keypoints: int = option(40, "keypoints of a keypoint pair that travel; of a warped photograph, the largest square grid of no more", at_least=1)
    pose_noise: tuple[float, float] = option((0.0, 0.0), "errors added to relative poses: rotation within +- degrees, translation within +- percent")
    curriculum: int = option(0, "batches during which posed pairs of ever larger rotation are let in; 0: all from the start", at_least=0)
    cache: str = option("", "folder of prepared datasets; empty: $JAXDESC_CACHE or ~/.cache/jaxdesc")
    threads: int = option(8, "host threads that decode", at_least=1)
    keep_mb: int = option(1024, "decoded photographs that stay in the host's memory, MiB; others are decoded at every visit", at_least=0)
    prefetch: int = option(2, "batches that wait ready", at_least=1)


@dataclass(frozen=True)
class WarpConfig:
    """Random affine maps and thin-plate splines; lengths are shares of the image's height and width."""

    shift: float = option(0.15, "greatest translation", at_least=0, at_most=1)
    shift_std: float = option(0.075, "standard deviation of the translation, normally distributed, before it is cut off at `shift`", at_least=0)
    angle_deg: float = option(10.0, "rotation uniform within +- this", at_least=0, at_most=180)
    scale: tuple[float, float] = option((0.8, 1.2), "scale uniform between these")
    bend: float = option(0.1, "control points of the spline move by up to +- this, uniform", at_least=0, at_most=1)
    control: int = option(3, "control points a side", at_least=2)


@dataclass(frozen=True)
class DrawConfig:
    """Random geometry and colour, drawn and applied on the device.

    Sizes, angles and probabilities of PUMP's pairs are the released program's, which has no
    changes of colour but the noise.
    """

    crop_px: int = option(256, "side of the square crops that a loss sees; images of keypoint pairs are squashed to it as a whole", at_least=32)
    tilt: float = option(0.5, "perspective skew of a synthetic warp, of the longer side", at_least=0, at_most=0.9)
    rotation_deg: float = option(20.0, "rotation of image 2, uniform within +- this", at_least=0, at_most=180)
    min_side_px: float = option(256.0, "least shorter side that image 2 is rescaled to (log-uniform)", above=0)
    max_side_px: float = option(1536.0, "greatest shorter side that image 2 is rescaled to", above=0)
    aspect: float = option(1.3, "greatest change of image 2's aspect ratio (log-uniform in [1/a, a])", at_least=1)
    crop_scale: float = option(
        1.5,
        "scale jitter of the crop windows: of pairs for PUMP the windows undo the images' local "
        "scale and keep one factor log-uniform in [1/this, this], as in the released program (left "
        "in, a pair in four would differ by more than 1.5); of posed pairs each window is up to "
        "this factor smaller than the image",
        at_least=1,
    )
    trials: int = option(5, "crop windows tried, of which the best-overlapping pair is kept", at_least=1)
    noise: float = option(
        12.5,
        "uniform noise within +- this, of 255, on the pixels of image 2 before its crop is "
        "resampled (the released program's 25 is the full width)",
        at_least=0,
        at_most=255,
    )
    brightness: float = option(0.0, "colour jitter of both images, factor within 1 +- this", at_least=0, at_most=1)
    contrast: float = option(0.0, "colour jitter of both images, factor within 1 +- this", at_least=0, at_most=1)
    saturation: float = option(0.0, "colour jitter of both images, factor within 1 +- this", at_least=0, at_most=1)
    hue: float = option(0.0, "colour jitter of both images, turns within +- this", at_least=0, at_most=0.5)
    shade: float = option(
        0.0,
        "uneven light: brightness within 1 +- this, different over the image; as gamma, blur_px, "
        "motion_px and jpeg_quality it spares half of the images and is uniform up to the full "
        "strength for the others, of pairs for PUMP",
        at_least=0,
        at_most=1,
    )
    gamma: float = option(1.0, "exponent of the colours, log-uniform within [1/this, this]", at_least=1)
    blur_px: float = option(0.0, "greatest sigma of a Gaussian blur, pixels of the crop", at_least=0, at_most=8)
    motion_px: float = option(0.0, "greatest length of a straight motion blur, pixels of the crop", at_least=0, at_most=16)
    jpeg_quality: int = option(100, "lowest quality that crops are compressed with, as JPEG does; 100: they are not", at_least=5, at_most=100)
    ramp_steps: int = option(
        0,
        "steps over which the geometry of pairs for PUMP grows from none (tilt, rotation, change "
        "of scale and aspect) to that of the fields above; 0: full from the start",
        at_least=0,
    )
    swap_probability: float = option(
        0.5,
        "images of a pair change places, before image 2 is turned, rescaled and made noisy, so "
        "that either may be; posed pairs come both ways in any case",
        at_least=0,
        at_most=1,
    )
    flip_probability: float = option(0.5, "both images are mirrored", at_least=0, at_most=1)
    posed_hw: tuple[int, int] = option(
        (480, 640), "rows and columns of the views of a posed pair; they are cut to this shape and resized, not rotated or tilted"
    )
    warp: WarpConfig = WarpConfig()  # of photographs that keypoint pairs are made of
    prune: bool = option(True, "of the candidates for the queries of a posed pair, only those are asked for that some depth shows in view 2")
    prune_depth: str = option(
        "cameras",
        "depths up to which pruning looks: cameras, the largest distance of two cameras of the "
        "reconstruction; points, the depth that 99 % of what is known of the scene is nearer than",
        choices=("cameras", "points"),
    )
    queries: int = option(500, "points of view 1 that a posed pair asks for, 9 of 10 SIFT keypoints", at_least=1)


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
    validation_pairs: int = option(16, "fixed held-out pairs of each part that can be scored", at_least=1)
    checkpoint_every: int = option(500, "steps between checkpoints", at_least=1)
    keep_last: int = option(3, "newest checkpoints kept, beside the best one", at_least=1)


@dataclass(frozen=True)
class ExperimentConfig:
    method: Any = option(None, "the method's own Config")
    data: DataConfig = DataConfig()
    draw: DrawConfig = DrawConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    report: ReportConfig = ReportConfig()


class Stage(NamedTuple):
    """A stretch of a run; its optimiser and learning rate begin anew."""

    name: str
    start: int  # first update, counted from 0
    steps: int
    data: DataConfig  # what its batches are made of
    pairs: str = ""  # a word for these pairs, where the stages' differ
    options: Mapping[str, Any] = types.MappingProxyType({})  # of the method's build
    rates: Callable[[Any], Any] | None = (
        None  # from a tree of the parameters to what their updates are multiplied by; None: 1. All of a run's stages have it, or none
    )


class MethodConfig:
    """What a method's configuration is a subclass of: a frozen dataclass with fields by `option`.

    Attributes:
      name: of the method.
      weights: what training starts from, a field of those that take a spec as `store.pretrained`
        does; None: the method always starts from random numbers.
      backbone: the network's name, a field of those that have a choice.
      calibrates: fields that are 0 where `calibrated` is to choose them before the first step.
    """

    name: typing.ClassVar[str]
    weights = None
    backbone = ""
    calibrates: typing.ClassVar[tuple[str, ...]] = ()

    def plan(self, config: ExperimentConfig) -> tuple[Stage, ...]:
        """The stages of a run in their order, which together take config.train.steps."""
        return (Stage("", 0, config.train.steps, config.data),)

    def validate(self, config: ExperimentConfig) -> None:
        """What `option` cannot say; raises UserError naming the field."""

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
    validate_fields(config, "config")
    data, draw, optim, train = config.data, config.draw, config.optim, config.train
    if data.synthetic_per_batch + data.real_per_batch + data.posed_per_batch + data.semantic_per_batch == 0:
        raise UserError("config.data.synthetic_per_batch, real_per_batch, posed_per_batch and semantic_per_batch are all 0: a batch needs at least one pair.")
    if not 0 < draw.warp.scale[0] <= draw.warp.scale[1]:
        raise UserError(f"config.draw.warp.scale = {draw.warp.scale} must be two numbers above 0, the smaller one first.")
    for half in ("synthetic", "real", "posed", "semantic"):
        if getattr(data, f"{half}_per_batch") and not getattr(data, half):
            raise UserError(
                f"config.data.{half} is empty but config.data.{half}_per_batch = {getattr(data, f'{half}_per_batch')}: name a source or set it to 0."
            )
        if getattr(data, f"{half}_per_batch") % train.accumulate:
            raise UserError(
                f"config.data.{half}_per_batch = {getattr(data, f'{half}_per_batch')} is not a multiple of config.train.accumulate = {train.accumulate}."
            )
    if data.canvas_px % 8:
        raise UserError(f"config.data.canvas_px = {data.canvas_px} is not a multiple of 8, as the halved copies need.")
    if min(data.pose_noise) < 0:
        raise UserError(f"config.data.pose_noise = {data.pose_noise} must be at least 0, degrees and percent.")
    if min(draw.posed_hw) < 32:
        raise UserError(f"config.draw.posed_hw = {draw.posed_hw} must be at least 32 rows and columns.")
    if draw.min_side_px > draw.max_side_px:
        raise UserError(f"config.draw.min_side_px = {draw.min_side_px} is greater than config.draw.max_side_px = {draw.max_side_px}.")
    if optim.warmup_steps > train.steps:
        raise UserError(f"config.optim.warmup_steps = {optim.warmup_steps} is greater than config.train.steps = {train.steps}.")
    config.method.validate(config)
    return config


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
