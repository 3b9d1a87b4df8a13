"""What a protocol found: JSON to keep, Markdown to paste, PNG to look at.

Shares (accuracies, PCK, AUC) are in [0, 1]; other numbers carry their unit in their name.
"""

import dataclasses
import hashlib
import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdesc.errors import UserError
from jaxdesc.store.files import atomic

FORMAT = "jaxdesc result 1"
PACKAGES = ("jaxdesc", "numpy", "scipy", "opencv-python-headless", "h5py", "pycolmap", "poselib", "jax")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def slug(text: str) -> str:
    """A text as a file's name, which may have 255 bytes."""
    return re.sub(r"[^A-Za-z0-9_.@+-]+", "_", text)[:200]


@dataclass(frozen=True)
class Curve:
    """Lines over one axis."""

    x_label: str  # with its unit
    x: Sequence[float]
    y: dict[str, Sequence[float]]  # name of the line -> one value for each x
    marks: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> (x, y) of points to set apart, such as the threshold that was chosen


@dataclass(frozen=True)
class Result:
    """One method on one data set under one protocol."""

    protocol: str  # key that names how it is counted and by what estimator: "mma/d2", "auc/cv2-ransac@1px", "pck/hpf-bbox"
    estimator: str  # in words, empty where the protocol needs none
    dataset: str
    method: str  # what made the predictions
    values: dict[str, float]
    curve: Curve | None = None
    per_item: dict[str, dict[str, float]] = field(default_factory=dict)  # image pair, scene or class -> its own values
    settings: dict[str, Any] = field(default_factory=dict)  # resize rule, pixel rule, thresholds, what was left out
    timings: dict[str, float] = field(default_factory=dict)  # seconds
    versions: dict[str, str] = field(default_factory=_versions)

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits of all that decides the numbers but the predictions: results are comparable where these agree."""
        text = json.dumps(_plain([self.protocol, self.estimator, self.dataset, self.settings]), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def stem(self) -> str:
        """Of the files that hold it."""
        return slug(f"{self.protocol} {self.dataset} {self.method}")


# ---- JSON


def write(result: Result, folder: Path | str) -> Path:
    """`<folder>/<protocol>_<dataset>_<method>.json`.

    Raises:
      UserError: as `atomic`.
    """
    path = Path(folder, f"{result.stem}.json")
    text = json.dumps({"format": FORMAT, "config_hash": result.config_hash, **_plain(dataclasses.asdict(result))}, indent=1, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def read(path: Path | str, protocol: str | None = None) -> Result:
    """A result that `write` left.

    Args:
      protocol: the key that it must have.
    Raises:
      UserError: the file is missing, cut short, of something else, changed by hand, or of another protocol.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"The result {path} cannot be read: {e.strerror}.") from e
    except ValueError as e:
        raise UserError(f"{path} is no result: it is not JSON, or it is cut short; evaluate again.") from e
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise UserError(f'{path} is no result of this program: its field "format" should be {FORMAT!r}.')
    noted = data.pop("config_hash", None)
    for name, kind in FIELDS.items():
        if not isinstance(data.get(name), kind):
            raise UserError(f"{path} is damaged: its field {name!r} is missing or of another kind; evaluate again.")
    if unknown := sorted(data.keys() - FIELDS.keys()):
        raise UserError(f"{path} is damaged: it has an unknown field {unknown[0]!r}; evaluate again.")
    try:
        curve = data["curve"]
        if curve is not None:
            lines = {name: [_number(y) for y in ys] for name, ys in curve["y"].items()}
            marks = {name: (_number(x), _number(y)) for name, (x, y) in curve["marks"].items()}
            curve = Curve(str(curve["x_label"]), [_number(x) for x in curve["x"]], lines, marks)
            if any(len(ys) != len(curve.x) for ys in curve.y.values()):
                raise ValueError("lines of different lengths")
        values = {name: _number(v) for name, v in data["values"].items()}
        per_item = {item: {name: _number(v) for name, v in row.items()} for item, row in data["per_item"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path} is damaged: its numbers cannot be read ({type(e).__name__}: {e}); evaluate again.") from e
    result = Result(**{**data, "curve": curve, "values": values, "per_item": per_item})
    if result.config_hash != noted:
        raise UserError(f"{path} was changed after it was written: its settings do not fit its config_hash {noted}; evaluate again.")
    if protocol is not None and result.protocol != protocol:
        raise UserError(f"{path} is a result of {result.protocol!r}, not of {protocol!r}.")
    return result


FIELDS = {
    "protocol": str,
    "estimator": str,
    "dataset": str,
    "method": str,
    "values": dict,
    "curve": (dict, type(None)),
    "per_item": dict,
    "settings": dict,
    "timings": dict,
    "versions": dict,
}


def _plain(value: Any) -> Any:
    """What JSON can hold: NumPy's numbers as Python's, infinity and NaN as strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value)
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and value not in ("inf", "-inf", "nan")):
        raise ValueError(f"{value!r} is no number")
    return float(value)


# ---- Markdown


def decimal(value: float) -> str:
    """Four digits, as papers print them; whole numbers from 1000 on."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(results: Sequence[Result], published: Iterable = ()) -> str:
    """A Markdown table of results of one protocol, one a row, the published rows below.

    Args:
      published: `evals.published.Row`s of the same protocol.
    Raises:
      UserError: results of different protocols, whose numbers cannot stand in one column.
    """
    keys = sorted({result.protocol for result in results})
    if len(keys) != 1:
        raise UserError(f"Results of different protocols cannot share a table: {', '.join(keys)}.")
    columns = list(dict.fromkeys(name for result in results for name in result.values))
    rows = [[r.method, r.dataset, *(decimal(r.values[c]) if c in r.values else "" for c in columns), "here"] for r in results]
    for row in published:
        if any(c in row.values for c in columns):
            rows.append([row.method, row.dataset, *(decimal(row.values[c]) if c in row.values else "" for c in columns), row.source])
    head = ["method", "data", *columns, "source"]
    lines = [head, ["---"] * 2 + ["---:"] * len(columns) + ["---"], *rows]
    estimators = sorted({result.estimator for result in results} - {""})
    said = f"`{keys[0]}`" + (f", {'; '.join(estimators)}" if estimators else "")
    if len({(r.dataset, r.config_hash) for r in results}) > len({r.dataset for r in results}):
        said += "; the settings of these rows differ on the same data, see their JSON files"
    return f"{said}\n\n" + "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"


def compare(results: Sequence[Result], published: Callable[[str], Sequence] = lambda key: ()) -> str:
    """One `table` for each protocol key, in order of appearance.

    Args:
      published: key -> rows to stand below, as `evals.published.of`.
    """
    keys = dict.fromkeys(result.protocol for result in results)
    return "\n".join(table([result for result in results if result.protocol == key], published(key)) for key in keys)


# ---- PNG

HEADLINES = {"pck": "PCK@0.1", "mma": "MMA@3"}  # score that stands for a kind of protocol where one must


def draw(results: Sequence[Result], folder: Path | str) -> list[Path]:
    """`<folder>/<protocol>.png` for each protocol whose results have curves: a colour a result, a stroke a line.

    Raises:
      UserError: as `atomic`.
    """
    paths = []
    for key in dict.fromkeys(result.protocol for result in results if result.curve):
        paths.append(Path(folder, f"{slug(key)}.png"))
        with atomic(paths[-1]) as temporary:
            _figure([result for result in results if result.protocol == key and result.curve]).savefig(temporary, format="png")
    return paths


def _figure(results: Sequence[Result]) -> Figure:
    figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    several = len({result.dataset for result in results}) > 1
    highest = 0.0
    for i, result in enumerate(results):
        name = f"{result.method}, {result.dataset}" if several else result.method
        for j, (line, y) in enumerate(result.curve.y.items()):
            axes.plot(result.curve.x, y, ("-", "--", "-.", ":")[j % 4], color=f"C{i % 10}", label=f"{name}: {line}")
            highest = max([highest, *(v for v in y if math.isfinite(v))])
        for mark, (x, y) in result.curve.marks.items():
            axes.plot(x, y, "o", color=f"C{i % 10}", label=f"{name}: {mark}")
    axes.set(xlabel=results[0].curve.x_label, ylabel=results[0].protocol, title=", ".join(dict.fromkeys(r.dataset for r in results)))
    axes.set_ylim(0, 1 if highest <= 1 else None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_sizes(results: Sequence[Result], folder: Path | str, size: str, published: Callable[[str], Sequence]) -> list[Path]:
    """`<folder>/<protocol>_sizes.png` for each protocol with results that say the size of their descriptors: its first score against the size, published rows beside.

    Args:
      size: name of the value that is the size, in bytes. published: key -> rows, as `evals.published.of`.
    Raises:
      UserError: as `atomic`.
    """
    paths = []
    for key in dict.fromkeys(result.protocol for result in results if size in result.values):
        ours = [result for result in results if result.protocol == key and size in result.values]
        score = HEADLINES.get(key.split("/")[0], next(iter(ours[0].values)))
        theirs = [row for row in published(key) if size in row.values and score in row.values]
        figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
        axes = figure.subplots()
        for i, row in enumerate(ours):
            axes.plot(row.values[size], row.values[score], "o", color=f"C{i % 10}", label=f"{row.method}, {row.dataset}")
        for row in theirs:
            axes.plot(row.values[size], row.values[score], "x", color="0.5")
            axes.annotate(
                row.method, (row.values[size], row.values[score]), fontsize=6, color="0.4", xytext=(3, -3), textcoords="offset points", rotation=-40, va="top"
            )
        if theirs:
            axes.plot([], [], "x", color="0.5", label="published, " + ", ".join(dict.fromkeys(row.dataset for row in theirs)))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set(xlabel=size, ylabel=f"{score}, {key}", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
        paths.append(Path(folder, f"{slug(key)}_sizes.png"))
        with atomic(paths[-1]) as temporary:
            figure.savefig(temporary, format="png")
    return paths
