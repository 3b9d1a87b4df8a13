"""Semantic flow between two feature maps: volumes of all pairs, confident matches, dense guidance, and what is compared along a flow.

All functions are for one pair of images. i = (x, y) is a cell of the source map (h, w), j one of the target map (h', w'); volumes are (h, w, h' w') with the
target's cells row by row. A flow (h, w, 2) holds displacements (dx, dy) in cells: i + flow[i] is a position on the target map, the centre of its first cell
being (0, 0). Source: GSF (Jeon et al., ECCV 2020); equation numbers are those of its supplementary, what these leave open is said at each function.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.ops.sampling import bilinear
from jaxdesc.ops.warp import pixel_grid
from jaxdesc.types import Array

LEAST_MASS = 1e-6  # of the matches that reach a cell: below, its guidance is 0
LEAST_CORRELATION = 1e-6  # a cell whose greatest one is no more is like none of the other map
CONTRASTS = (1.0, 1000.0)  # least and greatest that `contrast_of` gives
RIDGE = 1e-3  # cells^2, added to the spread of the matches that an affine interpolation is fitted to


def unit_features(features: Array, eps: float = 1e-6) -> Array:
    """F / sqrt(sum_c F^2 + eps) over the last axis, float32."""
    features = features.astype(jnp.float32)
    return features * jax.lax.rsqrt(jnp.sum(features * features, -1, keepdims=True) + eps)


def correlation(source: Array, target: Array) -> Array:
    """C[i, j] = max(0, <F_s[i], F_t[j]>): maps (h, w, d) and (h', w', d) -> (h, w, h' w')."""
    return jnp.maximum(jnp.matmul(source, target.reshape(-1, target.shape[-1]).T, precision="highest"), 0)


def ratio_product(C: Array) -> Array:
    """R[i, j] = (C[i, j] / max_j' C[i, j']) (C[i, j] / max_i' C[i', j]), in [0, 1].

    It is 1, to rounding, exactly where i and j are each other's nearest neighbours, and
    does not depend on the scale of C: no epsilon is added, which a contrast would amplify;
    cells that are like none, see LEAST_CORRELATION, are divided by 1. Source: NC-Net's
    soft mutual filter without its factor C.
    """

    def of_greatest(axis):
        greatest = C.max(axis, keepdims=True)
        return C / jnp.where(greatest > LEAST_CORRELATION, greatest, 1)

    return of_greatest(-1) * of_greatest((0, 1))


def mutual_confidence(C: Array, power: int = 0, contrast: float = 1.0) -> Array:
    """Q = R^contrast C^power, R the `ratio_product`, in [0, 1].

    With power 0 it is 1 where i and j are each other's nearest neighbours, at any
    contrast. The supplementary says that Q encodes mutual consistency, no more, and
    that at rho = 0.9 three quarters of the cells have a confident match; for that,
    features whose cosines are all alike need a contrast above 1, see `contrast_of`.
    """
    R = ratio_product(C)
    Q = R if contrast == 1 else R**contrast
    return Q * C**power if power else Q


def contrast_of(best: np.ndarray, rho: float, density: float) -> float:
    """The contrast at which the fraction `density` of the cells has a confident match.

    Cell i has one if b[i]^contrast > rho, b[i] = max_j R[i, j], so the number of such
    cells falls as the contrast grows; with t the (1 - density) quantile of b it is
    contrast = ln rho / ln t. Kept within CONTRASTS: nothing helps if too few cells have a
    match at 1, or if too many are mutual nearest neighbours, whose b is 1.

    Args:
      best: b of any number of cells.
    """
    t = np.clip(np.quantile(np.asarray(best, np.float64), 1 - density), 1e-12, 1 - 1e-12)
    return float(np.clip(np.log(rho) / np.log(t), *CONTRASTS))


def confident(Q: Array, rho: float) -> Array:
    """S = {(i, j): Q[i, j] > rho} as bool, a constant to differentiation."""
    return jax.lax.stop_gradient(Q) > rho


def density(Q: Array, rho: float) -> Array:
    """() share of the source's cells with a confident match, |{i: max_j Q[i, j] > rho}| / (h w)."""
    return jnp.mean((Q.max(-1) > rho).astype(jnp.float32))


def _weighted(Q: Array, selected: Array, target_hw: tuple[int, int]) -> tuple[Array, Array]:
    """m[i] = sum_j A[i, j] and sum_j A[i, j] (j - i), with A = Q where selected, else 0."""
    A = jnp.where(selected, Q, 0)
    mass = A.sum(-1)
    places = jnp.matmul(A, pixel_grid(*target_hw).reshape(-1, 2), precision="highest")
    return mass, places - mass[..., None] * pixel_grid(*Q.shape[:2])


def sparse_guidance(Q: Array, selected: Array, target_hw: tuple[int, int]) -> tuple[Array, Array]:
    """G[i] = sum_j A[i, j] (j - i) / m[i], m[i] = sum_j A[i, j], A = Q where selected, else 0.

    Args:
      Q: (h, w, h' w') confidences. selected: bool of the same shape, see `confident`.
    Returns:
      G (h, w, 2), 0 where no match is selected, and the mass m (h, w), 0 there.
    """
    mass, moved = _weighted(Q, selected, target_hw)
    return jnp.where(mass[..., None] > 0, moved, 0) / jnp.where(mass > 0, mass, 1)[..., None], mass


def gaussian(squared: Array, c: float, convention: str) -> Array:
    """exp(-d^2 / (2 c^2)) of squared distances ("width": c is the standard deviation in cells), or exp(-d^2 / (2 c)) ("variance")."""
    return jnp.exp(-squared / (2 * (c * c if convention == "width" else c)))


def dense_guidance(Q: Array, selected: Array, target_hw: tuple[int, int], c: float, convention: str, order: int = 0) -> Array:
    """G': the confident matches interpolated by moving least squares with Gaussian weights.

    With weights W[i, k] = K[i, k] m[k], K the Gaussian of ||i - k||, order 0 is the weighted mean

        G'[i] = sum_k W[i, k] G[k] / (sum_k W[i, k] + 1e-8),

    order 1 the value at i of the affine map that fits the G[k] best, its slope damped by RIDGE. 0 where sum_k W[i, k] < LEAST_MASS, so everywhere if nothing
    is selected. Gradients reach Q through the values of the selected entries. The supplementary says that c smooths G' and that G' has values where G has none.

    Args:
      Q, selected: as in `sparse_guidance`. c: of the Gaussian, cells. convention: see `gaussian`. order: 0 or 1.
    Returns:
      (h, w, 2).
    """
    h, w = Q.shape[:2]
    cells = pixel_grid(h, w).reshape(-1, 2)
    mass, moved = (x.reshape(h * w, -1) for x in _weighted(Q, selected, target_hw))  # (k, 1), (k, 2): m and m G
    K = gaussian(jnp.sum((cells[:, None] - cells) ** 2, -1), c, convention)
    if order == 0:
        summed = jnp.matmul(K, jnp.concatenate([mass, moved], 1), precision="highest")
        total, sums = summed[:, :1], summed[:, 1:]
        return jnp.where(total < LEAST_MASS, 0, sums / (total + 1e-8)).reshape(h, w, 2)
    G = jnp.where(mass > 0, moved, 0) / jnp.where(mass > 0, mass, 1)
    W = K * mass[:, 0]
    total = W.sum(1, keepdims=True)
    W = W / (total + 1e-8)
    mean_at, mean_G = (jnp.matmul(W, x, precision="highest") for x in (cells, G))
    from_mean = cells - mean_at[:, None]  # (i, k, 2)
    spread = jnp.einsum("ik,ika,ikb->iab", W, from_mean, from_mean, precision="highest") + RIDGE * jnp.eye(2)
    cross = jnp.einsum("ik,ika,ikb->iab", W, from_mean, G - mean_G[:, None], precision="highest")
    (a, b), (_, d) = spread[:, 0].T, spread[:, 1].T
    inverse = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-b, a], -1)], -2) / (a * d - b * b)[:, None, None]
    value = mean_G + jnp.einsum("ia,iab,ibc->ic", cells - mean_at, inverse, cross, precision="highest")
    return jnp.where(total < LEAST_MASS, 0, value).reshape(h, w, 2)


def modulate(C: Array, guidance: Array, target_hw: tuple[int, int], c: float, convention: str) -> Array:
    """C'[i, j] = C[i, j] * Gaussian of ||(j - i) - G'[i]||; neither amplified nor normalised, as a small c is said to dampen C'.

    The Gaussian is the product of one of the columns and one of the rows, (h, w, w') and (h, w, h'), so that no second volume is made.
    """
    h, w = C.shape[:2]
    at = pixel_grid(h, w) + guidance
    along_x = gaussian((jnp.arange(target_hw[1]) - at[..., :1]) ** 2, c, convention)
    along_y = gaussian((jnp.arange(target_hw[0]) - at[..., 1:]) ** 2, c, convention)
    return (C.reshape(h, w, *target_hw) * along_y[..., None] * along_x[..., None, :]).reshape(C.shape)


def warp_map(target: Array, flow: Array) -> Array:
    """[flow o F][i] = F at i + flow[i], bilinear, zeros outside: (h', w', d), (h, w, 2) -> (h, w, d)."""
    return bilinear(target, pixel_grid(*flow.shape[:2]) + flow)


def best_flow(C: Array, target_hw: tuple[int, int]) -> Array:
    """The displacement to the target's cell of highest correlation, (h, w, 2); what a flow network is to improve on."""
    index = C.argmax(-1)
    return jnp.stack([index % target_hw[1], index // target_hw[1]], -1).astype(jnp.float32) - pixel_grid(*C.shape[:2])


def neighbourhood(h: int, w: int, window: int) -> Array:
    """(h w, h w) bool: [i, l] whether l is among the window x window cells around i; window odd."""
    cells = pixel_grid(h, w).reshape(-1, 2)
    return jnp.abs(cells[:, None] - cells).max(-1) <= window // 2


def window_mean(x: Array, window: int) -> Array:
    """(h, w) -> (h, w): the mean over the window x window cells around each, of those that exist."""
    near = neighbourhood(*x.shape, window).astype(x.dtype)
    return (jnp.matmul(near, x.reshape(-1), precision="highest") / near.sum(1)).reshape(x.shape)


def silhouette_loss(refined: Array, Q: Array, selected: Array, same: Array | None = None) -> Array:
    """(11) L_sil = 1 / |S*| sum over S* of (Q'[i, j] - t[i, j])^2, t = Q, and 0 where i is on the object and j is not, or the reverse. 0 if S* is empty.

    The supplementary says that Q' stays close to Q, and that masks are used; the square, and the masks at this place, are decisions.

    Args:
      refined: Q'. selected: S*. same: (h, w, h' w') bool, whether the masks agree; None: no masks.
    """
    target = Q if same is None else jnp.where(same, Q, 0)
    return jnp.sum(jnp.where(selected, (refined - target) ** 2, 0)) / jnp.maximum(selected.sum(), 1)


def same_side(mask_source: Array, mask_target: Array) -> Array:
    """(h, w), (h', w') bool -> (h, w, h' w') bool: m_s[i] = m_t[j]."""
    return mask_source[..., None] == mask_target.reshape(-1)


def reconstruction_loss(source: Array, warped: Array, refined: Array, selected: Array, window: int, weight: str = "recon") -> Array:
    """(12) L_geo, with e[i] = ||F_s[i] - [G' o F_t][i]||^2 and its mean over the window around i, e~[i]:

        "recon"   1 / |S*| sum over S* of e~[i]
        "qprime"  sum over S* of Q'[i, j] e~[i] / sum over S* of Q'[i, j]

    0 if S* is empty. The supplementary calls it a reconstruction loss of the features over a neighbourhood; both forms are decisions.

    Args:
      source: F_s (h, w, d) of unit length. warped: G' o F_t. refined: Q'. selected: S*. window: odd side, cells.
    """
    e = window_mean(jnp.sum((source - warped) ** 2, -1), window)[..., None]
    if weight == "recon":
        return jnp.sum(selected * e) / jnp.maximum(selected.sum(), 1)
    A = jnp.where(selected, refined, 0)
    return jnp.sum(A * e) / jnp.maximum(A.sum(), 1e-8)


def classification_loss(source: Array, warped: Array, window: int, sharpness: float = 1.0) -> Array:
    """(13), (14) L_M: mean over all i of -log P[i, i],

        P[i, l] = exp(b <F_s[i], [tau o F_t][l]>) / sum over l' in M_i of exp(b <F_s[i], [tau o F_t][l']>),

    M_i the window x window cells around i, of those that exist. ln |M_i| where all scores are equal.

    Args:
      source, warped: (h, w, d). window: odd side, cells. sharpness: b.
    """
    h, w, d = source.shape
    scores = sharpness * jnp.matmul(source.reshape(-1, d), warped.reshape(-1, d).T, precision="highest")
    return jnp.mean(jax.nn.logsumexp(jnp.where(neighbourhood(h, w, window), scores, -jnp.inf), axis=1) - jnp.diagonal(scores))


def smoothness_loss(flow: Array) -> Array:
    """L_sm = mean |flow[x + 1] - flow[x]| + mean |flow[y + 1] - flow[y]|, each over all forward differences of both components; (h, w, 2), h and w > 1."""
    return jnp.abs(flow[:, 1:] - flow[:, :-1]).mean() + jnp.abs(flow[1:] - flow[:-1]).mean()


def mask_cells(mask: Array, grid_hw: tuple[int, int], share: float = 0.1) -> Array:
    """(H, W) of 0 and 1 -> (h, w) bool: the cells of which more than `share` is covered; H and W are multiples of h and w."""
    h, w = grid_hw
    return mask.astype(jnp.float32).reshape(h, mask.shape[0] // h, w, mask.shape[1] // w).mean((1, 3)) > share


def carried(flow: Array, cells: Array) -> Array:
    """Positions (..., 2) on the source map, in cells, moved along a flow (h, w, 2): bilinear between the centres of the cells, constant beyond the outermost."""
    last = jnp.array([flow.shape[1] - 1.0, flow.shape[0] - 1.0])
    return cells + bilinear(flow, jnp.clip(cells, 0, last))
