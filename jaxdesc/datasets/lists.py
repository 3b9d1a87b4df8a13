"""Parts of data sets' lists: lines of text, CSV files of pairs, numbers joined by
semicolons, and names of images that begin with their author's folders.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdesc.errors import UserError


def lines(path: Path, what: str = "") -> list[str]:
    """Of a text file in UTF-8, with or without a byte order mark.

    Args:
      what: before the file's name in messages, such as "The list of pairs ".
    Raises:
      UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not a text file in UTF-8"
        raise UserError(f"{what}{path} cannot be read: {reason}.") from e


def lists(root: Path, pattern: str) -> list[Path]:
    """Files of this pattern in the root and in its folders."""
    return sorted([*root.glob(pattern), *root.glob(f"*/{pattern}")])


def listed(root: Path, pattern: str) -> Path:
    """The only one of `lists`.

    Raises:
      UserError: there is none, or more than one.
    """
    found = lists(root, pattern)
    if len(found) != 1:
        raise UserError(
            f"{root} holds {len(found)} lists of pairs {pattern}: name one with --pairs."
        )
    return found[0]


def csv_rows(path: Path, needed: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Where each row of a CSV file is, and its cells by the names in the first line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(
            f"The list of pairs {path} cannot be read: "
            f"{getattr(e, 'strerror', None) or 'it is no CSV file'}."
        ) from e
    if rows and (lacking := [name for name in needed if name not in rows[0]]):
        raise UserError(f"The list of pairs {path} has no column {lacking[0]!r} in its first line.")
    if bad := next(
        (i for i, row in enumerate(rows, 2) if None in row or None in row.values()), None
    ):
        raise UserError(f"{path}, line {bad}: it has other columns than the first line.")
    return [(f"{path}, line {i}", row) for i, row in enumerate(rows, 2)]


def joined_points(xs: str, ys: str, where: str) -> np.ndarray:
    try:
        x, y = ([float(v) for v in text.split(";") if v.strip()] for text in (xs, ys))
        return np.array([x, y]).T.reshape(-1, 2)
    except ValueError as e:
        raise UserError(f"{where}: as many x as y are expected, numbers joined by ;.") from e


def find_image(root: Path, name: str, where: str, folders: Sequence[str] = ("",)) -> str:
    """The image below the root, whose name in a list may begin with folders of its
    author's.

    Args:
      folders: below the root, in which it may lie.
    Raises:
      UserError: beginning with `where`, if there is none.
    """
    parts = Path(name).parts
    for start in range(len(parts)):
        for folder in folders:
            if Path(root, folder, *parts[start:]).is_file():
                return Path(folder, *parts[start:]).as_posix()
    raise UserError(f"{where}: there is no image {name} in {root}.")
