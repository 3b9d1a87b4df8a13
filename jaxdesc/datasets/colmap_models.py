"""COLMAP models, text or binary.

COLMAP calls the centre of the top-left pixel (0.5, 0.5), the library (0, 0): 0.5 is
taken from what COLMAP wrote here, at the file's edge. The formats are COLMAP's
documentation, "Output Format"; only the three files that every version writes are read,
and pycolmap is not needed.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxdesc.datasets.cameras import Model, bare, calibration
from jaxdesc.datasets.lists import lines
from jaxdesc.errors import UserError

MODELS = (  # COLMAP's camera models by number, and how many parameters they have
    *(
        ("SIMPLE_PINHOLE", 3),
        ("PINHOLE", 4),
        ("SIMPLE_RADIAL", 4),
        ("RADIAL", 5),
        ("OPENCV", 8),
        ("OPENCV_FISHEYE", 8),
        ("FULL_OPENCV", 12),
        ("FOV", 5),
    ),
    *(
        ("SIMPLE_RADIAL_FISHEYE", 4),
        ("RADIAL_FISHEYE", 5),
        ("THIN_PRISM_FISHEYE", 12),
        ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ),
)
_NO_POINT = -1


def is_model(folder: Path) -> bool:
    return any((folder / f"images{suffix}").is_file() for suffix in (".bin", ".txt"))


def files_of(folder: Path) -> list[Path]:
    """The three files of the model in `folder`, which exist if the model is whole;
    binary ones where it has both.
    """
    suffix = ".bin" if (folder / "images.bin").is_file() else ".txt"
    return [folder / f"{part}{suffix}" for part in ("cameras", "images", "points3D")]


def read_model(folder: Path) -> Model:
    """A COLMAP model of pinhole cameras.

    Raises:
      UserError: if a file is missing or damaged, a camera has lens distortion, or no
        image has a pose.
    """
    cameras_file, images_file, points_file = files = files_of(folder)
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder} is not a whole COLMAP model: it has no {file.name}.")
    binary = images_file.suffix == ".bin"
    try:
        lenses = dict(_binary_cameras(cameras_file) if binary else _text_cameras(cameras_file))
        images = list(_binary_images(images_file) if binary else _text_images(images_file))
        points = dict(_binary_points(points_file) if binary else _text_points(points_file))
        used = {camera_id: lenses[camera_id] for _, _, _, camera_id, _, _ in images}
    # cut off, another file, or a camera that no file has
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise UserError(
            f"{folder} holds a damaged COLMAP model: {type(error).__name__}: {error}."
        ) from error
    if not images:
        raise UserError(f"The COLMAP model {folder} is empty: no image has a pose.")
    cameras = {}
    for name, quaternion, t, camera_id, xy, point in images:
        model, width, height, parameters = used[camera_id]
        if model not in ("PINHOLE", "SIMPLE_PINHOLE"):
            raise UserError(
                f"{folder}: the camera of {name} is {model}, but PINHOLE is needed: undistort the "
                "images first (colmap image_undistorter)."
            )
        fx, fy, cx, cy = (parameters[0], *parameters) if model == "SIMPLE_PINHOLE" else parameters
        camera = bare(
            width,
            height,
            calibration(fx, fy, cx - 0.5, cy - 0.5),
            rotation(quaternion),
            t,
            f"{folder}: the camera of {name}",
        )
        known = np.flatnonzero(point != _NO_POINT)
        ids, first = np.unique(point[known], return_index=True)
        if not points.keys() >= set(ids.tolist()):
            raise UserError(
                f"{folder} holds a damaged COLMAP model: {name} sees points that "
                f"{points_file.name} lacks."
            )
        cameras[name] = camera._replace(xy_px=xy[known[first]] - 0.5, point=ids)
    return Model(cameras, points)


def rotation(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) of a quaternion (w, x, y, z) of any length; not a number for one of length
    0.
    """
    with np.errstate(invalid="ignore"):
        w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


class _Bytes:
    """Little-endian numbers one after the other."""

    def __init__(self, path: Path):
        try:
            self.data, self.at = path.read_bytes(), 0
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def rows(self, count: int, dtype: np.dtype) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def name(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text


def _binary_cameras(path: Path) -> Iterator[tuple[int, tuple]]:
    file = _Bytes(path)
    for _ in range(*file.take("Q")):
        number, model, width, height = file.take("iiQQ")
        if not 0 <= model < len(MODELS):
            raise UserError(
                f"{path} has a camera of model number {model}, but PINHOLE is needed: undistort "
                "the images first (colmap image_undistorter)."
            )
        name, parameters = MODELS[model]
        yield number, (name, width, height, file.take(f"{parameters}d"))


def _binary_images(path: Path) -> Iterator[tuple]:
    file = _Bytes(path)
    row = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
    for _ in range(*file.take("Q")):
        _, *pose, camera = file.take("i7di")
        name = file.name()
        seen = file.rows(*file.take("Q"), row)
        yield name, np.array(pose[:4]), np.array(pose[4:]), camera, seen["xy"], seen["point"]


def _binary_points(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    file = _Bytes(path)
    for _ in range(*file.take("Q")):
        number, x, y, z, _, _, _, _, track = file.take("Q3d3BdQ")
        file.take(f"{2 * track}i")
        yield number, np.array([x, y, z])


def _text_rows(path: Path) -> list[str]:
    return [line.strip() for line in lines(path) if not line.startswith("#")]


def _text_cameras(path: Path) -> Iterator[tuple[int, tuple]]:
    for words in (line.split() for line in _text_rows(path) if line):
        yield int(words[0]), (words[1], int(words[2]), int(words[3]), tuple(map(float, words[4:])))


def _text_images(path: Path) -> Iterator[tuple]:
    rows = _text_rows(path)
    while rows and not rows[-1]:
        rows.pop()  # but the line of points of an image that has none is empty too
    for head, tail in zip(rows[::2], [*rows[1::2], ""], strict=False):
        words = head.split(maxsplit=9)
        seen = np.array(tail.split(), float).reshape(-1, 3)
        yield (
            words[9],
            np.array(words[1:5], float),
            np.array(words[5:8], float),
            int(words[8]),
            seen[:, :2],
            seen[:, 2].astype(np.int64),
        )


def _text_points(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    for words in (line.split(maxsplit=4) for line in _text_rows(path) if line):
        yield int(words[0]), np.array(words[1:4], float)
