"""Points of one image sought in the other by descriptors alone, as held-out pairs are scored."""

import jax.numpy as jnp

from jaxdesc.method import Method
from jaxdesc.ops.matching import nearest
from jaxdesc.ops.sampling import cell_centres, descriptors_at
from jaxdesc.types import Array, Correspondences, KeypointPair, PosedPair, Variables


def look_up(
    variables: Variables, pair: PosedPair | KeypointPair, method: Method
) -> Correspondences:
    """The points xy1_px of one pair, each with the cell of image 2's whole descriptor map that is
    most like image 1's map there."""
    grid = method.grid(*pair.image1.shape[:2])
    map1, map2 = method.describe(variables, jnp.stack([pair.image1, pair.image2]))
    queries = descriptors_at(map1, pair.xy1_px, grid)
    cells = cell_centres(map2.shape[:2], grid)
    everywhere = jnp.ones(len(cells), bool)
    flat = map2.reshape(-1, map2.shape[-1])
    index, score, _ = nearest(queries, flat, pair.valid, everywhere, strip=256)
    code = jnp.zeros(len(index), jnp.int32)
    return Correspondences(pair.xy1_px, cells[index], score, code, pair.valid)


def mean_of(values: Array, counted: Array) -> tuple[Array, Array]:
    """Mean over the marked ones and weight 1, or 0 and 0 if there is none."""
    mean = jnp.where(counted, values, 0).sum() / jnp.maximum(counted.sum(), 1)
    return mean, counted.any().astype(jnp.float32)
