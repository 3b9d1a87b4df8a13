"""Pickles of benchmarks are read without running what is in them."""

import pickle

import numpy as np
import pytest

from jaxdesc.store import pickles
from jaxdesc.types import UserError


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def test_pickles_run_nothing(tmp_path, capsys):
    path = tmp_path / "x.npz"
    for content in (Evil(), {"image_paths": [Evil()]}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=r"asks for builtins\.print"):
            pickles.load(path)
    np.savez(path, poses=np.array([Evil()], object))
    with pytest.raises(UserError, match=r"asks for builtins\.print"):
        pickles.load(path)
    assert "must not run" not in capsys.readouterr().out
    path.write_bytes(pickle.dumps({"poses": np.arange(50.0)})[:200])
    with pytest.raises(UserError, match="damaged"):
        pickles.load(path)
    with pytest.raises(UserError, match="No such file"):
        pickles.load(tmp_path / "none")
    for protocol in (0, 2, 5):
        rows = np.arange(6.0).reshape(2, 3)
        path.write_bytes(
            pickle.dumps(
                {"a": rows, "b": [np.float32(2), b"x", "y", None, (1, True)]}, protocol=protocol
            )
        )
        got = pickles.load(path)
        np.testing.assert_array_equal(got["a"], rows)
        assert got["b"] == [2, b"x", "y", None, (1, True)]
    fortran = np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3))
    np.save(tmp_path / "f.npy", fortran)
    np.testing.assert_array_equal(pickles.load(tmp_path / "f.npy"), fortran)
