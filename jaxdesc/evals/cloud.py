"""A sparse reconstruction as pictures: its points in their colours and its cameras, from above and from the front. Source: CAPS, supplement, figure 3."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxdesc.datasets.cameras import centre
from jaxdesc.store.files import atomic


class Cloud(NamedTuple):
    """Points and cameras in one frame."""

    xyz: np.ndarray  # (N, 3)
    rgb: np.ndarray  # (N, 3) uint8
    R: np.ndarray  # (C, 3, 3), x_cam = R X + t
    t: np.ndarray  # (C, 3)
    aspect: np.ndarray  # (C, 2) width and height of each image over its focal length


def axes_of(R: np.ndarray) -> np.ndarray:
    """(3, 3) rows right, up, forward of the scene, orthonormal: a reconstruction has no gravity, so up is where the photographers' cameras have it on average.

    up = mean of -y; forward = mean of the viewing directions across up; right = forward x up. Cameras in a ring, which look everywhere, leave forward open: then
    any direction across up serves.

    Args:
      R: (C, 3, 3), rows of each are the camera's x (right), y (down) and z (forward) axes in the world.
    """
    up = -R[:, 1].mean(0)
    if np.linalg.norm(up) < 0.1:
        up = -R[0, 1]
    up = up / np.linalg.norm(up)
    forward = R[:, 2].mean(0)
    forward = forward - (forward @ up) * up
    if np.linalg.norm(forward) < 0.1:
        forward = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    forward = forward / np.linalg.norm(forward)
    return np.stack([np.cross(forward, up), up, forward])


def frusta(cloud: Cloud, depth: float) -> np.ndarray:
    """(C, 8, 2, 3) line segments of each camera: four edges from its centre to the corners of its image at that depth, and the image's four sides."""
    centres = cloud_centres(cloud)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    rays = np.concatenate([corners * cloud.aspect[:, None], np.ones((len(centres), 4, 1))], axis=-1)  # in the camera's frame
    ends = centres[:, None] + depth * np.einsum("cji,ckj->cki", cloud.R, rays)
    edges = np.stack([np.broadcast_to(centres[:, None], ends.shape), ends], axis=2)
    sides = np.stack([ends, np.roll(ends, -1, axis=1)], axis=2)
    return np.concatenate([edges, sides], axis=1)


def cloud_centres(cloud: Cloud) -> np.ndarray:
    """(C, 3)."""
    return centre(cloud.R, cloud.t)


def bounds(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,), (3,) of the box to show: all cameras, and along each axis the points within three interquartile ranges of the middle half.

    Background and wrong points may lie a hundred times further away than the subject; they would leave it a dot.

    Args:
      points: (N, 3); centres: (C, 3), C >= 1.
    """
    low, high = centres.min(0), centres.max(0)
    if not len(points):
        return low, high
    quarter, three = (np.percentile(points, q, axis=0) for q in (25, 75))
    inside = (np.abs(points - np.clip(points, quarter, three)) <= 3 * (three - quarter)).all(1)
    return np.minimum(low, points[inside].min(0, initial=np.inf)), np.maximum(high, points[inside].max(0, initial=-np.inf))


def draw(cloud: Cloud, path: Path, title: str) -> None:
    """A PNG of two views: from above (right, forward) and from the front (right, up). Far-off points are cut off, see `bounds`.

    Raises:
      UserError: as `atomic`.
    """
    axes3 = axes_of(cloud.R)
    points, centres = cloud.xyz @ axes3.T, cloud_centres(cloud) @ axes3.T
    low, high = bounds(points, centres)
    margin = 0.08 * (high - low).max()
    lines = frusta(cloud, depth=0.04 * np.linalg.norm(high - low)) @ axes3.T
    figure = Figure(figsize=(14, 6.5), dpi=100, layout="constrained")
    for axes, (i, j, k), name in zip(
        figure.subplots(1, 2), ((0, 2, 1), (0, 1, 2)), ("from above (as the cameras hold up)", "from the front (along the mean view)"), strict=True
    ):
        order = np.argsort(points[:, k] if k == 1 else -points[:, k])  # the nearest drawn last: the highest, or the least far
        axes.scatter(points[order, i], points[order, j], s=4, c=cloud.rgb[order] / 255.0, linewidths=0)
        axes.add_collection(LineCollection(lines[..., [i, j]].reshape(-1, 2, 2), colors="#d62728", linewidths=0.7))
        axes.set(xlim=(low[i] - margin, high[i] + margin), ylim=(low[j] - margin, high[j] + margin), aspect="equal", title=name, facecolor="#e8e8e8")
        axes.tick_params(labelsize=7)
    figure.suptitle(title)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
