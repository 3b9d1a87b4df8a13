"""CAPS (ECCV 2020). Lab note.

default  24 rendered rooms (exact cameras) and the embedded stereo pair, one pair in 16;
         a small ResNet from random weights, 160 x 120, minutes on two CPU cores:
         PCK@5px 0.048 to 0.226, 33.3 to 12.4 px from the epipolar lines, 21 held-out
         pairs (2026-11-26). images/ and sparse/ of yours: --config.data.posed.sources=colmap:DIR
paper    --config.data.posed.sources=megadepth:DIR
         --config.method.weights=imagenet:resnet50.pth
smoke    two steps of a tiny network on the embedded stereo pair, for tests.

Decisions (P: published, in the paper or the released program; the others are ours):
decoder       paper: Table 3 (P). `released` is for converted weights alone.
weights_over  pair: the paper's formula (P); the released program takes the batch, so
              that a pair's loss depends on the pairs beside it: weights_over=batch.
prune_depth   paper: cameras (P). default: points, for cameras that stand together: of the
              stereo pair "cameras" keeps no query. Fractions kept of SIFT and uniform
              candidates, and of true matches: cameras | points | the greatest depth
                banana           .93 .93  .994 | .96 .95 1.000 | .96 .95 1.000
                boruszyn         .73 .68  .992 | .76 .71 1.000 | .81 .75 1.000
                log_building_02  .88 .89  .994 | .92 .92 1.000 | .93 .93 1.000
                drone_park_01    .67 .68 1.000 | .45 .47 1.000 | .91 .91 1.000
paper         use_nn, window, thresholds, loss weights, colours, Adam, its rate: P. Ours:
              no weight decay; views are cut to 4:3 before they are resized.
default       rate 5e-3, cosine: 400 steps from random weights. Descriptors of 16: longer
              ones start so sure that hardly a gradient is left. Colours 0.2: not studied.
One change, 400 steps, seed 0, pruned up to the greatest depth (2026-11-21): PCK@5px, px
(the paper's MMA@3): none 0.166, 12.8 (62.7); data.posed.pose_noise=2.5,1 0.146, 15.8 (61.7),
=5,2.5 0.158, 15.7 (59.4); data.posed.curriculum=200 0.205, 13.3;
data.posed.prune=false 0.192, 12.6.
"""

from dataclasses import replace

from jaxdesc.config import DrawConfig, ExperimentConfig, OptimConfig, ReportConfig, Source, TrainConfig
from jaxdesc.data.kinds import DataConfig, PosedPairs
from jaxdesc.methods.caps import Config
from jaxdesc.types import UserError


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        # Descriptors of 64 numbers scored below the start for 100 steps.
        method=Config(backbone="resnet10", width=32, decoder_features=(128, 64), coarse_dim=16, fine_dim=16),
        data=DataConfig(
            posed=PosedPairs(
                per_batch=6,
                hw=(120, 160),
                zoom=1.0,
                queries=256,
                candidates=1000,
                prune_depth="points",
            ),
            canvas_px=480,
        ),
        draw=DrawConfig(flip_probability=0.0, brightness=0.2, contrast=0.2, saturation=0.2),
        optim=OptimConfig(learning_rate=5e-3, schedule="cosine", warmup_steps=20, weight_decay=0.0),
        train=TrainConfig(steps=400),
        report=ReportConfig(validate_every=100, checkpoint_every=100, validation_pairs=21),  # all that are held out: two rooms and the embedded pair
    )


def _paper() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(),
        data=DataConfig(
            posed=PosedPairs(
                sources=(Source("megadepth", ""),),
                per_batch=6,
                hw=(480, 640),
                zoom=1.0,
                queries=500,
                candidates=4500,
            )
        ),
        draw=DrawConfig(
            flip_probability=0.0, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.4
        ),
        optim=OptimConfig(learning_rate=1e-4, schedule="halving", halving_steps=80_000, weight_decay=0.0),
        train=TrainConfig(steps=200_000),
        report=ReportConfig(),
    )


def _smoke() -> ExperimentConfig:
    base = _default()
    own = {"sources": (Source("embedded"),), "per_batch": 2, "hw": (48, 64)}
    pairs = replace(base.data.posed, **own, queries=16, candidates=64)
    return replace(
        base,
        method=Config(backbone="resnet10", width=4, decoder_features=(8, 8), coarse_dim=6, fine_dim=6),
        data=replace(base.data, posed=pairs, canvas_px=128, threads=1),
        optim=replace(base.optim, warmup_steps=0),
        train=TrainConfig(steps=2),
        report=ReportConfig(log_every=1, validate_every=2, checkpoint_every=1, validation_pairs=2, pictured_pairs=0),
    )


VARIANTS = {"default": _default, "paper": _paper, "smoke": _smoke}


def get_config(variant: str = "default") -> ExperimentConfig:
    if variant not in VARIANTS:
        raise UserError(f"configs/caps.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    return VARIANTS[variant]()
