"""Writes are whole or absent, whatever stops them."""

import errno
import os

import pytest

from jaxdesc.store import files
from jaxdesc.types import UserError


def test_atomic_renames_on_success_and_leaves_nothing_on_failure(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    with files.atomic(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".bin"
        temporary.write_bytes(b"first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), files.atomic(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first" and os.listdir(path.parent) == ["a.bin"]


def test_atomic_tells_what_stopped_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.bin cannot be written: a part of its path is a file"), files.atomic(tmp_path / "file" / "a.bin"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder cannot be written: it is a folder"), files.atomic(tmp_path / "folder") as temporary:
        temporary.write_text("")
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "a"):
        (tmp_path / "another").read_text()  # not this file's fault
    for number, words in ((errno.ENOSPC, "the disk is full"), (errno.EROFS, "you may not write in"), (errno.EACCES, "you may not write in")):

        def stop(source, target, number=number):
            raise OSError(number, os.strerror(number), source, None, target)

        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(UserError, match=rf"b\.bin cannot be written: {words}"), files.atomic(tmp_path / "b.bin") as temporary:
            temporary.write_text("")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_refuse_existing(tmp_path):
    files.refuse_existing(tmp_path / "a", overwrite=False)
    files.refuse_existing(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="exists already"):
        files.refuse_existing(tmp_path, overwrite=False)
