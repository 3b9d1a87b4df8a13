"""Posed pairs of places that do not exist: rooms with boxes and boards, papered with
photographs, rendered when the dataset is prepared.

Everything about them is known exactly. SCENES rooms of VIEWS views each; textures are
squares cut from scikit-image's photographs or from a folder's. A scene is a function of
its number and of the textures. The geometry is ours: CAPS has no rendered data.
"""

import atexit
import functools
import itertools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from jaxdesc.data import render
from jaxdesc.data.builders import base, embedded, posed
from jaxdesc.datasets.cameras import Camera, calibration, relative
from jaxdesc.datasets.folders import find_images
from jaxdesc.errors import UserError
from jaxdesc.images import UnreadableImage, read_rgb
from jaxdesc.matching.keypoints import sift

SCENES, VIEWS = 24, 5
# one room in so many is only for validation; where there are fewer rooms, some pairs are
HELD_OUT = 12
WIDTH_PX = 480  # of a picture, or the longest side asked for if that is less; 4:3
TEXTURE_PX, TEXTURES = 512, 12  # side of a texture, and how many of them a scene has
BOXES, BOARDS = 5, 4
MIN_COMMON = 30  # keypoints of view 1 that view 2 must see
OCCLUSION = 1e-3  # relative difference of depth from which a point is behind what is seen
MOST_KEYPOINTS = 1024
VERSION = 1  # of the scenes

_picture = jax.jit(lambda *arguments: render.render(*arguments)[0], static_argnums=6)
_cast = jax.jit(
    lambda rectangles, K, R, t, xy: render.cast(render.homographies(rectangles, K, R, t), xy)
)


def open_posed(path: str, max_side_px: int, cache: str) -> posed.PosedSet:
    """Rendered scenes, with the photographs below the folder `path` on the walls, or
    with the embedded ones.

    Raises:
      UserError: as `images.find_images`, if no photograph can be read, or as
        `base.prepared`.
    """
    return prepare(*_textures(path), max_side_px, cache, SCENES, VIEWS)


def _textures(path: str) -> tuple[dict[str, Path], str]:
    """The photographs for the walls, by name, and the folder's name in reports."""
    root = Path(path).expanduser()
    if not path:
        return embedded.textures(), ""
    return {name: root / name for name in find_images(root)}, str(root)


def prepare(
    files: Mapping[str, Path], where: str, max_side_px: int, cache: str, scenes: int, views: int
) -> posed.PosedSet:
    """The datasets of `scenes` scenes of `views` views each; the photographs `files`
    are their textures.
    """
    with tempfile.TemporaryDirectory() as folder:  # of the pictures until they are stored
        source = source_of(files, where, max_side_px, Path(folder), scenes, views)
        return posed.prepare(source, max_side_px, cache)


def source_of(
    files: Mapping[str, Path], where: str, max_side_px: int, folder: Path, scenes: int, views: int
) -> base.Source:
    """The scenes, whose pictures are written to `folder` when they are read."""
    width = min(WIDTH_PX, max_side_px)
    hw = (width * 3 // 4, width)
    label = f"rendered_{Path(where).resolve().name}" if where else "rendered"
    readers = [
        functools.partial(read_scene, folder, number, files, views, hw) for number in range(scenes)
    ]
    walls = base.own_files(Path(where)) if where else embedded.CARD
    card = walls._replace(
        about=(
            "Rooms that do not exist, papered with photographs and rendered; their geometry is "
            f"known exactly. On the walls: {walls.about}"
        )
    )
    shown = f"rendered{where and ':' + where}"
    return posed.source_of(
        label, readers, files, shown, max_side_px, card, VERSION, scenes, views, HELD_OUT
    )


def rooms(path: str, max_side_px: int) -> base.Source:
    """As `open_posed`, for a builder that may be prepared at any time until the process
    ends.
    """
    folder = tempfile.mkdtemp(prefix="jaxdesc-rendered-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return source_of(*_textures(path), max_side_px, Path(folder), SCENES, VIEWS)


posed.SOURCES["rendered"] = rooms


def read_scene(
    folder: Path, number: int, files: Mapping[str, Path], views: int, hw: tuple[int, int]
) -> posed.Scene:
    """Builds and renders scene `number`; its pictures are written to `folder`."""
    rng = np.random.default_rng((VERSION, number))
    textures = read_textures(files, rng)
    rectangles = room(rng, len(textures))
    cameras, pictures = {}, {}
    for view, (K, R, t) in enumerate(walk(rng, rectangles, views, hw)):
        picture = _picture(
            rectangles,
            textures,
            shades(rng, rectangles),
            *(np.asarray(a, np.float32) for a in (K, R, t)),
            hw,
        )
        rgb = np.rint(np.asarray(picture) * 255).astype(np.uint8)
        name = f"scene{number:03}_view{view}.jpg"
        # decoded four times as fast as PNG
        Image.fromarray(rgb).save(folder / name, quality=95, subsampling=0)
        xy = sift(rgb, MOST_KEYPOINTS).xy_px.astype(np.float64)
        cameras[name] = Camera(hw[1], hw[0], K, R, t, xy, np.arange(len(xy)))
        pictures[name] = folder / name
    match = functools.cache(functools.partial(visible, rectangles, cameras))
    pairs = [
        pair
        for pair in itertools.combinations(cameras, 2)
        if min(len(match(*pair)[0]), len(match(*pair[::-1])[0])) >= MIN_COMMON
    ]
    dropped = {f"with fewer than {MIN_COMMON} common points": views * (views - 1) // 2 - len(pairs)}
    met = (_met(rectangles, camera, camera.xy_px) for camera in cameras.values())
    depths = [1 / inverse[number >= 0] for inverse, number in met]
    held_out = number % HELD_OUT == HELD_OUT - 1
    return posed.Scene(
        files=pictures,
        cameras=cameras,
        pairs=pairs,
        point_depth=posed.far_depth(np.concatenate(depths)),
        match=match,
        detect=False,
        guess=False,
        dropped=dropped,
        held_out=held_out,
    )


def read_textures(files: Mapping[str, Path], rng: np.random.Generator) -> np.ndarray:
    """(TEXTURES, C, C, 3) uint8: random squares of random photographs; raises UserError
    if none can be read.
    """
    squares, names = [], list(files)
    order = [names[i] for i in rng.permutation(len(names))]
    for name in order + order:  # a second square of each, where there are few
        try:
            rgb = read_rgb(files[name], 2 * TEXTURE_PX)
        except UnreadableImage:  # others will do
            continue
        side = int(rng.uniform(0.6, 1.0) * min(rgb.shape[:2]))
        y, x = (int(rng.integers(n - side + 1)) for n in rgb.shape[:2])
        square = Image.fromarray(rgb[y : y + side, x : x + side]).resize(
            (TEXTURE_PX, TEXTURE_PX), Image.Resampling.LANCZOS
        )
        squares.append(np.asarray(square))
        if len(squares) == TEXTURES:
            break
    if not squares:
        raise UserError(
            f"None of the {len(files)} photographs for the rendered scenes can be read: choose "
            "another folder."
        )
    return np.stack([squares[i % len(squares)] for i in range(TEXTURES)])


def room(rng: np.random.Generator, textures: int) -> render.Rectangles:
    """A room, BOXES boxes on its floor and BOARDS boards in the air; y points down,
    metres. The first six rectangles are the walls.
    """
    size = rng.uniform([6, 3, 6], [10, 4.5, 10])
    rows = [*_box(np.zeros(3), size, np.eye(3))]
    for _ in range(BOXES):
        extent = rng.uniform([0.4, 0.4, 0.4], [1.6, 2.2, 1.6])
        place = np.array(  # in the far half
            [
                rng.uniform(-0.4, 0.4) * size[0],
                (size[1] - extent[1]) / 2,
                rng.uniform(0.0, 0.42) * size[2],
            ]
        )
        rows += _box(
            place, extent, Rotation.from_euler("y", rng.uniform(0, 90), degrees=True).as_matrix()
        )
    for _ in range(BOARDS):
        extent = rng.uniform([0.8, 0.6], [2.0, 1.4])
        place = rng.uniform([-0.4, -0.35, 0.0], [0.4, 0.1, 0.45]) * size
        turn = Rotation.from_euler(
            "yxz", rng.uniform([-60, -15, -15], [60, 15, 15]), degrees=True
        ).as_matrix()
        rows.append(
            (
                place - turn @ [extent[0] / 2, extent[1] / 2, 0],
                turn[:, 0] * extent[0],
                turn[:, 1] * extent[1],
            )
        )
    origin, edge1, edge2 = (np.array(part, np.float32) for part in zip(*rows, strict=True))
    # the coarsest copy has pixels of 8: nothing nearer to the edge is shown
    share = rng.uniform(0.5, 0.95, (len(rows), 1)) * (TEXTURE_PX - 16)
    longest = np.maximum(np.linalg.norm(edge1, axis=1), np.linalg.norm(edge2, axis=1))
    window = share * np.stack(
        [np.linalg.norm(edge1, axis=1) / longest, np.linalg.norm(edge2, axis=1) / longest], 1
    )
    corner = 8 + rng.uniform(0, 1, (len(rows), 2)) * (TEXTURE_PX - 16 - window)
    return render.Rectangles(
        origin,
        edge1,
        edge2,
        rng.integers(textures, size=len(rows)).astype(np.int32),
        np.concatenate([corner, window], 1).astype(np.float32),
    )


def _box(
    centre: np.ndarray, extent: np.ndarray, turn: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The six sides of a box: corner and two edges each."""
    sides = []
    for axis, sign in itertools.product(range(3), (-1, 1)):
        a, b = (turn[:, other] * extent[other] for other in range(3) if other != axis)
        middle = centre + sign * turn[:, axis] * extent[axis] / 2
        sides.append((middle - (a + b) / 2, a, b))
    return sides


def walk(
    rng: np.random.Generator, rectangles: render.Rectangles, views: int, hw: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cameras (K, R, t) in the near half of the room, scattered about one place and
    looking towards one point; each with a focal length of its own.
    """
    half = np.abs(rectangles.origin[:6]).max(0)
    target = rng.uniform([-0.3, -0.2, 0.1], [0.3, 0.3, 0.5]) * half
    home = rng.uniform([-0.4, -0.2, -0.8], [0.4, 0.2, -0.5]) * half
    cameras = []
    for _ in range(views):
        centre = np.clip(home + rng.normal(0, [0.8, 0.25, 0.6]), -0.9 * half, 0.9 * half)
        centre[2] = min(centre[2], -0.05 * half[2])
        forward = target + rng.normal(0, 0.35, 3) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross([0, 1, 0], forward)
        right /= np.linalg.norm(right)
        R = Rotation.from_euler("z", rng.uniform(-20, 20), degrees=True).as_matrix() @ np.stack(
            [right, np.cross(forward, right), forward]
        )
        focal = rng.uniform(0.7, 1.2) * hw[1]
        cameras.append(
            (calibration(focal, focal, (hw[1] - 1) / 2, (hw[0] - 1) / 2), R, -R @ centre)
        )
    return cameras


def shades(rng: np.random.Generator, rectangles: render.Rectangles) -> np.ndarray:
    """Brightness (P,) under a light from a random direction, another one in every view."""
    normal = np.cross(rectangles.edge1, rectangles.edge2)
    light = rng.normal(size=3)
    facing = np.abs(normal @ light) / np.linalg.norm(normal, axis=1) / np.linalg.norm(light)
    return (rng.uniform(0.7, 1.1) * (0.65 + 0.45 * facing)).astype(np.float32)


def visible(
    rectangles: render.Rectangles, cameras: Mapping[str, Camera], name1: str, name2: str
) -> tuple[np.ndarray, np.ndarray]:
    """Where view 2 sees what the keypoints of view 1 show: see `posed.Match`. A point
    is seen if it lies inside and nothing is before it.
    """
    one, two = cameras[name1], cameras[name2]
    inverse_depth, number = _met(rectangles, one, one.xy_px)
    with np.errstate(divide="ignore", invalid="ignore"):
        rays = np.concatenate([one.xy_px, np.ones((len(one.xy_px), 1))], 1) @ np.linalg.inv(one.K).T
        R, t = relative(one, two)
        in_two = (rays / inverse_depth[:, None]) @ R.T + t
        projected = in_two @ two.K.T
        xy2 = projected[:, :2] / projected[:, 2:]
        inside = (
            (number >= 0)
            & (in_two[:, 2] > 0)
            & (xy2 >= 0).all(1)
            & (xy2 <= [two.width - 1, two.height - 1]).all(1)
        )
        nearer, _ = _met(rectangles, two, np.where(inside[:, None], xy2, 0.0))
        seen = inside & (nearer * in_two[:, 2] < 1 + OCCLUSION)
    return np.flatnonzero(seen), xy2[seen]


def _met(rectangles: render.Rectangles, camera: Camera, xy: np.ndarray) -> Sequence[np.ndarray]:
    """`render.cast` at any number of points up to MOST_KEYPOINTS, compiled once."""
    padded = np.zeros((MOST_KEYPOINTS, 2), np.float32)
    padded[: len(xy)] = xy
    found = _cast(
        rectangles, *(np.asarray(a, np.float32) for a in (camera.K, camera.R, camera.t)), padded
    )
    return [np.asarray(values)[: len(xy)] for values in found]
