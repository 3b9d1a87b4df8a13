"""The picture of figure 1: where points may be, by the coarse and by the fine descriptors."""

import flax.linen as nn
import numpy as np

from jaxdesc.methods.caps.infer import distributions
from jaxdesc.types import Variables


def explain(
    variables: Variables,
    image1: np.ndarray,
    image2: np.ndarray,
    xy1_px: np.ndarray,
    xy2_px: np.ndarray | None = None,
    *,
    net: nn.Module,
    cfg,
) -> np.ndarray:
    """(H, W, 3) uint8, a row a point; see `figures.distributions`. Source: supplementary, Fig. 1.

    Raises:
      UserError: an image that is no RGB image; points outside image 1.
    """
    from jaxdesc import figures  # which loads a plotting library

    found = distributions(variables, image1, image2, xy1_px, net=net, cfg=cfg)
    return figures.distributions(image1, image2, xy1_px, xy2_px, found)
