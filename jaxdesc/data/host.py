"""What the host makes rows of a batch with: canvases, photographs kept in memory, mixed sources."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jaxdesc.config import Source
from jaxdesc.types import Canvas


def to_canvas(rgb: np.ndarray, side: int) -> Canvas:
    """A photograph (h, w, 3) uint8, h and w <= side, at the top left of a black square."""
    height, width = rgb.shape[:2]
    square = np.zeros((side, side, 3), np.uint8)
    square[:height, :width] = rgb
    return Canvas(square, np.array([height, width], np.int32))


def canvases(pair: Mapping[str, Any], side: int) -> dict[str, Canvas]:
    """canvas1 and canvas2 of a pair's image1 and image2."""
    return {f"canvas{i}": to_canvas(pair[f"image{i}"], side) for i in (1, 2)}


def padded(values: np.ndarray, chosen: np.ndarray, count: int) -> np.ndarray:
    """The chosen rows of an array (N, ...), then zeros up to `count`."""
    rows = np.zeros((count, *values.shape[1:]), values.dtype)
    rows[: len(chosen)] = values[chosen]
    return rows


def in_turns(sources: Sequence[Sequence], count: int, step: int = 1) -> list:
    """`count` elements, every `step`-th of each source: the first of each, then the second of
    each, ...; begun again where there are fewer."""
    order = sorted((i, k) for k, source in enumerate(sources) for i in range(0, len(source), step))
    return [sources[k][i] for i, k in itertools.islice(itertools.cycle(order), count)]


def stacked(examples: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def mixed(
    examples: Sequence[Sequence], sources: Sequence[Source], seed: tuple[int, int]
) -> Sequence:
    """Endless examples; the i-th is a function of (seed, i).

    Each source has its fraction by weight and is reshuffled in every round.
    """
    seeds = np.random.SeedSequence(seed).generate_state(len(examples))
    streams = [
        grain.MapDataset.source(e).seed(int(s)).shuffle().repeat(None)
        for e, s in zip(examples, seeds, strict=True)
    ]
    if len(streams) == 1:
        return streams[0]
    return grain.MapDataset.mix(streams, weights=[source.weight for source in sources])


class Memory:
    """Host memory for decoded photographs, shared by the sets of a run."""

    def __init__(self, size_bytes: int):
        self._left = size_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether there was room; it is then gone."""
        room = size_bytes <= self._left
        self._left -= size_bytes if room else 0
        return room


class Kept(Sequence):
    """Photographs that are decoded once, as long as there is memory for them.

    Visits come in random order, so those that were kept first are as good as any others.
    """

    def __init__(self, photographs: Sequence[dict[str, Any]], memory: Memory):
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
