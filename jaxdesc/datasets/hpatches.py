"""Sequences of images with homographies on disk: HPatches (`1.ppm`, `H_1_2`) and Oxford
(`img1.ppm`, `H1to2p`).

A homography H_1_k takes pixels (x, y) of image 1 to image k, top-left pixel centre =
(0, 0).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdesc.datasets.folders import EXTENSIONS
from jaxdesc.errors import UserError

COUNT = 6  # images of a sequence
# D2-Net leaves out sequences whose images exceed 1600 x 1200 px
LEFT_OUT = (
    "i_contruction",
    "i_crownnight",
    "i_dc",
    "i_pencils",
    "i_whitebuilding",
    "v_artisans",
    "v_astronautis",
    "v_talent",
)
HPATCHES = {"i": 52, "v": 56}  # sequences that are left


class HomographyPair(NamedTuple):
    """Image 1 of a sequence and another one of it."""

    sequence: str
    name1: str  # of the image, relative to the root of the data
    name2: str
    H_1to2: np.ndarray  # (3, 3) float64

    @property
    def kind(self) -> str:
        """i (illumination) or v (viewpoint) in HPatches, else empty."""
        return self.sequence[0] if self.sequence[:2] in ("i_", "v_") else ""

    @property
    def key(self) -> str:
        return f"{self.name1} {self.name2}"


def project(H: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a homography, float64; infinite where it sends them to
    infinity.
    """
    uvw = np.asarray(xy, np.float64) @ H[:, :2].T + H[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(uvw[:, 2:] == 0, np.inf, uvw[:, :2] / uvw[:, 2:])


def read_homography(path: Path) -> np.ndarray:
    """(3, 3) float64 from a text of nine numbers.

    Raises:
      UserError: the file is missing, has other than 3 x 3 finite numbers, or its matrix
        cannot be inverted.
    """
    try:
        H = np.array(
            [
                [float(word) for word in line.split()]
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.strip()
            ]
        )
    except OSError as e:
        raise UserError(f"The homography {path} cannot be read: {e.strerror}.") from e
    except ValueError as e:
        raise UserError(
            f"The homography {path} is malformed: 3 lines of 3 numbers are expected."
        ) from e
    if H.shape != (3, 3) or not np.isfinite(H).all():
        raise UserError(
            f"The homography {path} is malformed: 3 lines of 3 finite numbers are expected."
        )
    if np.linalg.matrix_rank(H) < 3:
        raise UserError(f"The homography {path} is malformed: its matrix cannot be inverted.")
    return H


def read_pairs(
    root: Path, left_out: Sequence[str] = LEFT_OUT
) -> tuple[list[HomographyPair], list[str]]:
    """All pairs (1, k), k = 2..6, of the sequences in `root` (or of `root`, if it is
    one) but those left out, and what is missing for others, by name.

    Raises:
      UserError: there is no sequence; a homography is malformed.
    """
    single = _is_sequence(root)
    folders = (
        [root]
        if single
        else sorted(folder for folder in root.iterdir() if folder.is_dir() and _is_sequence(folder))
    )
    pairs, missing = [], []
    for folder in folders:
        if folder.name in left_out:
            continue
        images = {k: _image(folder, k) for k in range(1, COUNT + 1)}
        matrices = {
            k: _first(folder / f"H_1_{k}", folder / f"H1to{k}p") for k in range(2, COUNT + 1)
        }
        missing += [f"{folder.name}/{k} (image)" for k, path in images.items() if path is None]
        missing += [f"{folder.name}/H_1_{k}" for k, path in matrices.items() if path is None]
        names = {k: path.relative_to(root).as_posix() for k, path in images.items() if path}
        pairs += [
            HomographyPair(folder.name, names[1], names[k], read_homography(H))
            for k, H in matrices.items()
            if H and 1 in names and k in names
        ]
    if not folders:
        raise UserError(
            f"{root} holds no sequence: folders with 1.ppm .. 6.ppm and H_1_2 .. H_1_6, or "
            "img1.ppm and H1to2p, are expected."
        )
    if not pairs:
        raise UserError(
            f"{root} holds no pair of images with a homography that is scored"
            + (f"; missing: {', '.join(missing[:5])}." if missing else ".")
        )
    return pairs, missing


def dataset_name(root: Path, pairs: list[HomographyPair]) -> str:
    """ "HPatches" for all its 540 pairs, else the folder's name and the number of
    sequences.
    """
    kinds = {pair.sequence: pair.kind for pair in pairs}
    complete = {kind: list(kinds.values()).count(kind) for kind in HPATCHES} == HPATCHES and len(
        pairs
    ) == 5 * len(kinds) == 540
    return "HPatches" if complete else f"{root.resolve().name} ({len(kinds)} sequences)"


def _is_sequence(folder: Path) -> bool:
    return any(folder.glob("H_1_[2-6]")) or any(folder.glob("H1to[2-6]p"))


def _image(folder: Path, k: int) -> Path | None:
    return _first(
        *(folder / f"{prefix}{k}{extension}" for prefix in ("", "img") for extension in EXTENSIONS)
    )


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
