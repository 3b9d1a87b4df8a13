"""What is to be localised against what: a posed scene of which images are held out, or Aachen Day-Night as it is distributed."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from jaxdesc.errors import UserError
from jaxdesc.evals.cameras import extent, image_folder, read_scene
from jaxdesc.evals.registration import Pose, pinhole
from jaxdesc.store.colmap import load_model, require_pycolmap
from jaxdesc.store.pairs import exhaustive_pairs, read_pairs

if TYPE_CHECKING:
    import pycolmap as pycolmap_types

Pair = tuple[str, str]
AACHEN_PAIRS = "image_pairs_to_match.txt"


class Scene(NamedTuple):
    """References whose poses are known and queries whose poses are asked for."""

    name: str
    images: Path  # folder that image names are relative to
    cameras: "dict[str, pycolmap_types.Camera]"  # of references and queries, in COLMAP's convention
    poses: dict[str, Pose]  # of the references
    queries: list[str]
    truth: dict[str, Pose]  # of the queries; empty where only the benchmark's server knows
    map_pairs: list[Pair]  # two references
    query_pairs: list[Pair]  # a query, a reference
    extent: float  # greatest distance between two cameras whose poses are known, in units of the scene
    metric: bool  # whether these units are metres
    sources: str  # for the result's settings


def read(data: Path | str, hold_out: int, metric: bool | None = None) -> Scene:
    """Aachen Day-Night where `image_pairs_to_match.txt` is there, else `held_out`.

    Raises:
      UserError: as `read_aachen` and `held_out`.
    """
    data = Path(data)
    return read_aachen(data) if (data / AACHEN_PAIRS).is_file() else held_out(data, hold_out, metric)


def held_out(data: Path, every: int, metric: bool | None = None) -> Scene:
    """A folder with known cameras, of which the `every`-th, 2 `every`-th ... image by name becomes a query. Pairs are those of `pairs.txt`, or all.

    Args:
      every: at least 2.
      metric: whether the unit is the metre; None: it is in cameras.json, and is not in a COLMAP
        model, whose scale is arbitrary.
    Raises:
      UserError: as `read_scene` and `read_pairs`; too few images.
    """
    posed = read_scene(data)
    names = sorted(posed)
    queries = names[every - 1 :: every]
    if not queries or len(names) - len(queries) < 2:
        raise UserError(f"{data} holds {len(names)} cameras, too few to hold out every {every}-th: at least one query and two references are needed.")
    listed = data / "pairs.txt"
    pairs = read_pairs(listed, posed.__contains__)[0] if listed.is_file() else exhaustive_pairs(names)
    calibrations = list(dict.fromkeys((*c.K.ravel(), c.width, c.height) for c in posed.values()))  # images of one camera share its identifier
    cameras = {name: pinhole(c, 1 + calibrations.index((*c.K.ravel(), c.width, c.height))) for name, c in posed.items()}
    poses = {name: Pose(posed[name].R, posed[name].t) for name in names}
    map_pairs, query_pairs = _split(pairs, set(queries))
    return Scene(
        name=data.resolve().name,
        images=image_folder(data),
        cameras=cameras,
        poses={name: pose for name, pose in poses.items() if name not in queries},
        queries=queries,
        truth={name: poses[name] for name in queries},
        map_pairs=map_pairs,
        query_pairs=query_pairs,
        extent=extent(poses.values()),
        metric=(data / "cameras.json").is_file() if metric is None else metric,
        sources=f"every {every}-th image by name is a query; pairs {'of pairs.txt' if listed.is_file() else 'exhaustive'}",
    )


def _split(pairs: list[Pair], queries: set[str]) -> tuple[list[Pair], list[Pair]]:
    """Pairs of two references; pairs of a query and a reference, the query first."""
    turned = [(b, a) if b in queries else (a, b) for a, b in pairs]
    return [(a, b) for a, b in pairs if not {a, b} & queries], [(a, b) for a, b in turned if a in queries and b not in queries]


# ---- Aachen Day-Night


def read_aachen(data: Path) -> Scene:
    """Aachen Day-Night for local features: `image_pairs_to_match.txt`, `database.db` (a camera for each image), `queries/*_with_intrinsics.txt`, `3D-models/`
    (an .nvm, or a COLMAP model, with the poses of the day-time images) and `images/images_upright/`.

    The queries are those that are in a pair; their cameras are those of the query lists. The true poses of the queries stay with the benchmark's server.

    Raises:
      UserError: a part is missing or damaged; a pair names an image without camera; no query is in a pair.
    """
    cameras = database_cameras(data / "database.db")
    lists = sorted((data / "queries").glob("*_with_intrinsics.txt"))
    if not lists:
        raise UserError(f"{data / 'queries'} holds no *_with_intrinsics.txt: lines of `name MODEL width height parameters` are expected.")
    calibrated = {name: camera for path in lists for name, camera in read_queries(path, first=1 + max(c.camera_id for c in cameras.values())).items()}
    cameras |= calibrated
    pairs, _ = read_pairs(data / AACHEN_PAIRS, cameras.__contains__)
    queries = sorted({name for pair in pairs for name in pair} & calibrated.keys())
    if not queries:
        raise UserError(f"No pair of {data / AACHEN_PAIRS} names an image of {', '.join(path.name for path in lists)}.")
    poses = {name: pose for name, pose in reference_poses(data / "3D-models").items() if name in cameras and name not in calibrated}
    map_pairs, query_pairs = _split([(a, b) for a, b in pairs if {a, b} <= poses.keys() | set(queries)], set(queries))
    if not map_pairs:
        raise UserError(f"No pair of {data / AACHEN_PAIRS} has two images with poses in {data / '3D-models'}.")
    upright = data / "images" / "images_upright"
    return Scene(
        name="Aachen Day-Night",
        images=upright if upright.is_dir() else image_folder(data),
        cameras=cameras,
        poses=poses,
        queries=queries,
        truth={},
        map_pairs=map_pairs,
        query_pairs=query_pairs,
        extent=extent(poses.values()),
        metric=True,
        sources=f"pairs of {AACHEN_PAIRS}, cameras of database.db, queries of {', '.join(path.name for path in lists)}",
    )


def database_cameras(path: Path) -> "dict[str, pycolmap_types.Camera]":
    """Name -> camera of the images of a COLMAP database.

    Raises:
      UserError: it is missing or none.
    """
    pycolmap = require_pycolmap()
    if not path.is_file():
        raise UserError(f"There is no database {path}: it comes with the benchmark.")
    try:
        with pycolmap.Database.open(path) as database:
            cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
            return {image.name: cameras[image.camera_id] for image in database.read_all_images()}
    except (RuntimeError, ValueError, KeyError) as e:
        raise UserError(f"{path} is no COLMAP database, or it is damaged.") from e


def read_queries(path: Path, first: int = 1) -> "dict[str, pycolmap_types.Camera]":
    """Name -> camera of a list of `name MODEL width height parameters`, numbered from `first` on; lines that start with # are passed over.

    Raises:
      UserError: with file and line: an unknown camera model, or another number of parameters than it has; a missing file.
    """
    pycolmap = require_pycolmap()
    cameras = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            name, model, width, height, *parameters = fields
            camera = pycolmap.Camera(model=model, width=int(width), height=int(height), params=[float(p) for p in parameters], camera_id=first + len(cameras))
            if not camera.verify_params():
                raise ValueError("number of parameters")
        except (ValueError, RuntimeError, TypeError) as e:
            raise UserError(f"{path}, line {number}: `name MODEL width height parameters` is expected, with COLMAP's models and their parameters.") from e
        cameras[name] = camera
    return cameras


def reference_poses(folder: Path) -> dict[str, Pose]:
    """Name -> pose of the first COLMAP model at or below a folder, else of its first .nvm.

    Raises:
      UserError: there is neither.
    """
    for path in sorted([*folder.rglob("images.bin"), *folder.rglob("images.txt")]):
        poses = {image.name: image.cam_from_world() for image in load_model(path.parent).images.values() if image.has_pose}
        return {name: Pose(pose.rotation.matrix(), np.array(pose.translation)) for name, pose in poses.items()}
    for path in sorted(folder.rglob("*.nvm")):
        return read_nvm(path)
    raise UserError(f"{folder} holds neither a COLMAP model nor an .nvm: the poses of the reference images are read from there.")


def read_nvm(path: Path) -> dict[str, Pose]:
    """Name -> pose of a VisualSFM model: after the header `NVM_V3` and the number of images, a line `name focal qw qx qy qz cx cy cz distortion 0` each, q taking
    the world to the camera and c the camera's centre.

    Raises:
      UserError: another form, fewer images than it says.
    """
    rows = [line.split() for line in _lines(path) if line.strip()]
    try:
        if not rows[0][0].startswith("NVM_V3"):
            raise ValueError("header")
        poses = {}
        for fields in rows[2 : 2 + int(rows[1][0])]:
            q, c = np.array(fields[2:6], np.float64), np.array(fields[6:9], np.float64)
            R = Rotation.from_quat(q, scalar_first=True).as_matrix()
            poses[fields[0]] = Pose(R, -R @ c)
        if len(poses) != int(rows[1][0]):
            raise ValueError("count")
    except (ValueError, IndexError) as e:
        raise UserError(f"{path} is no VisualSFM model (NVM_V3), or it is cut short.") from e
    return poses


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read: {e.strerror if isinstance(e, OSError) else 'it is not a text file'}.") from e


def pose_lines(poses: dict[str, Pose]) -> str:
    """Lines `name qw qx qy qz tx ty tz` of the benchmark's server; names without their folders, unless two would be the same."""
    short = {name: Path(name).name for name in poses}
    if len(set(short.values())) < len(short):
        short = {name: name for name in poses}
    rows = []
    for name, pose in poses.items():
        q = Rotation.from_matrix(pose.R).as_quat(canonical=True, scalar_first=True)
        rows.append(" ".join([short[name], *(f"{v:.17g}" for v in (*q, *pose.t))]))
    return "".join(f"{row}\n" for row in rows)
