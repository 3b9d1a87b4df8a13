"""ResNets against torchvision's arithmetic written out in NumPy, names and shapes of torch included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdesc.methods.caps import Config, network
from jaxdesc.nets import torch_names
from jaxdesc.nets.frozen import freeze, thaw
from jaxdesc.nets.resnet import DEPTHS, ResNet, activations, max_pool, tapped_channels
from jaxdesc.store.pretrained import pretrained
from jaxdesc.store.weights import flatten
from jaxdesc.types import UserError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
IMAGE = jax.ShapeDtypeStruct((2, 37, 46, 3), jnp.float32)


def shapes(net, image=IMAGE):
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(image.shape), False))
    return variables, jax.eval_shape(partial(net.apply, train=False), variables, image)


def filled(variables, seed=0):
    """Random numbers in place of shapes; variances positive."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0, (1 / max(np.prod(leaf.shape[:-1]), 1)) ** 0.5 if name == "kernel" else 0.3, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, variables)


# ---- torchvision's arithmetic, from its names, channels first, in float64


def to_torch(variables, name=torch_names.resnet_name):
    return {
        name(path): leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        for tree in variables.values()
        for path, leaf in flatten(jax.device_get(tree)).items()
    }


def convolve(x, weight, stride, bias=None):
    k = weight.shape[2]
    pad = k // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    h, w = ((n - k) // stride + 1 for n in x.shape[1:])
    y = np.zeros((weight.shape[0], h, w)) + (0 if bias is None else bias[:, None, None])
    for dy in range(k):
        for dx in range(k):
            y += np.einsum("oi,ihw->ohw", weight[:, :, dy, dx], x[:, dy::stride, dx::stride][:, :h, :w])
    return y


def normalise(x, t, name):
    gain = t[f"{name}.weight"] / np.sqrt(t[f"{name}.running_var"] + 1e-5)
    return (x - t[f"{name}.running_mean"][:, None, None]) * gain[:, None, None] + t[f"{name}.bias"][:, None, None]


def pool(x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    h, w = ((n - 1) // 2 + 1 for n in x.shape[1:])
    return np.stack([[[padded[c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max() for j in range(w)] for i in range(h)] for c in range(len(x))])


def torch_resnet(image, t, counts, strides=(1, 2, 2, 2)):
    """{name: (C, H, W)} of every activation."""
    x = np.maximum(normalise(convolve(np.moveaxis((image - MEAN) / STD, -1, 0), t["conv1.weight"], 2), t, "bn1"), 0)
    found = {"stem": x, "maxpool": pool(x)}
    x = found["maxpool"]
    for i, count in enumerate(counts):
        for j in range(count):
            name, stride = f"layer{i + 1}.{j}", strides[i] if j == 0 else 1
            bottleneck = f"{name}.conv3.weight" in t
            steps = [1, stride, 1] if bottleneck else [stride, 1]
            y = x
            for k, s in enumerate(steps):
                y = normalise(convolve(y if k == 0 else np.maximum(y, 0), t[f"{name}.conv{k + 1}.weight"], s), t, f"{name}.bn{k + 1}")
            short = x
            if f"{name}.downsample.0.weight" in t:
                short = normalise(convolve(x, t[f"{name}.downsample.0.weight"], stride), t, f"{name}.downsample.1")
            found[f"{name}.sum"] = short + y
            x = found[name] = np.maximum(short + y, 0)
    return found


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)])
def test_parameters_are_torchvisions(depth, parameters):
    """Published counts, less the classifier of 1000 classes."""
    channels = 2048 if DEPTHS[depth][1] else 512
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(ResNet(depth))[0]["params"])) == parameters - 1000 * (channels + 1)


@pytest.mark.parametrize(
    ("depth", "counts", "taps"),
    [
        (18, (2, 1), ("stem", "layer1", "layer2.0.sum", "maxpool", "layer2.0")),
        (50, (3, 1), ("layer1.0.sum", "layer1", "layer2.0")),
    ],
)
def test_activations_are_torchvisions(depth, counts, taps):
    net = ResNet(depth, taps, width=4)
    variables = filled(shapes(net)[0])
    image = np.random.default_rng(1).uniform(0, 1, (1, 37, 46, 3)).astype(np.float32)
    ours = jax.jit(partial(net.apply, train=False))(variables, image)
    theirs = torch_resnet(image[0].astype(np.float64), to_torch(variables), counts)
    for tap, found in zip(taps, ours, strict=True):
        expected = theirs[f"layer1.{counts[0] - 1}" if tap == "layer1" else tap]
        np.testing.assert_allclose(found[0], np.moveaxis(expected, 0, -1), rtol=2e-4, atol=2e-4, err_msg=tap)


def test_stages_and_channels_of_every_depth():
    for depth, (counts, bottleneck) in DEPTHS.items():
        names = activations(depth)
        assert len(names) == 2 + 2 * sum(counts)
        stages = ("layer1", "layer2", "layer3", "layer4")
        assert tapped_channels(depth, stages) == [c * (4 if bottleneck else 1) for c in (64, 128, 256, 512)]
        if depth in (18, 50):
            _, out = shapes(ResNet(depth, (*names, *stages)))
            assert [leaf.shape[-1] for leaf in out] == [*names.values(), *tapped_channels(depth, stages)]
            assert [leaf.shape[1:3] for leaf in out[-4:]] == [(10, 12), (5, 6), (3, 3), (2, 2)]
            assert [leaf.shape[1:3] for leaf in out[:3]] == [(19, 23), (10, 12), (10, 12)]
    # all blocks of a ResNet-101 before their last ReLU, and the pooled stem: the hypercolumn of 32,576 channels
    assert sum(tapped_channels(101, ["maxpool", *(name for name in activations(101) if name.endswith(".sum"))])) == 32_576


def test_nothing_after_the_last_tap_exists():
    variables, _ = shapes(ResNet(50, ("layer2.1.sum",)))
    blocks = {name for name in variables["params"] if name.startswith("layer")}
    assert blocks == {"layer1_0", "layer1_1", "layer1_2", "layer2_0", "layer2_1"}
    assert set(shapes(ResNet(18, ("stem",)))[0]["params"]) == {"conv1", "bn1"}


@pytest.mark.parametrize("taps", [("layer5",), ("layer1.3",), ("conv1",), ("layer1.0.relu",)])
def test_unknown_taps_are_named(taps):
    with pytest.raises(UserError, match=taps[0]):
        shapes(ResNet(50, taps))
    with pytest.raises(UserError, match="ResNet-51"):
        tapped_channels(51, ())


@pytest.mark.parametrize("hw", [(5, 8), (1, 2), (6, 7)])
def test_max_pool(hw):
    x = np.random.default_rng(0).normal(size=(1, *hw, 3)).astype(np.float32)
    np.testing.assert_array_equal(max_pool(jnp.array(x))[0], np.moveaxis(pool(np.moveaxis(x[0], -1, 0)), 0, -1))


def test_training_moves_statistics_and_inference_does_not():
    net = ResNet(18, ("layer1.0",), width=2)
    variables = filled(shapes(net)[0])
    image = np.random.default_rng(1).uniform(0, 1, IMAGE.shape).astype(np.float32)
    _, new = jax.jit(lambda v: net.apply(v, image, True, mutable=["batch_stats"]))(variables)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(new["batch_stats"]), jax.tree.leaves(variables["batch_stats"]), strict=True))
    _, new = jax.jit(lambda v: net.apply(v, image, False, mutable=["batch_stats"]))(variables)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])


def test_frozen_parameters_leave_and_come_back():
    variables, _ = shapes(ResNet(18, ("layer2",), width=2))
    split = freeze(variables, lambda path: path.startswith("layer1") or path == "bn1/norm/bias")
    assert set(split["frozen"]) == {"layer1_0", "layer1_1", "bn1"} and set(split["frozen"]["bn1"]["norm"]) == {"bias"}
    assert set(split["params"]) == {"conv1", "bn1", "layer2_0", "layer2_1"} and set(split["params"]["bn1"]["norm"]) == {"scale"}
    assert split["batch_stats"] is variables["batch_stats"]
    back = thaw(split)
    assert flatten_names(back) == flatten_names(variables) and set(back) == set(variables)
    assert thaw(variables) == variables
    assert freeze(variables, lambda path: True)["params"] == {}


def flatten_names(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


# ---- torch's names


@pytest.fixture(scope="module")
def imagenet():
    """A "ResNet-18" of torchvision, of all stages and with a classifier, of width 4."""
    variables = filled(shapes(ResNet(18, width=4))[0], seed=3)
    return to_torch(variables) | {"fc.weight": np.zeros((10, 32), np.float32), "fc.bias": np.zeros(10, np.float32), "bn1.num_batches_tracked": np.array(3)}


@pytest.fixture(scope="module")
def caps_variables():
    return jax.eval_shape(lambda: network.init(network.build(Config(backbone="resnet18", width=4)), jax.random.key(0), {"x": ImageOnly}))


class ImageOnly:
    image1 = jnp.zeros((1, 32, 32, 3))


def test_names_of_torchvision(imagenet):
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv2.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias"} <= set(imagenet)
    assert imagenet["layer2.0.downsample.0.weight"].shape == (8, 4, 1, 1)
    assert len([name for name in imagenet if not name.startswith("fc") and "num_batches" not in name]) == 20 * 5  # 20 convolutions and their normalisations


def test_a_backbone_starts_from_imagenet(imagenet, caps_variables, tmp_path):
    variables = filled(caps_variables)
    found = torch_names.start_from_imagenet(variables, imagenet)
    assert flatten_names(found) == flatten_names(variables)
    np.testing.assert_array_equal(
        found["params"]["backbone"]["layer2_0"]["downsample_conv"]["kernel"], imagenet["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(found["batch_stats"]["backbone"]["layer3_1"]["bn2"]["norm"]["var"], imagenet["layer3.1.bn2.running_var"])
    np.testing.assert_array_equal(found["params"]["conv_fine"]["conv"]["kernel"], variables["params"]["conv_fine"]["conv"]["kernel"])
    frozen = torch_names.start_from_imagenet(freeze(variables, lambda path: path.startswith("backbone/layer1")), imagenet)
    jax.tree.map(np.testing.assert_array_equal, thaw(frozen)["params"], found["params"])

    path, told = tmp_path / "r18.safetensors", []
    save_file({name: np.ascontiguousarray(value) for name, value in imagenet.items()}, path)
    jax.tree.map(np.testing.assert_array_equal, pretrained(variables, f"imagenet:{path}", told.append), found)
    assert pretrained(variables, "", told.append) is variables
    assert str(path) in told[0] and "RANDOM" in told[1] and "the paper" in told[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("layer2.0.bn1.running_mean"), r"missing: layer2\.0\.bn1\.running_mean\."),
        (lambda t: t.update({"layer3.2.conv1.weight": np.zeros((16, 16, 3, 3))}), r"not used: layer3\.2\.conv1\.weight\."),
        (lambda t: t.update({"se.weight": np.zeros(3)}), r"not used: se\.weight\."),
        (lambda t: t.update({"conv1.weight": np.zeros((8, 3, 7, 7))}), r"of another shape: conv1\.weight is \(8, 3, 7, 7\) instead of \(4, 3, 7, 7\)\."),
        (lambda t: t.update({"layer1.1.bn2.bias": np.zeros((4, 1))}), r"of another shape: layer1\.1\.bn2\.bias is \(4, 1\) instead of \(4,\)\."),
    ],
)
def test_what_does_not_fit_is_named(imagenet, caps_variables, change, words):
    tensors = dict(imagenet)
    change(tensors)
    with pytest.raises(UserError, match=words):
        torch_names.start_from_imagenet(caps_variables, tensors)


def test_mistakes_in_the_spec_name_the_field(caps_variables, tmp_path):
    for spec in ("resnet.pth", "imagenet:", f"imagenet:{tmp_path}/none.pth"):
        with pytest.raises(UserError, match=r"config\.method\.weights"):
            pretrained(caps_variables, spec, print)


# ---- CAPS's network


@pytest.mark.parametrize(
    ("decoder", "hw", "coarse", "fine"),
    [
        ("paper", (480, 640), (30, 40), (120, 160)),
        ("paper", (483, 637), (31, 40), (121, 160)),
        ("paper", (33, 17), (3, 2), (9, 5)),
        ("released", (480, 640), (30, 40), (120, 160)),
        ("released", (97, 131), (7, 9), (28, 36)),
    ],
)
def test_shapes_of_table_3(decoder, hw, coarse, fine):
    cfg = Config(decoder=decoder)
    net = network.build(cfg)
    variables, out = shapes(net, jax.ShapeDtypeStruct((2, *hw, 3), jnp.float32))
    assert out.coarse.shape == (2, *coarse, 128) and out.fine.shape == (2, *fine, 128)
    origin, stride = network.grid(cfg, *hw)
    corner = np.array(origin) + np.array(stride) * (np.array(fine)[::-1] - 1)
    np.testing.assert_allclose(corner, np.array(hw)[::-1] - 1)
    kernels = {name: tree["conv"]["kernel"].shape for name, tree in variables["params"].items() if name != "backbone"}
    assert kernels == {
        "conv_coarse": (1, 1, 1024, 128),
        "upconv3": (3, 3, 1024, 512),
        "iconv3": (3, 3, 1024, 512),
        "upconv2": (3, 3, 512, 256),
        "iconv2": (3, 3, 512, 256),
        "conv_fine": (1, 1, 256, 128),
    }
    blocks = [name for name in variables["params"]["backbone"] if name.startswith("layer")]
    assert len(blocks) == 3 + 4 + 6


def upsampled(x):
    """Twice the size, corners aligned."""
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.arange(2 * n) * (n - 1) / (2 * n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        mix = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = np.take(x, low, axis) * (1 - mix) + np.take(x, np.minimum(low + 1, n - 1), axis) * mix
    return x


@pytest.mark.parametrize("decoder", ["paper", "released"])
def test_the_whole_network_against_numpy(decoder):
    cfg = Config(backbone="resnet10", width=2, decoder=decoder, decoder_features=(6, 5), coarse_dim=3, fine_dim=4)
    net = network.build(cfg)
    variables = filled(shapes(net)[0])
    image = np.random.default_rng(1).uniform(0, 1, (1, 37, 46, 3)).astype(np.float32)  # 10x12, 5x6, 3x3: one side is odd, the other is not
    ours = jax.jit(partial(network.features, net))(variables, image)
    t = to_torch({c: tree["backbone"] for c, tree in variables.items()})
    d = to_torch(
        {c: {name: v for name, v in tree.items() if name != "backbone"} for c, tree in variables.items()},
        lambda path: (
            path.replace("/norm", "")
            .replace("/", ".")
            .replace("kernel", "weight")
            .replace("scale", "weight")
            .replace(".mean", ".running_mean")
            .replace(".var", ".running_var")
        ),
    )

    def stage(x, name):
        x = convolve(x, d[f"{name}.conv.weight"], 1, d[f"{name}.conv.bias"])
        if decoder == "paper":
            return normalise(np.maximum(x, 0), d, f"{name}.bn")
        x = normalise(x, d, f"{name}.bn")
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    def join(encoder, x):
        (have_y, have_x), (want_y, want_x) = encoder.shape[1:], x.shape[1:]
        dy, dx = want_y - have_y, want_x - have_x
        if decoder == "paper":
            return np.concatenate([encoder, x[:, dy:, dx:]])
        padded = np.zeros((len(encoder), want_y, want_x))
        padded[:, dy // 2 : dy // 2 + have_y, dx // 2 : dx // 2 + have_x] = encoder
        return np.concatenate([padded, x])

    found = torch_resnet(image[0].astype(np.float64), t, (1, 1, 1))
    x = found["layer3.0"]
    coarse = stage(x, "conv_coarse")
    x = stage(join(found["layer2.0"], stage(upsampled(x), "upconv3")), "iconv3")
    x = stage(join(found["layer1.0"], stage(upsampled(x), "upconv2")), "iconv2")
    np.testing.assert_allclose(ours.coarse[0], np.moveaxis(coarse, 0, -1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours.fine[0], np.moveaxis(stage(x, "conv_fine"), 0, -1), rtol=1e-3, atol=1e-3)
