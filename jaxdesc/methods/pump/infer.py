"""Matching two photographs: scales and rotations, as a whole or tile by tile, then the filter."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.images import STEP_PX, to_float
from jaxdesc.matching.coherence import keep_coherent
from jaxdesc.matching.views import Crop
from jaxdesc.method import Progress
from jaxdesc.methods.pump import network
from jaxdesc.methods.pump.multiscale import Describe, followed, merge, runs, views, work
from jaxdesc.methods.pump.recursive import SIDE, match_recursively
from jaxdesc.methods.pump.single import MatchOptions, available_bytes, predict_bytes
from jaxdesc.ops.matching import decode_pose, encode_pose
from jaxdesc.types import Array, Correspondences, Size, UserError, Variables


def predict_images_bytes(size1_hw: Size, size2_hw: Size, dim: int, options: MatchOptions) -> int:
    """Peak memory of matching whole images of these sizes: the largest matching, and the descriptors of all scales; without the network's own needs."""
    sizes = views(size1_hw, size2_hw, options)
    maps = {(image, size) for pair in sizes for image, size in enumerate(pair)}  # one rotation of image 2 is held at a time
    return max(predict_bytes(*pair, dim, options) for pair in sizes) + sum(4 * dim * h * w for _, (h, w) in maps)


def match_images(
    describe: Describe,
    image1: np.ndarray,
    image2: np.ndarray,
    options: MatchOptions = MatchOptions(),
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Quasi-dense matches of two photographs.

    Where a matching of the whole images is predicted not to fit into `options.memory_bytes`, a coarse pass decides which tiles to match.

    Args:
      describe: (B, H, W, 3) float32 RGB in [0, 1] -> (B, H, W, D) unit descriptors; compiled, as it is called for several images of few sizes.
      image1, image2: (H, W, 3) uint8, or float in [0, 1].
      say: is told, in a sentence, if the images are matched tile by tile.
      progress: is told the work done and the work to do, in correlations, after each scale and rotation; what tiles will cost is known after the coarse pass.

    Returns:
      (N, 6) float32 rows x1, y1, x2, y2, score, code (`ops.matching.encode_pose`), best score
      first before the filter.

    Raises:
      UserError: an image that is no RGB image; no memory even for the smallest tiles.
    """
    first, second = (to_float(image, name) for image, name in ((image1, "image1"), (image2, "image2")))
    swapped = min(second.shape[:2]) > min(first.shape[:2])
    if swapped:
        first, second = second, first
    budget = options.memory_bytes or available_bytes()
    dim = jax.eval_shape(describe, jax.ShapeDtypeStruct((1, STEP_PX, STEP_PX, 3), jnp.float32)).shape[-1]
    options = dataclasses.replace(options, memory_bytes=budget)

    needed = predict_images_bytes(first.shape[:2], second.shape[:2], dim, options)
    if needed <= budget:
        todo = work(first.shape[:2], second.shape[:2], options)
        rows = merge(list(followed(runs(describe, Crop(first), Crop(second), options), 0, todo, progress)))
    else:
        side = next((n for n in range(SIDE, 0, -STEP_PX) if predict_images_bytes((n, n), (n, n), dim, options) <= budget), None)
        if side is None:
            raise UserError(f"Matching needs more than the {budget / 2**30:.2f} GiB of memory that it may take: raise MatchOptions.memory_bytes.")
        rows, pairs = match_recursively(describe, first, second, options, side, progress)
        if say:
            say(
                f"The images as a whole would take {needed / 2**30:.1f} GiB of {budget / 2**30:.1f} GiB: matched coarsely, then in {pairs} pairs of tiles of {side} px."
            )
    if swapped:
        scale, rotation = decode_pose(rows[:, 5])
        rows = np.column_stack([rows[:, 2:4], rows[:, :2], rows[:, 4], encode_pose(1 / scale, -rotation)]).astype(np.float32)
    return keep_coherent(rows, options.min_component) if options.min_component else rows


def match(
    variables: Variables,
    image1: Array,
    image2: Array,
    options: MatchOptions = MatchOptions(),
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    *,
    net,
    multiple: int,
) -> Correspondences:
    """`match_images` with the network: (H, W, 3) photographs -> Correspondences on the host, all of them valid."""

    def describe(images):
        return network.compiled(net, variables, images, multiple)

    rows = match_images(describe, image1, image2, options, say, progress)
    return Correspondences(xy1_px=rows[:, :2], xy2_px=rows[:, 2:4], score=rows[:, 4], code=rows[:, 5].astype(np.int32), valid=np.ones(len(rows), bool))
