"""From prepared datasets to batches of photographs on fixed canvases: what the host does while the device trains.

Everything is a function of (seed, position): batch i is the same whether the stream is begun at i or has come there, and process p of P gets
rows p n/P .. (p+1) n/P of each part of it, so that the global batch does not depend on P. Sources are shuffled anew every time they have been gone
through and are mixed by their weights.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from jaxdesc.config import DataConfig, Source
from jaxdesc.data.builders import embedded, pairs, photos, sfm120k
from jaxdesc.types import Canvas, RawBatch, RawPair, UserError

PHOTOS = {"embedded": embedded.open_photos, "photos": photos.open_photos}
PAIRS = {"embedded": embedded.open_pairs, "pairs": pairs.open_pairs, "sfm120k": sfm120k.open_pairs}

_SYNTHETIC, _REAL = 0, 1  # streams of random numbers


class Data(NamedTuple):
    """Prepared sources and the batches that they make."""

    config: DataConfig
    seed: int
    photo_sets: Sequence[photos.PhotoSet]
    pair_sets: Sequence[pairs.PairSet]
    synthetic: Sequence[dict[str, Any]] | None  # endless photographs; None where a batch has no synthetic part
    real: Sequence[tuple] | None  # endless (image1, image2, xy12_px); None where a batch has no real part

    def report(self) -> list[str]:
        """What was read and what was skipped, line by line."""
        return [line for s in (*self.photo_sets, *self.pair_sets) for line in s.report]

    def batches(self, start: int, process_index: int = 0, process_count: int = 1) -> Iterator[RawBatch]:
        """Batches start, start + 1, ... without end, decoded ahead by `config.threads` threads.

        Synthetic rows have slots 0..Bs-1 and real rows Bs..Bs+Br-1 of the global batch.

        Raises:
          UserError: if a part of the batch cannot be divided among the processes.
        """
        config = self.config
        for field in ("synthetic_per_batch", "real_per_batch"):
            if getattr(config, field) % process_count:
                raise UserError(f"config.data.{field} = {getattr(config, field)} is not a multiple of the {process_count} processes.")
        synthetic, real = config.synthetic_per_batch // process_count, config.real_per_batch // process_count
        rows_per_batch = synthetic + real

        def row(position: int) -> tuple:
            batch, r = divmod(position, rows_per_batch)
            if r < synthetic:
                r += process_index * synthetic
                return self._synthetic_row(batch * config.synthetic_per_batch + r), np.int32(r)
            r += process_index * real - synthetic
            return self._real_row(batch * config.real_per_batch + r), np.int32(config.synthetic_per_batch + r)

        def collate(rows: Sequence[tuple]) -> RawBatch:
            parts = {"synthetic": rows[:synthetic], "real": rows[synthetic:]}
            return {name: jax.tree.map(lambda *leaves: np.stack(leaves), *part) for name, part in parts.items() if part}

        rows = grain.MapDataset.range(start * rows_per_batch, sys.maxsize).map(row)
        ahead = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(rows_per_batch, 2 * config.threads))
        batches = rows.to_iter_dataset(ahead).batch(rows_per_batch, batch_fn=collate)
        return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch))

    def validation_photos(self, count: int) -> Canvas:
        """`count` held-out photographs, the sources taking turns; begun again where there are fewer."""
        held_out = [s.validation for s in self.photo_sets]
        order = sorted((i, k) for k, source in enumerate(held_out) for i in range(len(source)))
        canvases = [to_canvas(held_out[k][i]["image"], self.config.canvas_px) for i, k in itertools.islice(itertools.cycle(order), count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *canvases)

    def _synthetic_row(self, index: int) -> Canvas:
        return to_canvas(self.synthetic[index]["image"], self.config.canvas_px)

    def _real_row(self, index: int) -> RawPair:
        image1, image2, xy12 = self.real[index]
        count = self.config.correspondences
        if len(xy12) > count:
            rng = np.random.default_rng((self.seed, _REAL, index))
            xy12 = xy12[rng.choice(len(xy12), count, replace=False)]
        padded = np.zeros((count, 4), np.float32)
        padded[: len(xy12)] = xy12
        side = self.config.canvas_px
        return RawPair(to_canvas(image1, side), to_canvas(image2, side), padded, np.arange(count) < len(xy12))


def open_data(data: DataConfig, seed: int) -> Data:
    """Prepares what is not prepared yet and opens it all.

    The photographs of `data.synthetic` are opened in every case: validation uses those that they hold out, or the embedded ones if none are named.

    Raises:
      UserError: for an unknown kind of source, and whatever the builders refuse.
    """
    halves = {"synthetic": (data.synthetic or (Source(),), PHOTOS), "real": (data.real if data.real_per_batch else (), PAIRS)}
    for half, (sources, kinds) in halves.items():  # all of them before the first is prepared
        for source in sources:
            if source.kind not in kinds:
                raise UserError(f"config.data.{half} names a source of kind {source.kind!r}; it may be {', '.join(kinds)}.")
    photo_sets, pair_sets = ([kinds[s.kind](s.path, data.canvas_px, data.cache) for s in sources] for sources, kinds in halves.values())
    return Data(
        config=data,
        seed=seed,
        photo_sets=photo_sets,
        pair_sets=pair_sets,
        synthetic=_mixed([s.train for s in photo_sets], data.synthetic, (seed, _SYNTHETIC)) if data.synthetic_per_batch else None,
        real=_mixed([_ImagePairs(s) for s in pair_sets], data.real, (seed, _REAL)) if data.real_per_batch else None,
    )


def to_canvas(rgb: np.ndarray, side: int) -> Canvas:
    """A photograph (h, w, 3) uint8, h and w <= side, at the top left of a black (side, side, 3) square."""
    height, width = rgb.shape[:2]
    square = np.zeros((side, side, 3), np.uint8)
    square[:height, :width] = rgb
    return Canvas(square, np.array([height, width], np.int32))


class _ImagePairs(Sequence):
    """Pairs with their photographs looked up: (image1, image2, xy12_px)."""

    def __init__(self, pair_set: pairs.PairSet):
        self._set = pair_set

    def __len__(self) -> int:
        return len(self._set.pairs)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pair = self._set.pairs[i]
        return self._set.images[pair["index1"]]["image"], self._set.images[pair["index2"]]["image"], pair["xy12_px"]


def _mixed(examples: Sequence[Sequence], sources: Sequence[Source], seed: tuple[int, int]) -> Sequence:
    """Endless examples; the i-th is a function of (seed, i). Each source has its share by weight and is reshuffled in every round."""
    seeds = np.random.SeedSequence(seed).generate_state(len(examples))
    streams = [grain.MapDataset.source(e).seed(int(s)).shuffle().repeat(None) for e, s in zip(examples, seeds, strict=True)]
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights=[source.weight for source in sources])
