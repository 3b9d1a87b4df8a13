"""Pickles that benchmarks come as, read without running what a stranger put into them.

A pickle may name any function and have it called while it is read. Here only the few that rebuild NumPy's arrays and numbers may be named; lists, tuples,
dictionaries, strings and numbers need none.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxdesc.errors import UserError

ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),  # bytes in pickles of protocols 0 to 2
    ("collections", "OrderedDict"),
}


class _Forbidden(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)  # the old name warns


def load(path: Path | str) -> Any:
    """The content of a bare pickle, of an .npy (an array), or of an .npz (a dictionary of arrays), whatever the file's ending.

    Pickles of Python 2 are read as latin1. An array of one object is given as that object.

    Raises:
      UserError: the file is missing or damaged; it wants more than arrays, lists, dictionaries, strings and numbers, which is named.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(6)
            file.seek(0)
            if start.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    return {name.removesuffix(".npy"): _array(archive.open(name)) for name in archive.namelist()}
            return _array(file) if start == b"\x93NUMPY" else _Unpickler(file, encoding="latin1").load()
    except _Forbidden as e:
        raise UserError(f"{path} is a pickle that asks for {e}: only arrays, lists, dictionaries, strings and numbers are read.") from e
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or 'it is damaged'}.") from e
    except Exception as e:  # a damaged pickle may raise anything
        raise UserError(f"{path} cannot be read: it is no pickle or NumPy file, or it is damaged.") from e


def _array(file: BinaryIO) -> Any:
    """One array of NumPy's format; those of objects hold a pickle."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        array = _Unpickler(file, encoding="latin1").load()
        return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array
    array = np.frombuffer(file.read(), dtype, count=int(np.prod(shape)))
    return array.reshape(shape, order="F" if fortran else "C").copy()
