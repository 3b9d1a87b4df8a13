"""Flags of a command line from a dataclass whose fields are made by `config.option`, and back."""

import argparse
import dataclasses
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from jaxdesc.config import parse_value, validate_value

Made = TypeVar("Made")


def flag(field: dataclasses.Field) -> str:
    return "--" + (field.metadata["flag"] or field.name.replace("_", "-"))


def add(parser: argparse.ArgumentParser, kind: type, required: Collection[str] = ()) -> None:
    """A flag for each field; those that a subclass adds stand in a group, whose title is the first
    line of its docstring.

    Args:
      required: fields that a command line must give although they have a default.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    first, *more = [one for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one)]
    for owner in (first, *more):
        title = owner.__doc__.splitlines()[0].rstrip(".")
        group = parser if owner is first else parser.add_argument_group(title)
        for name in owner.__dataclass_fields__:
            field = fields.pop(name, None)
            if field is not None and field.metadata["flag"] is not None:
                needed = name in required or field.default is dataclasses.MISSING
                add_flag(group, field, required=needed)


def add_flag(
    group: argparse._ActionsContainer,
    field: dataclasses.Field,
    owners: str = "",
    dest: str = "",
    required: bool = False,
) -> None:
    """The flag of one field. If it is not given, the namespace does not have it.

    Args:
      owners: what the help begins with. dest: of the namespace; empty: the field's name.
    """
    rule, default = field.metadata, field.default
    words = f"{owners}: {rule['doc']}" if owners else rule["doc"]
    kind: dict[str, Any] = {"action": "store_const", "const": not default}
    if not isinstance(default, bool):
        choices = "|".join(rule["choices"] or ())
        kind = {"metavar": rule["unit"] or choices or "N", "required": required}
        if isinstance(default, tuple):
            kind["nargs"] = "+"
        if default not in (None, "", (), dataclasses.MISSING):
            words += f" (default: {_shown(default, rule['scale'])})"
    group.add_argument(
        flag(field),
        dest=dest or field.name,
        default=argparse.SUPPRESS,
        help=words.replace("%", "%%"),
        **kind,
    )


def _shown(default: Any, scale: float) -> str:
    if isinstance(default, tuple):
        return " ".join(default)
    return f"{default / scale:g}" if scale != 1 else str(default)


def made(kind: type[Made], args: argparse.Namespace) -> Made:
    """The dataclass of the flags that were given.

    Raises:
      UserError: naming the flag whose value its field cannot take; as the dataclass.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    given = {name: value for name, value in vars(args).items() if name in names}
    return kind(**parsed(kind, given))


def parsed(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """{field: value} of {field: words of a command line}.

    Raises:
      UserError: naming the flag whose value its field cannot take.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    return {name: _parsed(fields[name], hints[name], said) for name, said in given.items()}


def _parsed(field: dataclasses.Field, hint: Any, said: bool | str | list[str]) -> Any:
    if isinstance(said, bool):
        return said
    text = ",".join(said) if isinstance(said, list) else said
    scale = field.metadata["scale"]
    if scale != 1:
        text = str(int(parse_value(text, float, flag(field)) * scale))
    value = parse_value(text, hint, flag(field))
    validate_value(value, hint, field.metadata, flag(field))
    return value
