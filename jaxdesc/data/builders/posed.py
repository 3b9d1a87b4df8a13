"""Pairs of views with known cameras: which pairs of a scene teach something, and the
datasets that they are stored in.

Sources deliver scenes (`Scene`); here each is cut to the pairs that CAPS trains on and
stored as three aligned datasets: photographs, views (calibration and keypoints of each
photograph) and pairs (relative pose, and the matches that are known). Known matches
never reach a loss: they score PCK.

Source: CAPS, section 4 and supplementary section 7 (pairs rotated by more than 80
degrees are dropped, at most 5,000 pairs of a scene).
"""

import functools
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorflow_datasets as tfds

from jaxdesc.data.builders import base
from jaxdesc.data.sight import depth_range, seen_within
from jaxdesc.datasets.cameras import Camera, angle_deg, extent, relative
from jaxdesc.errors import UserError
from jaxdesc.images import fit, rescale
from jaxdesc.matching.keypoints import SIFT_VERSION, sift

MAX_ROTATION_DEG = 80.0
MAX_PAIRS = 5000  # of a scene
FAR = 0.99  # of the known points are nearer than a scene's `point_depth`
SAME_PLACE = 1e-6  # of the scene's extent: cameras nearer to each other have no epipolar geometry
ROUNDING = 1e-9  # of the length of t, what double precision leaves of a distance of 0
MAX_KEYPOINTS = 4500  # SIFT's strongest of an image
# Fraction of GRID x GRID points of image 1 that may be seen in image 2; asked only where no
# list and no points name the pairs.
COMMON_VIEW, GRID = 0.1, 12
VALIDATION_SHARE, MAX_VALIDATION = 0.05, 32

Pair = tuple[str, str]
Match = Callable[[str, str], tuple[np.ndarray, np.ndarray]]


class Scene(NamedTuple):
    """Views in one system of coordinates, of any scale."""

    files: Mapping[str, Path]  # name -> image file, of every camera that has one
    cameras: Mapping[str, Camera]
    pairs: Sequence[Pair]
    point_depth: float  # what `far_depth` makes of the depths that are known; 0 where none is
    # names 1, 2 -> indices into xy_px of camera 1 (M,) and the true positions in image 2
    # (M, 2), camera pixels
    match: Match
    detect: bool  # whether SIFT's keypoints of the stored images join those of the cameras
    guess: (
        bool  # whether the pairs were only guessed, so that what they see in common is worth a look
    )
    dropped: Mapping[str, int]  # why -> pairs that the source had refused already
    # whether all of it is for validation, which then takes no pairs from other scenes of
    # the source
    held_out: bool = False


class PosedSet(NamedTuple):
    """What is read in training. A pair of `train` or `validation` has index1, index2
    (int, into `images` and `views`), R_1to2 (3, 3), t_1to2 (3,) unit length, spread and
    point_depth in units of that length (see `kinds.posed.RawPosedPair`), angle_deg,
    known_1to2 (M,) int and xy_1to2 (M, 2), which of view 1's keypoints have known
    positions in image 2, and known_2to1, xy_2to1. A view has K (3, 3) and xy_px (N, 2).
    All in pixels of the stored images."""

    train: Sequence[dict[str, Any]]
    validation: Sequence[dict[str, Any]]  # held out; the photographs may be those of other pairs
    views: Sequence[dict[str, Any]]
    images: Sequence[dict[str, Any]]  # as in PhotoSet
    angles_deg: np.ndarray  # of `train`
    report: list[str]


class Chosen(NamedTuple):
    scene: Scene
    pairs: list[Pair]
    dropped: Counter

    def names(self) -> list[str]:
        """The photographs of the pairs, each once."""
        return list(dict.fromkeys(name for pair in self.pairs for name in pair))


class Scenes(Sequence):
    """Scenes with their pairs chosen, read when they are asked for; the last few stay
    in memory, for a large collection's models would not fit.
    """

    KEPT = 64

    def __init__(self, readers: Sequence[Callable[[], Scene]]):
        self._count, self._lock = len(readers), threading.Lock()
        self._read = functools.lru_cache(self.KEPT)(lambda i: choose(readers[i]()))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Chosen:
        if not 0 <= i < self._count:
            raise IndexError(i)
        with self._lock:  # threads that ask for one scene must not read it twice
            return self._read(i)


def no_match(name1: str, name2: str) -> tuple[np.ndarray, np.ndarray]:
    """Nothing is known of where the points of a view lie in another."""
    return np.zeros(0, np.int64), np.zeros((0, 2))


def far_depth(depths: np.ndarray) -> float:
    """The depth that 99 % of these (N,) are nearer than, 0 for N = 0. Not the greatest:
    a single wrong point of a reconstruction may lie at many times the depth of all
    others."""
    return float(np.quantile(depths, FAR)) if len(depths) else 0.0


_seen_within = jax.jit(seen_within)


def choose(scene: Scene) -> Chosen:
    """The pairs of a scene that are stored, in its order, and why the others are not."""
    dropped, kept = Counter(scene.dropped), []
    largest = extent(scene.cameras.values())
    apart = SAME_PLACE * max(largest, scene.point_depth)
    for pair in scene.pairs:
        camera1, camera2 = (scene.cameras[name] for name in pair)
        R, t = relative(camera1, camera2)
        if angle_deg(R) > MAX_ROTATION_DEG:
            dropped[f"turned by more than {MAX_ROTATION_DEG:g} degrees"] += 1
        elif np.linalg.norm(t) <= max(apart, ROUNDING * np.linalg.norm(camera2.t)):
            dropped["taken from one place"] += 1
        elif scene.guess and _common_view(camera1, camera2, R, t, largest) < COMMON_VIEW:
            dropped[f"without a common view at depths up to {largest:.3g}"] += 1
        else:
            kept.append(pair)
    if len(kept) > MAX_PAIRS:
        dropped[f"beyond {MAX_PAIRS} of a scene"] += len(kept) - MAX_PAIRS
        kept = [
            kept[i]
            for i in np.sort(np.random.default_rng(0).choice(len(kept), MAX_PAIRS, replace=False))
        ]
    return Chosen(scene, kept, dropped)


def _common_view(
    camera1: Camera, camera2: Camera, R: np.ndarray, t: np.ndarray, largest: float
) -> float:
    """Fraction of a grid of image 1 whose line of sight passes through image 2 at
    depths up to
    the largest distance of two cameras: of scenes that are guessed no point is
      known."""
    length = np.linalg.norm(t)
    grid = np.stack(
        np.meshgrid(
            *(
                (np.arange(GRID) + 0.5) / GRID * side - 0.5
                for side in (camera1.width, camera1.height)
            )
        ),
        -1,
    ).reshape(-1, 2)
    size = np.array([camera2.width, camera2.height])
    depths = depth_range(largest / length, 0.0, "cameras")
    arguments = (grid, camera1.K, camera2.K, R, t / length, depths, size)
    return float(_seen_within(*(np.asarray(a, np.float32) for a in arguments)).mean())


SOURCES: dict[str, Callable[[str, int], base.Source]] = {}


class ViewImages(base.PhotoBuilder):
    """The photographs of the chosen pairs, each once; split `images`. The scenes are
    only read to prepare them.
    """

    name = "jaxdesc_view_images"
    SOURCES = SOURCES

    def _split_generators(self, dl_manager):
        del dl_manager
        self.files, dropped, pairs = {}, Counter(), 0
        for chosen in base.progress(self.contents, len(self.contents), f"scenes of {self.label}"):
            self.files |= {name: chosen.scene.files[name] for name in chosen.names()}
            dropped, pairs = dropped + chosen.dropped, pairs + len(chosen.pairs)
        if not pairs:
            raise UserError(
                f"None of the {dropped.total()} pairs of {self.label} can be used: "
                f"{counts(dropped) or 'there is none'}."
            )
        return {"images": self._generate_examples(list(self.files))}


class OfScenes(base.LocalBuilder, skip_registration=True):
    """What points into ViewImages."""

    SOURCES = SOURCES

    def needs(self) -> Sequence[base.LocalBuilder]:
        return (self.images,)

    @functools.cached_property
    def images(self) -> ViewImages:
        return ViewImages(
            source=self.source, max_side_px=self.max_side_px, data_dir=self.data_dir_root.parent
        )


class Views(OfScenes):
    """Calibration and keypoints of each photograph of ViewImages, in its order; split
    `views`.
    """

    name = "jaxdesc_views"
    ABOUT = (
        "Calibration and keypoints of each photograph of jaxdesc_view_images, in its order. Pixels "
        "are those of the photographs there, the top-left pixel centre is (0, 0)."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        seen = "(N, 2) x, y of points of the model and of SIFT keypoints"
        features = {
            "K": base.numbers((3, 3), np.float32, "pixel ~ K x_cam"),
            "xy_px": base.numbers((None, 2), np.float32, seen),
        }
        return self._described(features)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"views": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Raises UserError for a camera that is not of its image's shape."""
        stored = self.images.as_data_source("images")
        index = {name: i for i, (name, _) in enumerate(_names(self.images))}

        def view(item):
            number, name = item
            scene = self.contents[number].scene
            camera = scene.cameras[name]
            photo = stored[index[name]]
            stored_hw, camera_hw = photo["image"].shape[:2], (camera.height, camera.width)
            height, width = photo["original_hw"]
            if abs(width * camera.height - height * camera.width) > max(
                width, height, *camera_hw
            ):  # more than a pixel's rounding
                raise UserError(
                    f"{scene.files[name]} is {width}x{height} px, but its camera "
                    f"{camera.width}x{camera.height} px: "
                    "the images must be those that were calibrated, without EXIF orientation."
                )
            xy = rescale(camera.xy_px, camera_hw, stored_hw)
            if scene.detect:
                xy = np.concatenate([xy, sift(photo["image"], MAX_KEYPOINTS).xy_px])
            return {
                "K": resized(camera.K, camera_hw, stored_hw).astype(np.float32),
                "xy_px": xy.astype(np.float32),
            }

        items = [
            (number, name)
            for number, chosen in enumerate(self.contents)
            for name in chosen.names()
            if name in index
        ]  # in the images' order
        yield from enumerate(
            base.progress(base.in_threads(view, items), len(items), f"keypoints of {self.label}")
        )


class PosedPairs(OfScenes):
    """Relative poses and known matches, see PosedSet; splits `validation` and `train`.
    Metadata: dropped, {why: count}; angles_deg, those of `train`.
    """

    VERSION = tfds.core.Version("2.0.0")  # 1.0.0 held depth_range, decided by the greatest depth
    name = "jaxdesc_posed_pairs"
    ABOUT = (
        "Pairs of views with known cameras, x2 = R x1 + t, |t| = 1, turned by at most "
        f"{MAX_ROTATION_DEG:g} degrees, at most {MAX_PAIRS} of a scene (CAPS, section 4 and "
        "supplement, section 7). Known matches are for scores. Pixels are those of the photographs "
        "in jaxdesc_view_images, the top-left pixel centre is (0, 0)."
    )

    def needs(self) -> Sequence[base.LocalBuilder]:
        return (
            self.images,
            Views(
                source=self.source, max_side_px=self.max_side_px, data_dir=self.data_dir_root.parent
            ),
        )

    def _info(self) -> tfds.core.DatasetInfo:
        f32, i32 = np.float32, np.int32
        features = {
            "index1": base.numbers((), i32, "of view 1 in jaxdesc_view_images and jaxdesc_views"),
            "index2": base.numbers((), i32, "of view 2"),
            "spread": base.numbers(
                (), f32, "largest distance of two cameras of the scene, over |t|"
            ),
            "point_depth": base.numbers(
                (), f32, "99 % of the points are nearer, over |t|; 0: unknown"
            ),
            "R_1to2": base.numbers((3, 3), f32, "rotation of x2 = R x1 + t"),
            "t_1to2": base.numbers((3,), f32, "direction of the translation, of unit length"),
            "angle_deg": base.numbers((), f32, "of R_1to2"),
        }
        for a, b in ("12", "21"):
            known = f"(M,) which of view {a}'s xy_px have known places in view {b}"
            features[f"known_{a}to{b}"] = base.numbers((None,), i32, known)
            features[f"xy_{a}to{b}"] = base.numbers(
                (None, 2), f32, f"(M, 2) x, y of these in view {b}"
            )
        return self._described(features, dropped={}, angles_deg=[])

    def _split_generators(self, dl_manager):
        """Held out are, of the scenes that are held out as a whole or else of all of
        them, the pairs whose names have the least hashes: in the former case all, in
        the latter 5 %, at least 1; at most 32. No other pair of such a scene is kept; a
        single pair serves for both."""
        del dl_manager
        index = {name: (i, hw) for i, (name, hw) in enumerate(_names(self.images))}
        dropped, kept = Counter(), []
        for number, chosen in enumerate(self.contents):
            stored = [pair for pair in chosen.pairs if all(name in index for name in pair)]
            kept += [(number, pair) for pair in stored]
            dropped += chosen.dropped + Counter(
                {"with a skipped image": len(chosen.pairs) - len(stored)}
            )
        if not kept:
            raise UserError(
                f"None of the {dropped.total()} pairs of {self.label} can be used: "
                f"{counts(dropped)}."
            )
        self.info.metadata["dropped"] = dict(dropped)
        whole = [i for i, (number, _) in enumerate(kept) if self.contents[number].scene.held_out]
        least = sorted(
            whole or range(len(kept)),
            key=lambda i: hashlib.sha256(os.fsencode("\0".join(kept[i][1]))).digest(),
        )
        held_out = set(
            least[: min(len(whole) or max(1, round(VALIDATION_SHARE * len(kept))), MAX_VALIDATION)]
        )
        validation = [kept[i] for i in sorted(held_out)]
        train = [kept[i] for i in range(len(kept)) if i not in held_out.union(whole)] or validation
        return {
            "validation": self._generate_examples(validation, index),
            "train": self._generate_examples(train, index, tell=True),
        }

    def _generate_examples(
        self, pairs, index, tell: bool = False
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        angles = []
        for i, (number, (name1, name2)) in enumerate(pairs):
            scene = self.contents[number].scene
            camera1, camera2 = scene.cameras[name1], scene.cameras[name2]
            R, t = relative(camera1, camera2)
            length = np.linalg.norm(t)
            known_1to2, xy_1to2 = scene.match(name1, name2)
            known_2to1, xy_2to1 = scene.match(name2, name1)
            angles.append(angle_deg(R))
            yield (
                i,
                {
                    **{
                        "index1": index[name1][0],
                        "index2": index[name2][0],
                        "angle_deg": angles[-1],
                    },
                    **{"R_1to2": R.astype(np.float32), "t_1to2": (t / length).astype(np.float32)},
                    "spread": np.float32(extent(scene.cameras.values()) / length),
                    "point_depth": np.float32(scene.point_depth / length),
                    **{
                        "known_1to2": known_1to2.astype(np.int32),
                        "known_2to1": known_2to1.astype(np.int32),
                    },
                    "xy_1to2": rescale(xy_1to2, (camera2.height, camera2.width), index[name2][1]),
                    "xy_2to1": rescale(xy_2to1, (camera1.height, camera1.width), index[name1][1]),
                },
            )
        if tell:
            self.info.metadata["angles_deg"] = angles


def resized(K: np.ndarray, from_hw: Sequence[int], to_hw: Sequence[int]) -> np.ndarray:
    """Calibration of an image of size `from_hw` resized to `to_hw`: x' = (x + .5) s -
    .5.
    """
    sx, sy = to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]]) @ K


def _names(images: ViewImages) -> list[tuple[str, tuple[int, int]]]:
    """Name and stored (H, W) of each photograph, in order."""
    stored = images.as_data_source("images", decoders={"image": tfds.decode.SkipDecoding()})
    return [
        (os.fsdecode(example["name"]), fit(example["original_hw"], images.max_side_px))
        for example in stored
    ]


def source_of(
    label: str,
    scenes: Sequence[Callable[[], Scene]],
    files: Mapping[str, Path],
    where: str,
    max_side_px: int,
    card: base.Card,
    *options: Any,
) -> base.Source:
    """Scenes, each read when it is needed.

    Args:
      files: name -> file, of all that the scenes are made of: a change of these is what
        prepares them anew; as does a change of `options`.
    """
    name = base.dataset_name(label, files, max_side_px, SIFT_VERSION, *options)
    return base.Source(name, where, Scenes(scenes), card)


def prepare(source: base.Source, max_side_px: int, cache: str) -> PosedSet:
    """The datasets of a source of scenes; see `base.prepared` for errors."""
    images, views, pairs = (
        base.prepared(kind, source, max_side_px, cache) for kind in (ViewImages, Views, PosedPairs)
    )
    photographs, train, validation = (
        images.as_data_source("images"),
        pairs.as_data_source("train"),
        pairs.as_data_source("validation"),
    )
    dropped = pairs.info.metadata["dropped"]
    report = [
        f"{source.where}: {len(train)} posed pairs of {len(photographs)} photographs, "
        f"{len(validation)} held out",
        *base.skipped_line(images),
    ]
    report += [f"  pairs dropped: {counts(dropped)}"] if any(dropped.values()) else []
    return PosedSet(
        train,
        validation,
        views.as_data_source("views"),
        photographs,
        np.array(pairs.info.metadata["angles_deg"]),
        report,
    )


def counts(dropped: Mapping[str, int]) -> str:
    """`3 listed twice, 1 taken from one place`."""
    return ", ".join(f"{count} {why}" for why, count in dropped.items() if count)
