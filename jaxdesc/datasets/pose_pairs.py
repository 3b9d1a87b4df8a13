"""Pairs of images whose relative pose is known, in the lists that the benchmarks come
as. A list only names images; their features are found elsewhere.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdesc.datasets import scenes
from jaxdesc.datasets.cameras import Camera, check_calibration, check_rotation, relative
from jaxdesc.datasets.lists import lines
from jaxdesc.errors import UserError
from jaxdesc.store.pickles import load


class PosePair(NamedTuple):
    """Two calibrated images: x1 = R x0 + t in the frames of the cameras, pixel ~ K x.
    Pixels are those of the files, as they lie on disk.
    """

    name0: str
    name1: str
    K0: np.ndarray  # (3, 3)
    K1: np.ndarray  # (3, 3)
    R: np.ndarray  # (3, 3)
    t: np.ndarray  # (3,) any length
    size0: tuple[int, int] | None = None  # width, height; None: the list does not say
    size1: tuple[int, int] | None = None


def read_pose_pairs(path: Path | str) -> list[PosePair]:
    """Pairs of a scene (a folder with known cameras; `pairs.txt` in it or all pairs),
    of SuperGlue's list (.txt), or of LoFTR's index (.npz, or a folder of them).

    Raises:
      UserError: as the readers; no pair.
    """
    path = Path(path)
    if (
        path.is_dir()
        and (indices := sorted(path.glob("*.npz")))
        and not (path / "cameras.json").is_file()
    ):
        indices = [index for index in indices if index.name != "intrinsics.npz"]
        return [pair for index in indices for pair in read_loftr(index)]
    if path.is_dir():
        return scene_pairs(path)
    return read_loftr(path) if path.suffix == ".npz" else read_superglue(path)


def scene_pairs(folder: Path) -> list[PosePair]:
    """The pairs that `pairs.txt` lists, or all, of a folder with known cameras.

    Raises:
      UserError: as `scenes.read_cameras` and `scenes.read_pairs`; a single camera.
    """
    cameras = scenes.read_cameras(folder)
    names, _ = scenes.read_pairs(folder, cameras)
    if not names:
        raise UserError(f"{folder} holds no pair of two cameras.")
    return [_of_cameras(a, b, cameras[a], cameras[b]) for a, b in names]


def _of_cameras(name0: str, name1: str, camera0: Camera, camera1: Camera) -> PosePair:
    sizes = (camera0.width, camera0.height), (camera1.width, camera1.height)
    return PosePair(name0, name1, camera0.K, camera1.K, *relative(camera0, camera1), *sizes)


def read_superglue(path: Path | str) -> list[PosePair]:
    """SuperGlue's lists: a line `A B rotA rotB KA (9) KB (9) T_AB (16)`, T_AB (4, 4)
    taking camera A's frame to B's.

    rotA and rotB tell by how many quarter turns a viewer should turn the images
    upright; K and T belong to the files as they lie on disk, where the features are
    too, so nothing is turned here.

    Raises:
      UserError: with file and line: another number of fields, such as a list without
        ground truth; no number, calibration or rotation; an unreadable or empty file.
    """
    path = Path(path)
    pairs = []
    for number, line in enumerate(lines(path, "The list of pairs "), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(fields) != 38:
            raise UserError(
                f"{where}: 38 fields are expected (A B rotA rotB KA KB T_AB, the ground truth "
                f"with them), {len(fields)} are there."
            )
        try:
            values = np.array(fields[4:], np.float64)
        except ValueError as e:
            raise UserError(f"{where}: KA, KB and T_AB must be numbers.") from e
        pairs.append(
            _pair(
                fields[0],
                fields[1],
                values[:9].reshape(3, 3),
                values[9:18].reshape(3, 3),
                values[18:].reshape(4, 4),
                where,
            )
        )
    return _some(pairs, path)


def read_loftr(path: Path | str) -> list[PosePair]:
    """LoFTR's test indices.

    MegaDepth-1500: image_paths, intrinsics (3, 3), poses (4, 4) world to camera,
    pair_infos ((i, j), overlap, ...); image names are the paths of the index.
    ScanNet-1500: name (P, 4) scene, scan and two frames; rel_pose (P, 12), the first
    three rows of the matrix from frame 0 to frame 1; calibrations in `intrinsics.npz`
    beside it, by scene; image names are `scene<0000>_<00>/color/<frame>.jpg`.

    Raises:
      UserError: as `pickles.load`; arrays are missing or do not fit each other; no
        calibration or rotation; no pair.
    """
    path = Path(path)
    content = load(path)
    try:
        if "rel_pose" in content:
            return _some(_scannet(path, content), path)
        return _some(_megadepth(path, content), path)
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise UserError(
            f"{path} is not an index of MegaDepth-1500 (image_paths, intrinsics, poses, "
            "pair_infos) or ScanNet-1500 (name, rel_pose)."
        ) from e


def _megadepth(path: Path, content: dict[str, Any]) -> list[PosePair]:
    pairs = []
    for info in content["pair_infos"]:
        i, j = map(int, info[0])
        T0, T1 = (np.array(content["poses"][k], np.float64).reshape(4, 4) for k in (i, j))
        K0, K1 = (np.array(content["intrinsics"][k], np.float64).reshape(3, 3) for k in (i, j))
        names = [str(content["image_paths"][k]) for k in (i, j)]
        pairs.append(
            _pair(*names, K0, K1, T1 @ np.linalg.inv(T0), f"{path}, {names[0]} {names[1]}")
        )
    return pairs


def _scannet(path: Path, content: dict[str, Any]) -> list[PosePair]:
    intrinsics = load(path.with_name("intrinsics.npz"))
    pairs = []
    for (scene, scan, frame0, frame1), row in zip(
        content["name"].tolist(), content["rel_pose"], strict=True
    ):
        place = f"scene{scene:04d}_{scan:02d}"
        if place not in intrinsics:
            raise UserError(f"{path.with_name('intrinsics.npz')} holds no calibration of {place}.")
        K = np.array(intrinsics[place], np.float64)[:3, :3]
        T = np.vstack([np.array(row, np.float64).reshape(3, 4), [0, 0, 0, 1]])
        names = [f"{place}/color/{frame}.jpg" for frame in (frame0, frame1)]
        pairs.append(_pair(*names, K, K, T, f"{path}, {names[0]} {names[1]}"))
    return pairs


def _pair(
    name0: str, name1: str, K0: np.ndarray, K1: np.ndarray, T: np.ndarray, where: str
) -> PosePair:
    check_calibration(K0, where)
    check_calibration(K1, where)
    check_rotation(T[:3, :3], where)
    return PosePair(name0, name1, K0, K1, T[:3, :3], T[:3, 3])


def _some(pairs: list[PosePair], path: Path) -> list[PosePair]:
    if not pairs:
        raise UserError(f"{path} holds no pair.")
    return pairs
