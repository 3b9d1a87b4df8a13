"""Nearest neighbours between descriptors."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.types import Array, Correspondences

CELL = 4  # pixels: spacing of image 1's patches and side of image 2's cells


def patch_centres(height: int, width: int) -> Array:
    """(P, 2) float32 (x, y) of the patches 4i + 2 of an image, row by row."""
    x = jnp.arange(CELL // 2, width, CELL)
    y = jnp.arange(CELL // 2, height, CELL)
    return jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(jnp.float32)


def reciprocal_nearest(desc1: Array, desc2: Array, strip: int = 128) -> Correspondences:
    """Matches without a pyramid: patches of image 1 and 4x4 cells of image 2 that choose each other by dot product.

    A patch (row and column 4i + 2 of image 1) takes its best pixel of image 2; it is kept if no other patch has a higher
    score anywhere in that pixel's cell. Patches are worked through in strips, so that memory stays at strip * H2 * W2.

    Args:
      desc1: (H1, W1, D), desc2: (H2, W2, D); H2 and W2 multiples of 4.
    Returns:
      one row per patch, of which the reciprocal ones are valid.
    """
    h2, w2, d = desc2.shape
    xy1 = patch_centres(*desc1.shape[:2])
    queries = desc1[CELL // 2 :: CELL, CELL // 2 :: CELL].reshape(-1, d)
    patches = queries.shape[0]
    strips = jnp.pad(queries, ((0, -patches % strip), (0, 0))).reshape(-1, strip, d)
    exists = (jnp.arange(strips.shape[0] * strip) < patches).reshape(-1, strip)

    def one(cell_best, inputs):
        rows, there = inputs
        scores = jnp.einsum("pd,qd->pq", rows, desc2.reshape(-1, d), preferred_element_type=jnp.float32)
        scores = jnp.where(there[:, None], scores, -jnp.inf)
        by_cell = scores.max(0).reshape(h2 // CELL, CELL, w2 // CELL, CELL).max((1, 3))
        return jnp.maximum(cell_best, by_cell), (scores.argmax(1), scores.max(1))

    cell_best, (pixel, score) = jax.lax.scan(one, jnp.full((h2 // CELL, w2 // CELL), -jnp.inf), (strips, exists))
    pixel, score = pixel.reshape(-1)[:patches], score.reshape(-1)[:patches]
    x2, y2 = pixel % w2, pixel // w2
    mutual = score >= cell_best[y2 // CELL, x2 // CELL]
    xy2 = jnp.stack([x2, y2], axis=-1).astype(jnp.float32)
    return Correspondences(xy1_px=xy1, xy2_px=xy2, score=score, code=jnp.zeros(patches, jnp.int32), valid=mutual)


def nearest(desc1: Array, desc2: Array, exists1: Array, exists2: Array, strip: int = 1024) -> tuple[Array, Array, Array]:
    """Nearest neighbours by dot product among all of P and Q descriptors, in strips, so that memory stays at strip * Q.

    Args:
      desc1: (P, D). desc2: (Q, D). exists1: (P,), exists2: (Q,) bool; rows that do not exist are nobody's neighbour.
    Returns:
      (P,) int32 index of the neighbour in desc2, (P,) score, (P,) bool: both exist and the neighbour's own neighbour is the row, the first of equals.
    """
    count, d = desc1.shape
    strips = jnp.pad(desc1, ((0, -count % strip), (0, 0))).reshape(-1, strip, d)
    there = jnp.pad(exists1, (0, -count % strip)).reshape(-1, strip)

    def one(best, inputs):
        at, rows, here = inputs
        scores = jnp.einsum("pd,qd->pq", rows, desc2, preferred_element_type=jnp.float32)
        scores = jnp.where(here[:, None] & exists2, scores, -jnp.inf)
        found, row = scores.max(0), scores.argmax(0)
        best = jnp.where(found > best[0], found, best[0]), jnp.where(found > best[0], at * strip + row, best[1])
        return best, (scores.argmax(1), scores.max(1))

    start = (jnp.full(len(desc2), -jnp.inf), jnp.full(len(desc2), -1))
    (_, back), (index, score) = jax.lax.scan(one, start, (jnp.arange(len(strips)), strips, there))
    index, score = index.reshape(-1)[:count].astype(jnp.int32), score.reshape(-1)[:count]
    return index, score, exists1 & exists2[index] & (back[index] == jnp.arange(count))


def nearest_cells(desc1: Array, desc2: Array, xy1: Array, xy2: Array, inside1: Array, inside2: Array, mutual: bool) -> Correspondences:
    """Each cell of a descriptor map with the `nearest` one of another.

    Args:
      desc1: (H1, W1, D), desc2: (H2, W2, D). xy1: (H1 W1, 2), xy2: (H2 W2, 2) px of the cells, row by row. inside1, inside2: bool, which of them are on their image.
      mutual: valid are only cells that choose each other; False: all that are on image 1.
    Returns:
      one row a cell of image 1; score: dot product; code 0.
    """
    index, score, chosen = nearest(desc1.reshape(-1, desc1.shape[-1]), desc2.reshape(-1, desc2.shape[-1]), inside1, inside2)
    return Correspondences(xy1, xy2[index], score, jnp.zeros(len(xy1), jnp.int32), chosen if mutual else inside1)


def encode_pose(scale, rotation_deg):
    """The code of a match, int64: 8 rint(2 log2 scale) + rint(rotation / 45) mod 8.

    A picture turned clockwise as one sees it, by 45 degrees, is image 2 of rotation code 1,
    by 90 of 2, and counter-clockwise by 90 of 6; as in PUMP's released program.

    Args:
      scale, rotation_deg: a displacement d in image 1 is scale * R(rotation) d in image 2,
        R turning x towards y, which is clockwise as y points down.
    """
    turns = np.rint(np.asarray(rotation_deg) / 45) % 8
    return (8 * np.rint(2 * np.log2(scale)) + turns).astype(np.int64)


def decode_pose(code) -> tuple[np.ndarray, np.ndarray]:
    """(scale, rotation in degrees, above -180 and up to 180) of `encode_pose`'s codes."""
    s, r = np.divmod(np.asarray(code, np.int64), 8)
    return 2.0 ** (s / 2), 180 - (180 - 45.0 * r) % 360
