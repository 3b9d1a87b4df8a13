"""Keypoints and descriptors in the files that other tools read: hloc's HDF5, npz beside the image, kapture, IMC, the ETH local-feature benchmark.

Every writer is `write_<format>(where, name, features) -> bool`: `name` is the image's path relative to its root, and an image that is there already is
left alone (False), so that an interrupted run is repeated to go on. Coordinates are the library's in every format: (x, y) in pixels of the original image,
top-left pixel centre = (0, 0). Only a COLMAP database (`store/colmap.py`) shifts them.
"""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import h5py
import numpy as np

from jaxdesc.errors import UserError
from jaxdesc.store.files import atomic
from jaxdesc.store.hdf5 import append_hdf5, open_hdf5

STORAGES = ("float32", "float16", "int8")  # of descriptors in hloc files
IMC_KEYPOINTS = 8000  # per image, the challenge's category without a lower limit


@dataclass
class Features:
    """N keypoints of one image and their descriptors."""

    keypoints: np.ndarray  # (N, 2) float32 x, y in px of the original image
    descriptors: np.ndarray  # (N, D) float32, L2-normalised; D = 0 where only keypoints are known
    scores: np.ndarray  # (N,) float32, higher is better
    scales: np.ndarray | None  # (N,) float32 diameter of the support in px; None where the detector gives none
    image_size: tuple[int, int] | None  # width, height in px of the original image; None: the file does not say

    def __len__(self) -> int:
        return len(self.keypoints)

    def take(self, rows: np.ndarray) -> "Features":
        """The keypoints of these rows (indices or mask), in this order."""
        scales = None if self.scales is None else self.scales[rows]
        return Features(self.keypoints[rows], self.descriptors[rows], self.scores[rows], scales, self.image_size)


# ---- descriptors in fewer bytes


def packed(descriptors: np.ndarray, storage: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Descriptors (N, D) as a file keeps them, and for int8 the scale (N,) float16 of each:

        q = rint(d / s) within [-127, 127],  s = max_i |d_i| / 127,  so that |d - s q| <= s / 2 but for the rounding of s

    The direction of q is that of d: a reader that does not know the scales and normalises descriptors loses nothing but the length.
    """
    if storage != "int8":
        return descriptors.astype(storage), None
    greatest = np.abs(descriptors).max(1, initial=0)
    scales = np.where(greatest > 0, np.clip(greatest / 127, np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max), 1).astype(np.float16)
    return np.clip(np.rint(descriptors / scales[:, None].astype(np.float32)), -127, 127).astype(np.int8), scales


def unpacked(stored: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """(N, D) float32 descriptors from what `packed` made."""
    return stored.astype(np.float32) if scales is None else stored.astype(np.float32) * scales[:, None].astype(np.float32)


def descriptor_bytes(dim: int, storage: str) -> int:
    """Bytes of a descriptor of `dim` numbers in a file, its scale counted."""
    return dim * np.dtype(storage).itemsize + (2 if storage == "int8" else 0)


# ---- hloc


def write_hdf5(path: Path | str, name: str, features: Features, storage: str = "float16") -> bool:
    """Adds an image to an hloc feature file: group = name; keypoints (N, 2), descriptors (D, N), scores (N,), image_size (2,), scales (N,) where known.

    Descriptors are stored as `storage` says, see `packed`: float16, as hloc does; float32; or int8, with the dataset descriptor_scales (N,) beside them. Scores are
    float16 unless descriptors are float32. Keypoints stay float32: float16 would move one at x = 3000 px by up to 1 px.

    Raises:
      UserError: as `append_hdf5`.
    """
    descriptors, descriptor_scales = packed(features.descriptors, storage)
    with append_hdf5(path) as file:
        if f"{name}/keypoints" in file:
            return False
        group = file.require_group(name)
        group["keypoints"] = features.keypoints.astype(np.float32)
        group["descriptors"] = descriptors.T
        if descriptor_scales is not None:
            group["descriptor_scales"] = descriptor_scales
        group["scores"] = _clip(features.scores, np.float32 if storage == "float32" else np.float16)
        group["image_size"] = np.asarray(features.image_size, np.int64)
        if features.scales is not None:
            group["scales"] = features.scales.astype(np.float32)
    return True


def read_hdf5(path: Path | str, name: str) -> Features:
    """One image of an hloc feature file; no descriptors (N, 0) where the file has keypoints alone, as after dense matching.

    Raises:
      UserError: as `open_hdf5`; there is no such image; the arrays do not fit each other.
    """
    with open_hdf5(path) as file:
        if f"{name}/keypoints" not in file:
            raise UserError(f"{path} holds no keypoints of {name!r}.")
        data = {key: value[()] for key, value in file[name].items() if isinstance(value, h5py.Dataset)}
    if "descriptors" in data:
        data["descriptors"] = data["descriptors"].T
    return _features(data, f"{path}, {name}")


def list_names(path: Path | str) -> set[str]:
    """The images of an hloc feature file; none if there is no file."""
    names: set[str] = set()
    if Path(path).exists():
        with open_hdf5(path) as file:
            file.visit(lambda key: names.add(key.removesuffix("/keypoints")) if key.endswith("/keypoints") else None)
    return names


# ---- npz beside the image


def write_npz(folder: Path | str, name: str, features: Features, method: str = "jaxdesc") -> bool:
    """`<folder>/<name>.<method>`, the npz form of D2-Net, R2D2, CAPS and the Aachen benchmark.

    keypoints (N, 2), or (N, 3) with the scale; descriptors (N, D); scores (N,); imsize (2,). Rows go by rising score: R2D2's readers take the last.

    Raises:
      UserError: as `atomic`.
    """
    path = Path(folder, f"{name}.{method}")
    if path.exists():
        return False
    ranked = features.take(np.argsort(features.scores, kind="stable"))
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, keypoints=_rows(ranked), descriptors=ranked.descriptors, scores=ranked.scores, imsize=np.asarray(features.image_size))
    return True


def read_npz(path: Path | str) -> Features:
    """Features of one image as D2-Net, R2D2, CAPS or `write_npz` leave them; a third keypoint column is the scale.

    Raises:
      UserError: the file is missing or no npz; the arrays do not fit each other.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return _features(dict(file), str(path))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} cannot be read as npz: {e.strerror if isinstance(e, OSError) and e.strerror else 'it is none, or damaged'}.") from e


# ---- keypoints of any detector


def top(features: Features, count: int | None) -> Features:
    """The `count` keypoints of the highest scores, in their order; all for None."""
    if count is None or count >= len(features):
        return features
    return features.take(np.sort(np.argsort(-features.scores, kind="stable")[:count]))


def read_keypoints(path: Path | str, name: str, image_size: tuple[int, int]) -> tuple[Features, int]:
    """Keypoints that any detector left in an hloc HDF5 file (`name` says which image) or in the npz file of this image.

    Args:
      image_size: width and height of the image that they will be described in.

    Returns:
      Features without descriptors, and how many keypoints were dropped because they lie outside the image (x < -0.5, x > width - 0.5, ...) or are not finite.

    Raises:
      UserError: as `read_hdf5` and `read_npz`; the keypoints were found in an image of another size.
    """
    features = read_hdf5(path, name) if h5py.is_hdf5(path) else read_npz(path)
    if features.image_size not in (None, tuple(image_size)):
        raise UserError(
            f"The keypoints of {name!r} in {path} belong to an image of {features.image_size[0]} x {features.image_size[1]} px, but this one has "
            f"{image_size[0]} x {image_size[1]} px: detect them again, or describe the image that they were found in."
        )
    inside = ((features.keypoints >= -0.5) & (features.keypoints <= np.asarray(image_size) - 0.5)).all(1)
    bare = replace(features, descriptors=np.zeros((len(features), 0), np.float32), image_size=tuple(image_size))
    return bare.take(inside), int((~inside).sum())


# ---- kapture 1.1


def write_kapture(root: Path | str, name: str, features: Features, kind: str = "jaxdesc") -> bool:
    """`<root>/reconstruction/{keypoints,descriptors}/<kind>/`: `<name>.kpt` and `<name>.desc`, raw little-endian float32, and the texts that say their widths.

    Raises:
      UserError: a comma in the name; the folder holds features of another width; as `atomic`.
    """
    if "," in name:
        raise UserError(f"The image name {name!r} holds a comma, which the kapture format forbids: rename the image.")
    rows = _rows(features)
    keypoints, descriptors = (Path(root, "reconstruction", part, kind) for part in ("keypoints", "descriptors"))
    paths = keypoints / f"{name}.kpt", descriptors / f"{name}.desc"
    if all(path.exists() for path in paths):
        return False
    _kapture_text(keypoints / "keypoints.txt", "name, dtype, dsize", f"{kind}, float32, {rows.shape[1]}")
    columns = features.descriptors.shape[1]
    _kapture_text(descriptors / "descriptors.txt", "name, dtype, dsize, keypoints_type, metric_type", f"{kind}, float32, {columns}, {kind}, L2")
    for path, array in zip(paths, (rows, features.descriptors), strict=True):
        with atomic(path) as temporary:
            temporary.write_bytes(array.astype("<f4").tobytes())
    return True


def _kapture_text(path: Path, fields: str, line: str) -> None:
    text = f"# kapture format: 1.1\n# {fields}\n{line}\n"
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8").split("\n")[2:] != text.split("\n")[2:]:
        raise UserError(f"{path} describes other features than {line!r}: choose another kind or folder.")


# ---- Image Matching Challenge 2020, 2021


def write_imc(folder: Path | str, name: str, features: Features, custom_matches: bool = False) -> bool:
    """One scene's `keypoints.h5`, `descriptors.h5`, `scores.h5` (and `scales.h5` where known), each with one array per image, keyed by the name's stem.

    Args:
      custom_matches: matches are handed in too, which lifts the limit of 512 bytes per descriptor.

    Raises:
      UserError: more than 8000 keypoints; a descriptor of fewer than 64 or more than 2048 numbers, or of more than 512 bytes without custom matches;
        two images of one stem; as `append_hdf5`.
    """
    stem, (count, width) = PurePosixPath(name).stem, features.descriptors.shape
    if count > IMC_KEYPOINTS:
        raise UserError(f"{name} has {count} keypoints, but the challenge takes at most {IMC_KEYPOINTS}: keep fewer.")
    if not 64 <= width <= 2048:
        raise UserError(f"The descriptors of {name} have {width} numbers, but the challenge takes 64 to 2048.")
    if 4 * width > 512 and not custom_matches:
        raise UserError(f"The descriptors of {name} have {4 * width} bytes, but the challenge takes at most 512 unless matches are handed in as well.")
    arrays = {"keypoints": features.keypoints, "descriptors": features.descriptors, "scores": features.scores, "scales": features.scales}
    written = False
    for part, array in arrays.items():
        if array is None:
            continue
        array = array.astype(np.float32)
        with append_hdf5(Path(folder, f"{part}.h5")) as file:
            if stem not in file:
                file[stem] = array
                written = True
            elif not np.array_equal(file[stem], array):
                raise UserError(f"{Path(folder, part)}.h5 holds another image of the stem {stem!r} than {name}: stems must be unique in a scene.")
    return written


# ---- ETH local-feature benchmark


def write_eth(root: Path | str, name: str, features: Features) -> bool:
    """`<root>/keypoints/<name>.bin`: int32 N, int32 4, float32 x, y, scale, orientation; `<root>/descriptors/<name>.bin`: int32 N, int32 D, float32 (N, D).

    A scale that is not known is written as 1, the orientation as 0.

    Raises:
      UserError: a name with a folder in it, which the benchmark cannot read; as `atomic`.
    """
    if "/" in name:
        raise UserError(f"The image name {name!r} lies in a folder, but the local-feature benchmark reads flat folders alone.")
    scales = np.ones(len(features)) if features.scales is None else features.scales
    paths = [Path(root, part, f"{name}.bin") for part in ("keypoints", "descriptors")]
    if all(path.exists() for path in paths):
        return False
    for path, rows in zip(paths, (np.column_stack([features.keypoints, scales, np.zeros_like(scales)]), features.descriptors), strict=True):
        with atomic(path) as temporary:
            temporary.write_bytes(np.asarray(rows.shape, "<i4").tobytes() + rows.astype("<f4").tobytes())
    return True


# ---- common parts


def _rows(features: Features) -> np.ndarray:
    """(N, 2) x, y or (N, 3) x, y, scale."""
    return features.keypoints if features.scales is None else np.column_stack([features.keypoints, features.scales])


def _clip(values: np.ndarray, dtype: type) -> np.ndarray:
    """In range for the type, so that a great score does not become infinite."""
    return np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)


def _features(data: dict[str, np.ndarray], where: str) -> Features:
    """Features from the arrays of a file, by the names that hloc, LightGlue, R2D2 and D2-Net give them."""
    if "keypoints" not in data or data["keypoints"].ndim != 2 or data["keypoints"].shape[1] < 2:
        raise UserError(f"{where}: there is no array `keypoints` of shape (N, 2 or more).")
    keypoints = data["keypoints"].astype(np.float32)
    count = len(keypoints)
    descriptors = data.get("descriptors", np.zeros((count, 0)))
    scores = next((data[key] for key in ("scores", "score", "keypoint_scores") if len(data.get(key, ()))), np.ones(count))  # CAPS writes an empty list
    scales = data.get("scales", keypoints[:, 2] if keypoints.shape[1] > 2 else None)
    descriptor_scales = data.get("descriptor_scales")
    for key, array in {"descriptors": descriptors, "scores": scores, "scales": scales, "descriptor scales": descriptor_scales}.items():
        if array is not None and len(array) != count:
            raise UserError(f"{where}: there are {count} keypoints but {len(array)} {key}.")
    size = next((data[key] for key in ("image_size", "imsize") if key in data), None)
    return Features(
        keypoints=np.ascontiguousarray(keypoints[:, :2]),
        descriptors=np.ascontiguousarray(unpacked(descriptors, descriptor_scales)),
        scores=scores.astype(np.float32),
        scales=None if scales is None else scales.astype(np.float32),
        image_size=None if size is None else (int(size[0]), int(size[1])),
    )
