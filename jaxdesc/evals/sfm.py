"""Structure from motion on matches: how much of a scene comes out. Source: Schönberger et al., CVPR 2017 (ETH local-feature benchmark); CAPS, figure 3.

COLMAP's incremental mapping of the verified matches, with a fixed seed; of several models the one of the most images counts. The benchmark's dense figures are
not computed, and its matching is replaced by ours (mutual nearest neighbours, or --matches).
"""

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxdesc.config import option
from jaxdesc.datasets import scenes
from jaxdesc.datasets.scenes import image_folder
from jaxdesc.errors import UserError
from jaxdesc.evals import Protocol, cloud, features
from jaxdesc.evals.matched import Lazy, Matched, MatchedOptions, matched
from jaxdesc.evals.registration import pinhole, quiet
from jaxdesc.evals.result import Result
from jaxdesc.store import colmap
from jaxdesc.store.files import atomic, told

if TYPE_CHECKING:
    import pycolmap as pycolmap_types

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Options(MatchedOptions):
    """Structure from motion (--data: a folder of images; its pairs.txt or all pairs)."""

    cameras: str | None = option(
        None,
        "known: begin with those of cameras.json or sparse/; guessed: a SIMPLE_RADIAL each, "
        "f = 1.2 max(width, height) (default: known where they are)",
        choices=("known", "guessed"),
    )


def _data(options: Options) -> Path:
    return options.folder(
        "Structure from motion needs the images, for the colours too: name their folder with "
        "--data."
    )


def _names(data: Path) -> list[str]:
    from jaxdesc.datasets.folders import find_images

    return find_images(image_folder(data))


def _pairs(data: Path, names: list[str]) -> list[Pair]:
    pairs, _ = scenes.read_pairs(data, names)
    if not pairs:
        raise UserError(f"{data} holds one image: at least two are needed.")
    return pairs


def predict(options: Options, out: Path) -> Path:
    data = _data(options)
    return features.predict(options, image_folder(data), _names(data), out)


def _cameras(data: Path, choice: str | None, names: list[str]) -> "dict[str, pycolmap_types.Camera] | None":
    """Known cameras in COLMAP's convention, images of one calibration sharing one; None: to be guessed.

    Raises:
      UserError: as `scenes.read_cameras`; an image without camera.
    """
    if choice == "guessed" or (choice is None and scenes.camera_file(data) is None):
        return None
    posed = scenes.read_cameras(data)
    if lacking := [name for name in names if name not in posed]:
        raise UserError(f"{data} knows no camera of {len(lacking)} of the {len(names)} images, such as {lacking[0]}: take --cameras guessed.")
    calibrations: dict[tuple, int] = {}
    return {
        name: pinhole(posed[name], calibrations.setdefault((*posed[name].K.ravel(), posed[name].width, posed[name].height), len(calibrations) + 1))
        for name in names
    }


def score(options: Options, predictions: Path | str) -> list[Result]:
    """The reconstruction's figures; its model and its cloud go into `options.out`."""
    data, predictions = _data(options), Path(predictions)
    names = _names(data)
    cameras = _cameras(data, options.cameras, names)
    sizes = dict.fromkeys(names)
    if cameras:
        sizes = {name: (cameras[name].width, cameras[name].height) for name in names}
    source = matched(options, predictions, sizes)
    scene, label = data.resolve().name, features.label_of(options, predictions)
    with tempfile.TemporaryDirectory() as folder:
        model, timings = reconstruct(names, _pairs(data, names), cameras, source, image_folder(data), Path(folder))
        values = measures(model, len(names))
        if model is not None and options.out:
            counts = f"{values['registered']:.0f} of {len(names)} images"
            title = f"{label}, {scene}: {counts}, {values['points']:.0f} points"
            keep(model, Path(options.out), scene, title)
    settings = {
        **source.settings,
        "images": len(names),
        "pairs": "of pairs.txt" if (data / "pairs.txt").is_file() else "exhaustive",
        "cameras": "known, refined" if cameras else "guessed (SIMPLE_RADIAL, one an image), refined",
        "pixel rule": "top-left pixel centre (0, 0); 0.5 is added for COLMAP",
        "resize rule": "none",
    }
    key, mapping = "sfm/colmap-incremental", "pycolmap's incremental mapping, seed 0"
    return [Result(key, mapping, scene, label, values, settings=settings, timings=timings)]


def reconstruct(
    names: list[str], pairs: list[Pair], cameras: "dict[str, pycolmap_types.Camera] | None", source: Matched, images: Path, work: Path
) -> "tuple[pycolmap_types.Reconstruction | None, dict[str, float]]":
    """The model of the most images, None if none came out, and seconds matching_s, verification_s, mapping_s.

    Raises:
      UserError: as `write_database`; the size of an image whose camera is to be guessed is not known.
    """
    from tqdm import tqdm

    if not cameras:
        cameras = {name: source.features(name).image_size for name in names}
        if unknown := [name for name, size in cameras.items() if size is None]:
            raise UserError(f"The features of {unknown[0]} do not say how large the image is (image_size), which the guess of its camera needs.")
    clock = [time.perf_counter()]
    indices = {pair: rows for pair in tqdm(pairs, desc="matching", unit="pair", dynamic_ncols=True) if len(rows := source.matches(*pair))}
    clock.append(time.perf_counter())
    with quiet():
        database = work / "database.db"
        colmap.write_database(database, cameras, Lazy(names, lambda name: source.features(name).keypoints), indices)
        colmap.verify(database, indices)
        clock.append(time.perf_counter())
        try:
            model = colmap.mapping(database, images, work / "models")
        except UserError:  # its one reason: no pair to begin with, which is a result too
            model = None
        clock.append(time.perf_counter())
    return model, dict(zip(("matching_s", "verification_s", "mapping_s"), np.diff(clock).tolist(), strict=True))


def measures(model: "pycolmap_types.Reconstruction | None", images: int) -> dict[str, float]:
    """The benchmark's figures: registered images, points, observations, their number per point (track length) and per image, mean reprojection error in px.

    Without a model the counts are 0 and the means not defined (NaN).
    """
    if model is None:
        counts = dict.fromkeys(("registered", "registered_share", "points", "observations"), 0.0)
        return counts | dict.fromkeys(("track_length", "observations_per_image", "reprojection_px"), float("nan"))
    return {
        "registered": model.num_reg_images(),
        "registered_share": model.num_reg_images() / images,
        "points": model.num_points3D(),
        "observations": model.compute_num_observations(),
        "track_length": model.compute_mean_track_length(),
        "observations_per_image": model.compute_mean_observations_per_reg_image(),
        "reprojection_px": model.compute_mean_reprojection_error(),
    }


def keep(model: "pycolmap_types.Reconstruction", out: Path, scene: str, title: str) -> None:
    """Writes `<out>/sparse_<scene>/` (COLMAP's model), `<out>/cloud_<scene>.ply` and `.png`; what was there is replaced.

    Raises:
      UserError: as `told`.
    """
    folder = out / f"sparse_{scene}"
    with told(folder):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".sparse") as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            model.write(new)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(new, folder)
    with atomic(out / f"cloud_{scene}.ply") as temporary:
        model.export_PLY(temporary)
    cloud.draw(as_cloud(model), out / f"cloud_{scene}.png", title)


def as_cloud(model: "pycolmap_types.Reconstruction") -> cloud.Cloud:
    """Points and registered cameras of a model."""
    points = list(model.points3D.values())
    posed = [(image.cam_from_world(), image.camera) for image in model.images.values() if image.has_pose]
    return cloud.Cloud(
        xyz=np.array([point.xyz for point in points]).reshape(-1, 3),
        rgb=np.array([point.color for point in points], np.uint8).reshape(-1, 3),
        R=np.stack([pose.rotation.matrix() for pose, _ in posed]),
        t=np.stack([np.array(pose.translation) for pose, _ in posed]),
        aspect=np.array([(camera.width / camera.mean_focal_length(), camera.height / camera.mean_focal_length()) for _, camera in posed]),
    )


PROTOCOL = Protocol(
    "sfm",
    "structure from motion: registered images, points, track length, reprojection error; the cloud "
    "as PLY and PNG",
    Options,
    predict,
    score,
)
