"""From prepared datasets to batches of photographs on fixed canvases, on the host.

Everything is a function of (seed, position): batch i is the same whether the stream is begun at i
or has come there, and process p of P gets rows p n/P .. (p+1) n/P of each kind of it, so that the
global batch does not depend on P. Sources are shuffled anew every time they have been gone through
and are mixed by their weights.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from jaxdesc.config import HostConfig
from jaxdesc.data.host import Memory, stacked
from jaxdesc.data.kind import Host, Opened
from jaxdesc.types import RawBatch, UserError


class Data(NamedTuple):
    """Prepared sources and the batches that they make."""

    config: HostConfig
    opened: dict[str, Opened]  # of every kind that `config` has
    report: list[str]  # what was read and what was skipped, line by line

    def batches(
        self, start: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[RawBatch]:
        """Batches start, start + 1, ... without end, decoded ahead by `config.threads` threads.

        The global batch's slots are counted through the kinds in their order.

        Raises:
          UserError: if the pairs of a kind cannot be divided among the processes.
        """
        config, parts, slot = self.config, [], 0
        for name, count in config.pairs_per_batch().items():
            if count % process_count:
                raise UserError(
                    f"config.data.{name}.per_batch = {count} is not a multiple of the "
                    f"{process_count} processes."
                )
            share = count // process_count
            mine = range(process_index * share, (process_index + 1) * share)
            parts.append((name, self.opened[name].row, count, slot, mine))
            slot += count
        order = [(read, count, slot, r) for _, read, count, slot, mine in parts for r in mine]
        rows_per_batch = len(order)

        def row(position: int) -> tuple:
            batch, r = divmod(position, rows_per_batch)
            read, count, slot, r = order[r]
            return read(batch * count + r), np.int32(slot + r)

        def collate(rows: Sequence[tuple]) -> RawBatch:
            rows = iter(rows)
            return {
                name: stacked(list(itertools.islice(rows, len(mine))))
                for name, _, _, _, mine in parts
            }

        rows = grain.MapDataset.range(start * rows_per_batch, sys.maxsize).map(row)
        buffer = max(rows_per_batch, 2 * config.threads)
        ahead = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=buffer)
        batches = rows.to_iter_dataset(ahead).batch(rows_per_batch, batch_fn=collate)
        prefetched = grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=config.prefetch
        )
        return iter(prefetched)

    def held_out(self, count: int) -> RawBatch:
        """`count` held-out pairs of each kind that can be scored."""
        slots = np.arange(count, dtype=np.int32)
        kinds = self.config.kinds()
        scored = {name: opened for name, opened in self.opened.items() if kinds[name].scored}
        return {name: (opened.held_out(count), slots) for name, opened in scored.items()}


def open_data(data: HostConfig, seed: int) -> Data:
    """Prepares what is not prepared yet and opens it all.

    Raises:
      UserError: for an unknown kind of source, and whatever the sources refuse.
    """
    kinds = data.kinds()
    for name, kind in kinds.items():  # all of them before the first is prepared
        for source in kind.sources:
            if source.kind not in kind.known_sources:
                raise UserError(
                    f"config.data.{name}.sources names a source of kind {source.kind!r}; it may "
                    f"be {', '.join(kind.known_sources)}."
                )
    sets = {
        name: [kind.known_sources[s.kind](s.path, data.canvas_px, data.cache) for s in kind.sources]
        for name, kind in kinds.items()
    }
    host = Host(data, seed, Memory(data.keep_mb << 20))
    opened = {name: kind.open(sets[name], host) for name, kind in kinds.items()}
    return Data(data, opened, [line for each in sets.values() for s in each for line in s.report])
