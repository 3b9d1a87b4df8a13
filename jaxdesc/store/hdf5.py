"""HDF5 files that outlive a killed writer."""

import fcntl
import functools
import io
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from jaxdesc.errors import UserError
from jaxdesc.store.files import atomic, told

LOCK_WAIT_S = 20.0
PAGE = 4096  # bytes


def _write_at(descriptor: int, offset: int, data: bytes | memoryview) -> None:
    """The one place where bytes of an HDF5 file reach the disk."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


class _Overlay(io.RawIOBase):
    """The file as HDF5 is to see it: what HDF5 appends is on disk, what it overwrites waits in memory.

    A reader of the old file looks only where the old file ends, so up to `commit` nothing has happened to it.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.old_size = self.size = os.fstat(descriptor).st_size
        self.at = 0
        self.pages: dict[int, bytearray] = {}  # overwritten pages by number, no further than the old file
        self.error: OSError | None = None

    def seekable(self) -> bool:
        return True

    readable = writable = seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = (0, self.at, self.size)[whence] + offset
        return self.at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self.descriptor, len(view), self.at)
        view[: len(data)] = data
        for page, inner, outer in self._pages(len(data)):
            if page in self.pages:
                view[outer] = self.pages[page][inner]
        self.at += len(data)
        return len(data)

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        inside = max(0, min(len(view), self.old_size - self.at))
        for page, inner, outer in self._pages(inside):
            if page not in self.pages:
                start = page * PAGE
                self.pages[page] = bytearray(os.pread(self.descriptor, min(PAGE, self.old_size - start), start))
            self.pages[page][inner] = view[outer]
        self._disk(_write_at, self.at + inside, view[inside:])
        self.at += len(view)
        self.size = max(self.size, self.at)
        return len(view)

    def _pages(self, count: int) -> Iterator[tuple[int, slice, slice]]:
        """The pages of the next `count` bytes that lie in the old file: number, where in the page, where among these bytes."""
        last = min(self.at + count, self.old_size)
        for page in range(self.at // PAGE, -(-last // PAGE) if last > self.at else 0):
            first, end = max(self.at, page * PAGE), min(last, (page + 1) * PAGE)
            yield page, slice(first - page * PAGE, end - page * PAGE), slice(first - self.at, end - self.at)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        self._disk(os.ftruncate, max(self.size, self.old_size))  # the old file stays whole; a tail too long does no harm
        return self.size

    def _disk(self, operation, *arguments) -> None:
        try:  # HDF5 cannot be left in the middle: it finishes, and the caller hears of the error afterwards
            operation(self.descriptor, *arguments)
        except OSError as e:
            self.error = self.error or e


def _journal(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _replay(path: Path, descriptor: int) -> None:
    """Carries out the overwriting that the journal lists, once more if need be, and drops the journal.

    The journal begins with the size of its file: one that was left behind when the file was deleted or replaced is dropped only.
    """
    journal = _journal(path)
    if journal.exists():
        record, at = journal.read_bytes(), 8
        while at < len(record) and struct.unpack_from("<Q", record)[0] == os.fstat(descriptor).st_size:
            offset, length = struct.unpack_from("<QQ", record, at)
            _write_at(descriptor, offset, record[at + 16 : at + 16 + length])
            at += 16 + length
        journal.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor of `path` under the lock that HDF5 itself uses, once an interrupted commit has been finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | flags, 0o666)
    try:
        give_up = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise UserError(f"{path} is open in another program: close it there and run the command again.") from None
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        _replay(path, descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def append_hdf5(path: Path | str) -> Iterator[h5py.File]:
    """An HDF5 file to add to, made if missing: all that the block writes arrives, or none of it.

    HDF5 alone overwrites its tables in place, and a process killed between two such writes (or a full disk) leaves a file that nothing can open. Here they are
    gathered, written to `<path>.journal`, and only then carried out; whoever opens the file next with this module finishes a commit that was interrupted. It
    guards against the death of the process, not of the machine. Format version "earliest": later ones mark the file as open and refuse it after a kill.

    Raises:
      UserError: as `told`; a file that is not HDF5; a file that another program keeps open.
    """
    path = Path(path)
    with told(path), _locked(path, os.O_CREAT) as descriptor:
        empty = _empty_hdf5()
        if empty.startswith(os.pread(descriptor, len(empty), 0)):  # new, or killed when it was new
            _write_at(descriptor, 0, empty)
        overlay = _Overlay(descriptor)
        try:
            with _hdf5(path, overlay, "r+", libver="earliest") as file:
                yield file
            if overlay.error:
                raise overlay.error
            with atomic(_journal(path)) as temporary:
                changes = (struct.pack("<QQ", page * PAGE, len(new)) + new for page, new in overlay.pages.items())
                temporary.write_bytes(struct.pack("<Q", os.fstat(descriptor).st_size) + b"".join(changes))
        except BaseException:
            os.ftruncate(descriptor, overlay.old_size)
            raise
        _replay(path, descriptor)


@contextmanager
def open_hdf5(path: Path | str) -> Iterator[h5py.File]:
    """An HDF5 file to read.

    Raises:
      UserError: a missing file; a file that is not HDF5 or is being written.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    if _journal(path).exists():
        with told(path), _locked(path):
            pass
    with _hdf5(path, path, "r") as file:
        yield file


@functools.cache
def _empty_hdf5() -> bytes:
    content = io.BytesIO()
    h5py.File(content, "w", libver="earliest").close()
    return content.getvalue()


def _hdf5(path: Path, source, mode: str, **options) -> h5py.File:
    try:
        return h5py.File(source, mode, **options)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another program: try again when it is done.") from None
    except OSError as e:
        raise UserError(f"{path} is not an HDF5 file, or it is damaged: delete it or choose another name.") from e
