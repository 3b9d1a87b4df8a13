"""The MatchOptions of all methods as flags of one command line, and back."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from jaxdesc.cli import flags
from jaxdesc.errors import UserError

OPTION = "option_"  # what the names of these flags begin with in the namespace


def parse(
    parser: argparse.ArgumentParser, words: Sequence[str] | None = None
) -> argparse.Namespace:
    """The flags, the methods' own among them: one for each field of their MatchOptions.

    What methods there are is only looked up for --help, and where a flag is none of the verb's, as
    that loads JAX. `match_options` makes options of what was given.
    """
    words = sys.argv[1:] if words is None else list(words)
    if not {"-h", "--help"} & set(words):
        args, others = parser.parse_known_args(words)
        if not others:
            return args
    group = parser.add_argument_group("how a method matches")
    for field, owners in _method_fields().values():
        flags.add_flag(group, field, ", ".join(owners), OPTION + field.name)
    return parser.parse_args(words)


def _method_fields() -> dict[str, tuple[dataclasses.Field, list[str]]]:
    """{name: (field, the methods that have it)} of the fields of all methods' MatchOptions."""
    from jaxdesc import methods  # which loads JAX

    found: dict[str, tuple[dataclasses.Field, list[str]]] = {}
    for method in methods.names():
        for field in dataclasses.fields(methods.find(method).MatchOptions):
            found.setdefault(field.name, (field, []))[1].append(method)
    return found


def given(args: argparse.Namespace) -> dict[str, Any]:
    """{field of MatchOptions: what was said} of the methods' own flags."""
    return {
        name.removeprefix(OPTION): said
        for name, said in vars(args).items()
        if name.startswith(OPTION)
    }


def match_fields(predictor: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The fields that were given of the MatchOptions of the predictor's method.

    Raises:
      UserError: a flag that the method does not have; a value that it cannot take.
    """
    said, kind = given(args), type(predictor.options())
    own = {field.name: field for field in dataclasses.fields(kind)}
    if alien := next((name for name in said if name not in own), None):
        has = ", ".join(map(flags.flag, own.values())) or "no flags of its own"
        flag = flags.flag(_method_fields()[alien][0])
        raise UserError(f"{predictor.name} does not match with {flag}: it has {has}.")
    return flags.parsed(kind, said)


def match_options(predictor: Any, args: argparse.Namespace) -> Any:
    """The MatchOptions of the predictor's method, from the flags that were given; as above."""
    return predictor.options(**match_fields(predictor, args))
