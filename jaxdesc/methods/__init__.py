"""The registry of methods: those of this package, and what is registered from outside."""

from functools import cache
from importlib.metadata import entry_points

from jaxdesc.config import MethodConfig
from jaxdesc.errors import UserError
from jaxdesc.method import Definition
from jaxdesc.methods import caps, cold, gsf, pump

GROUP = "jaxdesc.methods"  # of the entry points by which installed packages add a Definition
METHODS: dict[str, Definition] = {m.name: m for m in (d.METHOD for d in (pump, caps, cold, gsf))}


def register(definition: Definition) -> Definition:
    """Adds a method to those that training, matching and evaluation know.

    Raises:
      UserError: no Definition, one without kinds of pair, or another method has its name.
    """
    if not isinstance(definition, Definition) or not issubclass(definition.Config, MethodConfig):
        raise UserError(f"{definition!r} is no jaxdesc.method.Definition with a MethodConfig.")
    if not definition.Config.kinds:
        raise UserError(f"{definition.name} names no kind of pair that its loss takes: Config.kinds.")
    if METHODS.setdefault(definition.name, definition) is not definition:
        raise UserError(f"There is another method of the name {definition.name!r} already.")
    return definition


@cache
def _installed() -> None:
    for point in entry_points(group=GROUP):
        register(point.load())


def names() -> tuple[str, ...]:
    """Of all methods that are known."""
    _installed()
    return tuple(METHODS)


def find(name: str, where: str = "") -> Definition:
    """The method of this name.

    Args:
      where: what asks for it, for the message: "runs/pump holds weights of".
    Raises:
      UserError: there is none.
    """
    if name not in names():
        known = ", ".join(METHODS)
        raise UserError(f"{where or 'There is no'} the method {name!r}; there are {known}.".strip())
    return METHODS[name]
