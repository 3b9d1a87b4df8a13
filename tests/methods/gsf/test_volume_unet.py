"""GSF's U-Net: its size, its starts, its pieces."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdesc.methods.gsf import Config
from jaxdesc.methods.gsf.network import GsfNet
from jaxdesc.methods.gsf.volume_unet import UpConv, VolumeUNet, max_pool2

RNG = np.random.default_rng(0)

# "Table 1: Network architecture of the pruning and matching networks" of the supplementary of GSF:
# layer, kernel, channels in / out, h x w = 400; the kernel of conv8, not legible for the pruning
# network, is the matching network's. A pooling or upconv has the stride 2.
TABLE_1 = """
conv1   5x5 400/64    conv1b 3x3 64/64      conv2   3x3 64/128   conv2b 3x3 128/128
conv3   3x3 128/256   conv3b 3x3 256/256    conv4   3x3 256/512  conv4b 3x3 512/512
upconv5 3x3 512/512   conv5  3x3 768/256    conv5b  3x3 256/256
upconv6 3x3 256/256   conv6  3x3 384/128    conv6b  3x3 128/128
upconv7 3x3 128/128   conv7  3x3 192/64     conv7b  3x3 64/64
"""
CONV8 = {"pruning": (5, 5, 64, 400), "matching": (5, 5, 64, 2)}


@pytest.mark.parametrize("network", CONV8)
def test_every_layer_of_table_1(network):
    """Both networks as GSF builds them by default, layer by layer; nothing else has a kernel."""
    net = GsfNet(Config())
    features = jnp.zeros((1, 20, 20, 8))

    def init():
        return net.init(jax.random.key(0), features, features, False, method="align")

    made = flatten_dict(jax.eval_shape(init)["params"][network])
    kernels = {path[0]: leaf.shape for path, leaf in made.items() if path[-1].endswith("kernel")}
    words = TABLE_1.split()
    rows = zip(words[::3], words[1::3], words[2::3], strict=True)
    expected = {
        layer: (*map(int, kernel.split("x")), *map(int, channels.split("/")))
        for layer, kernel, channels in rows
    }
    assert kernels == expected | {"conv8_kernel": CONV8[network]}
    # "For each linear layer in both networks, a batch normalization layer is followed"
    normalised = {path[0].removesuffix("_bn") for path in made if path[0].endswith("_bn")}
    assert normalised == set(expected)


@pytest.mark.parametrize(("out", "start", "count"), [(400, 10.0, 12_166_416), (2, 0.0, 11_529_218)])
def test_parameters_and_shapes_at_20x20(out, start, count):
    """Source: Table 1 of the supplementary, biases and the scale and bias of the batch normalisation counted."""
    net, volume = VolumeUNet(out, start), jax.ShapeDtypeStruct((2, 20, 20, 400), jnp.float32)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(volume.shape), False))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == count
    _, caught = jax.eval_shape(lambda v, x: net.apply(v, x, False, capture_intermediates=True), variables, volume)
    shapes = {name: tree["__call__"][0].shape for name, tree in caught["intermediates"].items() if "__call__" in tree}
    assert shapes["conv1b"] == (2, 20, 20, 64) and shapes["conv2b"] == (2, 10, 10, 128) and shapes["conv3b"] == (2, 5, 5, 256)
    assert shapes["conv4b"] == (2, 3, 3, 512) and shapes["upconv5"] == (2, 6, 6, 512) and shapes["conv5"] == (2, 5, 5, 256)
    assert caught["intermediates"]["__call__"][0].shape == (2, 20, 20, out)
    for name, inputs in (("conv1", 400), ("upconv5", 512), ("conv5", 768), ("upconv6", 256), ("conv6", 384), ("upconv7", 128), ("conv7", 192)):
        kernel = variables["params"][name]["kernel"].shape
        assert kernel[2] == inputs and kernel[0] == (5 if name == "conv1" else 3)


def test_start_is_exact_whatever_comes_in():
    """With random variables and the batch's statistics the output is 10 everywhere, 0.99995 after a sigmoid; a start of 0 is in tests/methods/gsf/test_gsf.py."""
    net, x = VolumeUNet(30, 10.0, width=2, levels=1), RNG.normal(size=(2, 5, 6, 30)).astype(np.float32)
    quick = {"xla_backend_optimization_level": 0}
    found = jax.jit(lambda x: net.apply(net.init(jax.random.key(1), x, False), x, True, mutable=["batch_stats"])[0], compiler_options=quick)(x)
    assert found.shape == (2, 5, 6, 30)
    np.testing.assert_array_equal(found, 10)
    np.testing.assert_allclose(jax.nn.sigmoid(found), 0.9999546, atol=1e-7)


def test_pooling_of_odd_sides():
    x = RNG.normal(size=(2, 5, 7, 3)).astype(np.float32)
    expected = [[x[:, i : i + 2, k : k + 2].max((1, 2)) for k in range(0, 7, 2)] for i in range(0, 5, 2)]
    np.testing.assert_array_equal(max_pool2(x), np.array(expected).transpose(2, 0, 1, 3))


def test_transposed_convolution():
    """Each pixel adds its 3x3 filter, turned by 180 degrees, to rows 2 i to 2 i + 2 and columns 2 k to 2 k + 2."""
    x = RNG.normal(size=(1, 3, 4, 2)).astype(np.float32)
    net = UpConv(5)
    variables = {"params": {"kernel": RNG.normal(size=(3, 3, 2, 5)).astype(np.float32), "bias": RNG.normal(size=5).astype(np.float32)}}
    kernel = variables["params"]["kernel"][::-1, ::-1]
    expected = np.zeros((6 + 2, 8 + 2, 5))
    for i in range(3):
        for k in range(4):
            expected[2 * i : 2 * i + 3, 2 * k : 2 * k + 3] += np.einsum("c,abcd->abd", x[0, i, k], kernel)
    np.testing.assert_allclose(net.apply(variables, x)[0], expected[:6, :8] + variables["params"]["bias"], atol=1e-5)
