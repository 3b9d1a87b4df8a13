"""The differentiable matching layer: where a point of one image is expected in the other, coarsely and then finely. CAPS, section 3.

Written for one pair: maps are (H, W, D), points (N, 2). Coordinates `uv` are normalised with aligned corners, see `ops.sampling`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdesc.methods.caps.unet import Maps
from jaxdesc.ops.sampling import sample, uv_grid
from jaxdesc.types import Array

LEAST_VARIANCE = 1e-10


class Match(NamedTuple):
    """N points of one image in the other one."""

    uv: Array  # (N, 2) expected location
    std: Array  # (N,) standard deviations of u and v, added
    peak_uv: Array  # (N, 2) most probable location, no gradient
    probability: Array  # (N, P) of the candidate positions


class Matches(NamedTuple):
    """Both levels, there and back."""

    coarse: Match  # in image 2
    fine: Match
    coarse_loop: Match  # back in image 1
    fine_loop: Match


def similarities(queries: Array, candidates: Array, similarity: str) -> Array:
    """Scores (N, P) of queries (N, D) with candidates (P, D), or (N, P, D) where each query has its own.

    "correlation": <q, c>. "distance": -||q - c||^2.
    """
    inner = jnp.einsum("nd,npd->np" if candidates.ndim == 3 else "nd,pd->np", queries, candidates, preferred_element_type=jnp.float32)
    if similarity == "correlation":
        return inner
    return 2 * inner - jnp.sum(candidates**2, -1) - jnp.sum(queries**2, -1)[:, None]


def expectation(scores: Array, uv: Array) -> Match:
    """E = sum_p P_p uv_p with P = softmax(scores); std = sqrt(max(var u, 1e-10)) + sqrt(max(var v, 1e-10)).

    Args:
      scores: (N, P). uv: (P, 2) or (N, P, 2) positions of the candidates.
    """
    probability = jax.nn.softmax(scores, -1)
    uv = jnp.broadcast_to(uv, (*scores.shape, 2))
    mean = jnp.einsum("np,npk->nk", probability, uv, precision="highest")
    variance = jnp.einsum("np,npk->nk", probability, (uv - mean[:, None]) ** 2, precision="highest")
    peak = jnp.take_along_axis(uv, scores.argmax(-1)[:, None, None], 1)[:, 0]
    return Match(mean, jnp.sqrt(jnp.maximum(variance, LEAST_VARIANCE)).sum(-1), jax.lax.stop_gradient(peak), probability)


def match_whole(queries: Array, maps: Array, similarity: str) -> Match:
    """Over all pixels of a map (H, W, D)."""
    return expectation(similarities(queries, maps.reshape(-1, maps.shape[-1]), similarity), uv_grid(*maps.shape[:2]).reshape(-1, 2))


def window_shape(size_hw: tuple[int, int], half: float) -> tuple[int, int]:
    """Rows int(half h) and columns int(half w) of a window's grid on a map of h x w; at least two of each."""
    h, w = size_hw
    return max(int(half * h), 2), max(int(half * w), 2)


def window_uv(centre_uv: Array, size_hw: tuple[int, int], half: float) -> Array:
    """(N, P, 2) positions in the windows centre +- half: a grid of `window_shape`, row by row, evenly spaced, both ends included."""
    return centre_uv[:, None] + half * uv_grid(*window_shape(size_hw, half)).reshape(-1, 2)


def window_products(queries: Array, maps: Array, centre_uv: Array, half: float) -> Array:
    """(N, P) products of queries (N, D) with a map (H, W, D) sampled at `window_uv`, zeros outside.

    A product with what lies between pixels is what lies between the products, and a window's grid is regular: so the products with all pixels are
    interpolated along columns and then along rows, by tents, as matrix products. Sampling the descriptors themselves would gather N P D numbers four times.
    """
    h, w, d = maps.shape
    products = jnp.einsum("nd,pd->np", queries, maps.reshape(-1, d), preferred_element_type=jnp.float32).reshape(-1, h, w)
    rows, columns = window_shape((h, w), half)
    offsets = [half * jnp.linspace(-1.0, 1.0, count) for count in (columns, rows)]
    xs, ys = ((centre_uv[:, i, None] + offsets[i] + 1) / 2 * (n - 1) for i, n in enumerate((w, h)))
    tents_x, tents_y = (jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(n)), 0) for at, n in ((xs, w), (ys, h)))
    along_columns = jnp.einsum("nrh,nhw->nrw", tents_y, products, precision="highest")
    return jnp.einsum("nrw,ncw->nrc", along_columns, tents_x, precision="highest").reshape(-1, rows * columns)


def match_window(queries: Array, maps: Array, centre_uv: Array, half: float, similarity: str) -> Match:
    """Over windows of a map (H, W, D), one a query, on which it is sampled; outside the map descriptors are zeros."""
    uv = window_uv(centre_uv, maps.shape[:2], half)
    if similarity == "correlation":
        return expectation(window_products(queries, maps, centre_uv, half), uv)
    return expectation(similarities(queries, sample(maps, uv), similarity), uv)


def match_pair(maps1: Maps, maps2: Maps, uv1: Array, *, window: float = 0.125, use_nn: bool = True, similarity: str = "correlation") -> Matches:
    """From image 1 to image 2 and back.

    The fine window in image 2 is centred on the coarse peak (`use_nn`) or on the coarse
    expectation, and the coarse loop starts there. The fine loop starts from the fine
    expectation, its window centred on the query itself.

    Args:
      maps1, maps2: of one pair, without the batch axis. uv1: (N, 2) queries.
      window: half side of the fine windows, normalised: 1/8 of the map each way of 2.
    """
    coarse = match_whole(sample(maps1.coarse, uv1), maps2.coarse, similarity)
    centre = coarse.peak_uv if use_nn else coarse.uv
    fine = match_window(sample(maps1.fine, uv1), maps2.fine, centre, window, similarity)
    coarse_loop = match_whole(sample(maps2.coarse, centre), maps1.coarse, similarity)
    fine_loop = match_window(sample(maps2.fine, fine.uv), maps1.fine, uv1, window, similarity)
    return Matches(coarse, fine, coarse_loop, fine_loop)
