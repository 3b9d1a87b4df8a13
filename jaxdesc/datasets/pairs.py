"""Lists of image pairs, `pairs.txt`: two names to a line, as hloc writes and reads
them; and folders of pairs.

<folder>/pairs.txt                  name1 name2 on each line; # starts a comment
<folder>/images/<name> or <folder>/<name>
<folder>/corres/<stem1>_<stem2>.npy optional: correspondences of a pair
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxdesc.datasets.folders import image_folder
from jaxdesc.datasets.lists import lines
from jaxdesc.errors import UserError

Pair = tuple[str, str]
TWICE, SELF = "listed twice", "of an image with itself"  # why lines are dropped


def among(names: Iterable[str]) -> Callable[[str], str | None]:
    """A listed name -> that name if it is one of these, else None. "./a.png" is
    "a.png".
    """
    known = set(names)

    def name_of(listed: str) -> str | None:
        name = os.path.normpath(listed)
        return name if name in known else None

    return name_of


def below(folder: Path) -> Callable[[str], str | None]:
    """As `among`, of the files below a folder."""

    def name_of(listed: str) -> str | None:
        name = os.path.normpath(listed)
        return name if (folder / name).is_file() else None

    return name_of


def read_pairs(
    path: Path | str, name_of: Callable[[str], str | None], where: str = ""
) -> tuple[list[Pair], Counter]:
    """The pairs of a list, in its order, and how many lines were dropped, by reason
    (TWICE, SELF).

    A line holds two names with blanks between them; empty lines and lines that start
    with # are passed over. A pair met before, in either order, and a pair of an image
    with itself are dropped.

    Args:
      name_of: a listed name -> the name of that image, or None if there is none, see
        `among`.
      where: for messages, what was searched for images.

    Raises:
      UserError: with file and line: a line without exactly two names, as where a name
        holds a blank; an unknown image; a missing, empty or binary file.
    """
    path = Path(path)
    pairs: dict[Pair, None] = {}
    dropped: Counter = Counter()
    for number, line in enumerate(lines(path, "The list of pairs "), 1):
        listed = line.split()
        if not listed or listed[0].startswith("#"):
            continue
        if len(listed) != 2:
            raise UserError(
                f"{path}, line {number}: two image names are expected, {len(listed)} are there "
                f"({line.strip()!r}); names must not hold blanks."
            )
        a, b = (name_of(name) for name in listed)
        if a is None or b is None:
            raise UserError(
                f"{path}, line {number}: there is no image "
                f"{listed[a is not None]!r}{where and f' in {where}'}."
            )
        if a == b:
            dropped[SELF] += 1
        elif (a, b) in pairs or (b, a) in pairs:
            dropped[TWICE] += 1
        else:
            pairs[a, b] = None
    if not pairs:
        raise UserError(f"The list of pairs {path} holds no pair: write two image names to a line.")
    return list(pairs), dropped


def exhaustive_pairs(names: Iterable[str]) -> list[Pair]:
    """Every pair of different names once, the names sorted."""
    return list(itertools.combinations(sorted(set(names)), 2))


# ---- folders of pairs


class Listing(NamedTuple):
    """What a folder says: images, and which of them show one place."""

    label: str
    files: dict[str, Path]  # name -> image file
    pairs: dict[tuple[str, str], Path | None]  # two names -> file of correspondences, or None
    dropped: Mapping[str, int]  # why -> lines of the list


def read_listing(
    root: Path,
    list_file: Path,
    images: Path,
    corres: Path,
    locate: Callable[[Path, str], Path] = Path.joinpath,
) -> Listing:
    """What `list_file` lists: images at `locate(images, name)`, named relative to
    `root`.

    Raises:
      UserError: as `read_pairs`.
    """
    files: dict[str, Path] = {}

    def name_of(listed: str) -> str | None:
        file = locate(images, listed)
        name = os.path.relpath(file, root)
        if name not in files and not file.is_file():
            return None
        files[name] = file
        return name

    pairs, dropped = read_pairs(list_file, name_of, str(images))
    found = {(a, b): corres / f"{Path(a).stem}_{Path(b).stem}.npy" for a, b in pairs}
    return Listing(
        list_file.parent.name,
        files,
        {pair: file if file.is_file() else None for pair, file in found.items()},
        dropped,
    )


def read_folder(root: Path) -> Listing:
    """The pairs of a folder with `pairs.txt`, or of its sub-folders that have one.

    Raises:
      UserError: there is none; as `read_pairs`.
    """
    folders = (
        [root]
        if (root / "pairs.txt").is_file()
        else sorted(file.parent for file in root.glob("*/pairs.txt"))
    )
    if not folders:
        raise UserError(
            f"{root} has no pairs.txt (two image names on each line), nor has any folder in it."
        )
    listings = [
        read_listing(root, folder / "pairs.txt", image_folder(folder), folder / "corres")
        for folder in folders
    ]
    return Listing(
        label=root.resolve().name,
        files={name: file for listing in listings for name, file in listing.files.items()},
        pairs={pair: file for listing in listings for pair, file in listing.pairs.items()},
        dropped=sum((Counter(listing.dropped) for listing in listings), Counter()),
    )


def read_sfm120k(root: Path) -> Listing:
    """SfM-120k's pairs: `list_pairs.txt`, `ims/<name>`, `corres/<a>_<b>.npy`.

    In its public release an image lies at `ims/56/34/12/<...123456>`, by the last
    characters of its name; both forms are found.

    Raises:
      UserError: a part is missing; as `read_pairs`.
    """
    for part in ("list_pairs.txt", "ims"):
        if not (root / part).exists():
            raise UserError(f"{root} is not SfM-120k: it has no {part}.")
    return read_listing(root, root / "list_pairs.txt", root / "ims", root / "corres", _nested)


def _nested(images: Path, name: str) -> Path:
    nested = images / name[-2:] / name[-4:-2] / name[-6:-4] / name
    return nested if nested.is_file() else images / name
