"""Flags from a dataclass, and the dataclass from what was given."""

import argparse
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest

from jaxdesc.cli import flags
from jaxdesc.config import option, validate_fields
from jaxdesc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Base:
    """What all have."""

    folder: str | Path = option("", "where it lies", unit="DIR")
    out: str = option("", "where it goes", unit="DIR")

    def __post_init__(self):
        validate_fields(self, "Options")


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """Some more.

    This is not for the help.
    """

    kind: str = option(MISSING, "of what", choices=("a", "b"))
    rules: tuple[str, ...] = option(("x", "y"), "100 % of them", choices=("x", "y", "z"))
    top: int | None = option(None, "best", at_least=1, unit="K")
    memory_bytes: int = option(2**30, "may take", above=0, flag="memory", unit="GIB", scale=2**30)
    mutual: bool = option(True, "both ways; else one", flag="one-way")
    inner: object = option(None, "not for a command line", flag=None)


def parse(*words):
    parser = argparse.ArgumentParser()
    flags.add(parser, Options, required=("out",))
    return parser, parser.parse_args(words)


def test_what_is_given_is_parsed_and_the_rest_is_left_to_the_dataclass():
    _, args = parse("--out", "o", "--kind", "b")
    assert vars(args) == {"out": "o", "kind": "b"}
    assert flags.made(Options, args) == Options(out="o", kind="b")
    words = ["--out", "o", "--kind", "a", "--rules", "z", "x", "--top", "3"]
    words += ["--memory", "0.5", "--one-way", "--folder", "none"]
    wanted = {"rules": ("z", "x"), "top": 3, "memory_bytes": 2**29, "mutual": False}
    assert flags.made(Options, parse(*words)[1]) == Options(
        out="o", kind="a", folder="none", **wanted
    )


def test_help_shows_groups_units_choices_and_defaults():
    told = parse("--out", "o", "--kind", "a")[0].format_help()
    assert "Some more:\n" in told and "What all have" not in told and "not for" not in told
    told = " ".join(told.split())
    assert "--top K best" in told and "--kind a|b of what" in told
    assert "--folder DIR where it lies --out" in told
    assert "100 % of them (default: x y)" in told and "GIB may take (default: 1)" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--kind c", "--kind = 'c' must be one of a, b."),
        ("--kind a --rules x w", r"--rules = \('x', 'w'\) must be one of x, y, z."),
        ("--kind a --top 0", "--top = 0 must be at least 1."),
        ("--kind a --top many", "--top = 'many' is not of type int."),
        ("--kind a --memory 0", "--memory = 0 must be above 0."),
    ],
)
def test_a_mistake_names_the_flag(words, sentence):
    with pytest.raises(UserError, match=f"^{sentence}$"):
        flags.made(Options, parse("--out", "o", *words.split())[1])


def test_what_must_be_given(capsys):
    with pytest.raises(SystemExit):
        parse()
    assert "are required: --out, --kind" in capsys.readouterr().err
    with pytest.raises(TypeError, match="'kind'"):
        Options()
