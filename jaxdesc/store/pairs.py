"""Lists of image pairs, `pairs.txt`: two names to a line, as hloc writes and reads them."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from jaxdesc.errors import UserError

Pair = tuple[str, str]


def read_pairs(path: Path | str, exists: Callable[[str], bool]) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of a list, in its order, and how many lines were dropped: {"duplicates": ..., "self_pairs": ...}.

    A line holds two names with blanks between them; empty lines and lines that start with # are passed over. A pair met before, in either order, and a pair
    of an image with itself are dropped.

    Args:
      exists: whether there is an image of that name.

    Raises:
      UserError: with file and line: a line without exactly two names, as where a name holds a blank; an unknown image; a missing, empty or binary file.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"The list of pairs {path} cannot be read: {e.strerror if isinstance(e, OSError) else 'it is not a text file'}.") from e
    pairs: dict[Pair, None] = {}
    dropped = {"duplicates": 0, "self_pairs": 0}
    for number, line in enumerate(lines, 1):
        names = line.split()
        if not names or names[0].startswith("#"):
            continue
        if len(names) != 2:
            raise UserError(f"{path}, line {number}: two image names are expected, {len(names)} are there ({line.strip()!r}); names must not hold blanks.")
        for name in names:
            if not exists(name):
                raise UserError(f"{path}, line {number}: there is no image {name!r}.")
        a, b = names
        if a == b:
            dropped["self_pairs"] += 1
        elif (a, b) in pairs or (b, a) in pairs:
            dropped["duplicates"] += 1
        else:
            pairs[a, b] = None
    if not pairs:
        raise UserError(f"The list of pairs {path} holds no pair: write two image names to a line.")
    return list(pairs), dropped


def exhaustive_pairs(names: Iterable[str]) -> list[Pair]:
    """Every pair of different names once, the names sorted."""
    return list(itertools.combinations(sorted(set(names)), 2))
