"""How much is worked through at once: on a CPU what stays in its cache, else what fills a device."""

from collections.abc import Callable
from typing import Any

import jax

STRIP_BYTES = {"cpu": 6 << 20, "default": 256 << 20}  # of a strip of a correlation
PAIRS = 16  # of a batch, at once on an accelerator: kernels of a single one leave it idle


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def default_strip_bytes() -> int:
    return STRIP_BYTES.get(jax.default_backend(), STRIP_BYTES["default"])


def map_pairs(function: Callable[[Any], Any], pairs: Any) -> Any:
    """`function` of each of the pairs, a tree of arrays with one leading axis; results stacked."""
    return jax.lax.map(function, pairs, batch_size=None if on_cpu() else PAIRS)
