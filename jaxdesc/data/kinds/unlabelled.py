"""Pairs of photographs of one place, of which nothing else is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxdesc.config import option
from jaxdesc.data.builders import embedded, pairs, sfm120k
from jaxdesc.data.crops import CropConfig, draw_pairs
from jaxdesc.data.host import Kept, Memory, canvases, mixed, padded
from jaxdesc.data.kind import Host, Kind, Opened, OpenSource
from jaxdesc.types import Array, Pair, RawPair

STREAM = 1


@dataclass(frozen=True)
class UnlabelledPairs(Kind):
    """Pairs of photographs of one place; they cannot be scored."""

    Draw: ClassVar = CropConfig
    known_sources: ClassVar[Mapping[str, OpenSource]] = {
        "embedded": embedded.open_pairs,
        "pairs": pairs.open_pairs,
        "sfm120k": sfm120k.open_pairs,
    }
    scored: ClassVar[bool] = False
    streams: ClassVar = (STREAM,)

    correspondences: int = option(
        128, "correspondences of a pair that travel to aim its crops", at_least=4
    )

    def open(self, sets: Sequence[pairs.PairSet], host: Host) -> Opened:
        """Rows are RawPair: all correspondences in their order, or a random choice of them."""
        count, side, seed = self.correspondences, host.config.canvas_px, (host.seed, STREAM)
        found = mixed([ImagePairs(s, host.memory) for s in sets], self.sources, seed)

        def row(i: int) -> RawPair:
            pair = found[i]
            chosen = np.arange(len(pair["xy12_px"]))
            if len(chosen) > count:
                rng = np.random.default_rng((*seed, i))
                chosen = rng.choice(len(chosen), count, replace=False)
            fields = {n: padded(pair[n], chosen, count) for n in pairs.Correspondences._fields}
            valid = np.arange(count) < len(chosen)
            return RawPair(**canvases(pair, side), **fields, valid=valid)

        return Opened(row, None)

    def draw(
        self, key: Array, raw: RawPair, slot: Array, cfg: CropConfig, step: Array | None = None
    ) -> Pair:
        image1, image2, _ = draw_pairs(key, raw, slot, 0.0, cfg, step)
        return Pair(image1=image1, image2=image2, H_1to2=None, slot=slot)


class ImagePairs(Sequence):
    """Pairs with their photographs, image1 and image2, looked up."""

    def __init__(self, pair_set: pairs.PairSet, memory: Memory):
        self._set, self._images = pair_set, Kept(pair_set.images, memory)

    def __len__(self) -> int:
        return len(self._set.pairs)

    def __getitem__(self, i: int) -> dict[str, Any]:
        pair = self._set.pairs[i]
        image1, image2 = (self._images[int(pair[name])]["image"] for name in ("index1", "index2"))
        return {**pair, "image1": image1, "image2": image2}
