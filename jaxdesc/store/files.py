"""Whole files or none: temporary names, and sentences for what stopped a write."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxdesc.errors import UserError


@contextmanager
def told(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Tells a failed write of `path` in a sentence; other errors pass through.

    Raises:
      UserError: the disk is full, the place is read-only, a part of the path is no folder, or what the system says.
    """
    try:
        yield
    except OSError as e:
        foreign = e.filename is not None and Path(e.filename) not in {path, temporary, *path.parents}
        if foreign or e.errno is None:  # without a number: HDF5 about its content, not the system about the file
            raise
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full; free some space and run the command again"
        elif e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            why = f"you may not write in {path.parent}; choose another place"
        elif e.errno in (errno.ENOTDIR, errno.EEXIST):
            why = "a part of its path is a file, not a folder; choose another name"
        elif e.errno == errno.EISDIR:
            why = "it is a folder; choose another name"
        else:
            why = e.strerror
        raise UserError(f"{path} cannot be written: {why}.") from e


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary name beside `path` (same suffix), renamed to it on success and removed on failure; missing folders are made.

    Raises:
      UserError: as `told`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    with told(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def refuse_existing(path: Path | str, overwrite: bool) -> None:
    """Keeps results from being lost.

    Raises:
      UserError: `path` exists and may not be replaced.
    """
    if not overwrite and Path(path).exists():
        raise UserError(f"{path} exists already: choose another name or ask for it to be overwritten.")
