"""Released PyTorch weights to ours: the converted network computes what the torch layers say, and nothing is guessed."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdesc.methods import METHODS
from jaxdesc.methods.pump import Config
from jaxdesc.methods.pump.weights import from_torch, infer_config
from jaxdesc.predict import predictor
from jaxdesc.store import convert, weights
from jaxdesc.types import UserError
from tests.cli import call

CONVMIXER = Config(hidden=8, depth=5, kernel=3, output_dim=3)  # 5 + 2 modules and more, so that "10" follows "9"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


# ---- what torch would have: state dicts, and the layers by torch's definitions, channels first, in float64


def conv(rng, prefix, out, into, k):
    return {f"{prefix}.weight": rng.normal(0, (into * k * k) ** -0.5, (out, into, k, k)), f"{prefix}.bias": rng.normal(0, 0.3, out)}


def norm(rng, prefix, n, affine=True):
    found = {f"{prefix}.running_mean": rng.normal(0, 0.5, n), f"{prefix}.running_var": rng.uniform(0.5, 2, n), f"{prefix}.num_batches_tracked": np.array(7)}
    return found | ({f"{prefix}.weight": rng.uniform(0.5, 2, n), f"{prefix}.bias": rng.normal(0, 0.3, n)} if affine else {})


def float32(tensors):
    return {name: value.astype(np.float32 if value.dtype == np.float64 else value.dtype) for name, value in tensors.items()}


def convmixer_tensors(cfg=CONVMIXER, seed=0):
    """As a Sequential of conv, ReLU, BN, ...; residual blocks nest one more."""
    rng, h = np.random.default_rng(seed), cfg.hidden
    tensors = conv(rng, "ops.0", h // 4, 3, 5) | norm(rng, "ops.2", h // 4) | conv(rng, "ops.3", h, h // 4, cfg.patch) | norm(rng, "ops.5", h)
    at = 6
    for _ in range(cfg.depth):
        tensors |= conv(rng, f"ops.{at}.0.fn.0", h, 1, cfg.kernel) | norm(rng, f"ops.{at}.0.fn.2", h)
        tensors |= conv(rng, f"ops.{at}.1", h, h, 1) | norm(rng, f"ops.{at}.3", h)
        at += 1
    return float32(tensors | conv(rng, f"ops.{at}", cfg.output_dim * (cfg.patch // 2) ** 2, h, 1))


R2D2 = [(32, 3, 1), (32, 3, 1), (64, 3, 1), (64, 3, 2), (128, 3, 2), (128, 3, 4), (128, 2, 4), (128, 2, 8), (5, 2, 16)]


def r2d2_tensors(seed=1, dim=5):
    rng, into, tensors, at = np.random.default_rng(seed), 3, {}, 0
    for i, (out, k, _) in enumerate([*R2D2[:8], (dim, 2, 16)]):
        tensors |= conv(rng, f"module.net.{at}", out, into, k)
        if i < 8:
            tensors |= norm(rng, f"module.net.{at + 1}", out, affine=False)
        into, at = out, at + 2 + (k == 3)
    return float32(tensors)


def released_r2d2_tensors():
    """The released layout: 128-d descriptors, and the detector's two heads."""
    rng = np.random.default_rng(3)
    heads = {**conv(rng, "module.clf", 2, 128, 1), **conv(rng, "module.sal", 1, 128, 1)}
    return r2d2_tensors(2, 128) | float32(heads)


def convolve(x, weight, bias, stride=1, dilation=1, pad=0, groups=1):
    k, (out, into) = weight.shape[2], weight.shape[:2]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height, width = ((n - (k - 1) * dilation - 1) // stride + 1 for n in x.shape[1:])
    y = np.zeros((out, height, width)) + bias[:, None, None]
    for dy in range(k):
        for dx in range(k):
            tap = x[:, dy * dilation :: stride, dx * dilation :: stride][:, :height, :width]
            y += tap * weight[:, 0, dy, dx][:, None, None] if groups > 1 else np.einsum("oi,ihw->ohw", weight[:, :into, dy, dx], tap)
    return y


def normalise(x, t, prefix):
    y = (x - t[f"{prefix}.running_mean"][:, None, None]) / np.sqrt(t[f"{prefix}.running_var"][:, None, None] + 1e-5)
    return y * t[f"{prefix}.weight"][:, None, None] + t[f"{prefix}.bias"][:, None, None] if f"{prefix}.weight" in t else y


def unit(x):
    return np.moveaxis(x / np.sqrt((x**2).sum(0)), 0, -1)


def convmixer_forward(image, t, cfg=CONVMIXER):
    def stage(x, c, n, **options):
        return normalise(np.maximum(convolve(x, t[f"{c}.weight"], t[f"{c}.bias"], **options), 0), t, n)

    x = stage(np.moveaxis((image - MEAN) / STD, -1, 0), "ops.0", "ops.2", pad=2)
    x = stage(x, "ops.3", "ops.5", stride=cfg.patch)
    for at in range(6, 6 + cfg.depth):
        x = x + stage(x, f"ops.{at}.0.fn.0", f"ops.{at}.0.fn.2", pad=cfg.kernel // 2, groups=cfg.hidden)
        x = stage(x, f"ops.{at}.1", f"ops.{at}.3")
    x = convolve(x, t[f"ops.{6 + cfg.depth}.weight"], t[f"ops.{6 + cfg.depth}.bias"])
    _, h, w = x.shape
    shuffled = np.zeros((cfg.output_dim, 2 * h, 2 * w))
    for c in range(cfg.output_dim):
        for dy in (0, 1):
            for dx in (0, 1):
                shuffled[c, dy::2, dx::2] = x[c * 4 + dy * 2 + dx]
    return unit(np.stack([bilinear2(channel) for channel in shuffled]))


def bilinear2(x):
    """Upsampling by 2, half-pixel centres, border repeated."""
    h, w = x.shape
    y = np.zeros((2 * h, 2 * w))
    for i in range(2 * h):
        for j in range(2 * w):
            v, u = np.clip((i + 0.5) / 2 - 0.5, 0, h - 1), np.clip((j + 0.5) / 2 - 0.5, 0, w - 1)
            v0, u0 = int(v), int(u)
            v1, u1 = min(v0 + 1, h - 1), min(u0 + 1, w - 1)
            top, bottom = (x[row, u0] * (u0 + 1 - u) + x[row, u1] * (u - u0) for row in (v0, v1))
            y[i, j] = top * (v0 + 1 - v) + bottom * (v - v0)
    return y


def r2d2_forward(image, t):
    x, at = np.moveaxis((image - MEAN) / STD, -1, 0), 0
    for i, (_, k, dilation) in enumerate(R2D2):
        x = convolve(x, t[f"module.net.{at}.weight"], t[f"module.net.{at}.bias"], dilation=dilation, pad=((k - 1) * dilation) // 2)
        x = normalise(x, t, f"module.net.{at + 1}") if i < 8 else x
        x = np.maximum(x, 0) if k == 3 else x
        at += 2 + (k == 3)
    return unit(x)


# ---- the verb


@pytest.fixture
def verb(monkeypatch, capsys):
    def run(*arguments, status=None):
        out, err = call(monkeypatch, capsys, "convert", "--method", "pump", *arguments, status=status)
        if status == 2:
            assert err.startswith("jaxdesc: ") and err.count("\n") == 1, err
        return out + err

    return run


@pytest.mark.parametrize(("tensors", "forward"), [(convmixer_tensors, convmixer_forward), (r2d2_tensors, r2d2_forward)])
def test_converted_network_computes_what_torch_would(verb, tmp_path, tensors, forward):
    """safetensors keeps no order: names come alphabetically, ops.10 before ops.2."""
    source, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_file(tensors(), source)
    told = verb(source, out)
    assert "CC BY-NC-SA" in told and str(out) in told
    net = predictor.load(out)
    assert weights.load(out).notes["source"] == "theirs.safetensors" and "CC BY-NC-SA" in weights.load(out).notes["licence"]
    image = np.random.default_rng(2).uniform(0, 1, (64, 64, 3)).astype(np.float32)  # of the size of a bucket, so that nothing is filled up
    np.testing.assert_allclose(net.describe(image), forward(image, {k: v.astype(np.float64) for k, v in tensors().items()}), atol=2e-4)


def r2d2_image(size_hw):
    """Blots of all sizes, by numbers that any program can make again."""
    y, x, c = np.ogrid[: size_hw[0], : size_hw[1], :3]
    waves = sum(np.sin(y / p + (c + 1) * x / (p + 1.5)) for p in (1.3, 2.7, 6.1, 15.0))
    return (0.5 + waves / 8).astype(np.float32)


def torch_r2d2(tensors):
    """R2D2's layers by torch itself, in float64: what is described after them are unit vectors."""
    torch = pytest.importorskip("torch")
    layers, into = [], 3
    for i, (out, k, dilation) in enumerate([*R2D2[:8], (128, 2, 16)]):
        layers.append(
            torch.nn.Conv2d(into, out, k, padding=(k - 1) * dilation // 2, dilation=dilation)
        )
        layers += [torch.nn.BatchNorm2d(out, affine=False)] if i < 8 else []
        layers += [torch.nn.ReLU()] if k == 3 else []
        into = out
    net = torch.nn.Sequential(*layers).double().eval()
    net.load_state_dict(
        {
            name.removeprefix("module.net."): torch.tensor(value)
            for name, value in tensors.items()
            if "net" in name
        }
    )

    def describe(image):
        x = torch.tensor((image.astype(np.float64) - MEAN) / STD).permute(2, 0, 1)[None]
        with torch.no_grad():
            return torch.nn.functional.normalize(net(x))[0].permute(1, 2, 0).numpy()

    return describe


R2D2_SIZES = [(64, 96), (65, 83)]
R2D2_STORED = (
    Path(__file__).parents[1] / "reference" / "r2d2_descriptors.npz"
)  # [::7, ::9, ::8] of torch 2.13.0's


def test_released_r2d2_gives_torchs_descriptors():
    config, variables = from_torch(released_r2d2_tensors())
    assert config == Config(backbone="r2d2", keypoint_heads=True)
    describe = jax.jit(METHODS["pump"].build(config).describe)
    with np.load(R2D2_STORED) as stored:
        for size_hw in R2D2_SIZES:
            ours = np.asarray(describe(variables, r2d2_image(size_hw)[None])[0])
            assert ours.shape == (*size_hw, 128)
            np.testing.assert_allclose(
                ours[::7, ::9, ::8], stored["{}x{}".format(*size_hw)], atol=1e-5
            )


def test_stored_r2d2_descriptors_are_torchs():
    describe = torch_r2d2(released_r2d2_tensors())
    with np.load(R2D2_STORED) as stored:
        for size_hw in R2D2_SIZES:
            theirs = describe(r2d2_image(size_hw))[::7, ::9, ::8]
            np.testing.assert_allclose(theirs, stored["{}x{}".format(*size_hw)], atol=1e-6)


def test_heads_of_a_released_r2d2_are_kept(verb, tmp_path):
    """In the file and out of the descriptors' way: it loads, describes and is written again."""
    source, out, bare = (tmp_path / f"{name}.safetensors" for name in ("theirs", "ours", "bare"))
    theirs = released_r2d2_tensors()
    save_file(theirs, source)
    verb(source, out)
    net = predictor.load(out)
    kept = weights.load(out).variables["heads"]
    for head in ("clf", "sal"):
        np.testing.assert_array_equal(
            kept[head]["kernel"][0, 0].T, theirs[f"module.{head}.weight"][:, :, 0, 0]
        )
        np.testing.assert_array_equal(kept[head]["bias"], theirs[f"module.{head}.bias"])
    save_file({name: value for name, value in theirs.items() if "net" in name}, source)
    verb(source, bare)
    image = np.random.default_rng(0).uniform(0, 1, (64, 64, 3)).astype(np.float32)
    np.testing.assert_array_equal(net.describe(image), predictor.load(bare).describe(image))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: [t.pop(f"module.clf.{role}") for role in ("weight", "bias")],
            r"missing: clf\.weight, clf\.bias\.",
        ),
        (lambda t: t.pop("module.sal.bias"), r"missing: sal\.bias\."),
        (
            lambda t: t.update({"module.sal.weight": np.ones((2, 128, 1, 1), np.float32)}),
            r"sal\.weight is \(1, 1, 128, 2\) instead of \(1, 1, 128, 1\)",
        ),
        (lambda t: t.update({"module.clf.gain": np.ones(2, np.float32)}), r"not used: clf\.gain\."),
        (
            lambda t: t.update({"module.two.sal.weight": np.ones((1, 128, 1, 1), np.float32)}),
            r"not used: two\.sal\.weight\.",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused(change, words):
    tensors = released_r2d2_tensors()
    change(tensors)
    with pytest.raises(UserError, match=words):
        from_torch(tensors)


def test_configurations_are_recognised():
    assert infer_config(convmixer_tensors()) == CONVMIXER
    flat = Config(hidden=4, depth=0, output_dim=2)
    assert infer_config(convmixer_tensors(flat)) == flat
    assert infer_config(r2d2_tensors()) == Config(backbone="r2d2", output_dim=5)


def test_order_of_names_is_natural_and_names_mean_nothing():
    theirs = convmixer_tensors()
    _, ours = from_torch(theirs)
    shuffled = dict(sorted(theirs.items()))
    assert list(shuffled) != list(theirs)
    renamed = {f"module.{name.replace('ops', 'zoo').replace('fn', 'f')}": value for name, value in shuffled.items()}
    for other in (from_torch(shuffled), from_torch(renamed)):
        for (name, one), two in zip(weights.flatten(ours).items(), weights.flatten(other[1]).values(), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("ops.2.running_var"), r"missing: ops\.2\.running_var\."),
        (lambda t: t.pop("ops.11.bias"), r"missing: ops\.11\.bias\."),
        (lambda t: t.update({"ops.2.extra": np.zeros(2, np.float32)}), r"not used: ops\.2\.extra\."),
        (lambda t: t.update({"ops.99.gain": np.zeros(2, np.float32)}), r"not used: ops\.99\.gain\."),
        (lambda t: t.pop("ops.11.weight"), r"not the weights of a ConvMixer or of the R2D2 backbone: the convolutions have the shapes"),
        (lambda t: t.clear() or t.update(a=np.zeros(3, np.float32)), r"not the weights of a ConvMixer"),
        (lambda t: t.update({"ops.2.running_var": np.ones(5, np.float32)}), r"of another shape: ops\.2\.running_var is \(5,\) instead of \(2,\)"),
        (lambda t: t.update({"ops.0.bias": np.ones((2, 1), np.float32)}), r"of another shape: ops\.0\.bias is \(2, 1\) instead of \(2,\)"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_written(verb, tmp_path, change, words):
    tensors = convmixer_tensors()
    change(tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    told = verb(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors", status=2)
    assert re.search(words, told), told
    assert not (tmp_path / "ours.safetensors").exists()


def test_mistakes(verb, tmp_path, monkeypatch):
    source, out = tmp_path / "t.safetensors", tmp_path / "o.safetensors"
    save_file(convmixer_tensors(), source)
    assert "There is no checkpoint" in verb(tmp_path / "none.pt", out, status=2)
    assert "must end in .safetensors" in verb(source, tmp_path / "o.npz", status=2)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert "cannot be read as safetensors" in verb(tmp_path / "junk.safetensors", out, status=2)
    assert not out.exists()
    verb(source, out)
    assert "exists already" in verb(source, out, status=2)
    verb(source, out, "--overwrite")
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"junk")
    assert "needs PyTorch: pip install 'jaxdesc[torch]'" in verb(tmp_path / "w.pth", out, "--overwrite", status=2)


def test_torch_files(verb, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in convmixer_tensors().items()}
    expected = weights.flatten(from_torch(convmixer_tensors())[1])
    for content in (tensors, {"state_dict": tensors, "epoch": 3}, {"model": {"state_dict": tensors}}):
        torch.save(content, tmp_path / "w.pt")
        verb(tmp_path / "w.pt", tmp_path / "o.safetensors", "--overwrite")
        for name, value in weights.flatten(weights.load(tmp_path / "o.safetensors").variables).items():
            np.testing.assert_array_equal(value, expected[name])
    for content, words in (({"epoch": 3}, "holds no tensors by name"), ({"code": re.sub}, "holds more than tensors")):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match=words):
            convert.read_tensors(tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"w\.pt"):
        convert.read_tensors(tmp_path / "w.pt")
