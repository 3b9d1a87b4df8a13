"""The contract between a method and everything else: what it must give, and what it may.

A method is a paper: a `Definition`, which the registry (`jaxdesc.methods`) knows by its name, whose
`build` makes a `Method`, a tuple of pure functions, from a configuration. Training, matching and
evaluation take these and never ask which method they have. One from outside the package is added
by `jaxdesc.register(definition)`, or by an entry point of the group "jaxdesc.methods".

Shapes: B images of H rows and W columns, N points, D numbers a descriptor.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxdesc.config import MethodConfig, Options
from jaxdesc.types import Array, Batch, Correspondences, Grid, Keypoints, Variables

Say = Callable[[str], None]  # is told a sentence
Progress = Callable[[int, int], None]  # is told the work done and the work to do


class Init(Protocol):
    def __call__(self, key: Array, batch: Batch) -> Variables:
        """Variables that training starts from; of the batch only shapes may matter."""
        ...


class Loss(Protocol):
    def __call__(
        self, variables: Variables, batch: Batch, key: Array, train: bool
    ) -> tuple[Array, tuple[dict[str, Array], Any]]:
        """per_example (B,), (parts {name: (B,)}, model_state without "params").

        Runs inside the mapped axis that `build` was told; nothing is reduced over the batch.
        """
        ...


class Describe(Protocol):
    def __call__(self, variables: Variables, images: Array) -> Array:
        """(B, H, W, 3) RGB in [0, 1] -> (B, h, w, D) float32 of unit length."""
        ...


class DescribeAt(Protocol):
    def __call__(self, variables: Variables, image: Array, xy_px: Array) -> Array:
        """(H, W, 3), (N, 2) pixels -> (N, D)."""
        ...


class Match(Protocol):
    def __call__(
        self,
        variables: Variables,
        image1: np.ndarray,
        image2: np.ndarray,
        options: Any,
        say: Say | None,
        progress: Progress | None,
    ) -> Correspondences:
        """Dense matches of two photographs (H, W, 3) of any size, on the host.

        Args:
          options: of the definition's MatchOptions.
        """
        ...


class Transfer(Protocol):
    def __call__(
        self, variables: Variables, image1: Array, image2: Array, xy1_px: Array
    ) -> tuple[Array, Array]:
        """Points (N, 2) of image 1 in image 2, and their scores (N,); on the device.

        Both images are squares of `Method.square_px`.
        """
        ...


class Dense(Protocol):
    def __call__(self, variables: Variables, image1: np.ndarray, image2: np.ndarray) -> np.ndarray:
        """(H1, W1, 2): the place (x, y) in image 2 of every pixel of image 1, on the host."""
        ...


class Points(Protocol):
    def __call__(
        self,
        variables: Variables,
        image1: np.ndarray,
        image2: np.ndarray,
        xy1_px: np.ndarray,
        options: Any,
    ) -> Correspondences:
        """A match for each of the points (N, 2) of image 1, in their order, on the host."""
        ...


class Detect(Protocol):
    def __call__(
        self, variables: Variables, image: np.ndarray, most: int
    ) -> tuple[Keypoints, np.ndarray]:
        """The method's own keypoints of a photograph (H, W, 3) of any size, and their descriptors.

        On the host. At most `most`, the best first; descriptors (N, D) float32 of unit length.

        Args:
          image: uint8, or floats in [0, 1].
        """
        ...


class Explain(Protocol):
    def __call__(
        self,
        variables: Variables,
        image1: np.ndarray,
        image2: np.ndarray,
        xy1_px: np.ndarray,
        xy2_px: np.ndarray | None,
    ) -> np.ndarray:
        """The picture (H, W, 3) uint8 of where points (N, 2) of image 1 may be in image 2.

        Args:
          xy2_px: (N, 2) where they are, if that is known.
        """
        ...


class Method(NamedTuple):
    """One paper as pure functions, as optax's GradientTransformation is a pair of them."""

    init: Init
    loss: Loss
    describe: Describe
    grid: Callable[[int, int], Grid]  # (H, W) of an image -> where the cells of its map lie
    match: Match
    describe_at: DescribeAt | None = None  # None: read from describe's map
    transfer: Transfer | None = None  # None: by nearest descriptors
    square_px: int | None = None  # side of the squares that transfer takes
    dense: Dense | None = None  # None: linear between the matches
    points: Points | None = None
    detect: Detect | None = None  # None: keypoints come from elsewhere
    explain: Explain | None = None


class Build(Protocol):
    def __call__(self, cfg: Any, axis_name: str | None = None, **stage: Any) -> Method:
        """A configuration as a Method.

        Args:
          cfg: of the definition's Config.
          axis_name: the mapped axis that batch statistics are shared over; None: there is none.
          stage: options of a stage of training, see `config.Stage`.
        """
        ...


class Released(NamedTuple):
    """Weights that others published, and that can be converted."""

    from_torch: Callable[[dict[str, np.ndarray]], tuple[Any, Variables]]  # tensors by name
    licence: str  # of the weights: one sentence


class Definition(NamedTuple):
    """A method as the registry knows it; its name is that of its Config."""

    Config: type[MethodConfig]
    build: Build
    MatchOptions: type[Options] = Options
    released: Callable[[], Released] | None = None  # imported on use
    published: Mapping[str, float] = {}  # scores of training that the paper reports, by name
    benchmarks: Callable[[], Mapping[str, Callable[[Any], None]]] | None = None
    """{name: what `benchmark NAME` runs with its flags}; imported on use."""

    @property
    def name(self) -> str:
        return self.Config.name
