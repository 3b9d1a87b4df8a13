"""Parameters that do not learn: kept beside the batch statistics, out of the optimiser's sight.

An optimiser that does not see a parameter keeps no moments of it, and weight decay cannot move it; a gradient that is not asked for is not computed.
"""

from collections.abc import Callable
from typing import Any

from jaxdesc.types import Variables

COLLECTION = "frozen"


def _split(tree: Any, frozen: Callable[[str], bool], path: str = "") -> tuple[Any, Any]:
    learns, rests = {}, {}
    for name, value in tree.items():
        here = f"{path}/{name}" if path else name
        if frozen(here):
            rests[name] = value
        elif isinstance(value, dict):
            inner = _split(value, frozen, here)
            learns |= {name: inner[0]} if inner[0] else {}
            rests |= {name: inner[1]} if inner[1] else {}
        else:
            learns[name] = value
    return learns, rests


def freeze(variables: Variables, frozen: Callable[[str], bool]) -> Variables:
    """Moves parameters, or whole modules, whose path ("backbone/layer1_0") satisfies `frozen` from "params" to "frozen"."""
    params, rests = _split(variables["params"], frozen)
    return {**variables, "params": params, COLLECTION: rests}


def _joined(one: Any, other: Any) -> Any:
    return {
        name: _joined(one[name], other[name]) if name in one and name in other else one.get(name, other.get(name)) for name in dict.fromkeys([*one, *other])
    }


def thaw(variables: Variables) -> Variables:
    """The variables as the network's `apply` takes them: "frozen" joined to "params" again."""
    others = {name: value for name, value in variables.items() if name != COLLECTION}
    return {**others, "params": _joined(variables["params"], variables.get(COLLECTION, {}))}
