"""COLD: the loss against NumPy written from its page, the network's identity, then the method as a whole."""

import dataclasses
import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxdesc import config
from jaxdesc.config import ExperimentConfig
from jaxdesc.data.kinds import DataConfig, KeypointPairs
from jaxdesc.evals import pck, published
from jaxdesc.methods import METHODS
from jaxdesc.methods.cold import LEAST_DIM, Config, infer, loss, network
from jaxdesc.methods.cold.infer import MatchOptions
from jaxdesc.nets.frozen import thaw
from jaxdesc.nets.torch_names import start_from_imagenet
from jaxdesc.ops.metrics import PCK_ALPHAS
from jaxdesc.predict.predictor import Predictor, load
from jaxdesc.store import weights
from jaxdesc.training import loop
from jaxdesc.training.step import AXIS, init_state, train_step
from jaxdesc.types import KeypointPair, UserError

SIZE = (64, 128)  # rows and columns of the images: those that photographs are filled up to, so that few programs are compiled
TINY = Config(backbone="resnet10", width=4, dim=5, image_px=40)
DATA = DataConfig(keypoints=KeypointPairs(image_px=40))
B, K = 2, 6


def keypoint_pair(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(2, B, *SIZE, 3)).astype(np.float32)
    xy = rng.uniform(0, [SIZE[1] - 1, SIZE[0] - 1], (2, B, K, 2)).astype(np.float32)
    valid = np.array([[True] * 4 + [False] * 2, [False, True] * 3])
    return KeypointPair(*images, *xy, valid, np.arange(B, dtype=np.int32))


@pytest.fixture(scope="module")
def method():
    return METHODS["cold"].build(TINY)


@pytest.fixture(scope="module")
def variables(method):
    """Random variables, the transforms' normalisation too, so that no part is the identity."""
    found = jax.jit(method.init)(jax.random.key(0), {"keypoints": keypoint_pair()})
    rng = np.random.default_rng(0)
    for collection in ("params", "batch_stats"):
        for name, module in found[collection].items():
            if name.startswith("bn_"):
                module["norm"] = {leaf: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32) for leaf, x in module["norm"].items()}
    return found


@pytest.fixture(scope="module")
def evaluated(method):
    return jax.jit(partial(method.loss, train=False))


# ---- the loss, slowly


def slow_one_direction(desc1, desc2, xy1, xy2, valid, side, alpha=0.1, half=5):
    h1, w1, _ = desc1.shape
    h2, w2, _ = desc2.shape
    A = np.maximum(0, np.einsum("abd,uvd->abuv", desc1, desc2)).reshape(h1 * w1, h2 * w2) ** 2
    centres1, centres2 = (np.array([(4 * u, 4 * v) for v in range(h) for u in range(w)]) for h, w in ((h1, w1), (h2, w2)))
    total, plain, distances = 0.0, 0.0, []
    for p, q, exists in zip(xy1, xy2, valid, strict=True):
        if not exists:
            distances.append(np.nan)
            continue
        r = A[np.linalg.norm(centres1 - p, axis=1).argmin()]
        z = (r - r.mean()) / r.std()
        ce = -np.log(np.exp(z) / np.exp(z).sum() + 1e-30)[np.linalg.norm(centres2 - q, axis=1).argmin()]
        held = [n for n in range(h1 * w1) if (abs(p - centres1[n]) <= half).all()]
        predicted = p + np.mean([centres2[A[n].argmax()] - centres1[n] for n in held], 0)
        distance = np.linalg.norm(predicted - q) / side
        total += ce * (1 if distance > alpha else (distance / alpha) ** 2)
        plain += ce
        distances.append(distance)
    return total / valid.sum(), plain / valid.sum(), np.array(distances)


def random_maps(seed, *shapes):
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(*shape, 6)) for shape in shapes]
    return [(m / np.linalg.norm(m, axis=-1, keepdims=True)).astype(np.float32) for m in maps]


pair_loss = jax.jit(loss.pair_loss, static_argnums=(5, 6))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_loss_of_a_pair_against_numpy(bidirectional):
    desc1, desc2 = random_maps(0, (5, 8), (7, 6))
    desc2[:5, :6] = 0.3 * desc2[:5, :6] + desc1[:, :6]  # some predictions are right
    desc2 /= np.linalg.norm(desc2, axis=-1, keepdims=True)
    rng = np.random.default_rng(1)
    xy1 = rng.uniform(0, [20, 16], (8, 2)).astype(np.float32)
    xy2 = (xy1 + rng.uniform(-3, 3, (8, 2))).astype(np.float32)
    xy2[0] = [20, 24]
    valid = np.array([True] * 6 + [False] * 2)
    xy1[6], xy2[7] = np.nan, 1e9
    cfg = dataclasses.replace(TINY, bidirectional=bidirectional)
    ours = pair_loss(desc1, desc2, xy1, xy2, valid, 60, cfg)
    theirs = [slow_one_direction(desc1.astype(float), desc2.astype(float), xy1, xy2, valid, 60)]
    easy = theirs[0][2][:6] <= 0.1
    assert 0 < easy.sum() < 6 and theirs[0][2][:6][easy].max() > 0
    if bidirectional:
        theirs.append(slow_one_direction(desc2.astype(float), desc1.astype(float), xy2, xy1, valid, 60))
    np.testing.assert_allclose(ours[0], np.mean([t[0] for t in theirs]), rtol=1e-4)
    np.testing.assert_allclose(ours[1], np.mean([t[1] for t in theirs]), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(ours[2])[:6], theirs[0][2][:6], atol=1e-5)


def test_gradients_are_finite_whatever_is_padded():
    desc1, desc2 = random_maps(2, (4, 5), (5, 4))
    desc1[0, 0] = 0  # rows of zeros: sd is 0
    xy = np.full((3, 2), np.nan, np.float32)
    grad = jax.jit(jax.grad(lambda d1, d2, xy1, xy2, valid: loss.pair_loss(d1, d2, xy1, xy2, valid, 20, TINY)[0], (0, 1)))
    for g in grad(desc1, desc2, xy, xy, np.zeros(3, bool)):
        assert not np.asarray(g).any()
    xy[0] = 0, 0
    xy[1] = 9, 9
    found = grad(desc1, desc2, xy, xy, np.array([True, True, False]))
    chex.assert_tree_all_finite(found)
    assert np.asarray(found[1]).any()


# ---- the network


def test_taps_of_the_paper_and_its_parameters():
    taps = network.all_taps(101)
    assert len(taps) == 34 and taps[:3] == ("maxpool", "layer1.0.sum", "layer1.1.sum") and taps[-1] == "layer4.2.sum"
    assert network.all_taps(101, before_relu=False)[-1] == "layer4.2"
    batch = {"keypoints": KeypointPair(*[jnp.zeros((1, 32, 32, 3))] * 2, None, None, None, None)}
    for dim, count in ((4, 130_576), (64, 2_089_216)):
        shapes = jax.eval_shape(METHODS["cold"].build(Config(dim=dim)).init, jax.random.key(0), batch)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
        assert set(shapes["frozen"]) == {"backbone"} and "backbone" not in shapes["params"]


def slow_resize(x, size):
    """(h, w, D) -> (*size, D), corners aligned, by tents."""
    rows, columns = (np.clip(1 - abs(np.linspace(0, n - 1, m)[:, None] - np.arange(n)), 0, None) for n, m in zip(x.shape[:2], size, strict=True))
    return np.einsum("ya,xb,abd->yxd", rows, columns, x)


def slow_exact(maps, size):
    """Activations read at pixels (4 u, 4 v), of which their own cells lie SIZE / cells pixels apart."""
    for axis, n in enumerate(size):
        at = 4 * np.arange(n) / (SIZE[axis] / maps.shape[axis])
        cells = np.arange(maps.shape[axis])
        maps = np.apply_along_axis(lambda line, at=at, c=cells: np.interp(at, c, line), axis, maps)
    return maps


@pytest.mark.parametrize(("resize", "slow"), [("aligned", slow_resize), ("exact", slow_exact)])
def test_the_sum_is_one_convolution_of_the_hypercolumn(method, variables, resize, slow):
    """One 1x1 convolution, with a scale for each layer, of all activations resampled to the cells and put side by side: the identity of 2.3."""
    net = method.match.keywords["net"].clone(resize=resize)
    images = keypoint_pair(3).image1[:1]
    size = (16, 32)
    full = thaw(variables)
    taps = network.ResNet(10, net.taps, 4).apply({name: tree["backbone"] for name, tree in full.items()}, images, train=False)
    kernel, bias = [], np.zeros(5)
    for tap in net.taps:
        name = tap.replace(".", "_")
        bn, stats = full["params"][f"bn_{name}"]["norm"], full["batch_stats"][f"bn_{name}"]["norm"]
        scale = np.asarray(bn["scale"], np.float64) / np.sqrt(np.asarray(stats["var"], np.float64) + 1e-5)
        kernel.append(np.asarray(full["params"][f"conv_{name}"]["kernel"], np.float64)[0, 0] * scale)
        bias += np.asarray(bn["bias"]) - np.asarray(stats["mean"]) * scale
    hypercolumn = np.stack([np.concatenate([slow(np.asarray(t[b], np.float64), size) for t in taps], -1) for b in range(1)])
    h = hypercolumn @ np.concatenate(kernel) + bias
    assert hypercolumn.shape == (1, *size, 4 + 4 + 8 + 16 + 32)
    np.testing.assert_allclose(infer._describe(net, variables, images), h / np.sqrt((h**2).sum(-1, keepdims=True) + 1e-6), atol=2e-5)


# ---- training


@pytest.fixture(scope="module")
def stepped(method):
    """A state, and what three updates make of it."""
    optimizer = optax.adamw(1e-2, weight_decay=1e-3)
    batch = {"keypoints": keypoint_pair()}
    axis_method = METHODS["cold"].build(TINY, axis_name=AXIS)
    state = jax.jit(partial(init_state, method, optimizer, seed=0))(batch)
    step = jax.vmap(partial(train_step, method=axis_method, optimizer=optimizer, draw=lambda key, raw, step: raw, seed=0), axis_name=AXIS)
    after, found = jax.tree.map(lambda x: x[None], state), []
    step = jax.jit(step)
    for _ in range(12):
        after, metrics = step(after, jax.tree.map(lambda x: x[None], batch))
        found.append({name: float(value[0]) for name, value in metrics.items()})
    return state, jax.tree.map(lambda x: x[0], after), found


def test_the_backbone_does_not_learn_and_the_transforms_do(stepped):
    before, after, _ = stepped
    chex.assert_trees_all_equal(before.model_state["frozen"], after.model_state["frozen"])
    chex.assert_trees_all_equal(before.model_state["batch_stats"]["backbone"], after.model_state["batch_stats"]["backbone"])
    assert "backbone" not in before.params and "backbone" not in str(jax.tree_util.tree_structure(before.opt_state))
    for tree in (before.params, before.model_state["batch_stats"]):
        assert "bn_maxpool" in tree
    for old, new in ((before.params, after.params), (before.model_state["batch_stats"], after.model_state["batch_stats"])):
        moved = [not np.array_equal(a, b) for name in old if name != "backbone" for a, b in zip(*map(jax.tree.leaves, (old[name], new[name])), strict=True)]
        assert all(moved)


def test_one_batch_is_learnt(stepped):
    _, _, metrics = stepped
    assert metrics[-1]["loss"] < 0.9 * metrics[0]["loss"]
    assert set(metrics[0]) == {"loss", "CE", "pck@0.05", "pck@0.1", "pck@0.15", "grad_norm"}


def test_parts_of_the_loss(method, variables, evaluated):
    """Per example, with running statistics; PCK by hand from the same maps."""
    pair = keypoint_pair(5)
    per_example, (parts, model_state) = evaluated(variables, {"keypoints": pair}, jax.random.key(0))
    chex.assert_trees_all_equal(model_state, {name: variables[name] for name in ("frozen", "batch_stats")})
    net = method.match.keywords["net"]
    for b in range(B):
        desc1, desc2 = (np.asarray(infer._describe(net, variables, image[[b]])[0], np.float64) for image in (pair.image1, pair.image2))
        there = slow_one_direction(desc1, desc2, pair.xy1_px[b], pair.xy2_px[b], pair.valid[b], 128)
        back = slow_one_direction(desc2, desc1, pair.xy2_px[b], pair.xy1_px[b], pair.valid[b], 128)
        np.testing.assert_allclose(per_example[b], (there[0] + back[0]) / 2, rtol=2e-3)
        np.testing.assert_allclose(parts["CE"][b], (there[1] + back[1]) / 2, rtol=2e-3)
        np.testing.assert_allclose(parts["pck@0.15"][b], (there[2][pair.valid[b]] <= 0.15).mean(), rtol=1e-6)


def test_a_pair_without_keypoints_counts_for_nothing(variables, evaluated):
    pair = keypoint_pair(6)
    whole, (parts, _) = evaluated(variables, {"keypoints": pair}, jax.random.key(0))
    none, (fewer, _) = evaluated(variables, {"keypoints": pair.replace(valid=pair.valid & [[True], [False]])}, jax.random.key(0))
    assert float(none[1]) == 0 and float(none[0]) == pytest.approx(float(whole[0]), rel=1e-5)
    assert float(fewer["pck@0.15"].mean()) == pytest.approx(float(parts["pck@0.15"][0]), rel=1e-5)


# ---- use


def slow_shrunk(image, size):
    """Means over areas."""
    out = np.zeros((*size, 3))
    (h, w), (m, n) = image.shape[:2], size
    for i in range(m):
        for j in range(n):
            rows = np.clip(np.minimum(np.arange(h) + 1, (i + 1) * h / m) - np.maximum(np.arange(h), i * h / m), 0, None)
            columns = np.clip(np.minimum(np.arange(w) + 1, (j + 1) * w / n) - np.maximum(np.arange(w), j * w / n), 0, None)
            out[i, j] = np.einsum("a,b,abc->c", rows, columns, image) / (rows.sum() * columns.sum())
    return out


@pytest.fixture(scope="module")
def used(variables):
    return Predictor("cold", TINY, variables, "random")


def test_keypoints_are_moved_in_squashed_images(method, variables, used):
    net, rng = method.match.keywords["net"], np.random.default_rng(7)
    image1, image2 = rng.uniform(size=(60, 90, 3)).astype(np.float32), rng.integers(0, 256, (80, 50, 3), dtype=np.uint8)
    xy = rng.uniform(0, [89, 59], (9, 2))
    found = used.transfer(image1, image2, xy)
    small = [slow_shrunk(image, (40, 40)).astype(np.float32) for image in (image1, image2 / 255)]
    desc1, desc2 = (np.asarray(infer._describe(net, variables, s[None])[0], np.float64) for s in small)
    A = np.maximum(0, np.einsum("abd,uvd->abuv", desc1, desc2)) ** 2
    squashed = (xy + 0.5) * [40 / 90, 40 / 60] - 0.5
    for s, q in zip(squashed, found, strict=True):
        moves = [
            np.array(np.unravel_index(A[v, u].argmax(), (10, 10)))[::-1] * 4 - [4 * u, 4 * v]
            for v in range(10)
            for u in range(10)
            if abs(s[0] - 4 * u) <= 5 and abs(s[1] - 4 * v) <= 5
        ]
        np.testing.assert_allclose(q, (s + np.mean(moves, 0) + 0.5) * [50 / 40, 80 / 40] - 0.5, atol=2e-3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(used.transfer(image1, image1, xy), xy, atol=1e-3)
    _, score = used._transfer(variables, *small, np.pad(squashed, ((0, 64 - 9), (0, 0))).astype(np.float32))
    own = [desc1[v, u] for u, v in np.clip(np.ceil(squashed / 4 - 0.5), 0, 9).astype(int)]
    np.testing.assert_allclose(score[:9], np.max(np.array(own) @ desc2.reshape(-1, 5).T, 1), atol=1e-4)


def test_cells_match_their_mutual_nearest_neighbours(method, variables):
    net, rng = method.match.keywords["net"], np.random.default_rng(8)
    images = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((50, 70), (57, 91))]
    found, every = (method.match(variables, *images, MatchOptions(mutual=mutual)) for mutual in (True, False))
    flat, places = [], []
    for image in images:
        h, w = image.shape[:2]
        padded = np.pad(image, ((0, -h % 64), (0, -w % 64), (0, 0)), mode="reflect") / np.float32(255)
        maps = np.asarray(infer._describe(net, variables, padded[None])[0])
        cells = [(v, u) for v in range(maps.shape[0]) for u in range(maps.shape[1]) if 4 * v < h and 4 * u < w]
        flat.append(np.array([maps[c] for c in cells]))
        places.append(np.array([(4 * u, 4 * v) for v, u in cells]))
    scores = flat[0] @ flat[1].T
    best, back = scores.argmax(1), scores.argmax(0)
    mutual = back[best] == np.arange(len(best))
    assert 0 < mutual.sum() < len(mutual) == 13 * 18
    np.testing.assert_allclose(every.xy1_px[every.valid], places[0])
    np.testing.assert_allclose(every.score[every.valid], scores.max(1), rtol=1e-4)
    np.testing.assert_allclose(found.xy1_px[found.valid], places[0][mutual])
    np.testing.assert_allclose(found.xy2_px[found.valid], places[1][best[mutual]])


def test_matches_of_a_large_image_are_in_its_own_pixels(method, variables):
    image = np.random.default_rng(9).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    found = method.match(variables, image, image, MatchOptions(side_px=100))
    np.testing.assert_array_equal(found.xy1_px[found.valid], found.xy2_px[found.valid])
    assert found.valid.sum() == 13 * 25  # 50 x 100 px
    assert found.xy1_px[0].tolist() == [0.5, 0.5] and found.xy1_px[found.valid].max() == 192.5


def test_mistakes_in_use_are_sentences(method, variables, used):
    image = np.zeros((40, 50, 3), np.uint8)
    for xy, words in (
        ([[2, 3], [50, 1]], r"The point \(50, 1\) lies outside image 1, which has 50 x 40 px"),
        ([[0, np.nan]], "outside"),
        ([1, 2], r"shape \(2,\)"),
    ):
        with pytest.raises(UserError, match=words):
            used.transfer(image, image, xy)
    none = Predictor("cold", TINY, variables, "random")
    none.method = method._replace(transfer=None)
    with pytest.raises(UserError, match="cold has no way of its own to move points"):
        none.transfer(image, image, [[2, 3]])
    with pytest.raises(UserError, match=r"image2 has the shape \(40, 50\)"):
        method.match(variables, image, image[..., 0])
    for change in ({"mutual": "yes"}, {"side_px": 8}):
        with pytest.raises(UserError, match=rf"MatchOptions\.{next(iter(change))}"):
            MatchOptions(**change)


# ---- configuration


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 3}, r"dim = 3 must be at least 4: the paper's training failed to converge"),
        ({"taps": ("layer5",)}, r"taps: A ResNet-10 has no activation 'layer5'"),
        ({"taps": ("layer4.1.sum",)}, r"taps: A ResNet-10 has no activation 'layer4\.1\.sum'"),
        ({"taps": ("layer4", "layer4")}, r"taps = .* twice"),
        ({"box_px": 10}, r"box_px = 10 must be odd"),
        ({"backbone": "resnet51"}, r"backbone"),
        ({"weights": "resnet50.pth"}, r"weights"),
        ({"weights": "imagenet:resnet18.pth"}, r"width"),
    ],
)
def test_wrong_fields_are_named(change, words):
    config.validate(ExperimentConfig(method=TINY, data=DATA))
    with pytest.raises(UserError, match=rf"config\.method\.{words}"):
        config.validate(ExperimentConfig(method=dataclasses.replace(TINY, **change), data=DATA))


def test_a_network_that_cannot_be_is_not_built():
    with pytest.raises(UserError, match="at least 4"):
        METHODS["cold"].build(Config(dim=2))


def test_a_backbone_of_another_depth_is_refused(variables):
    tensors = {"conv1.weight": np.zeros((4, 3, 7, 7)), "layer1.1.conv1.weight": np.zeros((4, 4, 3, 3))}
    with pytest.raises(UserError, match=r"missing: .*layer1\.0\.conv1\.weight.*not used: layer1\.1\.conv1\.weight"):
        start_from_imagenet(variables, tensors)


def test_the_papers_variants_are_those_of_the_page():
    paper, adam = (config.load(f"configs/cold.py:{name}") for name in ("paper", "paper_adam"))
    assert (paper.optim.name, paper.optim.learning_rate, paper.optim.momentum, paper.optim.weight_decay) == ("sgd", 0.03, 0.5, 0.0)
    assert (adam.optim.name, adam.optim.learning_rate, adam.optim.schedule, adam.optim.weight_decay) == ("adamw", 3e-4, "cosine", 1e-4)
    assert (paper.train.steps, adam.train.steps, paper.data.keypoints.per_batch, paper.data.keypoints.image_px) == (36_800, 18_400, 8, 240)
    assert config.load("configs/cold.py:paper,dim=64").method.dim == 64 and paper.method == Config()
    assert [source.kind for source in config.load("configs/cold.py:keypoints").data.keypoints.sources] == ["keypoints"]


def test_defaults_are_those_of_the_page():
    cfg = Config()
    assert (cfg.backbone, cfg.dim, cfg.image_px, cfg.box_px, cfg.hard_alpha) == ("resnet101", 1024, 240, 11, 0.1)
    assert (cfg.before_relu, cfg.relu, cfg.mutual_filter, cfg.bidirectional, cfg.eps) == (True, False, False, True, 1e-6)
    assert cfg.deviation_gradient
    for name in ("default", "keypoints", "paper", "paper_adam", "smoke"):
        assert config.load(f"configs/cold.py:{name}").method.deviation_gradient


def test_files_from_before_a_field_keep_what_they_meant(tmp_path, variables):
    """Runs without `deviation_gradient` in their config.json were trained without it: they go on
    so, are refused to one with it, and their weights say so when they are read."""
    cfg = config.load("configs/cold.py:smoke")
    loop.claim(tmp_path, cfg)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["method"]["deviation_gradient"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"deviation_gradient is False there and True here"):
        loop.claim(tmp_path, cfg)
    fixed = {"method.deviation_gradient": "False"}
    loop.claim(tmp_path, config.load("configs/cold.py:smoke", fixed))
    old = dataclasses.asdict(TINY)
    del old["deviation_gradient"]
    path = tmp_path / "old.safetensors"
    weights.save(path, "cold", TINY, jax.device_get(variables))
    with safe_open(str(path), framework="numpy") as file:
        names = file.keys()
        header, flat = file.metadata(), {name: file.get_tensor(name) for name in names}
    save_file(flat, path, header | {"config": json.dumps(old)})
    assert load(path).config == dataclasses.replace(TINY, deviation_gradient=False)


def test_constants_of_the_supplementary():
    """What it states, as the paper's configuration and the study have it."""
    cfg = config.load("configs/cold.py:paper")
    # section 1: "We used ResNet-101 as our backbone network"
    assert cfg.method.backbone == "resnet101" and cfg.method.width == 64
    # Table 1, "Channel dim."; "failed to converge [...] with channel dimensions below 4"
    study = published.STUDIES["cold-channels"]
    dims = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072)
    assert study.over == {"method.dim": dims} and min(dims) == LEAST_DIM
    # Table 1, "PF-PASCAL (tau_img)": 0.05, 0.1, 0.15, of the row of 1024 channels 75.7 88.2 92.9
    assert PCK_ALPHAS == pck.REPORTED == (0.05, 0.1, 0.15)
    assert study.scores[(1024,)] == {"pck@0.05": 0.757, "pck@0.1": 0.882, "pck@0.15": 0.929}
    # section 2: "correspondences are found using nearest-neighbour search"
    assert not cfg.method.mutual_filter
    # Figures 3 and 4: "The distance threshold for correctness was set to 20 pixels"
    assert pck.GREEN_PX == 20
