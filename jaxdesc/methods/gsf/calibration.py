"""The contrast of GSF's confidence at which as many cells have a confident match as in the paper.

Supplementary, section 2: rho = 0.9, "at which the density of confident matches used in the
loss computation becomes 75% on average". What Q is, it does not say; for the ratio product of
the correlations that density depends on how alike the features are, and its contrast sets it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.methods.gsf import flow
from jaxdesc.methods.gsf.network import GsfNet, describe
from jaxdesc.types import Batch, Variables

DENSITY = 0.75  # supplementary, section 2
TOLERANCE = 0.1  # of the density; a run that is further from the published one says so


def chosen(variables: Variables, batch: Batch, net: GsfNet) -> tuple[float, str]:
    """The contrast for DENSITY, and a sentence about it.

    The same pairs and variables give the same number on one kind of machine.

    Args:
      batch: {"keypoints": KeypointPair} of squares of `side_px`.
    """
    pairs = batch["keypoints"]

    def best(images):  # of one pair (2, side, side, 3), so that few volumes exist at once
        source, target = describe(net, variables, images)
        return flow.ratio_product(flow.correlation(source, target)).max(-1)

    images = jnp.stack([pairs.image1, pairs.image2], 1)
    ratios = np.asarray(jax.jit(lambda x: jax.lax.map(best, x))(images), np.float64)
    rho = net.cfg.rho
    contrast = float(f"{flow.contrast_of(ratios, rho, DENSITY):.4g}")  # as config.json keeps it
    density = float((ratios**contrast > rho).mean())
    sentence = (
        f"config.method.confidence_contrast = {contrast:g} was chosen: the density of confident "
        f"matches is {density:.3f} on {len(images)} held-out pairs (paper: {DENSITY:g})"
    )
    if abs(density - DENSITY) > TOLERANCE:
        sentence += ", and no other brings it nearer: on these features Q is not the paper's"
    return contrast, f"{sentence}."
