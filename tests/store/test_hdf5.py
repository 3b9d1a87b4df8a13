"""HDF5 files are whole, whatever stops their writer."""

import errno
import os
import struct
import threading

import h5py
import numpy as np
import pytest

from jaxdesc.store import hdf5
from jaxdesc.types import UserError


def _add(path, index):
    with hdf5.append_hdf5(path) as file:
        for key in ("keypoints", "scores"):
            file[f"folder/{index}/{key}"] = np.full((13, 3), index, np.float32)


def _whole(path, least):
    """The images of the file, each of which must be complete, the first `least` among them."""
    with hdf5.open_hdf5(path) as file:
        names = set(file["folder"]) if "folder" in file else set()
        for name in names:
            for key in ("keypoints", "scores"):
                np.testing.assert_array_equal(file[f"folder/{name}/{key}"], np.full((13, 3), float(name)))
    assert names >= {str(i) for i in range(least)}
    return len(names)


def test_hdf5_is_whole_after_a_kill_at_any_write(tmp_path, monkeypatch):
    """The folder as a kill would leave it before and after every single write to the disk, also in the middle of one."""
    live, path = tmp_path / "live", tmp_path / "live" / "a.h5"
    live.mkdir()
    stages, done = [], 0
    real_write, real_truncate = hdf5._write_at, os.ftruncate

    def snapshot():
        stage = {file.name: file.read_bytes() for file in live.iterdir()}
        if not stages or stage != stages[-1][0]:
            stages.append((stage, done))

    def write(descriptor, offset, data):
        snapshot()
        real_write(descriptor, offset, data[: len(data) // 2])
        snapshot()
        real_write(descriptor, offset, data)
        snapshot()

    def truncate(descriptor, size):
        real_truncate(descriptor, size)
        snapshot()

    monkeypatch.setattr(hdf5, "_write_at", write)
    monkeypatch.setattr(os, "ftruncate", truncate)
    for done in range(11):  # enough for a table to be split
        _add(path, done)
    monkeypatch.undo()
    assert len(stages) > 200
    found, continued = set(), tmp_path / "a.h5"
    for number, (stage, least) in enumerate(stages):
        for name in ("a.h5", "a.h5.journal"):
            (tmp_path / name).unlink(missing_ok=True)
        for name, content in stage.items():
            (tmp_path / name).write_bytes(content)
        if least:
            found.add(_whole(continued, least) - least)
        if number < 12 or number % 8 == 0:
            _add(continued, 99)
            _whole(continued, least)
    assert found == {0, 1}, "both sides of the commit are seen"


def test_overlay_reads_what_was_written_and_spares_the_old_file(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a"
    old = rng.bytes(3 * hdf5.PAGE + 77)
    path.write_bytes(old)
    expected = bytearray(old)
    with open(path, "r+b", buffering=0) as stream:
        overlay = hdf5._Overlay(stream.fileno())
        for _ in range(300):
            at, length = int(rng.integers(0, len(expected) + 1)), int(rng.integers(1, hdf5.PAGE * 2))
            overlay.seek(at)
            if rng.random() < 0.3:
                data = rng.bytes(length // int(rng.choice([1, 1000])) + 1)
                assert overlay.write(data) == len(data) and overlay.tell() == at + len(data)
                expected[at : at + len(data)] = data
            else:
                buffer = bytearray(length)
                count = overlay.readinto(buffer)
                assert buffer[:count] == expected[at : at + length] and overlay.tell() == at + count
        assert overlay.seek(0, os.SEEK_END) == len(expected) > len(old)
    assert path.read_bytes()[: len(old)] == old


def test_hdf5_drops_the_journal_of_another_file(tmp_path):
    path = tmp_path / "a.h5"
    _add(path, 0)
    for file in ("a.h5", "b.h5"):
        journal = tmp_path / f"{file}.journal"
        journal.write_bytes(struct.pack("<QQQ", path.stat().st_size + 1, 0, 4) + b"junk")
        _add(tmp_path / file, 1)
        assert _whole(tmp_path / file, 0) == (2 if file == "a.h5" else 1) and not journal.exists()


def test_hdf5_is_unchanged_after_a_full_disk_or_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    _add(path, 0)
    before = path.read_bytes()
    real_write = hdf5._write_at

    def write(descriptor, offset, data):
        if offset >= len(before) + 300:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_write(descriptor, offset, data)

    monkeypatch.setattr(hdf5, "_write_at", write)
    with pytest.raises(UserError, match=r"a\.h5 cannot be written: the disk is full"):
        _add(path, 1)
    monkeypatch.undo()
    assert path.read_bytes() == before
    with pytest.raises(ZeroDivisionError), hdf5.append_hdf5(path) as file:
        file["folder/1/keypoints"] = 1 / 0
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.h5"]


def test_hdf5_writers_take_turns(tmp_path):
    path = tmp_path / "a.h5"
    threads = [threading.Thread(target=lambda first=first: [_add(path, i) for i in range(first, 20, 2)]) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _whole(path, 20) == 20


def test_hdf5_refusals(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "LOCK_WAIT_S", 0.05)
    path = tmp_path / "a.h5"
    with pytest.raises(UserError, match="There is no file"), hdf5.open_hdf5(path):
        pass
    path.write_text("no HDF5")
    for opener in (hdf5.open_hdf5, hdf5.append_hdf5):
        with pytest.raises(UserError, match="is not an HDF5 file, or it is damaged"), opener(path):
            pass
    assert path.read_text() == "no HDF5"
    path.unlink()
    _add(path, 0)
    with h5py.File(path, "r"), pytest.raises(UserError, match="is open in another program"):
        _add(path, 1)
    with hdf5.append_hdf5(path), pytest.raises(UserError, match="is being written by another program"), hdf5.open_hdf5(path):
        pass
