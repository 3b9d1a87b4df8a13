"""R2D2's detector against loops in NumPy and, where it is installed, torch."""

import chex
import jax
import numpy as np
import pytest

import jaxdesc
from jaxdesc.images import resize
from jaxdesc.methods import METHODS
from jaxdesc.methods.pump import detector
from jaxdesc.methods.pump.weights import from_torch
from jaxdesc.predict.predictor import Predictor, untrained
from tests.cli.test_convert import R2D2, convolve, normalise, r2d2_image, released_r2d2_tensors

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def tensors():
    """Random weights of the released layout, whose heads call some pixels keypoints, not all."""
    found = dict(released_r2d2_tensors())
    for head in ("clf", "sal"):
        found[f"module.{head}.weight"] = 30 * found[f"module.{head}.weight"]
    return found


@pytest.fixture(scope="module")
def net():
    config, variables = from_torch(tensors())
    return Predictor("pump", config, variables, "random")


def numpy_maps(image):
    """R, S (H, W) and descriptors (H, W, D) in float64."""
    t = {name: value.astype(np.float64) for name, value in tensors().items()}
    x, at = np.moveaxis((image - MEAN) / STD, -1, 0), 0
    for i, (_, k, dilation) in enumerate(R2D2):
        layer, pad = f"module.net.{at}", (k - 1) * dilation // 2
        x = convolve(x, t[f"{layer}.weight"], t[f"{layer}.bias"], dilation=dilation, pad=pad)
        x = normalise(x, t, f"module.net.{at + 1}") if i < 8 else x
        x = np.maximum(x, 0) if k == 3 else x
        at += 2 + (k == 3)
    a, b = convolve(x**2, t["module.clf.weight"], t["module.clf.bias"])
    (s,) = np.log1p(np.exp(convolve(x**2, t["module.sal.weight"], t["module.sal.bias"])))
    return np.exp(b) / (np.exp(a) + np.exp(b)), s / (1 + s), np.moveaxis(x, 0, -1) / norm(x)


def norm(x):
    return np.sqrt((x**2).sum(0))[..., None]


def torch_maps(image):
    torch = pytest.importorskip("torch")
    F, t = torch.nn.functional, {k: torch.tensor(v).double() for k, v in tensors().items()}
    x, at = torch.tensor((image.astype(np.float64) - MEAN) / STD).permute(2, 0, 1)[None], 0
    for i, (_, k, dilation) in enumerate(R2D2):
        layer, following = f"module.net.{at}", f"module.net.{at + 1}"
        pad = (k - 1) * dilation // 2
        x = F.conv2d(x, t[f"{layer}.weight"], t[f"{layer}.bias"], padding=pad, dilation=dilation)
        if i < 8:
            x = F.batch_norm(x, t[f"{following}.running_mean"], t[f"{following}.running_var"])
        x = F.relu(x) if k == 3 else x
        at += 2 + (k == 3)
    clf, sal = (
        F.conv2d(x**2, t[f"module.{n}.weight"], t[f"module.{n}.bias"]) for n in ("clf", "sal")
    )
    s = F.softplus(sal)[0, 0]
    descriptors = F.normalize(x, dim=1)[0].permute(1, 2, 0)
    return F.softmax(clf, dim=1)[0, 1].numpy(), (s / (1 + s)).numpy(), descriptors.numpy()


def detected(maps_of, image, sizes, most):
    """Rows x, y, scale, score, descriptor by loops, from maps of the image at these sizes."""
    rows = []
    for h, w in sizes:
        R, S, descriptors = maps_of(resize(image, (h, w)))
        for y in range(h):
            for x in range(w):
                around = S[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                if S[y, x] == around.max() and S[y, x] > 0.7 and R[y, x] > 0.7:
                    sx, sy = image.shape[1] / w, image.shape[0] / h
                    place = [(x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5]
                    scale = 32 * max(image.shape) / max(h, w)
                    rows.append([*place, scale, R[y, x] * S[y, x], *descriptors[y, x]])
    return np.array(sorted(rows, key=lambda row: -row[3])[:most])


@pytest.mark.parametrize("maps_of", [numpy_maps, torch_maps])
def test_maps(net, maps_of):
    image = r2d2_image((37, 44))
    ours = jax.jit(detector.maps, static_argnums=0)(network(net), net.variables, image[None])
    for mine, theirs in zip(ours, maps_of(image), strict=True):
        np.testing.assert_allclose(mine[0], theirs, atol=1e-4)


def network(net):
    return net.method.detect.keywords["net"]


@pytest.mark.parametrize("maps_of", [numpy_maps, torch_maps])
def test_keypoints_of_all_sizes_together(net, maps_of, monkeypatch):
    """An image of 70 px in a pyramid from 60 px to 40 px: three sizes."""
    monkeypatch.setattr(detector, "LARGEST_PX", 60)
    monkeypatch.setattr(detector, "SMALLEST_PX", 40)
    image = r2d2_image((50, 70))
    sizes = [(43, 60), (36, 50), (30, 42)]
    assert detector.sizes((50, 70)) == sizes
    every = detected(maps_of, image, sizes, 10**6)
    assert len(np.unique(every[:, 2])) == 3 and len(every) > 60
    for most in (40, 10**6):
        expected = every[:most]
        found, descriptors = net.method.detect(net.variables, image, most)
        np.testing.assert_allclose(found.score, expected[:, 3], atol=1e-4)
        np.testing.assert_allclose(found.xy_px, expected[:, :2], atol=1e-4)
        np.testing.assert_allclose(found.scale_px, expected[:, 2], rtol=1e-6)
        np.testing.assert_allclose(descriptors, expected[:, 4:], atol=1e-4)


@pytest.mark.parametrize(
    ("size_hw", "count", "largest", "smallest"),
    [
        ((1024, 700), 9, 1024, 256),
        ((1500, 2000), 9, 1024, 256),
        ((480, 640), 6, 640, 269),
        ((255, 100), 1, 255, 255),
        ((256, 3), 1, 256, 256),
    ],
)
def test_sizes(size_hw, count, largest, smallest):
    found = detector.sizes(size_hw)
    longer = [max(hw) for hw in found]
    assert (len(found), longer[0], longer[-1]) == (count, largest, smallest)
    np.testing.assert_allclose(np.divide(longer[:-1], longer[1:]), 2**0.25, rtol=5e-3)
    for h, w in found:
        assert abs(h / max(h, w) - size_hw[0] / max(size_hw)) < 1 / max(h, w)


def test_nothing_reliable_and_repeatable_is_no_keypoint(net, monkeypatch):
    monkeypatch.setattr(detector, "LEAST", 1.0)
    found, descriptors = net.method.detect(net.variables, r2d2_image((20, 30)), 5)
    chex.assert_shape([found.xy_px, descriptors], [(0, 2), (0, 128)])


def test_only_weights_with_heads_have_a_detector(net):
    assert METHODS["pump"].build(untrained("pump").config).detect is None
    bare = untrained("pump", backbone="r2d2", output_dim=8)
    with pytest.raises(jaxdesc.UserError, match="pump with these weights has no detector of its"):
        bare.detect(r2d2_image((40, 40)), 5, "own")
    image = r2d2_image((40, 48))
    found = net.features(image, 7, "own")
    keypoints, descriptors = net.method.detect(net.variables, image, 7)
    chex.assert_trees_all_equal(found.keypoints, keypoints.xy_px)
    chex.assert_trees_all_equal(found.descriptors, descriptors)
    assert found.image_size == (48, 40) and len(found) == 7
