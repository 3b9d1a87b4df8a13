"""A trained method at work: `load(weights)` -> `describe(image)`, `describe_at(image, xy)`, `match(image1, image2)`; NumPy in and out.

Images are what `images.read_rgb` takes: paths, PIL images or arrays. Coordinates are (x, y) pixels of the image as given, the centre of the top-left pixel is (0, 0).
"""

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc import config as configs
from jaxdesc import methods
from jaxdesc.images import (
    STEP_PX,
    ImageLike,
    fit,
    pad,
    pad_points,
    read_rgb,
    rescale,
    resize,
    to_float,
)
from jaxdesc.matching import keypoints
from jaxdesc.matching.densify import densify
from jaxdesc.matching.keypoints import SUPPORT_PX
from jaxdesc.method import Progress
from jaxdesc.ops.sampling import descriptors_at, full_size
from jaxdesc.store import weights as weight_files
from jaxdesc.store.checkpoint import read_run
from jaxdesc.store.features import Features
from jaxdesc.types import Array, Grid, Keypoints, Pair, UserError, Variables

DEFAULT = "pump"
KEYPOINTS = 2000  # of an image, where no number is asked for
SHIPPED = Path(__file__).parents[1] / "weights"
TILE = 1536  # pixels: larger images are described in windows of this side, one after the other
MARGIN = 128  # pixels by which a window is larger than what is taken from it: more than the published networks see
SCALES = tuple(2 ** (-i / 4) for i in range(7))  # of the image pyramid of sparse descriptors: 1 down to 0.354; the next is below 30 %
POINTS = 64  # points to be moved are padded to multiples of it: few programs
SAMPLED = 1024  # likewise, of points that are described


class Matches(NamedTuple):
    """N correspondences of two images, best first; what `numpy.savez(corres=...)` files of PUMP hold as columns."""

    xy1: np.ndarray  # (N, 2) float32 pixels of image 1
    xy2: np.ndarray  # (N, 2) float32 pixels of image 2
    score: np.ndarray  # (N,) float32, higher is better
    code: np.ndarray  # (N,) int32: scale and rotation of image 2, see ops.matching.encode_pose


def tell(sentence: str) -> None:
    print(f"jaxdesc: {sentence}", file=sys.stderr)


class Predictor:
    """A method with its variables.

    Attributes: name, config, method (its functions), variables, source (where they come from), dim
    (of a descriptor), digest.
    """

    def __init__(self, name: str, config: Any, variables: Variables, source: str):
        self.name, self.config, self.variables, self.source = name, config, jax.device_put(variables), source
        self._definition = methods.find(name)
        self.method = self._definition.build(config)
        self._maps = jax.jit(self.method.describe)
        self.dim = jax.eval_shape(self.method.describe, self.variables, jnp.zeros((1, STEP_PX, STEP_PX, 3))).shape[-1]

    @functools.cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the method, its configuration and every weight."""
        state = hashlib.sha256(f"{self.name} {self.config}".encode())
        for name, leaf in sorted(weight_files.flatten(jax.device_get(self.variables)).items()):
            state.update(name.encode() + leaf.tobytes())
        return state.hexdigest()[:12]

    def describe(self, image: ImageLike) -> np.ndarray:
        """(H, W, D) float32 unit descriptors, one a pixel: 4 H W D bytes; `describe_at` needs far less where only some pixels count.

        Raises:
          UserError: the image cannot be read, or is none.
        """
        pixels = read_rgb(image)
        out = np.empty((*pixels.shape[:2], self.dim), np.float32)
        for window in self._windows(pixels):
            (x0, y0), (x1, y1), (left, top) = window.start_xy, window.stop_xy, window.corner_xy
            descriptors = np.asarray(_full_size(*self._map(window.image), window.image.shape[:2]))
            out[y0:y1, x0:x1] = descriptors[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def describe_at(self, image: ImageLike, xy: np.ndarray, scales: np.ndarray | str | None = None) -> np.ndarray:
        """Descriptors of N keypoints, bilinear at their positions, of unit length (CAPS: each half of them). Source: PUMP, supplementary B.

        The image is shrunk by powers of 2^(1/4) as far as 30 % of its size (SCALES). A keypoint is described in the level whose SUPPORT_PX / scale is nearest
        to its own diameter, on a logarithmic axis.

        Args:
          xy: (N, 2) pixels; a position outside the image is moved to its border.
          scales: (N,) diameters of the keypoints' supports in pixels, 0 where one has none, which means the original resolution; None: none has;
            "all": every level.
        Returns:
          (N, D) float32, or (N, len(SCALES), D) for "all".
        Raises:
          UserError: as `describe`; arrays of other shapes.
        """
        pixels, xy = read_rgb(image), np.asarray(xy, np.float64)
        if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
            raise UserError(f"xy has the shape {xy.shape} or holds NaN; finite positions (N, 2) are expected.")
        if isinstance(scales, str):
            if scales != "all":
                raise UserError(f'scales = {scales!r} must be "all", diameters (N,) or None.')
            return np.stack([self._sampled(pixels, xy, scale) for scale in SCALES], axis=1)
        diameters = np.zeros(len(xy)) if scales is None else np.asarray(scales, np.float64)
        if diameters.shape != xy.shape[:1]:
            raise UserError(f"There are {len(xy)} positions but scales of the shape {diameters.shape}.")
        level = np.clip(np.rint(4 * np.log2(np.maximum(diameters, SUPPORT_PX) / SUPPORT_PX)), 0, len(SCALES) - 1).astype(int)
        out = np.empty((len(xy), self.dim), np.float32)
        for i in set(level.tolist()):
            out[level == i] = self._sampled(pixels, xy[level == i], SCALES[i])
        return out

    def detect(
        self, image: ImageLike, k: int = KEYPOINTS, detector: str = keypoints.DEFAULT
    ) -> Keypoints:
        """The `k` best keypoints of an image, by falling score where the detector ranks them.

        Args:
          detector: "hessian", the determinant of the Hessian, "hessian:1.2,1.7" at these scales,
            see `matching.hessian`; "sift"; "grid"; "own", the method's, where it has one.
        Raises:
          UserError: as `describe`; k below 1; as `check_detector`.
        """
        return self._detected(read_rgb(image), k, detector)[0]

    def features(
        self, image: ImageLike, k: int = KEYPOINTS, detector: str = keypoints.DEFAULT
    ) -> Features:
        """`detect`, and the keypoints' descriptors as `describe_at` gives them, or, of the
        method's own detector, as that does.

        Returns:
          keypoints (N, 2), descriptors (N, D), scores (N,), scales (N,) or None, image_size.
        """
        pixels = read_rgb(image)
        found, descriptors = self._detected(pixels, k, detector)
        if descriptors is None:
            descriptors = self.describe_at(pixels, found.xy_px, found.scale_px)
        return of_keypoints(found, pixels, descriptors)

    def check_detector(self, detector: str) -> None:
        """Raises UserError: no detector of this name; its scales; the method has none of its own."""
        if detector == keypoints.OWN:
            if self.method.detect is None:
                raise UserError(
                    f"{self.name} with these weights has no detector of its own: take "
                    "hessian, sift, grid or a file of keypoints."
                )
        elif keypoints.find(detector) is None:
            raise UserError(f"There is no detector {detector!r}; there are {keypoints.NAMES}.")

    def _detected(
        self, pixels: np.ndarray, k: int, detector: str
    ) -> tuple[Keypoints, np.ndarray | None]:
        """Keypoints, and the descriptors of those that the method found."""
        if k < 1:
            raise UserError(f"k = {k} keypoints must be at least 1.")
        self.check_detector(detector)
        if detector == keypoints.OWN:
            return self.method.detect(self.variables, pixels, k)
        return keypoints.find(detector).detect(pixels, k), None

    def match(
        self,
        image1: ImageLike,
        image2: ImageLike,
        *,
        max_side: int | None = None,
        say: Callable[[str], None] = tell,
        progress: Progress | None = None,
        **options: Any,
    ) -> Matches:
        """Quasi-dense matches.

        Args:
          max_side: images with a longer side are shrunk to it before; positions are those of the given images all the same.
          say: is told in a sentence when the images are too large to be matched as a whole.
          progress: is told the work done and the work to do, in units that time is proportional to.
          options: fields of the method's MatchOptions: max_scale (default 4), max_rotation_deg (default 0), memory_bytes, ...
        Raises:
          UserError: as `describe`; an unknown option or a value that it cannot take.
        """
        return self.match_with(image1, image2, self.options(**options), max_side, say, progress)

    def options(self, **options: Any) -> Any:
        """The method's MatchOptions, the same for many pairs.

        Raises:
          UserError: an unknown option or a value that it cannot take.
        """
        return _fields(self._definition.MatchOptions, options, f"{self.name}'s MatchOptions")

    def match_with(
        self,
        image1: ImageLike,
        image2: ImageLike,
        options: Any,
        max_side: int | None = None,
        say: Callable[[str], None] = tell,
        progress: Progress | None = None,
    ) -> Matches:
        """`match` with options that are made already."""
        given = [read_rgb(image) for image in (image1, image2)]
        shrunk = [resize(pixels, fit(pixels.shape[:2], max_side)) for pixels in given]
        found = self.method.match(self.variables, *shrunk, options, say, progress)
        kept = np.asarray(found.valid)
        ends = [
            rescale(np.asarray(xy)[kept], small.shape[:2], large.shape[:2])
            for xy, small, large in zip((found.xy1_px, found.xy2_px), shrunk, given, strict=True)
        ]
        return _ranked(*ends, np.asarray(found.score, np.float32)[kept], np.asarray(found.code, np.int32)[kept])

    def positions(self, image1: ImageLike, image2: ImageLike, matches: Matches) -> np.ndarray:
        """(H1, W1, 2) float32: the position (x, y) in image 2 of every pixel of image 1, by the method's own flow, or, where it has none, `densified(matches)`.

        Raises:
          UserError: as `describe`; there is no match, and the method has no flow of its own.
        """
        pixels = [read_rgb(image) for image in (image1, image2)]
        if self.method.dense is None:
            return densified(matches, *(p.shape[:2] for p in pixels))
        return self.method.dense(self.variables, *pixels)

    def transfer(self, image1: ImageLike, image2: ImageLike, xy: np.ndarray) -> np.ndarray:
        """Points of image 1 in image 2, both squashed to the square that the method was made for, as the method itself moves them (COLD, GSF).

        Args:
          xy: (N, 2) pixels of image 1.
        Returns:
          (N, 2) float32 pixels of image 2.
        Raises:
          UserError: as `describe`; the method moves no points; a point outside image 1.
        """
        if self.method.transfer is None:
            raise UserError(f"{self.name} has no way of its own to move points from one image to another: take the nearest descriptors, or matches.")
        given, xy = [read_rgb(image) for image in (image1, image2)], np.asarray(xy, np.float64)
        sizes = [pixels.shape[:2] for pixels in given]
        if xy.ndim != 2 or xy.shape[1] != 2:
            raise UserError(f"xy has the shape {xy.shape}; positions (N, 2) are expected.")
        outside = ~((xy >= -0.5) & (xy <= np.array(sizes[0][::-1]) - 0.5)).all(1)
        if outside.any():
            x, y = xy[outside][0]
            raise UserError(f"The point ({x:g}, {y:g}) lies outside image 1, which has {sizes[0][1]} x {sizes[0][0]} px.")
        square = (self.method.square_px,) * 2
        squares = [resize(to_float(pixels), square) for pixels in given]
        padded = pad_points(rescale(xy, sizes[0], square), POINTS)
        moved = np.asarray(self._transfer(self.variables, *squares, padded)[0])[: len(xy)]
        return rescale(moved, square, sizes[1])

    @functools.cached_property
    def _transfer(self) -> Callable[..., tuple[Array, Array]]:
        return jax.jit(self.method.transfer)

    def _sampled(self, pixels: np.ndarray, xy: np.ndarray, scale: float) -> np.ndarray:
        """(N, D) descriptors at positions (N, 2) of the image, seen shrunk by `scale`."""
        hw = tuple(max(1, round(n * scale)) for n in pixels.shape[:2])
        xy = np.clip(rescale(xy, pixels.shape[:2], hw), 0, np.array(hw[::-1]) - 1)
        out = np.empty((len(xy), self.dim), np.float32)
        for window in self._windows(resize(pixels, hw)):
            here = ((xy >= np.array(window.start_xy) - 0.5) & (xy < np.array(window.stop_xy) - 0.5)).all(1)
            local = pad_points(xy[here] - window.corner_xy, SAMPLED)
            if self.method.describe_at:
                found = self.method.describe_at(self.variables, window.image, local)
            else:
                maps, grid = self._map(window.image)
                found = _descriptors_at(maps, local, grid)
            out[here] = np.asarray(found)[: here.sum()]
        return out

    def _map(self, image: np.ndarray) -> tuple[Array, Grid]:
        """The descriptor map (h, w, D) of an image (H, W, 3), and where its cells lie."""
        return self._maps(self.variables, image[None])[0], self.method.grid(*image.shape[:2])

    def _windows(self, pixels: np.ndarray) -> Iterator["_Window"]:
        """Parts of the image, the whole of it if it is small enough, padded to multiples of STEP_PX."""
        ys, xs = (_parts(n) for n in pixels.shape[:2])
        for top, y0, y1 in ys:
            for left, x0, x1 in xs:
                part = pixels[top : top + TILE, left : left + TILE]
                yield _Window((left, top), (x0, y0), (x1, y1), to_float(pad(part)))


class _Window(NamedTuple):
    corner_xy: tuple[int, int]  # of the part
    start_xy: tuple[int, int]  # of what is taken from it
    stop_xy: tuple[int, int]
    image: np.ndarray  # (H, W, 3) float32


def _parts(n: int) -> list[tuple[int, int, int]]:
    """(corner, start, stop) of the windows along a side of n pixels; all are as large and begin at multiples of STEP_PX, as the network's patches do."""
    if n <= TILE:
        return [(0, 0, n)]
    last = -(-(n - TILE) // STEP_PX) * STEP_PX
    corners = [*range(0, last, TILE - 2 * MARGIN), last]
    starts = [0, *(corner + MARGIN for corner in corners[1:])]
    return list(zip(corners, starts, [*starts[1:], n], strict=True))


def of_keypoints(
    found: Keypoints, pixels: np.ndarray, descriptors: np.ndarray | None = None
) -> Features:
    """What a detector found in an image (H, W, 3) as features, with descriptors (N, D) if given."""
    n, scale = len(found.score), np.asarray(found.scale_px)
    return Features(
        np.asarray(found.xy_px),
        np.zeros((n, 0), np.float32) if descriptors is None else descriptors,
        np.asarray(found.score),
        scale if n == 0 or scale.any() else None,
        (pixels.shape[1], pixels.shape[0]),
    )


_full_size = jax.jit(full_size, static_argnames=("grid", "size_hw"))
_descriptors_at = jax.jit(descriptors_at, static_argnames="grid")


def _ranked(xy1: np.ndarray, xy2: np.ndarray, score: np.ndarray, code: np.ndarray) -> Matches:
    falling = np.argsort(-score, kind="stable")
    return Matches(xy1[falling], xy2[falling], score[falling], code[falling])


def densified(matches: Matches, size1_hw: tuple[int, int], size2_hw: tuple[int, int]) -> np.ndarray:
    """(H1, W1, 2) float32: the position (x, y) in image 2 of every pixel of image 1, linear between matches.

    Raises:
      UserError: there is no match.
    """
    return densify(np.concatenate(matches[:2], axis=1), size1_hw, size2_hw)


# ---- weights


def load(weights: str | os.PathLike | None = None, **overrides: Any) -> Predictor:
    """Makes a Predictor.

    Args:
      weights: a weight file (.safetensors); a training workdir, of which the best checkpoint is taken, or the latest if none was validated; the name of a
        method, for the weights that come with it. None: those of "pump", the only ones.
      overrides: fields of the method's Config that are to differ, such as dtype="bfloat16".
    Raises:
      UserError: there are no such weights, none come with the method; they are damaged; an
        override does not exist or does not fit them. Random weights: see `untrained`.
    """
    text, path = str(weights or DEFAULT), Path(weights or DEFAULT)
    if text in methods.names():
        path = SHIPPED / f"{text}.safetensors"
        if not path.is_file():
            raise UserError(
                f"No weights come with {text}: train it (python -m jaxdesc.train --config "
                f"{text}) and give the workdir, or give a weight file, as `jaxdesc "
                "convert` makes it of PUMP's and CAPS's released weights."
            )
    if path.is_dir():
        name, fields, variables, version = read_run(path)
    elif path.is_file():
        name, fields, variables, _, version = weight_files.load(path)
    else:
        raise UserError(f"There are no weights {text}: give a weight file (.safetensors), the workdir of a training run, or one of {', '.join(methods.names())}.")
    kind = methods.find(name, f"{path} holds weights of").Config
    kind.check_file(fields, version, path)
    config = _fields(kind, configs.absent_values(kind) | fields, str(path))
    config = _overridden(config, overrides)
    shapes = [{key: leaf.shape for key, leaf in _flat(tree).items()} for tree in (variables, _shapes(name, config))]
    if shapes[0] != shapes[1]:
        wrong = next(key for key in sorted(shapes[0].keys() | shapes[1].keys()) if shapes[0].get(key) != shapes[1].get(key))
        raise UserError(f"The weights {text} do not fit the configuration: {wrong} is {shapes[0].get(wrong)} there and should be {shapes[1].get(wrong)}.")
    return Predictor(name, config, variables, text)


def untrained(name: str, **overrides: Any) -> Predictor:
    """A method with random weights, the same each time: what training starts from.

    Raises:
      UserError: a field of the method's Config that does not exist or does not fit.
    """
    definition = methods.find(name)
    config = _overridden(definition.Config(), overrides)
    variables = jax.jit(definition.build(config).init)(jax.random.key(0), _example(config))
    return Predictor(name, config, variables, f"{name}, untrained")


def _example(config: configs.MethodConfig) -> dict[str, Pair]:
    """The least batch that variables can be made from."""
    image = jnp.zeros((1, STEP_PX, STEP_PX, 3))
    return {config.kinds[0]: Pair(image1=image, image2=image, H_1to2=jnp.eye(3)[None], slot=jnp.zeros(1, jnp.int32))}


def _shapes(name: str, config: Any) -> Any:
    return jax.eval_shape(methods.find(name).build(config).init, jax.random.key(0), _example(config))


def _flat(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _fields(kind: type, values: dict[str, Any], where: str) -> Any:
    """A dataclass from plain values, as they come from JSON or from keywords."""
    known = set(kind.__dataclass_fields__)
    if unknown := sorted(values.keys() - known):
        raise UserError(f"{where} has no field {unknown[0]!r}; there are {', '.join(sorted(known))}.")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _overridden(config: Any, overrides: dict) -> Any:
    if not overrides:
        return config
    changed = _fields(type(config), {**vars(config), **overrides}, f"{config.name}'s configuration")
    configs.validate_fields(changed, "config.method")
    changed.check()
    return changed


# ---- the shortest way, with weights that are read once


_loaded = functools.lru_cache(maxsize=2)(load)


def describe(image: ImageLike, weights: str | None = None) -> np.ndarray:
    """`load(weights).describe(image)`: (H, W, D) float32."""
    return _loaded(weights).describe(image)


def match(image1: ImageLike, image2: ImageLike, weights: str | None = None, **options: Any) -> Matches:
    """`load(weights).match(image1, image2, **options)`."""
    return _loaded(weights).match(image1, image2, **options)
