"""COLD (WACV 2021). Lab note.

default  embedded photographs and warps of them (affine, thin-plate spline), a small ResNet, 160 px: shows on two CPU cores in minutes that everything works.
         The gradient goes through the standard deviation of the rows: with sd a constant, as in the page of the method, training on PF-WILLOW's photographs over
         random or weak features raised the loss (8.5 after 200 steps, from 6.6) and lowered PCK on the very pairs that it learnt from; through sd both improve.
         The gradient is clipped: rows of descriptors that are nearly alike have a tiny standard deviation, and z-scores divide by it; 3e-3 unclipped diverged.
         The backbone is RANDOM unless --config.method.weights=imagenet:FILE (or caps:RUN, of CAPS) names one, so what is learnt are combinations of random filters.
paper    ResNet-101, 34 activations, D = 1024, 240 px, PF-PASCAL through NC-Net's lists (2,940 training rows, flips among them), 8 pairs a step, SGD of 0.03 with
         momentum 0.5 for 100 epochs of 368 steps after Dynamic Hyperpixel Flow (the paper's own schedule is not known to us), best validation kept. Bring
           --config.data.semantic=pf-pascal:PF_PASCAL --config.method.weights=imagenet:RESNET101.pth
paper_adam  the same with AdamW 3e-4, weight decay 1e-4, cosine, 50 epochs: should SGD be unstable with linear transforms. Or --config.method.deviation_gradient=True.
keypoints  a small folder of images with keypoints (a folder a category, <name>.jpg with <name>.txt of rows "x y"), of which 30 % of the images are held out. Bring
           --config.data.semantic=keypoints:MY_FOLDER
         Some hundred pairs are learnt by heart in 200 steps, so validation comes often, and the best checkpoint counts.
smoke    two steps of a tiny network, for tests.
dim=N    the default with descriptors of length N; "paper,dim=64" likewise. The lengths of the paper's channel study (supplementary, Table 1) are
         4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048 and 3072: python -m jaxdesc.sweep --study cold-channels trains them one after the other.

Other choices that the paper leaves open, by the field that changes them: method.taps, before_relu, relu (what is distilled, and how), image_px with draw.crop_px,
box_px, mutual_filter (transfer), bidirectional, hard_alpha, deviation_gradient (loss), draw.warp (warped photographs), draw.flip_probability (beside the flips that
a list asks for).
"""

from dataclasses import replace

from jaxdesc.config import DataConfig, DrawConfig, ExperimentConfig, OptimConfig, ReportConfig, Source, TrainConfig
from jaxdesc.methods.cold import Config
from jaxdesc.types import UserError

EPOCH = 368  # steps of 8 pairs in 2,940 rows


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(backbone="resnet18", dim=64, image_px=160, deviation_gradient=True),
        data=DataConfig(synthetic_per_batch=0, real_per_batch=0, semantic_per_batch=4, canvas_px=512),
        draw=DrawConfig(crop_px=160, brightness=0.2, contrast=0.2, saturation=0.2),
        optim=OptimConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=10, weight_decay=0.0, clip_norm=5.0),
        train=TrainConfig(steps=300),
        report=ReportConfig(validate_every=100, checkpoint_every=100, validation_pairs=16),
    )


def _keypoints() -> ExperimentConfig:
    base = _default()
    return replace(
        base,
        data=replace(base.data, semantic=(Source("keypoints", ""),), semantic_per_batch=8, canvas_px=320),
        optim=replace(base.optim, learning_rate=3e-3),
        train=TrainConfig(steps=200),
        report=ReportConfig(validate_every=25, checkpoint_every=25, validation_pairs=42),
    )


def _paper() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(),
        data=DataConfig(semantic=(Source("pf-pascal", ""),), synthetic_per_batch=0, real_per_batch=0, semantic_per_batch=8, canvas_px=512),
        draw=DrawConfig(crop_px=240, flip_probability=0.0),
        optim=OptimConfig(name="sgd", learning_rate=0.03, momentum=0.5, weight_decay=0.0),
        train=TrainConfig(steps=100 * EPOCH),
        report=ReportConfig(validate_every=EPOCH, checkpoint_every=EPOCH, validation_pairs=308),
    )


def _paper_adam() -> ExperimentConfig:
    optim = OptimConfig(name="adamw", learning_rate=3e-4, schedule="cosine", weight_decay=1e-4)
    return replace(_paper(), optim=optim, train=TrainConfig(steps=50 * EPOCH))


def _smoke() -> ExperimentConfig:
    base = _default()
    return replace(
        base,
        method=Config(backbone="resnet10", width=4, dim=4, image_px=32, deviation_gradient=True),
        data=replace(base.data, semantic_per_batch=2, canvas_px=256, threads=1),
        draw=replace(base.draw, crop_px=32),
        optim=replace(base.optim, warmup_steps=0),
        train=TrainConfig(steps=2),
        report=ReportConfig(log_every=1, validate_every=2, checkpoint_every=1, validation_pairs=2),
    )


VARIANTS = {"default": _default, "keypoints": _keypoints, "paper": _paper, "paper_adam": _paper_adam, "smoke": _smoke}


def get_config(variant: str = "default") -> ExperimentConfig:
    """A name of VARIANTS, "dim=N", or both joined by a comma."""
    name, _, dim = variant.rpartition("dim=") if "dim=" in variant else (variant, "", "")
    name = name.removesuffix(",") or "default"
    if name not in VARIANTS or (dim and not dim.isdecimal()) or variant.endswith("dim="):
        raise UserError(f"configs/cold.py has no variant {variant!r}; it has {', '.join(VARIANTS)} and dim=N, as in dim=64 or paper,dim=64.")
    config = VARIANTS[name]()
    return replace(config, method=replace(config.method, dim=int(dim))) if dim else config
