"""The registry: what every kind of pair gives, and that adding one is a file and a line."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import numpy as np
import pytest

from jaxdesc import config
from jaxdesc.config import DrawConfig, HostConfig, PairsConfig, option
from jaxdesc.data import kinds
from jaxdesc.data.draw import draw_batch, held_out_batch
from jaxdesc.data.host import in_turns, mixed, stacked, to_canvas
from jaxdesc.data.kind import Kind, Opened
from jaxdesc.data.kinds import KINDS, DataConfig, PosedPairs
from jaxdesc.data.pipeline import open_data
from jaxdesc.types import Pair


def test_the_registry_is_the_configurations_fields():
    own = {field.name for field in dataclasses.fields(DataConfig)}
    own -= {field.name for field in dataclasses.fields(HostConfig)}
    assert list(KINDS) == ["homography", "unlabelled", "posed", "keypoints"] and set(KINDS) == own
    files = {path.stem for path in Path(kinds.__file__).parent.glob("*.py")}
    assert files == {*KINDS, "__init__", "formats"}
    assert DataConfig().kinds() == {} and DataConfig(posed=PosedPairs()).kinds().keys() == {"posed"}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_gives_all_that_is_asked_of_it(name):
    kind = KINDS[name]
    assert kind.known_sources and issubclass(kind.Draw, DrawConfig)
    given = {member for cls in kind.__mro__[: kind.__mro__.index(Kind)] for member in vars(cls)}
    scores = {"scores", "correct"}
    assert {"open", "draw"} | (scores if kind.scored else set()) <= given
    for field in dataclasses.fields(kind):
        assert field.metadata.get("doc") or dataclasses.is_dataclass(field.default), field.name


def test_no_two_kinds_share_a_stream_of_random_numbers():
    streams = [number for kind in KINDS.values() for number in kind.streams]
    assert len(streams) == len(set(streams)) and sorted(streams) == list(range(len(streams)))


# ---- a kind of pair of a test's own


def square(value):
    return {"image": np.full((8, 8, 3), value, np.uint8)}


class Gray(NamedTuple):
    """A prepared source: gray squares, of which one is held out."""

    train: tuple = tuple(square(10 * i) for i in range(4))
    validation: tuple = (square(200),)
    report: tuple = ("gray: 5 squares",)


@dataclass(frozen=True)
class Twins(Kind):
    """A square twice, the second time brighter by a field of its own."""

    known_sources: ClassVar = {"embedded": lambda path, max_side_px, cache: Gray()}
    photographs: ClassVar = 1
    streams: ClassVar = (99,)

    lift: float = option(0.1, "added to image 2", at_least=0)

    def open(self, sets, host):
        squares = mixed([s.train for s in sets], self.sources, (host.seed, 99))

        def held_out(count):
            chosen = in_turns([s.validation for s in sets], count)
            return stacked([to_canvas(one["image"], 8) for one in chosen])

        return Opened(lambda i: to_canvas(squares[i]["image"], 8), held_out)

    def draw(self, key, raw, slot, cfg, step=None):
        image = raw.image / 255.0
        return Pair(image1=image, image2=image + self.lift, H_1to2=None, slot=slot)


@dataclass(frozen=True)
class Extended(DataConfig):
    twins: Twins | None = option(None, "squares twice")


def test_generic_code_takes_a_kind_that_it_has_never_seen():
    data = Extended(twins=Twins(per_batch=3), canvas_px=8, threads=1)
    assert data.kinds().keys() == {"twins"} and isinstance(data.twins, PairsConfig)
    opened = open_data(data, seed=0)
    assert opened.report == ["gray: 5 squares"]
    (raw,) = itertools.islice(opened.batches(0), 1)
    assert raw["twins"][1].tolist() == [0, 1, 2]
    batch = jax.jit(lambda raw: draw_batch(jax.random.key(0), raw, data, DrawConfig()))(raw)
    moved = batch["twins"].image2 - batch["twins"].image1
    np.testing.assert_allclose(moved, 0.1, atol=1e-6)
    held = held_out_batch(opened, DrawConfig(), 2)["twins"]
    np.testing.assert_allclose(held.image1, 200 / 255, atol=1e-6)
    changed = config.override(data, "twins.lift", "0.5", "config.data")
    assert changed.twins.lift == 0.5
    with pytest.raises(config.UserError, match=r"^config\.data\.posed is not part .* has twins\.$"):
        config.override(data, "posed.queries", "3", "config.data")
