"""A place that is known to the last digit: points, cameras around it, and features made by projection, whose descriptors are a point's own."""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from jaxdesc.datasets.cameras import Camera, bare
from jaxdesc.store import features as feature_files

K = np.array([[300.0, 0, 180.3], [0, 310.0, 120.7], [0, 0, 1]])
SIZE = (360, 240)


class Place(NamedTuple):
    """What was made."""

    points: np.ndarray  # (P, 3)
    cameras: dict[str, Camera]
    rows: dict[str, np.ndarray]  # (P,) the point of each keypoint
    xy: dict[str, np.ndarray]  # (P, 2)


def project(points, camera):
    xyz = (points @ camera.R.T + camera.t) @ camera.K.T
    return xyz[:, :2] / xyz[:, 2:]


def make(count=150, names=tuple(f"{i}.png" for i in range(8)), seed=0):
    """Cameras on an arc of 90 degrees and 5 units, that look at points in a box of 2 x 1.4 x 1.6."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-1, -0.7, -0.8], [1, 0.7, 0.8], (count, 3))
    cameras, rows, xy = {}, {}, {}
    for i, name in enumerate(names):
        R = cv2.Rodrigues(np.array([0.05 * rng.normal(), np.radians(-45 + 90 * i / (len(names) - 1)), 0.05 * rng.normal()]))[0]
        t = np.array([0.1 * rng.normal(), 0.1 * rng.normal(), 5 + 0.3 * rng.normal()])
        cameras[name] = bare(*SIZE, K, R, t, name)
        rows[name] = rng.permutation(count)
        xy[name] = project(points[rows[name]], cameras[name])
    return Place(points, cameras, rows, xy)


def write_cameras(folder: Path, cameras: dict[str, Camera]):
    """`cameras.json`."""
    keys = ("K", "R", "t", "width", "height")
    content = {
        name: {key: np.asarray(getattr(camera, key)).tolist() for key in keys}
        for name, camera in cameras.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.json").write_text(json.dumps(content))


def write_images(folder: Path, names):
    """Flat pictures of one colour."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (200, 30, 60)).save(folder / name)


def write_features(path: Path, place: Place, lost=(), blank=(), shift=None):
    """Features of all images; those of `lost` have descriptors of no point, those of `blank` no keypoints; the keypoints of `shift` {name: px} are moved."""
    rng = np.random.default_rng(1)
    of_points = rng.normal(size=(len(place.points), 16))
    for name, rows in place.rows.items():
        descriptors = rng.normal(size=of_points.shape) if name in lost else of_points[rows]
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        xy = place.xy[name] + (shift or {}).get(name, 0.0)
        found = feature_files.Features(xy.astype(np.float32), descriptors.astype(np.float32), np.ones(len(rows), np.float32), None, SIZE)
        feature_files.write_hdf5(path, name, found.take(np.zeros(0, int)) if name in blank else found, storage="float32")
    return path
