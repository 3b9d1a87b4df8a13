import dataclasses
import re

import pytest

from jaxdesc import config
from jaxdesc.config import DrawConfig, ExperimentConfig, Source
from jaxdesc.data.kinds import CropConfig, DataConfig, PosedPairs
from jaxdesc.methods.pump import Config
from jaxdesc.types import UserError

PUMP = "configs/pump.py"


def test_every_shipped_variant_is_valid():
    for variant in ("default", "s", "u", "paper", "paper_s", "paper_u", "shipped", "smoke"):
        assert isinstance(config.load(f"{PUMP}:{variant}"), ExperimentConfig)


def test_paper_variant_is_the_published_recipe():
    cfg = config.load(f"{PUMP}:paper")
    assert (cfg.method.backbone, cfg.method.output_dim, cfg.method.hidden, cfg.method.depth, cfg.method.patch, cfg.method.kernel) == (
        "convmixer",
        128,
        512,
        7,
        4,
        9,
    )
    assert cfg.data.pairs_per_batch() == {"homography": 8, "unlabelled": 8}
    assert cfg.train.steps == 50 * 16_000 // 16
    assert (cfg.optim.learning_rate, cfg.optim.weight_decay, cfg.optim.schedule) == (1e-4, 5e-4, "constant")
    draw = cfg.draw
    assert (draw.crop_px, cfg.data.homography.tilt, draw.rotation_deg, draw.aspect) == (256, 0.5, 20, 1.3)
    assert (draw.min_side_px, draw.max_side_px, draw.noise) == (256, 1536, 12.5)
    assert (draw.swap_probability, draw.flip_probability, draw.crop_scale, draw.trials) == (0.5, 0.5, 1.5, 5)
    assert cfg.method.uniq_weight == 0.3 and cfg.method.ap_bins == 20
    assert (draw.blur_px, draw.motion_px, draw.shade, draw.gamma, draw.jpeg_quality, draw.ramp_steps) == (0, 0, 0, 1, 100, 0)
    for variant in ("paper", "paper_s", "paper_u", "default", "shipped"):
        assert config.load(f"{PUMP}:{variant}").method.batch_statistics == "separate"


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("optim.learning_rat", "1", "config.optim has no field 'learning_rat'"),
        ("optm.learning_rate", "1", "config has no field 'optm'"),
        ("optim.learning_rate", "fast", "config.optim.learning_rate = 'fast' is not of type float"),
        ("optim.learning_rate", "-1", "config.optim.learning_rate = -1.0 must be above 0"),
        ("optim.learning_rate", "nan", "config.optim.learning_rate = nan is not of type float"),
        ("train.steps", "1.5", "config.train.steps = '1.5' is not of type int"),
        ("optim.schedule", "cosin", "config.optim.schedule = 'cosin' must be one of constant, cosine, trapezoid, halving"),
        ("method.backbone", "vgg", "config.method.backbone = 'vgg' must be one of"),
        ("method.kernel", "4", "config.method.kernel = 4 must be odd"),
        ("method.hidden", "130", "config.method.hidden = 130 is not a multiple of 4"),
        ("method.ap_negative_px", "1,2", "config.method.ap_negative_px"),
        ("data.canvas_px", "500", "config.data.canvas_px = 500 is not a multiple of 8"),
        ("data.homography.per_batch", "-1", "config.data.homography.per_batch = -1 must be at least 0"),
        ("data.homography.sources", "", "config.data.homography.sources is empty"),
        ("data.synthetic", "", "config.data has no field 'synthetic'; it has canvas_px, cache"),
        (
            "data.posed.per_batch",
            "2",
            "config.data.posed is not part of this configuration: config.data has homography and "
            "unlabelled.",
        ),
        (
            "data.homography",
            "photos:A",
            "config.data.homography is a group of fields: set one of them, as "
            "config.data.homography.sources.",
        ),
        ("data.homography", "none", "nothing is known of unlabelled"),
        ("train.accumulate", "3", "per_batch = 4 is not a multiple of config.train.accumulate = 3"),
        ("draw.crop_px", "40", "config.draw.crop_px = 40"),
        ("draw.min_side_px", "9999", "config.draw.min_side_px = 9999.0 is greater"),
        ("optim.warmup_steps", "9999", "config.optim.warmup_steps = 9999 is greater"),
    ],
)
def test_a_wrong_value_is_named(field, text, words):
    with pytest.raises(UserError, match=re.escape(words)):
        config.load(PUMP, {field: text})


def test_a_batch_without_pairs_is_refused():
    words = r"config\.data\.homography\.per_batch and config\.data\.unlabelled\.per_batch are 0"
    with pytest.raises(UserError, match=words):
        config.load(PUMP, {"data.homography.per_batch": "0", "data.unlabelled.per_batch": "0"})
    none = {"data.homography": "none", "data.unlabelled": "none"}
    with pytest.raises(UserError, match="no kind of pair: the loss of pump takes homography and un"):
        config.load(PUMP, none)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "config.data must be a jaxdesc.data.kinds.DataConfig, not NoneType"),
        (
            {"data": DataConfig(posed=PosedPairs())},
            "config.data has posed pairs, but the loss of pump takes homography and unlabelled.",
        ),
        (
            {"draw": DrawConfig()},
            "config.draw is a DrawConfig, but config.data.homography needs a CropConfig.",
        ),
    ],
)
def test_pairs_that_a_method_cannot_take(change, words):
    cfg = dataclasses.replace(config.load(PUMP), **change)
    with pytest.raises(UserError, match=re.escape(words)):
        config.validate(cfg)


def test_fields_that_no_kind_uses_are_refused():
    cfg = dataclasses.replace(config.load("configs/caps.py"), draw=CropConfig())
    with pytest.raises(UserError, match=r"a CropConfig, of which posed pairs do not use every"):
        config.validate(cfg)
    config.validate(dataclasses.replace(cfg, draw=DrawConfig()))


def test_a_kind_is_left_out_or_not_trained_on():
    s = config.load(PUMP, {"data.unlabelled": "none"})
    assert s.data.kinds().keys() == {"homography"} and s.data.unlabelled is None
    u = config.load(PUMP, {"data.homography.per_batch": "0"})
    assert u.data.kinds().keys() == {"homography", "unlabelled"}
    assert u.data.pairs_per_batch() == {"unlabelled": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# fine\nthis is no Python", "is not Python: .* in line 2"),
        ("x = 1", "does not define"),
        ("def get_config(): return 3", "must return an ExperimentConfig"),
        ("from jaxdesc.config import TrainConfig\ndef get_config(): return TrainConfig(stepss=3)", "stepss"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_a_file_that_is_no_configuration_is_told_in_a_sentence(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        config.load(str(path))


def test_missing_file_and_unknown_variant():
    with pytest.raises(UserError, match=r"no configuration file nowhere\.py"):
        config.load("nowhere.py")
    with pytest.raises(UserError, match="no variant 'papr'; it has default"):
        config.load(f"{PUMP}:papr")


@pytest.mark.parametrize("bad", [True, "3", 3.0, None])
def test_wrong_types_in_a_file_are_named(bad):
    cfg = dataclasses.replace(config.load(PUMP), method=Config(depth=bad))
    with pytest.raises(UserError, match=r"config\.method\.depth = .* is not of type int"):
        config.validate(cfg)


def test_sources_on_the_command_line():
    assert Source.parse("embedded") == Source("embedded")
    assert Source.parse("embedded@2") == Source("embedded", "", 2.0)
    assert Source.parse("photos:/data/my photos@0.5") == Source("photos", "/data/my photos", 0.5)
    assert Source.parse("photos:/data/me@home") == Source("photos", "/data/me@home")
    cfg = config.load(PUMP, {"data.homography.sources": "photos:/a@3,embedded"})
    assert cfg.data.homography.sources == (Source("photos", "/a", 3.0), Source("embedded"))
