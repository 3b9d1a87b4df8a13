"""The kinds of training pair: what a configuration's `data` may be made of.

The contract is `jaxdesc.data.kind.Kind`. A configuration has a value for each kind that it uses
and None for the others; a batch is {name: pairs}. To add a kind, write a file beside these and
give it a line in `DataConfig`; generic code goes through the fields.
"""

import typing
from dataclasses import dataclass

from jaxdesc.config import HostConfig, option
from jaxdesc.data.crops import CropConfig
from jaxdesc.data.kind import Kind
from jaxdesc.data.kinds.homography import HomographyPairs
from jaxdesc.data.kinds.keypoints import KeypointPairs
from jaxdesc.data.kinds.posed import PosedPairs
from jaxdesc.data.kinds.unlabelled import UnlabelledPairs

__all__ = [
    "KINDS",
    "CropConfig",
    "DataConfig",
    "HomographyPairs",
    "KeypointPairs",
    "PosedPairs",
    "UnlabelledPairs",
]


@dataclass(frozen=True)
class DataConfig(HostConfig):
    """What batches are made of, and how the host reads it; slots are counted in this order."""

    homography: HomographyPairs | None = option(None, "photographs and warped copies of them")
    unlabelled: UnlabelledPairs | None = option(None, "photographs of one place")
    posed: PosedPairs | None = option(None, "views with known cameras")
    keypoints: KeypointPairs | None = option(None, "images of objects with common keypoints")


KINDS: dict[str, type[Kind]] = {
    name: kind
    for name, hint in typing.get_type_hints(DataConfig).items()
    for kind in typing.get_args(hint)
    if isinstance(kind, type) and issubclass(kind, Kind)
}
