"""PUMP (CVPR 2022). Lab note.

default  embedded photographs, a small ConvMixer, 128 px crops: shows on two CPU cores in minutes
         that everything works.
s, u     the default with one half of the data only: homography pairs (L_AP) or unlabelled pairs
         (L_uniq), which are scored by held-out photographs all the same.
paper    the published recipe: 50 epochs of 16,000 pairs are 50,000 steps of 16 pairs, half of
         them homography pairs; Adam 1e-4, weight decay 5e-4 coupled. Bring the data:
           --config.data.homography.sources=photos:WEB_PHOTOS@3125,photos:SFM120K/ims@4875
           --config.data.unlabelled.sources=sfm120k:SFM120K
         (an epoch of the published run draws 3,125 web photographs, 4,875 of SfM-120k and 8,000
         pairs of SfM-120k).
paper_s, paper_u  the published recipe on one half of the loss, same number of pairs a step.
shipped  the recipe of the weights inside the package: 256 channels, 7 layers, 128-d descriptors,
         11,700 steps of 24 homography and 8 unlabelled pairs of 192 px, with blur, compression and
         uneven light, and the running mean of the parameters; 16 minutes on an H200, a step
         takes about 15 s on two CPU cores. Photographs: jaxdesc/weights/pump.md.
           --config.data.homography.sources=photos:PHOTOS@2,photos:SCENES
           --config.data.unlabelled.sources=pairs:SCENES
smoke    two steps of a tiny network, for tests.

Decisions of the default, and why:
hidden, depth, kernel, output_dim  a step takes a second on two cores.
crop_px 128, both borders 8, sides 256 to 768  the paper's 256, 16, 256 to 1536, halved with the
         network; at the paper's borders too little of a small crop would be left.
brightness, contrast, saturation  ours. Photographs of one place differ in light, which the paper's
         changes do not show; its 16,000 photographs do.
batch_statistics "separate"  images 1 and 2 go through the network as two batches, as in the
         released program. 250 steps of a smaller network (hidden 64, depth 3, output_dim 32) gave
         a validation MMA@3 of 0.249 and 0.249 (two seeds) with it, 0.229 and 0.232 with "joint".
learning_rate 1e-3, cosine  ten times the paper's for a hundredth of its steps.
per_batch  half of either kind, as in the paper. `shipped` has three homography pairs to an
         unlabelled one: at few steps the former teach more. 600 steps of 8 pairs gave a validation
         MMA@3 of 0.485 by S and 0.422 by S+U (with the pairs as drawn before).
"""

from dataclasses import replace

from jaxdesc.config import ExperimentConfig, OptimConfig, ReportConfig, Source, TrainConfig
from jaxdesc.data.kinds import CropConfig, DataConfig, HomographyPairs, UnlabelledPairs
from jaxdesc.methods.pump import Config
from jaxdesc.types import UserError


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(
            output_dim=64,
            hidden=128,
            depth=4,
            kernel=7,
            batch_statistics="separate",
            ap_border_px=8,
            uniq_border_px=8,
        ),
        data=DataConfig(
            homography=HomographyPairs(per_batch=4),
            unlabelled=UnlabelledPairs(per_batch=4),
            canvas_px=512,
        ),
        draw=CropConfig(crop_px=128, min_side_px=256, max_side_px=768, brightness=0.2, contrast=0.2, saturation=0.2),
        optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=20),
        train=TrainConfig(steps=400),
        report=ReportConfig(validate_every=100, checkpoint_every=100, validation_pairs=16),
    )


def _paper() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(batch_statistics="separate"),
        data=DataConfig(
            homography=HomographyPairs(sources=(Source("photos", ""),), per_batch=8),
            unlabelled=UnlabelledPairs(sources=(Source("sfm120k", ""),), per_batch=8),
        ),
        draw=CropConfig(),
        optim=OptimConfig(learning_rate=1e-4, weight_decay=5e-4),
        train=TrainConfig(steps=50_000),
        report=ReportConfig(),
    )


def _shipped() -> ExperimentConfig:
    base = _default()
    return replace(
        base,
        method=Config(hidden=256, depth=7, kernel=9, batch_statistics="separate"),
        data=DataConfig(
            homography=HomographyPairs(sources=(Source("photos", ""),), per_batch=24),
            unlabelled=UnlabelledPairs(sources=(Source("pairs", ""),), per_batch=8),
            canvas_px=768,
            threads=16,
        ),
        draw=CropConfig(
            crop_px=192,
            max_side_px=1024,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.05,
            shade=0.5,
            gamma=1.8,
            blur_px=2.0,
            motion_px=6.0,
            jpeg_quality=15,
        ),
        optim=replace(base.optim, schedule="trapezoid", warmup_steps=500, ema_decay=0.999),
        train=TrainConfig(steps=11_700),
        report=ReportConfig(log_every=100, validate_every=2000, checkpoint_every=2000, validation_pairs=64),
    )


def _smoke() -> ExperimentConfig:
    base = _default()
    return replace(
        base,
        method=Config(output_dim=8, hidden=8, depth=1, kernel=3, ap_border_px=8, uniq_border_px=8),
        data=replace(_with_pairs(base.data, 2, 2), canvas_px=256, threads=1),
        draw=replace(base.draw, crop_px=64, min_side_px=128, max_side_px=192),
        optim=replace(base.optim, warmup_steps=0),
        train=TrainConfig(steps=2),
        report=ReportConfig(log_every=1, validate_every=2, checkpoint_every=1, validation_pairs=2, pictured_pairs=0),
    )


def _with_pairs(data: DataConfig, homography: int, unlabelled: int) -> DataConfig:
    return replace(
        data,
        homography=replace(data.homography, per_batch=homography),
        unlabelled=replace(data.unlabelled, per_batch=unlabelled),
    )


def _half(config: ExperimentConfig, half: str) -> ExperimentConfig:
    """All pairs of a step from one half of the data: S trains on homography pairs only, U on
    unlabelled ones only."""
    data = config.data
    pairs = data.homography.per_batch + data.unlabelled.per_batch
    if half == "s":
        return replace(config, data=replace(_with_pairs(data, pairs, 0), unlabelled=None))
    return replace(config, data=_with_pairs(data, 0, pairs))


VARIANTS = {
    "default": _default,
    "s": lambda: _half(_default(), "s"),
    "u": lambda: _half(_default(), "u"),
    "paper": _paper,
    "paper_s": lambda: _half(_paper(), "s"),
    "paper_u": lambda: _half(_paper(), "u"),
    "shipped": _shipped,
    "smoke": _smoke,
}


def get_config(variant: str = "default") -> ExperimentConfig:
    if variant not in VARIANTS:
        raise UserError(f"configs/pump.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    return VARIANTS[variant]()
