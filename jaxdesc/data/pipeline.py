"""From prepared datasets to batches of photographs on fixed canvases: what the host does while the device trains.

Everything is a function of (seed, position): batch i is the same whether the stream is begun at i or has come there, and process p of P gets
rows p n/P .. (p+1) n/P of each part of it, so that the global batch does not depend on P. Sources are shuffled anew every time they have been gone
through and are mixed by their weights.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from scipy.spatial.transform import Rotation

from jaxdesc.config import DataConfig, Source
from jaxdesc.data.builders import colmap, embedded, megadepth, pairs, photos, posed, rendered, semantic, sfm120k
from jaxdesc.data.posed_draw import RawPosedPair
from jaxdesc.data.semantic_draw import RawKeypointPair
from jaxdesc.types import Canvas, RawBatch, RawPair, UserError

PHOTOS = {"embedded": embedded.open_photos, "photos": photos.open_photos}
PAIRS = {"embedded": embedded.open_pairs, "pairs": pairs.open_pairs, "sfm120k": sfm120k.open_pairs}
POSED = {"embedded": embedded.open_posed, "rendered": rendered.open_posed, "colmap": colmap.open_posed, "megadepth": megadepth.open_posed}

_SYNTHETIC, _REAL, _POSED, _POSE_NOISE, _CURRICULUM, _SEMANTIC = range(6)  # streams of random numbers


class Data(NamedTuple):
    """Prepared sources and the batches that they make."""

    config: DataConfig
    seed: int
    photo_sets: Sequence[photos.PhotoSet]
    pair_sets: Sequence[pairs.PairSet]
    posed_sets: Sequence[posed.PosedSet]
    semantic_sets: Sequence[semantic.SemanticSet]
    synthetic: Sequence[dict[str, Any]] | None  # endless photographs; None where a batch has no synthetic part
    # endless pairs, see `_ImagePairs`; None where a batch has no real part
    real: Sequence[dict[str, Any]] | None
    posed: Sequence[dict[str, Any]] | None  # endless posed pairs, see `_PosedViews`; None where a batch has no posed part
    semantic: Sequence[dict[str, Any]] | None  # endless keypoint pairs, see `SemanticSet`; None where a batch has no semantic part

    def report(self) -> list[str]:
        """What was read and what was skipped, line by line."""
        return [line for s in (*self.photo_sets, *self.pair_sets, *self.posed_sets, *self.semantic_sets) for line in s.report]

    def batches(self, start: int, process_index: int = 0, process_count: int = 1) -> Iterator[RawBatch]:
        """Batches start, start + 1, ... without end, decoded ahead by `config.threads` threads.

        The global batch's slots are counted through its parts: synthetic rows come first, then real, then posed, then semantic ones.

        Raises:
          UserError: if a part of the batch cannot be divided among the processes.
        """
        config, parts, slot = self.config, [], 0
        rows_of = {"synthetic": self._synthetic_row, "real": self._real_row, "posed": self._posed_row, "semantic": self._semantic_row}
        for name, read in rows_of.items():
            count = getattr(config, f"{name}_per_batch")
            if count % process_count:
                raise UserError(f"config.data.{name}_per_batch = {count} is not a multiple of the {process_count} processes.")
            share = count // process_count
            parts.append((name, read, count, slot, range(process_index * share, (process_index + 1) * share)))
            slot += count
        order = [(read, count, slot, r) for _, read, count, slot, mine in parts for r in mine]
        rows_per_batch = len(order)

        def row(position: int) -> tuple:
            batch, r = divmod(position, rows_per_batch)
            read, count, slot, r = order[r]
            return read(batch * count + r), np.int32(slot + r)

        def collate(rows: Sequence[tuple]) -> RawBatch:
            rows = iter(rows)
            halves = {name: list(itertools.islice(rows, len(mine))) for name, _, _, _, mine in parts}
            return {name: _stacked(half) for name, half in halves.items() if half}

        rows = grain.MapDataset.range(start * rows_per_batch, sys.maxsize).map(row)
        ahead = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(rows_per_batch, 2 * config.threads))
        batches = rows.to_iter_dataset(ahead).batch(rows_per_batch, batch_fn=collate)
        return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch))

    def validation_photos(self, count: int) -> Canvas:
        """`count` held-out photographs, the sources taking turns; begun again where there are fewer."""
        chosen = _in_turns([s.validation for s in self.photo_sets], count)
        return _stacked([to_canvas(photo["image"], self.config.canvas_px) for photo in chosen])

    def validation_posed(self, count: int) -> RawPosedPair:
        """`count` held-out posed pairs, the sources taking turns, image 1 first; begun again where there are fewer. Poses are without noise."""
        chosen = _in_turns([_PosedViews(s.validation, s, (0.0, 0.0), (0,)) for s in self.posed_sets], count, 2)
        return _stacked([self._raw_posed(pair, np.random.default_rng((_POSED, i))) for i, pair in enumerate(chosen)])

    def validation_semantic(self, count: int) -> RawKeypointPair:
        """`count` held-out keypoint pairs, the sources taking turns; begun again where there are fewer."""
        chosen = _in_turns([s.validation for s in self.semantic_sets], count)
        return _stacked([self._raw_semantic(pair, np.random.default_rng((_SEMANTIC, i))) for i, pair in enumerate(chosen)])

    def _synthetic_row(self, index: int) -> Canvas:
        return to_canvas(self.synthetic[index]["image"], self.config.canvas_px)

    def _real_row(self, index: int) -> RawPair:
        """All correspondences in their order, or a random choice of `config.correspondences`."""
        pair, count, side = self.real[index], self.config.correspondences, self.config.canvas_px
        chosen = np.arange(len(pair["xy12_px"]))
        if len(chosen) > count:
            rng = np.random.default_rng((self.seed, _REAL, index))
            chosen = rng.choice(len(chosen), count, replace=False)
        padded = {
            name: np.zeros((count, *pair[name].shape[1:]), pair[name].dtype)
            for name in pairs.Correspondences._fields
        }
        for name, values in padded.items():
            values[: len(chosen)] = pair[name][chosen]
        canvases = {f"canvas{i}": to_canvas(pair[f"image{i}"], side) for i in (1, 2)}
        return RawPair(**canvases, **padded, valid=np.arange(count) < len(chosen))

    def _posed_row(self, index: int) -> RawPosedPair:
        return self._raw_posed(self.posed[index], np.random.default_rng((self.seed, _POSED, index)))

    def _semantic_row(self, index: int) -> RawKeypointPair:
        return self._raw_semantic(self.semantic[index], np.random.default_rng((self.seed, _SEMANTIC, index)))

    def _raw_semantic(self, pair: dict[str, Any], rng: np.random.Generator) -> RawKeypointPair:
        """All keypoints in their order, or a random choice of `config.common_keypoints` of them."""
        count, side, have = self.config.common_keypoints, self.config.canvas_px, len(pair["xy1_px"])
        chosen = np.arange(have) if have <= count else np.sort(rng.choice(have, count, replace=False))
        padded = {name: np.zeros((count, 2), np.float32) for name in ("xy1_px", "xy2_px")}
        for name, values in padded.items():
            values[: len(chosen)] = pair[name][chosen]
        canvases = {f"canvas{i}": to_canvas(pair[f"image{i}"], side) for i in (1, 2)}
        flags = {name: np.bool_(pair[name]) for name in ("flip", "warped")}
        if any(s.masked for s in self.semantic_sets):
            flags |= {f"mask{i}": mask_canvas(pair[f"mask{i}"], side) for i in (1, 2)}
        return RawKeypointPair(**canvases, **padded, **flags, valid=np.arange(count) < len(chosen))

    def _raw_posed(self, pair: dict[str, Any], rng: np.random.Generator) -> RawPosedPair:
        """A random choice of `config.keypoints` of image 1's keypoints, in random order."""
        count, side = self.config.keypoints, self.config.canvas_px
        chosen = rng.permutation(len(pair["xy1_px"]))[:count]
        padded = {name: np.zeros((count, *pair[name].shape[1:]), pair[name].dtype) for name in ("xy1_px", "xy2_px", "known")}
        for name, values in padded.items():
            values[: len(chosen)] = pair[name][chosen]
        canvases = {f"canvas{i}": to_canvas(pair[f"image{i}"], side) for i in (1, 2)}
        names = ("K1", "K2", "R_1to2", "t_1to2", "spread", "point_depth")
        cameras = {name: pair[name] for name in names}
        return RawPosedPair(**canvases, **cameras, **padded, valid=np.arange(count) < len(chosen))


def _in_turns(sources: Sequence[Sequence], count: int, step: int = 1) -> list:
    """`count` elements, every `step`-th of each source: the first of each, then the second of each, ...; begun again where there are fewer."""
    order = sorted((i, k) for k, source in enumerate(sources) for i in range(0, len(source), step))
    return [sources[k][i] for i, k in itertools.islice(itertools.cycle(order), count)]


def _stacked(examples: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def open_data(data: DataConfig, seed: int) -> Data:
    """Prepares what is not prepared yet and opens it all.

    The photographs of `data.synthetic` are opened in every case: validation uses those that they hold out, or the embedded ones if none are named.

    Raises:
      UserError: for an unknown kind of source, and whatever the builders refuse.
    """
    halves = {
        "synthetic": ((data.synthetic or (Source(),)) if data.synthetic_per_batch or data.real_per_batch else (), PHOTOS),
        "real": (data.real if data.real_per_batch else (), PAIRS),
        "posed": (data.posed if data.posed_per_batch else (), POSED),
        "semantic": (data.semantic if data.semantic_per_batch else (), semantic.OPEN),
    }
    for half, (sources, kinds) in halves.items():  # all of them before the first is prepared
        for source in sources:
            if source.kind not in kinds:
                raise UserError(f"config.data.{half} names a source of kind {source.kind!r}; it may be {', '.join(kinds)}.")
    photo_sets, pair_sets, posed_sets, semantic_sets = (
        [kinds[s.kind](s.path, data.canvas_px, data.cache) for s in sources] for sources, kinds in halves.values()
    )
    memory = _Memory(data.keep_mb << 20)
    return Data(
        config=data,
        seed=seed,
        photo_sets=photo_sets,
        pair_sets=pair_sets,
        posed_sets=posed_sets,
        semantic_sets=semantic_sets,
        synthetic=_mixed([_Kept(s.train, memory) for s in photo_sets], data.synthetic, (seed, _SYNTHETIC)) if data.synthetic_per_batch else None,
        real=_mixed([_ImagePairs(s, memory) for s in pair_sets], data.real, (seed, _REAL)) if data.real_per_batch else None,
        posed=_posed(posed_sets, data, seed) if data.posed_per_batch else None,
        semantic=_mixed([s.train for s in semantic_sets], data.semantic, (seed, _SEMANTIC)) if data.semantic_per_batch else None,
    )


def to_canvas(rgb: np.ndarray, side: int) -> Canvas:
    """A photograph (h, w, 3) uint8, h and w <= side, at the top left of a black (side, side, 3) square."""
    height, width = rgb.shape[:2]
    square = np.zeros((side, side, 3), np.uint8)
    square[:height, :width] = rgb
    return Canvas(square, np.array([height, width], np.int32))


def mask_canvas(mask: np.ndarray | None, side: int) -> np.ndarray:
    """A mask (h, w) bool at the top left of (side, side), True all over where there is no mask: nothing is known not to be of the object."""
    square = np.ones((side, side), bool)
    if mask is not None:
        square[: mask.shape[0], : mask.shape[1]] = mask
    return square


class _Memory:
    """Host memory for decoded photographs, shared by the sets of a run."""

    def __init__(self, size_bytes: int):
        self._left = size_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether there was room; it is then gone."""
        room = size_bytes <= self._left
        self._left -= size_bytes if room else 0
        return room


class _Kept(Sequence):
    """Photographs that are decoded once, as long as there is memory for them.

    Visits come in random order, so those that were kept first are as good as any others.
    """

    def __init__(self, photographs: Sequence[dict[str, Any]], memory: _Memory):
        self._photographs, self._memory, self._kept = photographs, memory, {}

    def __len__(self) -> int:
        return len(self._photographs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        found = self._kept.get(i)
        if found is None:
            found = self._photographs[i]
            if self._memory.take(found["image"].nbytes):
                self._kept[i] = found
        return found


class _ImagePairs(Sequence):
    """Pairs with their photographs, image1 and image2, looked up."""

    def __init__(self, pair_set: pairs.PairSet, memory: _Memory):
        self._set, self._images = pair_set, _Kept(pair_set.images, memory)

    def __len__(self) -> int:
        return len(self._set.pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pair = self._set.pairs[i]
        image1, image2 = (self._images[int(pair[name])]["image"] for name in ("index1", "index2"))
        return {**pair, "image1": image1, "image2": image2}


class _PosedViews(Sequence):
    """Posed pairs with their views looked up, in both directions: 2 i is pair i, 2 i + 1 the same from image 2 to image 1.

    An element has image1, image2, K1, K2, R_1to2, t_1to2 (unit length, with the pair's own noise),
    spread, point_depth, xy1_px (N, 2), xy2_px (N, 2), known (N,).
    """

    def __init__(self, pairs: Sequence[dict[str, Any]], views: posed.PosedSet, noise: tuple[float, float], seed: tuple[int, ...]):
        self._pairs, self._set, self._noise, self._seed = pairs, views, noise, seed

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pair, R, t = self._pairs[i // 2], *self._pose(i // 2)
        first, second = (pair["index1"], pair["index2"])[:: -1 if i % 2 else 1]
        views = {n: self._set.views[index] for n, index in (("1", first), ("2", second))}
        indices, places = (pair["known_2to1"], pair["xy_2to1"]) if i % 2 else (pair["known_1to2"], pair["xy_1to2"])
        xy1 = views["1"]["xy_px"]
        xy2, known = np.zeros_like(xy1), np.zeros(len(xy1), bool)
        xy2[indices], known[indices] = places, True
        return {
            **{"image1": self._set.images[first]["image"], "image2": self._set.images[second]["image"], "K1": views["1"]["K"], "K2": views["2"]["K"]},
            **{"R_1to2": R.T if i % 2 else R, "t_1to2": -R.T @ t if i % 2 else t},
            **{"spread": pair["spread"], "point_depth": pair["point_depth"]},
            **{"xy1_px": xy1, "xy2_px": xy2, "known": known},
        }

    def _pose(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Pair i's pose with errors that are its own, the same at every visit: a turn about a random axis by an angle uniform within +- noise[0] degrees,
        and in each component of t an error uniform within +- noise[1] percent of its length. Source: CAPS, supplementary table 2; axis and reading ours."""
        pair = self._pairs[i]
        R, t = pair["R_1to2"], pair["t_1to2"]
        if not any(self._noise):
            return R, t
        rng = np.random.default_rng((*self._seed, i))
        axis = rng.normal(size=3)
        angle = np.radians(rng.uniform(-self._noise[0], self._noise[0]))
        turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
        noisy = t + self._noise[1] / 100 * rng.uniform(-1, 1, 3)
        return (turn @ R).astype(np.float32), (noisy / np.linalg.norm(noisy)).astype(np.float32)


def _posed(sets: Sequence[posed.PosedSet], data: DataConfig, seed: int) -> Sequence:
    """Endless posed pairs. While the curriculum lasts, example j of J comes from the share (j + 1) / J of its source's pairs that turn least [CAPS,
    supplementary section 7: easy pairs first; how, is ours]; then as every source."""
    views = [_PosedViews(s.train, s, data.pose_noise, (seed, _POSE_NOISE, k)) for k, s in enumerate(sets)]
    mixed = _mixed(views, data.posed, (seed, _POSED))
    length = data.curriculum * data.posed_per_batch
    if not length:
        return mixed
    orders = [np.argsort(s.angles_deg, kind="stable") for s in sets]
    weights = np.array([source.weight for source in data.posed])

    def example(j: int) -> dict[str, Any]:
        if j >= length:
            return mixed[j - length]
        rng = np.random.default_rng((seed, _CURRICULUM, j))
        k = rng.choice(len(views), p=weights / weights.sum())
        rank = rng.integers(math.ceil(len(orders[k]) * (j + 1) / length))
        return views[k][2 * int(orders[k][rank]) + int(rng.integers(2))]

    return grain.MapDataset.range(sys.maxsize).map(example)


def _mixed(examples: Sequence[Sequence], sources: Sequence[Source], seed: tuple[int, int]) -> Sequence:
    """Endless examples; the i-th is a function of (seed, i). Each source has its share by weight and is reshuffled in every round."""
    seeds = np.random.SeedSequence(seed).generate_state(len(examples))
    streams = [grain.MapDataset.source(e).seed(int(s)).shuffle().repeat(None) for e, s in zip(examples, seeds, strict=True)]
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights=[source.weight for source in sources])
