"""Where the cells of a descriptor map lie: a blob on an even image is found where it is.

The networks are random but mirror-symmetric (every filter is averaged with its mirror images), so
that what a blob changes is centred on the blob, and any shift is one of the grid.
"""

import jax
import numpy as np
import pytest

from jaxdesc.ops.sampling import full_size
from jaxdesc.predict import predictor

SIZE = (111, 143)
PLACES = [(0.3, 0.3), (0.75, 0.4), (0.5, 0.75)]  # of the blob, fractions of width and height
SIGMA_PX = 4.0
NETWORKS = {
    "convmixer": ("pump", {"hidden": 16, "depth": 1, "output_dim": 8, "kernel": 3}),
    "r2d2": ("pump", {"backbone": "r2d2", "output_dim": 8}),
    "caps": ("caps", {"width": 8, "decoder_features": (16, 8), "coarse_dim": 8, "fine_dim": 8}),
    "cold": ("cold", {"width": 8, "dim": 16, "taps": ("maxpool", "layer1.0.sum", "layer2.0.sum")}),
    "cold, exact": ("cold", {"width": 8, "dim": 16, "resize": "exact"}),
    "gsf": ("gsf", {"width": 8}),
}
# Half a cell, of the patches where a network has them; of CAPS and 2 px more, by which aligned
# corners stretch a map whose last cell was seen before the image's last pixel.
TOLERANCE_PX = {"convmixer": 2, "r2d2": 1, "caps": 4, "cold": 2, "cold, exact": 2, "gsf": 8}


def symmetric(path, leaf):
    """A filter that its mirror images equal; pixel-shuffled channels are positions too."""
    if path[-1].key != "kernel":
        return leaf
    if path[-2].key.startswith("Shuffled"):
        leaf = leaf.reshape(leaf.shape[2], -1, 2, 2)
        leaf = leaf + leaf[..., ::-1]
        leaf = leaf + leaf[..., ::-1, :]
        return leaf.reshape(1, 1, leaf.shape[0], -1) / 4
    leaf = leaf + leaf[::-1]
    return (leaf + leaf[:, ::-1]) / 4


def blob(xy):
    """(H, W, 3) float32: gray, with a bright Gaussian at (x, y)."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    bright = np.exp(-((x - xy[0]) ** 2 + (y - xy[1]) ** 2) / (2 * SIGMA_PX**2))
    return np.repeat(0.3 + 0.6 * bright[..., None], 3, 2).astype(np.float32)


def network(name):
    method, options = NETWORKS[name]
    options = {"backbone": "resnet10", **options} if method != "pump" else options
    net = predictor.untrained(method, **options)
    return net, jax.tree_util.tree_map_with_path(symmetric, net.variables)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_blob_is_found_where_it_is(name):
    net, variables = network(name)
    method = net.method
    describe = jax.jit(
        lambda images: full_size(method.describe(variables, images), method.grid(*SIZE), SIZE)
    )
    places, errors = np.array(PLACES) * SIZE[::-1], []
    empty, *found = np.asarray(describe(np.stack([blob(xy) for xy in [(-100, -100), *places]])))
    for xy, descriptors in zip(places, found, strict=True):
        change = ((descriptors - empty) ** 2).sum(-1)
        change[change < change.max() / 4] = 0
        v, u = np.mgrid[: SIZE[0], : SIZE[1]]
        centre = np.array([(change * u).sum(), (change * v).sum()]) / change.sum()
        errors.append(np.abs(centre - xy).max())
    print(name, np.round(errors, 2))
    assert max(errors) <= TOLERANCE_PX[name], np.round(errors, 2)
