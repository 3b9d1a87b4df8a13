"""Predicted positions: points of one image moved to another one, as lists of points or as dense flow, on disk.

`a--b` stands for "from image a to image b", with "/" in names turned into "-": the name of an array (K, 2) in an .npz or HDF5 file, positions in b of the
points that a protocol asks for in a, in their order; or of a file `a--b.flo` in a folder, flow on all pixels of a that points to b (b = a + flow).
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxdesc.config import option
from jaxdesc.errors import UserError
from jaxdesc.evals.options import EvalOptions
from jaxdesc.store.flow import read_flo
from jaxdesc.store.hdf5 import append_hdf5, open_hdf5

Transfer = Callable[[str, str, np.ndarray, tuple[int, int]], np.ndarray]  # (a, b, points (K, 2) of a, (width, height) of a) -> (K, 2) in b


@dataclass(frozen=True, kw_only=True)
class TransferOptions(EvalOptions):
    """Predicted positions and their pictures."""

    method: str | None = option(
        None,
        "a baseline without weights: positions scaled with the size of the image",
        choices=("identity",),
    )
    figures: int = option(0, "draw the first N pairs", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.figures and not self.out:
            raise UserError(
                f"--figures {self.figures} needs --out DIR: the folder of the pictures."
            )


def arrow(a: str, b: str) -> str:
    """The name of what goes from a to b."""
    return f"{a.replace('/', '-')}--{b.replace('/', '-')}"


def flow_path(folder: Path, a: str, b: str) -> Path:
    return folder / f"{arrow(a, b)}.flo"


def write_points(path: Path, a: str, b: str, xy: np.ndarray) -> bool:
    """Adds an arrow to an HDF5 file; False if it is there already."""
    with append_hdf5(path) as file:
        if arrow(a, b) in file:
            return False
        file[arrow(a, b)] = np.asarray(xy, np.float32)
    return True


def written(path: Path) -> set[str]:
    """The arrows of an HDF5 file; none if there is no file."""
    if not path.exists():
        return set()
    with open_hdf5(path) as file:
        return set(file)


def sample(flow: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """(K, 2) a flow (H, W, 2) at points (x, y), bilinear, those outside moved to the border."""
    h, w = flow.shape[:2]
    x, y = np.clip(np.asarray(xy, np.float64), 0, [w - 1, h - 1]).T
    x0, y0 = np.minimum(x.astype(int), max(w - 2, 0)), np.minimum(y.astype(int), max(h - 2, 0))
    x1, y1 = np.minimum(x0 + 1, w - 1), np.minimum(y0 + 1, h - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    return (flow[y0, x0] * (1 - fx) + flow[y0, x1] * fx) * (1 - fy) + (flow[y1, x0] * (1 - fx) + flow[y1, x1] * fx) * fy


def read_flow(folder: Path, a: str, b: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Flow (H, W, 2) from a to b, 0 where unknown, and where it is known (H, W).

    Raises:
      UserError: as `read_flo`; it has another size than image a, (width, height).
    """
    path = flow_path(folder, a, b)
    flow, known = read_flo(path)
    if flow.shape[:2] != (size[1], size[0]):
        raise UserError(f"{path} has {flow.shape[1]} x {flow.shape[0]} vectors, but the image {a} has {size[0]} x {size[1]} px.")
    return flow, known


def reader(path: Path) -> tuple[Transfer, bool]:
    """What moves points as a file (.npz, HDF5) or a folder of flow says, and whether it can be asked for points other than the data set's own.

    Raises:
      UserError: the file is none of these; later: an arrow is missing, has another number of points, or holds NaN.
    """
    if path.is_dir():
        return lambda a, b, xy, size: xy + sample(read_flow(path, a, b, size)[0], xy), True
    if path.suffix == ".npz":
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
            raise UserError(f"{path} cannot be read as npz: it is none, or damaged.") from e
    else:
        with open_hdf5(path) as file:
            arrays = {name: file[name][()] for name in file}

    def transfer(a: str, b: str, xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        moved = arrays.get(arrow(a, b))
        if moved is None:
            raise UserError(f"{path} holds nothing from {a} to {b}: an array {arrow(a, b)!r} is expected.")
        if moved.shape != xy.shape or not np.isfinite(moved).all():
            raise UserError(f"{path}: {arrow(a, b)} has the shape {moved.shape} or holds NaN; {xy.shape} finite positions are expected.")
        return np.asarray(moved, np.float64)

    return transfer, False
