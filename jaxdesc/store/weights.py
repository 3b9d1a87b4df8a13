"""Weight files: one safetensors file holds the variables and, in its header, the method and its configuration."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from jaxdesc.config import FORMAT_VERSION, version_of
from jaxdesc.store.files import atomic
from jaxdesc.types import UserError, Variables

FORMAT = "jaxdesc-"  # and the format_version


class Weights(NamedTuple):
    method: str  # name, a key of METHODS
    config: dict[str, Any]  # fields of the method's Config
    variables: Variables
    notes: dict[str, str]  # where the weights come from: source, licence, ...
    version: int  # format_version of the file


def flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """{"params": {"head": {"bias": x}}} -> {"params/head/bias": x}"""
    if not isinstance(tree, dict):
        return {prefix: np.ascontiguousarray(tree)}
    return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}/{key}" if prefix else key).items()}


def unflatten(flat: dict[str, np.ndarray]) -> Any:
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = leaf
    return tree


def save(path: str | Path, method: str, config: Any, variables: Variables, notes: dict[str, str] | None = None) -> None:
    """Writes a weight file, replacing what was there only once it is complete."""
    header = {"format": f"{FORMAT}{FORMAT_VERSION}", "method": method, "config": json.dumps(dataclasses.asdict(config)), "notes": json.dumps(notes or {})}
    with atomic(path) as temporary:
        temporary.write_bytes(serialised(flatten(variables), metadata=header))  # its own writer hides files from other users


def load(path: str | Path) -> Weights:
    """Reads a weight file.

    Raises:
      UserError: there is none, or it was not written by `save`, of this version or before.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weight file {path}.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            name, _, number = header.get("format", "").rpartition("-")
            if f"{name}-" != FORMAT or not number.isdecimal():
                raise UserError(f"{path} is not a jaxdesc weight file: convert released weights with `jaxdesc convert`.")
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as e:
        raise UserError(f"{path} cannot be read as safetensors: {e}.") from e
    version = version_of({"format_version": int(number)}, path)
    config, notes = json.loads(header["config"]), json.loads(header["notes"])
    return Weights(header["method"], config, unflatten(flat), notes, version)
