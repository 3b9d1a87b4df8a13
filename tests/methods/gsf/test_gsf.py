"""GSF as a method: where it starts, what its stages change, what identical and too small images give."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import struct
from PIL import Image

from jaxdesc import config, figures
from jaxdesc.config import ExperimentConfig
from jaxdesc.data.kinds import DataConfig, KeypointPairs
from jaxdesc.methods import gsf
from jaxdesc.methods.gsf import Config, flow, infer, network, stages
from jaxdesc.methods.gsf.loss import end_point_errors, gsf_loss, pair_losses
from jaxdesc.methods.gsf.network import Alignment
from jaxdesc.predict.pair import match_pair
from jaxdesc.predict.predictor import Predictor
from jaxdesc.store.flow import read_flo
from jaxdesc.training import loop
from jaxdesc.types import Grid, KeypointPair, UserError

CONFIGS = Path(__file__).parents[3] / "configs"
GRID, SIDE = 4, 32
TINY = Config(backbone="resnet10", width=4, tap="layer2", trained=("layer2",), grid=GRID, unet_width=2, unet_levels=1)


def data_of_px(image_px, **fields):
    return DataConfig(keypoints=KeypointPairs(image_px=image_px, **fields))


DATA = data_of_px(32, sources=(config.Source(), config.Source("masks", "A")))
NET = network.GsfNet(TINY)
RNG = np.random.default_rng(0)


@struct.dataclass
class MaskedPair:
    """Two squares with everything that the loss can use."""

    image1: jax.Array
    image2: jax.Array
    mask1: jax.Array
    mask2: jax.Array
    xy1_px: jax.Array
    xy2_px: jax.Array
    valid: jax.Array


def cell_centres(b):
    y, x = np.mgrid[:GRID, :GRID]
    return np.broadcast_to(8.0 * np.stack([x, y], -1).reshape(-1, 2) + 3.5, (b, GRID**2, 2)).astype(np.float32)


QUICK = {"xla_backend_optimization_level": 0}  # compiled in half the time, for programs that run a few times

IMAGES = RNG.uniform(size=(2, SIDE, SIDE, 3)).astype(np.float32)
MASKS = np.zeros((2, SIDE, SIDE), bool)
MASKS[:, :, :16] = True
CENTRES = cell_centres(2)
INSIDE = np.broadcast_to(np.arange(GRID**2) % GRID < GRID - 1, (2, GRID**2))  # of an image whose columns move to the right by a cell
PAIR = MaskedPair(IMAGES, np.roll(IMAGES, 8, 2), MASKS, np.roll(MASKS, 8, 2), CENTRES, CENTRES + np.float32([8, 0]), INSIDE)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(gsf.build(TINY).init, compiler_options=QUICK)(jax.random.key(0), {})


def differentiated(pruning_only):
    def objective(params, rest, pair):
        per_example, (parts, model_state) = gsf_loss({"params": params, **rest}, {"keypoints": pair}, None, True, net=NET, cfg=TINY, pruning_only=pruning_only)
        return per_example.mean(), (per_example, parts, model_state)

    return jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)


PRUNING, WHOLE = differentiated(True), differentiated(False)


def learner(rate):
    """start(params) and update(params, state, gradient) of Adam, compiled: leaf by leaf each shape would be compiled on its own."""
    optimizer = optax.adam(rate)

    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    return jax.jit(optimizer.init), jax.jit(update)


def split(variables):
    rest = dict(variables)
    return rest.pop("params"), rest


def test_only_the_stages_named_learn_and_no_backbone_statistics_change(variables):
    assert sorted(variables["params"]) == ["backbone", "matching", "pruning"]
    assert list(variables["params"]["backbone"]) == ["layer2_0"] and sorted(variables["frozen"]["backbone"]) == ["bn1", "conv1", "layer1_0"]
    params, rest = split(variables)
    _, (_, _, model_state) = WHOLE(params, rest, PAIR)[0]
    assert jax.tree.structure(model_state) == jax.tree.structure(rest)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), model_state, rest)
    assert not any(jax.tree.leaves([moved["frozen"], moved["batch_stats"]["backbone"]]))
    assert any(jax.tree.leaves(moved["batch_stats"]["pruning"])) and any(jax.tree.leaves(moved["batch_stats"]["matching"]))


def test_starts(variables):
    """tau = G' and Q' = 0.99995 Q at first, so L_sil is next to nothing; end-point errors and the loss are those of the parts.

    Supplementary, section 1: "setting conv8_p to produce a value of 10, so that the following
    sigmoid layer yields about 0.99995"; "setting conv8_m to produce a value of 0".
    """
    params, rest = split(variables)
    for network_name, value in (("pruning", 10), ("matching", 0)):
        np.testing.assert_array_equal(params[network_name]["conv8_bias"], value)
        assert not np.asarray(params[network_name]["conv8_kernel"]).any()
    (loss, (per_example, parts, _)), gradient = WHOLE(params, rest, PAIR)
    np.testing.assert_array_equal(parts["epe_flow"], parts["epe_guidance"])
    assert (np.asarray(parts["L_sm"]) > 0).all()
    np.testing.assert_allclose(per_example, parts["L_sil"] + 3 * parts["L_geo"] + 5 * parts["L_M"] + 0.1 * parts["L_sm"], rtol=1e-5)
    np.testing.assert_allclose(loss, per_example.mean(), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for module in ("backbone", "matching", "pruning"):
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient[module])), module


def test_masks_of_a_pair_reach_its_silhouette_loss_alone(variables):
    """Matches between object and background count against L_sil; a pair whose masks are all of the object is a pair without masks."""
    params, rest = split(variables)
    one = PAIR.replace(mask1=MASKS & [[[True]], [[False]]] | [[[False]], [[True]]], mask2=np.roll(MASKS, 8, 2) | [[[False]], [[True]]])
    (_, (_, parts, _)), _ = PRUNING(params, rest, one)
    (_, (_, bare, _)), _ = PRUNING(params, rest, PAIR.replace(mask1=MASKS | True, mask2=MASKS | True))
    assert parts["L_sil"][0] > 0.01 > 1e-6 > parts["L_sil"][1]
    np.testing.assert_allclose(parts["L_sil"][1], bare["L_sil"][1])
    np.testing.assert_array_equal(parts["L_geo"], bare["L_geo"])


def test_first_stage_moves_the_pruning_network_alone(variables):
    """Gradients behind a sigmoid of 10 are tiny, and 0 before conv8 at first; Adam moves it all the same, and then the layers before it."""
    params, rest = split(variables)
    (loss, (per_example, parts, _)), gradient = PRUNING(params, rest, PAIR)
    np.testing.assert_allclose(per_example, parts["L_sil"] + 3 * parts["L_geo"], rtol=1e-5)
    assert "L_M" not in parts and "epe_flow" not in parts
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves([gradient["backbone"], gradient["matching"]]))
    assert 0 < np.abs(gradient["pruning"]["conv8_kernel"]).max() < 1e-3 and not np.asarray(gradient["pruning"]["conv3b"]["kernel"]).any()
    start, update = learner(0.03)
    state, now = start(params), params
    for _ in range(3):
        now, state = update(now, state, gradient)
        (loss, _), gradient = PRUNING(now, rest, PAIR)
    assert all(np.array_equal(a, b) for module in ("backbone", "matching") for a, b in zip(*map(jax.tree.leaves, (now[module], params[module])), strict=True))
    assert (now["pruning"]["conv1"]["kernel"] != params["pruning"]["conv1"]["kernel"]).any()
    assert np.isfinite(loss)


def test_one_batch_is_learned(variables):
    params, rest = split(variables)
    start, update = learner(3e-3)
    state, losses = start(params), []
    for _ in range(12):
        (loss, (_, _, rest)), gradient = WHOLE(params, rest, PAIR)
        params, state = update(params, state, gradient)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.05


def predictor_of(variables):
    return Predictor("gsf", TINY, variables, "tiny")


losses_jit = jax.jit(pair_losses, static_argnums=4)
errors_jit = jax.jit(end_point_errors, static_argnames="grid")


def random_alignment(h, w):
    rng = np.random.default_rng(3)
    Q = rng.uniform(0, 1, (h, w, h * w)).astype(np.float32)
    return Alignment(Q, Q, 0.98 * Q, Q > 0.95, rng.normal(size=(h, w, 2)).astype(np.float32), rng.normal(size=(h, w, 2)).astype(np.float32))


def test_parts_are_made_from_the_right_volumes():
    """L_sil and L_geo run over Q > rho, whatever Q' is; L_geo follows G', L_M follows tau; masks reach L_sil alone."""
    h, w = 4, 5
    found = random_alignment(h, w)
    source, target = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in np.random.default_rng(4).normal(size=(2, h, w, 6)))
    masks = (RNG.uniform(size=(h, w)) > 0.5, RNG.uniform(size=(h, w)) > 0.5)
    parts = losses_jit(source, target, found, masks, TINY)
    among = found.Q > 0.9
    same = np.array([[[masks[0][y, x] == m for m in masks[1].reshape(-1)] for x in range(w)] for y in range(h)])
    np.testing.assert_allclose(parts["L_sil"], ((found.refined - found.Q * same) ** 2)[among].mean(), rtol=1e-5)
    tents = [[target_at(target, x + found.guidance[y, x, 0], y + found.guidance[y, x, 1]) for x in range(w)] for y in range(h)]
    e = ((source - np.array(tents)) ** 2).sum(-1)
    means = [[e[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].mean() for x in range(w)] for y in range(h)]
    np.testing.assert_allclose(parts["L_geo"], (among * np.array(means)[..., None]).sum() / among.sum(), rtol=1e-4)
    follows = np.array([[target_at(target, x + found.flow[y, x, 0], y + found.flow[y, x, 1]) for x in range(w)] for y in range(h)])
    scores = np.exp(np.einsum("yxd,vud->yxvu", source, follows))
    shares = [[scores[y, x, y, x] / scores[y, x, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].sum() for x in range(w)] for y in range(h)]
    np.testing.assert_allclose(parts["L_M"], -np.log(shares).mean(), rtol=1e-5)
    np.testing.assert_allclose(parts["L_sm"], sum(np.abs(np.diff(found.flow, axis=k)).mean() for k in (0, 1)), rtol=1e-5)
    without = losses_jit(source, target, found, (masks[0] | True, masks[1] | True), TINY)
    np.testing.assert_allclose(without["L_sil"], (0.02**2 * found.Q**2)[among].mean(), rtol=1e-3)
    assert without["L_geo"] == parts["L_geo"] and parts["L_sil"] > 10 * without["L_sil"]


def target_at(target, x, y):
    return sum(max(0, 1 - abs(x - u)) * max(0, 1 - abs(y - v)) * target[v, u] for v in range(target.shape[0]) for u in range(target.shape[1]))


def test_end_point_errors_are_means_over_known_keypoints():
    h, w = 3, 4
    found = jax.tree.map(lambda x: np.stack([x, x[::-1, ::-1]]), random_alignment(h, w))
    xy1, xy2 = RNG.uniform(0, 23, (2, 2, 5, 2)).astype(np.float32)
    known = RNG.uniform(size=(2, 5)) > 0.4
    grid = Grid((1.5, -2.0), (6.0, 8.0))
    errors = errors_jit(found, np.where(known[..., None], xy1, np.nan), xy2, known, grid=grid)
    expected = []
    for b, k in np.argwhere(known):
        cell1, cell2 = ((xy[b, k] - [1.5, -2]) / [6, 8] for xy in (xy1, xy2))
        best = found.C[b].argmax(-1)
        moves = np.stack([best % w, best // w], -1) - np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1)
        at = np.clip(cell1, 0, [w - 1, h - 1])
        expected.append([np.hypot(*(cell1 + target_at(f, *at) - cell2)) for f in (moves, found.guidance[b], found.flow[b])])
    for i, name in enumerate(("epe_best", "epe_guidance", "epe_flow")):
        np.testing.assert_allclose(errors[name].mean(), np.mean(expected, 0)[i], rtol=1e-4)


def test_identical_maps_of_distinct_features_do_not_move(variables):
    """The guidance of every cell is itself but for rounding; so is the flow at first."""
    features = np.eye(GRID**2, dtype=np.float32).reshape(1, GRID, GRID, -1)
    whole = {name: tree for name, tree in variables.items() if name != "frozen"}
    align = jax.jit(partial(NET.apply, train=False, method="align"))
    found = align(whole, features, features)
    np.testing.assert_allclose(found.flow, 0, atol=1e-6)
    assert found.selected.sum() == GRID**2
    shifted = np.roll(features, 1, 2)
    shifted[:, :, 0] = 0
    found = align(whole, features, shifted)
    np.testing.assert_array_equal(np.asarray(found.selected).any(-1)[0], np.arange(GRID) < GRID - 1 + np.zeros((GRID, 1)))
    np.testing.assert_allclose(found.flow[0], np.broadcast_to([1.0, 0.0], (GRID, GRID, 2)), atol=1e-5)  # the last column follows its neighbours


def test_matching_photographs(variables):
    method = gsf.build(TINY)
    image1, image2 = (RNG.uniform(size=(h, w, 3)).astype(np.float32) for h, w in ((24, 40), (33, 20)))
    found = method.match(variables, image1, image2)
    alignment = infer.alignment(variables, image1, image2, net=NET)
    assert found.xy1_px.shape == (16, 2) and found.score.shape == (16,)
    # cells are centred on pixels 0, 8, 16 and 24 of squares of 32
    xs, y0, y1 = 40 / 32 * (8 * np.arange(4) + 0.5) - 0.5, 24 / 64 - 0.5, 24 / 32 * 8.5 - 0.5
    expected = [*([x, y0] for x in xs), [xs[0], y1], [xs[1], y1]]
    np.testing.assert_allclose(found.xy1_px[:6], expected, atol=1e-5)
    for k, (x, y) in enumerate((x, y) for y in range(4) for x in range(4)):
        u, v = (8 * (np.array([x, y]) + alignment.flow[y, x]) + 0.5) / 32
        np.testing.assert_allclose(found.xy2_px[k], [u * 20 - 0.5, v * 33 - 0.5], atol=1e-4)
        assert found.valid[k] == (0 <= u <= 1 and 0 <= v <= 1)
        np.testing.assert_allclose(found.score[k], alignment.refined[y, x].max())
    sure = method.match(variables, image1, image2, infer.MatchOptions(confident=True))
    np.testing.assert_array_equal(sure.valid, found.valid & alignment.selected.any(-1).reshape(-1))
    dense = infer.dense(variables, image1, image2, net=NET)
    assert dense.shape == (24, 40, 2)
    moved = predictor_of(variables).transfer(image1, image2, np.array([[11.0, 7.0], [30.0, 20.0]]))
    np.testing.assert_allclose(moved, [dense[7, 11], dense[20, 30]], atol=1e-3)


def test_keypoints_move_along_the_flow(variables):
    xy = RNG.uniform(-0.5, SIDE - 0.5, (7, 2)).astype(np.float32)
    there, score = jax.jit(gsf.build(TINY).transfer, compiler_options=QUICK)(variables, IMAGES[0], IMAGES[1], xy)
    found = infer.alignment(variables, IMAGES[0], IMAGES[1], net=NET)
    np.testing.assert_allclose(there, infer.moved(found.flow, xy, (SIDE, SIDE), (SIDE, SIDE), TINY), atol=1e-3)
    nearest = np.clip(np.rint(xy / 8).astype(int), 0, GRID - 1)
    np.testing.assert_allclose(score, [found.refined[v, u].max() for u, v in nearest], atol=1e-5)
    assert np.abs(there - xy).max() > 1


def test_identical_images(variables):
    """They are pairs like any other: cells that look alike guide each other, and what is found is
    0 only in the mean, weighted by the mass of the matches; next to the same for an image that
    differs by next to nothing."""
    image = 0.5 + 0.02 * RNG.uniform(size=(37, 50, 3)).astype(np.float32)  # cells that look alike
    found = infer.alignment(variables, image, image.copy(), net=NET)
    assert np.abs(found.flow).max() > 0.01 and found.selected.sum() > GRID**2
    G, mass = flow.sparse_guidance(found.refined, found.selected, (GRID, GRID))
    assert np.abs(G).max() > 0.1
    np.testing.assert_allclose((G * mass[..., None]).sum((0, 1)), 0, atol=1e-3)
    nearly = infer.alignment(variables, image, image + np.float32(1e-7), net=NET)
    np.testing.assert_allclose(found.flow, nearly.flow, atol=0.01)


def test_constants_of_the_supplementary():
    """What it states, as the paper's configuration has it."""
    cfg = config.load(f"{CONFIGS / 'gsf.py'}:paper")
    method, warp = cfg.method, cfg.data.keypoints.warp
    # Table 2 (a), "different variances c_P, c_M": the best cell, 33.5, is that of 5 and 5
    assert (method.guide_width, method.modulation_width, method.gauss) == (5, 5, "variance")
    # Table 2 (b), "neighbourhoods N, M": the best cell, 33.5, is that of 5x5 and 5x5
    assert (method.geo_window, method.match_window) == (5, 5)
    # section 2: "we set rho to 0.9 at which the density of confident matches [...] becomes 75%"
    assert method.rho == 0.9 and gsf.METHOD.published == {"density": 0.75}
    assert method.confidence_contrast == 0  # chosen for that density
    # section 1: "lambda = 3 [...] during the first stage [...] lambda_M = 5, lambda_sm = 0.1"
    assert (method.geo_factor, method.match_factor, method.smooth_factor) == (3, 5, 0.1)
    # section 1: "1_{20x20x400}", "0_{20x20x2}"; Table 1: conv1 has 64 channels, three poolings
    assert (method.grid, method.unet_width, method.unet_levels) == (20, 64, 3)
    # section 1: "translation in +-0.15, rotation in +-10 degrees, and scaling in [0.8,1.2]",
    # "local TPS transformation includes random translation in +-0.1"
    assert (warp.shift, warp.angle_deg, warp.scale, warp.bend) == (0.15, 10, (0.8, 1.2), 0.1)
    # section 1 and 2: two stages; "synthetic transformations at first"
    assert method.stages == ("A1", "A2", "B")
    kinds = [stages.KINDS[name] for name in method.stages]
    assert kinds == [("synthetic", True), ("synthetic", False), ("real", False)]


def confident_ratio(variables, cfg):
    """The fraction of the source cells that have a confident match, by NumPy."""
    images = np.stack([PAIR.image1, PAIR.image2], 1)
    kept = []
    for pair in images:
        source, target = np.asarray(network.describe(NET, variables, pair), np.float64)
        C = np.maximum(0, np.einsum("yxd,nd->yxn", source, target.reshape(GRID**2, -1)))
        best = np.maximum(C.max(-1, keepdims=True) * C.max((0, 1)), 1e-12)  # a cell may be dark
        Q = (C * C / best) ** cfg.confidence_contrast
        kept.append(Q.max(-1) > cfg.rho)
    return np.mean(kept)


def test_the_contrast_is_chosen_for_the_papers_density(variables):
    """Twice the same, with a sentence; what is given is kept, and nothing is said of it."""
    said, free = [], dataclasses.replace(TINY, confidence_contrast=0.0)
    chosen, again = (free.calibrated(variables, {"keypoints": PAIR}, said.append) for _ in range(2))
    contrast = chosen.confidence_contrast
    assert chosen == again == dataclasses.replace(TINY, confidence_contrast=contrast)
    assert contrast > 1
    assert confident_ratio(variables, chosen) == 0.75 < confident_ratio(variables, TINY)
    assert f"confidence_contrast = {contrast:g} was chosen" in said[0]
    assert "on 2 held-out pairs (paper: 0.75)." in said[0] and "nearer" not in said[0]
    assert chosen.calibrated(variables, {"keypoints": PAIR}, said.append) is chosen
    assert len(said) == 2


def test_a_density_that_no_contrast_gives_is_told(variables):
    """Between an image and itself all cells but a dark one are mutual nearest neighbours."""
    same, said = PAIR.replace(image2=PAIR.image1), []
    free = dataclasses.replace(TINY, confidence_contrast=0.0)
    free.calibrated(variables, {"keypoints": same}, said.append)
    assert "is 0.938 on 2 held-out pairs (paper: 0.75), and no other brings it nearer" in said[0]


def test_a_run_keeps_the_contrast_that_it_chose(tmp_path):
    """Its workdir is taken up with the number in config.json, and refused with another one."""
    paper = config.load(f"{CONFIGS / 'gsf.py'}:paper")
    loop.claim(tmp_path, paper)
    assert loop.recalled(paper, tmp_path) == paper  # nothing was chosen yet
    chosen = dataclasses.replace(paper.method, confidence_contrast=2.366)
    loop.record(tmp_path, dataclasses.replace(paper, method=chosen))
    loop.claim(tmp_path, paper)
    assert loop.recalled(paper, tmp_path).method == chosen
    other = dataclasses.replace(chosen, confidence_contrast=3.0)
    with pytest.raises(UserError, match=r"confidence_contrast is 2\.366 there and 3\.0 here"):
        loop.claim(tmp_path, dataclasses.replace(paper, method=other))


def test_match_verb_writes_the_flow(variables, tmp_path):
    """The dense flow is the method's own, at every pixel; images are warped by it, source to target by that of the other direction."""
    predictor = predictor_of(variables)
    images = [(255 * RNG.uniform(size=(h, w, 3))).astype(np.uint8) for h, w in ((24, 40), (33, 20))]
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    out = {name: tmp_path / f"{name}.png" for name in ("warp", "alignment", "figure")} | {"out": tmp_path / "m.npz", "dense": tmp_path / "f.flo"}
    count = match_pair(predictor, paths, predictor.options(confident=True), None, out)
    expected = gsf.build(TINY).dense(variables, *images)
    y, x = np.mgrid[:24, :40]
    np.testing.assert_allclose(read_flo(out["dense"])[0], expected - np.stack([x, y], -1), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(Image.open(out["warp"])), figures.warp(images[1], expected))
    assert len(np.load(out["out"])["corres"]) == count
    back = figures.warp(images[0], gsf.build(TINY).dense(variables, *images[::-1]))
    matches = predictor.match(*images, confident=True)
    np.testing.assert_array_equal(np.asarray(Image.open(out["alignment"])), figures.alignment(*images, back, matches.xy1, matches.xy2))


def test_points_between_and_beyond_the_centres():
    """Bilinear between the centres of the cells; the outermost cells' displacement beyond."""
    field = RNG.normal(size=(GRID, GRID, 2)).astype(np.float32)
    size1, size2 = (30, 100), (60, 50)
    xy = np.array([[9.5, 4.5], [19.5, 9.5], [0.0, 0.0], [99.0, 29.0]])
    expected = []
    for x, y in xy:
        cell = (np.array([(x + 0.5) / 100, (y + 0.5) / 30]) * SIDE - 0.5) / 8
        there = 8 * (cell + target_at(field, *np.clip(cell, 0, GRID - 1)))
        expected.append((there + 0.5) / SIDE * [50, 60] - 0.5)
    moved = partial(infer.moved, cfg=TINY)
    np.testing.assert_allclose(moved(field, xy, size1, size2), expected, atol=1e-4)
    several = moved(field, xy.reshape(2, 2, 2), size1, size2)
    np.testing.assert_allclose(several.reshape(4, 2), expected, atol=1e-4)
    np.testing.assert_allclose(moved(0 * field, xy, size1, size1), xy, atol=1e-5)


def test_bad_images(variables):
    method, good = gsf.build(TINY), np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(UserError, match="image2 of 40x3 px is too small"):
        method.match(variables, good, np.zeros((3, 40, 3), np.uint8))
    with pytest.raises(UserError, match=r"image1 has the shape \(40, 40\)"):
        method.match(variables, good[..., 0], good)
    with pytest.raises(UserError, match="confident"):
        infer.MatchOptions(confident="yes")
    image, none = np.zeros((1, 48, 48, 3)), np.zeros((1, 0, 2))
    pair = KeypointPair(image, image, none, none, np.zeros((1, 0), bool), np.zeros(1))
    with pytest.raises(UserError, match="squares of 32 px"):
        method.loss(variables, {"keypoints": pair}, None, True)


def test_stages_cover_the_run():
    all_three = stages.schedule(("A1", "A2", "B"), (10, 10, 20), 402)
    assert [(s.name, s.start, s.steps) for s in all_three] == [("A1", 0, 100), ("A2", 100, 101), ("B", 201, 201)]
    assert [(s.source, s.pruning_only) for s in all_three] == [("synthetic", True), ("synthetic", False), ("real", False)]
    assert [s.name for s in stages.schedule(("B",), (3.0,), 7)] == ["B"]
    assert [(s.name, s.steps) for s in stages.schedule(("A1", "A2", "B"), (1, 1, 8), 3)] == [("A2", 1), ("B", 2)]


def test_rates_of_the_stages(variables):
    a1, a2 = stages.schedule(("A1", "A2"), (1, 1), 2)
    for stage, expected in ((a1, {"backbone": {0.0}, "matching": {0.0}, "pruning": {1.0}}), (a2, {"backbone": {0.1}, "matching": {1.0}, "pruning": {1.0}})):
        found = stages.rates(variables["params"], stage, TINY.backbone_rate)
        assert {name: set(jax.tree.leaves(tree)) for name, tree in found.items()} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ("A1", "C")}, "config.method.stages names 'C'; there are A1, A2, B"),
        ({"stages": ()}, "config.method.stages is empty"),
        ({"stage_shares": (1.0, 2.0)}, "config.method.stage_shares"),
        ({"stage_shares": (1.0, 2.0, 0.0)}, "config.method.stage_shares"),
        ({"geo_window": 4}, "config.method.geo_window = 4 must be odd"),
        ({"match_window": 6}, "config.method.match_window = 6 must be odd"),
        ({"tap": "layer3.7"}, "layer3.7"),
        ({"trained": ("conv5",)}, "config.method.trained names 'conv5'"),
        ({"rho": 1.5}, "config.method.rho = 1.5"),
        ({"gauss": "round"}, "config.method.gauss = 'round' must be one of width, variance"),
        ({"confidence_contrast": 0.5}, "confidence_contrast = 0.5 must be at least 1, or 0"),
        ({"confidence_contrast": 0.0, "confidence_power": 1}, "confidence_power = 0"),
        ({"weights": "resnet.pth"}, "imagenet:FILE"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(UserError) as e:
        config.validate(ExperimentConfig(method=dataclasses.replace(TINY, **changes), data=DATA))
    assert message in str(e.value)


def test_squares_of_another_size_are_refused():
    wrong = ExperimentConfig(method=TINY, data=data_of_px(40))
    with pytest.raises(UserError, match=r"keypoints\.image_px = 40 must be 32: 4 cells of 8 px"):
        config.validate(wrong)


def test_data_of_a_stage():
    photographs, objects = config.Source("photos", "A"), config.Source("pf-pascal", "B")
    data = data_of_px(32, sources=(photographs, objects), per_batch=2)
    a, b = (stages.data_of(stage, data) for stage in stages.schedule(("A2", "B"), (1, 1), 2))
    assert a.keypoints.sources == (photographs,) and b.keypoints.sources == (objects,)
    assert all(d.pairs_per_batch() == {"keypoints": 2} for d in (a, b))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("photos", "none for stage B of config.method.stages: add pairs of objects, such as masks"),
        ("masks", "none for stage A1 of config.method.stages: add photographs to be warped"),
    ],
)
def test_a_stage_without_sources_is_refused(source, words):
    data = data_of_px(32, sources=(config.Source(source, "A"),))
    with pytest.raises(UserError, match=words):
        config.validate(ExperimentConfig(method=TINY, data=data))


@pytest.mark.parametrize("variant", ["default", "paper", "smoke"])
def test_shipped_configurations(variant):
    cfg = config.load(f"{CONFIGS / 'gsf.py'}:{variant}")
    image_px = cfg.data.keypoints.image_px
    assert network.side_px(cfg.method) == image_px
    if variant == "paper":
        assert (cfg.method, image_px) == (Config(confidence_contrast=0.0), 320)
        assert "photos:PF_PASCAL" not in (CONFIGS / "gsf.py").read_text()  # tests are among them
    with pytest.raises(UserError, match="no variant 'b'"):
        config.load(f"{CONFIGS / 'gsf.py'}:b")


def test_a_good_configuration_and_its_side():
    both = (config.Source(), config.Source("masks", "A"))
    cfg = ExperimentConfig(method=Config(), data=data_of_px(320, sources=both))
    assert config.validate(cfg).method.grid == 20
    assert network.side_px(Config()) == 320 and network.side_px(TINY) == SIDE
    assert network.side_px(Config(tap="layer2.1.sum")) == 160
    assert network.learns("backbone", Config()) and network.learns("backbone/layer3_4/conv1/kernel", Config()) and network.learns("pruning/conv1", Config())
    assert not network.learns("backbone/layer2_3", Config()) and not network.learns("backbone/conv1", Config())
