"""The public way in: weights of every kind, images of every form, descriptors of every size."""

import dataclasses
import json
import math
import sys

import cv2
import jax
import numpy as np
import PIL.Image
import pytest

import jaxdesc
from jaxdesc import config as configs
from jaxdesc.__main__ import main
from jaxdesc.images import STEP_PX
from jaxdesc.methods import METHODS
from jaxdesc.methods.pump import Config
from jaxdesc.predict import predictor
from jaxdesc.store import weights
from jaxdesc.store.checkpoint import Checkpoints
from jaxdesc.training.optim import make_optimizer
from jaxdesc.training.step import init_state
from jaxdesc.types import Correspondences, TrainState, UserError

TINY = {"hidden": 8, "depth": 1, "kernel": 3, "output_dim": 6}


@pytest.fixture(scope="module")
def net():
    return predictor.untrained("pump", **TINY)


def noise(height, width, seed=0):
    """A smooth random photograph (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 1.2)


# ---- descriptors


def test_describe_is_the_network_on_the_image_filled_up_by_reflection(net):
    image = noise(70, 45)
    out = net.describe(image)
    assert out.shape == (70, 45, 6) and out.dtype == np.float32
    padded = np.empty((128, 64, 3), np.float32)
    for y in range(128):
        for x in range(64):
            padded[y, x] = image[y if y < 70 else 138 - y, x if x < 45 else 88 - x] / 255
    expected = METHODS["pump"].build(net.config).describe(net.variables, padded[None])[0, :70, :45]
    np.testing.assert_allclose(out, expected, atol=2e-6)
    length = np.linalg.norm(out, axis=-1)
    np.testing.assert_allclose(length[length > 0], 1, atol=1e-5)
    np.testing.assert_array_equal(net.describe(image), out)


def test_images_of_one_bucket_share_a_program(net):
    net.describe(noise(70, 45))
    programs = net._maps._cache_size()
    net.describe(noise(100, 64))
    assert net._maps._cache_size() == programs


def test_tiny_images(net):
    assert net.describe(noise(1, 2)).shape == (1, 2, 6)
    assert net.describe_at(noise(1, 2), np.array([[0.5, 0.0]]), "all").shape == (1, 7, 6)


@pytest.mark.parametrize("hw", [(300, 130), (129, 128), (128, 385)])
def test_windows_give_what_the_whole_gives(net, monkeypatch, hw):
    image = noise(*hw)
    xy = np.random.default_rng(1).uniform(-0.5, np.array(hw[::-1]) - 0.5, (500, 2))
    whole, sparse = net.describe(image), net.describe_at(image, xy)
    calls = []
    run = net._maps
    monkeypatch.setattr(net, "_maps", lambda variables, part: calls.append(part.shape) or run(variables, part))
    monkeypatch.setattr(predictor, "TILE", 128)
    monkeypatch.setattr(predictor, "MARGIN", 32)
    np.testing.assert_allclose(net.describe(image), whole, atol=1e-5)
    assert len(calls) > 1 and len(set(calls)) == 1, "several windows of one shape"
    np.testing.assert_allclose(net.describe_at(image, xy), sparse, atol=1e-4)  # positions are float32


def test_windows_cover_every_pixel_once():
    for n in (1, 1536, 1537, 1600, 2816, 2817, 5000, 12345):
        parts = predictor._parts(n)
        seen = np.zeros(n, int)
        for corner, start, stop in parts:
            seen[start:stop] += 1
            assert corner % STEP_PX == 0 and corner <= start < stop <= corner + predictor.TILE
            assert start == 0 or start - corner >= predictor.MARGIN
            assert stop == n or corner + predictor.TILE - stop >= predictor.MARGIN
        assert (seen == 1).all()


def bilinear(dense, x, y):
    """One descriptor at (x, y), its neighbours beyond the border being those on it."""
    height, width, _ = dense.shape
    x0, y0 = math.floor(x), math.floor(y)
    out = 0
    for yy in (y0, y0 + 1):
        for xx in (x0, x0 + 1):
            out = out + (1 - abs(x - xx)) * (1 - abs(y - yy)) * dense[min(max(yy, 0), height - 1), min(max(xx, 0), width - 1)]
    return out / np.linalg.norm(out)


def at_level(net, image, i, xy):
    """Descriptors (N, D) in level i of the pyramid, slowly."""
    hw = image.shape[:2]
    small = tuple(round(n * 2 ** (-i / 4)) for n in hw)
    dense = net.describe(cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA) if i else image)
    out = []
    for x, y in xy:
        xs, ys = (x + 0.5) * small[1] / hw[1] - 0.5, (y + 0.5) * small[0] / hw[0] - 0.5
        out.append(bilinear(dense, min(max(xs, 0), small[1] - 1), min(max(ys, 0), small[0] - 1)))
    return np.array(out)


def test_describe_at_takes_each_keypoint_at_its_scale(net):
    image = noise(90, 117)
    # diameter in px -> level: the nearest power of 2^(1/4) times 32; smaller ones at the original resolution
    diameters = {0: 0, 12: 0, 32: 0, 34.8: 0, 35: 1, 38: 1, 45.3: 2, 64: 4, 90.5: 6, 1000: 6}
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, [116, 89], (len(diameters), 2))
    found = net.describe_at(image, xy, np.array(list(diameters)))
    every = net.describe_at(image, xy, "all")
    assert found.shape == (10, 6) and every.shape == (10, 7, 6) and found.dtype == every.dtype == np.float32
    for i in range(7):
        expected = at_level(net, image, i, xy)
        np.testing.assert_allclose(every[:, i], expected, atol=1e-5)
        rows = [row for row, level in enumerate(diameters.values()) if level == i]
        np.testing.assert_allclose(found[rows], expected[rows], atol=1e-5)
    np.testing.assert_allclose(net.describe_at(image, xy), every[:, 0], atol=1e-6)


def test_describe_at_edges(net):
    image = noise(70, 45)
    dense = net.describe(image)
    beyond = net.describe_at(image, np.array([[-5, -5], [44.4, 69.4], [100, 3]]))
    np.testing.assert_allclose(beyond, dense[[0, 69, 3], [0, 44, 44]], atol=1e-5)
    assert net.describe_at(image, np.zeros((0, 2))).shape == (0, 6)
    many = np.tile([[3.0, 4.0], [10.0, 5.0]], (800, 1))
    np.testing.assert_allclose(net.describe_at(image, many)[-2:], dense[[4, 5], [3, 10]], atol=1e-5)
    for xy, scales, words in (
        (np.zeros(3), None, "shape"),
        ([[np.nan, 0]], None, "NaN"),
        ([[0, 0]], [1, 2], "1 positions but scales of the shape"),
        ([[0, 0]], "own", "must be"),
    ):
        with pytest.raises(UserError, match=words):
            net.describe_at(image, xy, scales)


# ---- matches


def test_match_ranks_and_returns_to_the_given_images(net, monkeypatch):
    seen = {}

    def fake(variables, image1, image2, options, say, progress):
        seen.update(shapes=(image1.shape, image2.shape), options=options)
        say("told")
        xy = np.array([[0, 0], [9, 4], [19, 9]], np.float32)
        return Correspondences(xy, xy[:, ::-1], np.array([1, 3, 2.0]), np.array([0, 8, -8]), np.array([True, True, False]))

    monkeypatch.setattr(net, "method", net.method._replace(match=fake))
    told = []
    found = net.match(noise(20, 40), noise(10, 8), max_side=20, max_scale=2, max_rotation_deg=45, say=told.append)
    assert seen["shapes"] == ((10, 20, 3), (10, 8, 3)) and told == ["told"]
    assert (seen["options"].max_scale, seen["options"].max_rotation_deg) == (2, 45)
    np.testing.assert_allclose(found.xy1, [[18.5, 8.5], [0.5, 0.5]])  # x = 2 (x' + .5) - .5, the best match first
    np.testing.assert_allclose(found.xy2, [[4, 9], [0, 0]])
    np.testing.assert_array_equal(found.score, [3, 1])
    np.testing.assert_array_equal(found.code, [8, 0])
    with pytest.raises(UserError, match="no field 'max_scales'"):
        net.match(noise(9, 9), noise(9, 9), max_scales=2)


def test_an_image_matches_itself(net):
    found = net.match(noise(64, 96), noise(64, 96), max_scale=1)
    assert len(found.score) > 200
    np.testing.assert_array_equal(found.xy1, found.xy2)
    assert set(found.code.tolist()) == {0} and (np.diff(found.score) <= 0).all()


def test_densified():
    xy1 = np.array([[0, 0], [10, 0], [0, 6], [10, 6]], np.float32)
    matches = predictor.Matches(xy1, xy1 + np.array([3, 2], np.float32), np.ones(4), np.zeros(4))
    positions = predictor.densified(matches, (7, 11), (20, 20))
    y, x = np.mgrid[:7, :11]
    np.testing.assert_allclose(positions, np.stack([x + 3, y + 2], -1), atol=1e-5)


# ---- weights


def test_random_weights_are_never_taken_for_trained_ones(capsys, tmp_path, monkeypatch):
    """A method's name means the weights that come with it; random ones are asked for as such."""
    for name in ("caps", "cold", "gsf"):
        with pytest.raises(UserError, match=rf"^No weights come with {name}: .*--config {name}\)"):
            predictor.load(name)
    monkeypatch.setattr(predictor, "SHIPPED", tmp_path)
    with pytest.raises(UserError, match="No weights come with pump"):
        predictor.load(**TINY)
    first, other = predictor.untrained("pump", **TINY), {**TINY, "output_dim": 5}
    assert first.source == "pump, untrained"
    again = predictor.untrained("pump", **TINY)
    assert first.digest == again.digest != predictor.untrained("pump", **other).digest
    weights.save(tmp_path / "pump.safetensors", "pump", first.config, jax.device_get(first.variables))
    shipped = predictor.load()
    assert capsys.readouterr().err == "" and shipped.digest == first.digest


def test_weight_file(net, tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, "pump", net.config, jax.device_get(net.variables))
    read = predictor.load(path)
    assert (read.config, read.digest, read.source) == (net.config, net.digest, str(path))
    image = noise(64, 64)
    np.testing.assert_array_equal(read.describe(image), net.describe(image))
    half = predictor.load(path, dtype="bfloat16")
    assert 1e-5 < np.abs(half.describe(image) - net.describe(image)).max() < 0.1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two checkpoints, the first of which scored higher; parameters are 0.1 times the step, their running mean 0.01 times."""
    path = tmp_path_factory.mktemp("run")
    cfg = configs.ExperimentConfig(method=Config(**TINY), optim=configs.OptimConfig(ema_decay=0.9))
    (path / "config.json").write_text(json.dumps(configs.as_dict(cfg)))
    state = init_state(METHODS["pump"].build(cfg.method), make_optimizer(cfg.optim, cfg.train.steps), predictor._example(cfg.method), 0)
    with Checkpoints(path / "checkpoints", 3) as checkpoints:
        for step, score in ((10, 0.5), (20, 0.4)):
            filled = jax.tree.map(lambda x: np.full(x.shape, 0.01 * step, x.dtype), state)  # noqa: B023, used at once
            params = jax.tree.map(lambda x: 10 * x, filled.params)
            checkpoints.save(TrainState(np.int32(step), params, filled.model_state, filled.opt_state), step, {"mma@3px": score})
    return path


def test_workdir_gives_the_running_mean_of_the_best_checkpoint(workdir):
    read = predictor.load(workdir)
    assert read.config == Config(**TINY)
    leaves = jax.tree.leaves(read.variables["params"])
    assert leaves and all(np.allclose(leaf, 0.1) for leaf in leaves)


def test_workdir_is_packed_into_a_weight_file(workdir, tmp_path, monkeypatch, capsys):
    out = tmp_path / "packed.safetensors"
    monkeypatch.setattr(sys, "argv", ["jaxdesc", "convert", str(workdir), str(out)])
    main()
    assert predictor.load(out).digest == predictor.load(workdir).digest and "packed.safetensors: pump" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["jaxdesc", "convert", str(out), str(tmp_path / "again.safetensors")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--method is missing" in capsys.readouterr().err


def test_workdir_without_validation_gives_the_latest(workdir, monkeypatch):
    monkeypatch.setattr(Checkpoints, "best", lambda self: None)
    assert all(np.allclose(leaf, 0.2) for leaf in jax.tree.leaves(predictor.load(workdir).variables["params"]))


def test_reading_a_workdir_leaves_it_alone(workdir):
    half_written = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    half_written.mkdir(exist_ok=True)
    before = sorted(workdir.rglob("*"))
    predictor.load(workdir)
    assert sorted(workdir.rglob("*")) == before
    half_written.rmdir()


def test_weights_that_are_refused(net, tmp_path, workdir):
    def refused(words, given, **overrides):
        with pytest.raises(UserError, match=words):
            predictor.load(given, **overrides)

    refused("There are no weights nothing: give a weight file", "nothing")
    refused("no config.json", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    refused(r"config.json is damaged: KeyError: 'method_name'", tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    refused("holds no checkpoint yet", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    refused("holds no checkpoint yet", tmp_path)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text().replace('"hidden": 8', '"hidden": 16'))
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    refused(r"do not fit the configuration: \S+ is \(8,\) there and should be \(16,\)", tmp_path)
    (tmp_path / "w").write_bytes(b"junk")
    refused("cannot be read as safetensors", tmp_path / "w")
    variables = jax.device_get(net.variables)
    weights.save(tmp_path / "w.safetensors", "caps9", net.config, variables)
    refused("holds weights of the method 'caps9'; there are pump", tmp_path / "w.safetensors")
    weights.save(tmp_path / "w.safetensors", "pump", dataclasses.replace(net.config, depth=2), variables)
    refused(r"do not fit the configuration: batch_stats/depthwise1/bn/norm/mean is None there and should be \(8,\)", tmp_path / "w.safetensors")
    refused("has no field 'depths'", "pump", depths=3)
    refused("config.method.dtype = 'float8' must be one of", "pump", dtype="float8")


def test_public_names(monkeypatch):
    assert jaxdesc.load is predictor.load
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = jaxdesc.lod
    monkeypatch.setattr(predictor, "_loaded", lambda weights: predictor.untrained(weights or "pump", **TINY))
    image = noise(64, 96)
    assert jaxdesc.describe(image, "pump").shape == (64, 96, 6)
    assert len(jaxdesc.match(image, image, max_scale=1).score) > 200


# ---- keypoints


def test_features_are_the_keypoints_described(net, tmp_path):
    image = noise(80, 90)
    PIL.Image.fromarray(image).save(tmp_path / "a.png")
    found = net.detect(tmp_path / "a.png", 20)
    features = net.features(tmp_path / "a.png", 20)
    np.testing.assert_array_equal(features.keypoints, found.xy_px)
    np.testing.assert_array_equal(features.scores, found.score)
    np.testing.assert_array_equal(features.scales, found.scale_px)
    described = net.describe_at(image, found.xy_px, found.scale_px)
    np.testing.assert_array_equal(features.descriptors, described)
    assert (len(features), features.image_size, features.descriptors.shape[1]) == (20, (90, 80), 6)
    assert net.features(image, 20, "grid").scales is None
    assert len(net.features(np.zeros((20, 20)), 5)) == 0
    gray = net.detect(image[..., 1], 20)
    np.testing.assert_array_equal(
        gray.xy_px, net.detect(np.repeat(image[..., 1:2], 3, 2), 20).xy_px
    )


def test_keypoints_that_cannot_be_had(net):
    for arguments, words in (
        ((0,), "k = 0 keypoints must be at least 1"),
        ((5, "orb"), "There is no detector 'orb'; there are hessian"),
        ((5, "own"), "pump with these weights has no detector of its own: take hessian"),
    ):
        for call in (net.detect, net.features):
            with pytest.raises(UserError, match=words):
                call(noise(40, 40), *arguments)
