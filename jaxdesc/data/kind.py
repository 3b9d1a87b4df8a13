"""The contract between a kind of training pair and everything else.

A kind is a dataclass of its own fields, with what the host reads, what the device draws and how
its held-out pairs are scored as functions of these. Pipeline, draw, step and loop go through the
kinds that a configuration has and never ask which one it is. One is added by a file under
`jaxdesc.data.kinds` and a line in that package's `DataConfig`, which is the registry.

Shapes: B pairs, N matches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from jaxdesc.config import DrawConfig, HostConfig, PairsConfig
from jaxdesc.data.host import Memory
from jaxdesc.method import Method
from jaxdesc.types import Array, Correspondences, Variables

Scores = dict[str, tuple[Array, Array]]  # {name: (sum, weight)}


class Prepared(Protocol):
    """A source that was opened, with what its kind reads of it."""

    report: list[str]  # what was read and what was skipped, line by line


class OpenSource(Protocol):
    def __call__(self, path: str, max_side_px: int, cache: str) -> Prepared:
        """The source, prepared if it is not yet; raises UserError for what it cannot use."""
        ...


class Host(NamedTuple):
    """What the kinds of a run read with."""

    config: HostConfig
    seed: int  # of the run
    memory: Memory


class Opened(NamedTuple):
    """The examples of a kind: arrays of fixed shapes, in pixels of the canvases.

    Attributes:
      row: example i of the endless stream, a function of (seed, i) alone.
      held_out: so many examples that no step sees, stacked; the same ones whatever the seed, begun
        again where there are fewer. None where the kind is not `scored`.
    """

    row: Callable[[int], Any]
    held_out: Callable[[int], Any] | None


@dataclass(frozen=True)
class Kind(PairsConfig):
    """One kind of training pair; its fields are its configuration.

    Attributes:
      known_sources: {name of a source: what opens it}.
      photographs: of a pair that are decoded.
      streams: numbers of the random streams that its rows are drawn from; no other kind has them.
    """

    known_sources: ClassVar[Mapping[str, OpenSource]]
    photographs: ClassVar[int] = 2
    streams: ClassVar[tuple[int, ...]]

    def open(self, sets: Sequence[Any], host: Host) -> Opened:
        """The examples of the sources, which were opened in their order."""
        raise NotImplementedError

    def draw(
        self, key: Array, raw: Any, slot: Array, cfg: DrawConfig, step: Array | None = None
    ) -> Any:
        """Pairs as a loss sees them, a dataclass of `jaxdesc.types`; on the device.

        Args:
          raw: rows as `Opened` gives them, leading axis B.
          slot: (B,) int32, places in the global batch: example i is drawn from
            fold_in(key, slot[i]), so that a batch does not depend on who shares it.
          cfg: of the class `Draw`.
          step: () int32, for what grows with the run; None: grown.
        """
        raise NotImplementedError

    def to_score(self, pairs: Any, raw: Any) -> Any:
        """Held-out pairs, drawn `undistorted`, as they are scored; on the host.

        Args:
          raw: what they were drawn from.
        Raises:
          UserError: naming the field with which they cannot be scored.
        """
        return pairs

    @staticmethod
    def scores(
        variables: Variables, pair: Any, *, method: Method
    ) -> tuple[Scores, Correspondences]:
        """Scores of one pair by descriptors alone, and the matches that were scored."""
        raise NotImplementedError

    @staticmethod
    def correct(pair: Any, matches: Correspondences) -> Array:
        """(N,) bool: the matches of one pair that a picture shows as correct."""
        raise NotImplementedError
