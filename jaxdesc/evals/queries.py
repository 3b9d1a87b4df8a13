"""What is to be localised against what: a posed scene of which images are held out, or
Aachen Day-Night as it is distributed.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scipy.spatial.transform import Rotation

from jaxdesc.datasets import aachen, scenes
from jaxdesc.datasets.cameras import Pose, extent
from jaxdesc.datasets.pairs import Pair
from jaxdesc.errors import UserError
from jaxdesc.evals.registration import pinhole

if TYPE_CHECKING:
    import pycolmap as pycolmap_types


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
    extent: (
        float  # greatest distance between two cameras whose poses are known, in units of the scene
    )
    metric: bool  # whether these units are metres
    sources: str  # for the result's settings


def read(data: Path | str, hold_out: int, metric: bool | None = None) -> Scene:
    """Aachen Day-Night where `image_pairs_to_match.txt` is there, else `held_out`.

    Raises:
      UserError: as `of_aachen` and `held_out`.
    """
    data = Path(data)
    return of_aachen(data) if (data / aachen.PAIRS).is_file() else held_out(data, hold_out, metric)


def held_out(data: Path, every: int, metric: bool | None = None) -> Scene:
    """A folder with known cameras, of which the `every`-th, 2 `every`-th ... image by
    name becomes a query. Pairs are those of `pairs.txt`, or all.

    Args:
      every: at least 2.
      metric: whether the unit is the metre; None: it is in cameras.json, and is not in
        a COLMAP model, whose scale is arbitrary.
    Raises:
      UserError: as `scenes.read_cameras` and `scenes.read_pairs`; too few images.
    """
    posed = scenes.read_cameras(data)
    names = sorted(posed)
    queries = names[every - 1 :: every]
    if not queries or len(names) - len(queries) < 2:
        raise UserError(
            f"{data} holds {len(names)} cameras, too few to hold out every {every}-th: at least "
            "one query and two references are needed."
        )
    pairs, listed = scenes.read_pairs(data, names)
    calibrations = list(
        dict.fromkeys((*c.K.ravel(), c.width, c.height) for c in posed.values())
    )  # images of one camera share its identifier
    cameras = {
        name: pinhole(c, 1 + calibrations.index((*c.K.ravel(), c.width, c.height)))
        for name, c in posed.items()
    }
    poses = {name: Pose(posed[name].R, posed[name].t) for name in names}
    map_pairs, query_pairs = _split(pairs, set(queries))
    return Scene(
        name=data.resolve().name,
        images=scenes.image_folder(data),
        cameras=cameras,
        poses={name: pose for name, pose in poses.items() if name not in queries},
        queries=queries,
        truth={name: poses[name] for name in queries},
        map_pairs=map_pairs,
        query_pairs=query_pairs,
        extent=extent(poses.values()),
        metric=(data / "cameras.json").is_file() if metric is None else metric,
        sources=f"every {every}-th image by name is a query; "
        f"pairs {'of pairs.txt' if listed else 'exhaustive'}",
    )


def _split(pairs: list[Pair], queries: set[str]) -> tuple[list[Pair], list[Pair]]:
    """Pairs of two references; pairs of a query and a reference, the query first."""
    turned = [(b, a) if b in queries else (a, b) for a, b in pairs]
    return [(a, b) for a, b in pairs if not {a, b} & queries], [
        (a, b) for a, b in turned if a in queries and b not in queries
    ]


def of_aachen(data: Path) -> Scene:
    """Aachen Day-Night: the queries that are in a pair, against the references whose
    poses are known.

    Raises:
      UserError: as `aachen.read`; no pair has two references.
    """
    found = aachen.read(data)
    map_pairs, query_pairs = _split(found.pairs, set(found.queries))
    if not map_pairs:
        raise UserError(
            f"No pair of {data / aachen.PAIRS} has two images with poses in {data / '3D-models'}."
        )
    return Scene(
        name="Aachen Day-Night",
        images=found.images,
        cameras=found.cameras,
        poses=found.poses,
        queries=found.queries,
        truth={},
        map_pairs=map_pairs,
        query_pairs=query_pairs,
        extent=extent(found.poses.values()),
        metric=True,
        sources=f"pairs of {aachen.PAIRS}, cameras of database.db, "
        f"queries of {', '.join(found.lists)}",
    )


def pose_lines(poses: dict[str, Pose]) -> str:
    """Lines `name qw qx qy qz tx ty tz` of the benchmark's server; names without their
    folders, unless two would be the same.
    """
    short = {name: Path(name).name for name in poses}
    if len(set(short.values())) < len(short):
        short = {name: name for name in poses}
    rows = []
    for name, pose in poses.items():
        q = Rotation.from_matrix(pose.R).as_quat(canonical=True, scalar_first=True)
        rows.append(" ".join([short[name], *(f"{v:.17g}" for v in (*q, *pose.t))]))
    return "".join(f"{row}\n" for row in rows)
