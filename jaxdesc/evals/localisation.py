"""Visual localisation: a map from images whose poses are known, then the poses of others in it. Source: CAPS, supplement, table 1; PUMP, supplement, table A.

Matches of reference images are verified and triangulated with the known poses and cameras; a query's matches with references give points seen at pixels, and
these its pose (RANSAC and refinement). The benchmark's own pipeline registers queries with COLMAP's image_registrator instead: the key names what was done.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxdesc.config import option
from jaxdesc.datasets.cameras import Pose, angle_deg, centre
from jaxdesc.evals import Protocol, features
from jaxdesc.evals.matched import Lazy, Matched, MatchedOptions, matched
from jaxdesc.evals.queries import Scene, pose_lines, read
from jaxdesc.evals.registration import absolute_pose, keypoints_to_points, quiet, write_model
from jaxdesc.evals.result import Curve, Result
from jaxdesc.store import colmap
from jaxdesc.store.files import atomic

METRES = ((0.25, 2.0), (0.5, 2.0), (0.5, 5.0), (1.0, 5.0), (5.0, 10.0))  # and degrees: the benchmark's, with CAPS's (0.5, 2) and (1, 5)
EXTENTS = ((0.005, 2.0), (0.01, 5.0), (0.05, 10.0))  # shares of the greatest distance between two cameras, and degrees


@dataclass(frozen=True, kw_only=True)
class Options(MatchedOptions):
    """Localisation (--data: Aachen Day-Night, or a folder with known cameras)."""

    hold_out: int = option(5, "every N-th image of a posed scene is a query", at_least=2)
    scale: str | None = option(
        None,
        "unit of the scene (default: metric for cameras.json, arbitrary for a COLMAP model)",
        choices=("metric", "arbitrary"),
    )
    threshold: float = option(12.0, "inlier threshold of the pose, as hloc's", above=0, unit="PX")


def _scene(options: Options) -> Scene:
    data = options.folder(
        "Localisation needs a scene: name Aachen Day-Night's folder or one with known cameras with "
        "--data."
    )
    metric = None if options.scale is None else options.scale == "metric"
    return read(data, options.hold_out, metric)


def predict(options: Options, out: Path) -> Path:
    scene = _scene(options)
    return features.predict(options, scene.images, [*scene.poses, *scene.queries], out)


def score(options: Options, predictions: Path | str) -> list[Result]:
    """Recall of the queries' poses, which go into `options.out` as the benchmark reads them."""
    scene, predictions = _scene(options), Path(predictions)
    cameras = {name: scene.cameras[name] for name in [*scene.poses, *scene.queries]}
    sizes = {name: (camera.width, camera.height) for name, camera in cameras.items()}
    source = matched(options, predictions, sizes)
    located, about = locate(scene, source, options.threshold)
    if options.out:
        with atomic(Path(options.out, f"poses_{scene.name.replace(' ', '_')}.txt")) as temporary:
            found = {name: pose for name, (pose, _, _) in located.items() if pose is not None}
            temporary.write_text(pose_lines(found), encoding="utf-8")
    label = features.label_of(options, predictions)
    return summarise(scene, located, about, label, options.threshold, source.settings)


Located = dict[str, tuple[Pose | None, int, int]]  # query -> pose, its inliers, the points that it was sought among


def locate(scene: Scene, source: Matched, threshold_px: float) -> tuple[Located, dict[str, float]]:
    """The poses of the scene's queries.

    Returns:
      a pose or None for each query; and what the map is: map_points, map_reprojection_px, and seconds map_s, localise_s.
    """
    from tqdm import tqdm

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, quiet():
        work = Path(folder)
        write_model(work / "known", scene.cameras, scene.poses)
        pairs = tqdm(scene.map_pairs, desc="matching references", unit="pair", dynamic_ncols=True)
        keypoints = Lazy(scene.poses, lambda name: source.features(name).keypoints)
        indices = {pair: rows for pair in pairs if len(rows := source.matches(*pair))}
        colmap.write_database(work / "database.db", {name: scene.cameras[name] for name in scene.poses}, keypoints, indices)
        colmap.verify(work / "database.db", indices)
        model = colmap.triangulate(work / "database.db", work / "known", scene.images, work / "map")
        ids, positions = keypoints_to_points(model)
        about = {"map_points": len(positions), "map_reprojection_px": model.compute_mean_reprojection_error() if positions else float("nan")}
    about["map_s"] = time.perf_counter() - start
    references = {name: [r for q, r in scene.query_pairs if q == name] for name in scene.queries}
    located = {}
    for name in tqdm(scene.queries, desc="localising", unit="query", dynamic_ncols=True):
        xy, xyz = seen_points(name, references[name], source, ids, positions)
        found = absolute_pose(scene.cameras[name], xy, xyz, threshold_px)
        located[name] = (*(found or (None, 0)), len(xy))
    about["localise_s"] = time.perf_counter() - start - about["map_s"]
    return located, about


def seen_points(
    query: str, references: list[str], source: Matched, ids: dict[str, np.ndarray], positions: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) of a query and the points (N, 3) that the references' matching keypoints belong to; each keypoint with each of its points once."""
    rows = [np.zeros((0, 2), np.int64)]
    for reference in references:
        indices = source.matches(query, reference)
        points = ids[reference][indices[:, 1]]
        rows.append(np.column_stack([indices[:, 0], points])[points >= 0])
    unique = np.unique(np.concatenate(rows), axis=0)
    xyz = np.array([positions[point] for point in unique[:, 1].tolist()]).reshape(-1, 3)
    return source.features(query).keypoints[unique[:, 0]], xyz


def summarise(scene: Scene, located: Located, about: dict[str, float], method: str, threshold_px: float, settings: dict) -> list[Result]:
    """Shares of queries within the thresholds: in metres where the scene is metric, and relative to the scene's extent wherever the truth is known.

    A query without a pose is beyond every threshold. Without truth only the share of queries that have a pose is told.
    """
    distance, angle = {}, {}
    for name, true in scene.truth.items():
        pose = located[name][0]
        distance[name] = np.inf if pose is None else float(np.linalg.norm(centre(*pose) - centre(*true)))
        angle[name] = np.inf if pose is None else angle_deg(pose.R.T @ true.R)
    items = {
        name: {"points": points, "inliers": inliers} | ({"distance": distance[name], "rotation_deg": angle[name]} if name in distance else {})
        for name, (_, inliers, points) in located.items()
    }
    d, a = np.array(list(distance.values())), np.array(list(angle.values()))
    share = {"localised": float(np.mean([pose is not None for pose, _, _ in located.values()]))}
    shared = {
        "estimator": f"pycolmap's absolute pose, {threshold_px:g} px, in a map of triangulated references",
        "dataset": scene.name,
        "method": method,
        "per_item": items,
        "timings": {key: about[key] for key in ("map_s", "localise_s")},
    }
    settings = {
        **settings,
        "scene": scene.sources,
        "references": len(scene.poses),
        "queries": len(scene.queries),
        "pixel rule": "top-left pixel centre (0, 0); 0.5 is added for COLMAP",
        "resize rule": "none",
        "unit": "metre" if scene.metric else "arbitrary: of the COLMAP model",
        "extent": scene.extent,
    }
    map_values = {key: about[key] for key in ("map_points", "map_reprojection_px")}
    key = f"colmap-pnp@{threshold_px:g}px"
    if not scene.truth:
        settings["truth"] = "with the benchmark's server (visuallocalization.net): upload the poses file"
        return [Result(f"localisation/{key}", values=share | map_values, settings=settings, **shared)]
    results = []
    if scene.metric:
        values = {f"{m:g}m,{t:g}deg": within(d, a, m, t) for m, t in METRES} | {"median_distance_m": float(np.median(d))}
        x = np.linspace(0, 1, 41)
        curve = Curve("distance [m], at most 5 deg", x.tolist(), {"recall": [within(d, a, m, 5.0) for m in x]})
        values |= {"median_rotation_deg": float(np.median(a))} | share | map_values
        results.append(Result(f"localisation/{key}", values=values, curve=curve, settings=settings, **shared))
    values = {f"{100 * e:g}%,{t:g}deg": within(d, a, e * scene.extent, t) for e, t in EXTENTS}
    values |= {"median_distance_%": float(100 * np.median(d) / scene.extent), "median_rotation_deg": float(np.median(a))} | share | map_values
    x = np.linspace(0, 0.05, 41)
    curve = Curve("distance [% of the extent], at most 5 deg", (100 * x).tolist(), {"recall": [within(d, a, e * scene.extent, 5.0) for e in x]})
    relative = {**settings, "distances": "in % of the extent, the greatest distance between two cameras"}
    results.append(Result(f"localisation-extent/{key}", values=values, curve=curve, settings=relative, **shared))
    return results


def within(distance: np.ndarray, angle_deg: np.ndarray, most: float, most_deg: float) -> float:
    """Share of queries at most that far and at most that many degrees off."""
    return float(np.mean((distance <= most) & (angle_deg <= most_deg)))


PROTOCOL = Protocol(
    "localisation",
    "poses of query images in a map of posed ones: recall at distance and angle (Aachen, or "
    "images held out)",
    Options,
    predict,
    score,
)
