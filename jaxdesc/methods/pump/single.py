"""Matching at one scale: two descriptor maps in, correspondences out, within a budget of memory that is known beforehand."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdesc.config import option
from jaxdesc.matching.views import Views
from jaxdesc.methods.pump.matching_pyramid import Fields, geometry, match_fields, patch_count, strip_size
from jaxdesc.ops.matching import patch_centres
from jaxdesc.types import Array, Correspondences, Size, UserError

ROWS, STRIPS = 4, 2  # buffers of a row of patches and of a strip of the correlation that the compiled program holds at once


@dataclass(frozen=True)
class MatchOptions(Views):
    """How two images are matched."""

    max_scale: float = option(
        4.0,
        "change of scale that is searched, 1/S to S in steps of sqrt(2)",
        **{"at_least": 1, "unit": "S"},
    )
    levels: int | None = option(
        None, "levels of the pyramid, at most (default: all that the images have)", at_least=0
    )
    memory_bytes: int | None = option(
        None,
        "memory that matching may take (default: what is free)",
        **{"above": 0, "flag": "memory", "unit": "GIB", "scale": 2**30},
    )
    storage: str = option("float16", "type of the pyramid", choices=("float16", "float32"))
    min_component: int = option(
        50,
        "groups of so many neighbouring matches, or fewer, are dropped; 0: all are kept, and "
        "none is scored by its group",
        at_least=0,
    )


def available_bytes() -> int:
    """Memory that a matching may plan with: what the accelerator has left, or 60 % of the memory that the system could still give."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as file:
            kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in file)}
        return int(0.6 * 1024 * kilobytes["MemAvailable"])
    except (OSError, KeyError):
        return 4 << 30  # no system that we know how to ask


def predict_bytes(size1_hw: Size, size2_hw: Size, dim: int, options: MatchOptions = MatchOptions()) -> int:
    """Peak memory of `match_descriptors` on arrays of these sizes, descriptors (float32) included, in bytes.

    It is the sum of the two maps, the pyramid, what is kept of level 0 and the buffers of one row of patches; if it exceeds `options.memory_bytes` nothing
    of level 0 is kept, so the result may be as much as a half less than the memory allowed, or more than it, if not even that fits.
    """
    lean = _bytes(size1_hw, size2_hw, dim, options, keep=False)
    return _bytes(size1_hw, size2_hw, dim, options, keep=True) if _keeps(size1_hw, size2_hw, dim, options) else lean


def _keeps(size1_hw: Size, size2_hw: Size, dim: int, options: MatchOptions) -> bool:
    """Whether pooled maps and codes of level 0 are kept, rather than correlated twice."""
    budget = available_bytes() if options.memory_bytes is None else options.memory_bytes
    return _bytes(size1_hw, size2_hw, dim, options, keep=True) <= budget


def _bytes(size1_hw: Size, size2_hw: Size, dim: int, options: MatchOptions, keep: bool) -> int:
    (H1, W1), (H2, W2), (h1, w1) = size1_hw, size2_hw, map(patch_count, size1_hw)
    item = jnp.dtype(options.storage).itemsize
    count = len(geometry(size1_hw, size2_hw, options.levels).coefficients)
    maps = []  # numbers in a map of image 2, level by level
    h, w = H2, W2
    for _ in range(count + 1):
        maps.append(h * w)
        h, w = -(-h // 2), -(-w // 2)
    pooled = -(-H2 // 2) * -(-W2 // 2)
    descriptors = 4 * dim * (H1 * W1 + 2 * H2 * W2 + h1 * w1)  # image 2 a second time, sorted
    tower = item * (h1 + 1) * (w1 + 1) * (sum(maps[1:]) + (maps[2] if count > 1 else 0))  # the pooled maps below level 2 too, while it is made
    kept = (item + 1) * (h1 + 1) * w1 * pooled * (keep and count > 0)
    rows = ROWS * 4 * (w1 + 1) * pooled * (count > 0)
    strips = STRIPS * strip_size(size1_hw, size2_hw)
    return descriptors + tower + kept + rows + strips


_match_fields = jax.jit(match_fields, static_argnames=("keep", "dtype", "strip_bytes"))


def fields(desc1: Array, desc2: Array, options: MatchOptions, size1_hw: Size, size2_hw: Size, mask2: Array | None = None) -> Fields:
    """`match_fields` with the levels that true sizes ask for and the storage that the options allow; one program per shapes and number of levels."""
    room1, room2 = desc1.shape[:2], desc2.shape[:2]
    pyramid = geometry(size1_hw, size2_hw, options.levels, room1, room2)
    return _match_fields(desc1, desc2, pyramid, mask2, keep=_keeps(room1, room2, desc1.shape[2], options), dtype=jnp.dtype(options.storage))


def match_descriptors(
    desc1: Array,
    desc2: Array,
    options: MatchOptions = MatchOptions(),
    *,
    size1_hw: Size | None = None,
    size2_hw: Size | None = None,
    mask2: Array | None = None,
) -> Correspondences:
    """Reciprocal quasi-dense matches of two descriptor maps at one scale and rotation.

    Args:
      desc1: (H1, W1, D), desc2: (H2, W2, D), unit descriptors.
      options: of which levels, memory_bytes and storage are used here.
      size1_hw, size2_hw: rows and columns that exist, if the arrays are padded; padding does not change the matches.
      mask2: (H2, W2) bool, the pixels of image 2 that may be matched; by default all.

    Returns:
      One row per patch of image 1, at pixels (4j + 2, 4i + 2); valid where patch and pixel have chosen each other. Code 0.

    Raises:
      UserError: an image of less than 3 pixels across.
    """
    size1_hw, size2_hw = size1_hw or desc1.shape[:2], size2_hw or desc2.shape[:2]
    if min(*size1_hw, *size2_hw) < 3:
        raise UserError(f"Images of {size1_hw[1]}x{size1_hw[0]} and {size2_hw[1]}x{size2_hw[0]} pixels are too small to match: at least 3x3 are needed.")
    found = fields(desc1, desc2, options, size1_hw, size2_hw, mask2)
    xy1 = patch_centres(*desc1.shape[:2])
    score, valid = found.score.ravel(), found.mutual.ravel()
    return Correspondences(xy1_px=xy1, xy2_px=found.xy2_px.reshape(-1, 2).astype(jnp.float32), score=score, code=jnp.zeros(len(score), jnp.int32), valid=valid)
