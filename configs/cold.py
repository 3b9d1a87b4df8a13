"""COLD (WACV 2021). Lab note.

default  embedded photographs and warps of them (affine, thin-plate spline), a small ResNet, 160 px: shows on two CPU cores in minutes that everything works.
         The gradient is clipped: rows of descriptors that are nearly alike have a tiny standard deviation, and z-scores divide by it; 3e-3 unclipped diverged.
         The backbone is RANDOM unless --config.method.weights=imagenet:FILE names one, so what is learnt are combinations of random filters.
paper    ResNet-101, 34 activations, D = 1024, 240 px, PF-PASCAL through NC-Net's lists (2,940 training rows, flips among them), 8 pairs a step. Bring
           --config.data.semantic=pf-pascal:PF_PASCAL --config.method.weights=imagenet:RESNET101.pth
         The paper's schedule is not known to us. Adam 3e-4, cosine, 50 epochs of 368 steps, is the second choice of our page of the method; the first one, SGD of
         0.03 with momentum 0.5 for 100 epochs after Dynamic Hyperpixel Flow, wants an optimiser that the house does not have yet.
smoke    two steps of a tiny network, for tests.
dim=N    the default with descriptors of length N; "paper,dim=64" likewise. The lengths of the paper's channel study (supplementary, Table 1) are
         4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048 and 3072.

Other choices that the paper leaves open, by the field that changes them: method.taps, before_relu, relu (what is distilled, and how), image_px with draw.crop_px,
box_px, mutual_filter (transfer), bidirectional, hard_alpha (loss), draw.warp (warped photographs), draw.flip_probability (beside the flips that a list asks for).
"""

from dataclasses import replace

from jaxdesc.config import DataConfig, DrawConfig, ExperimentConfig, OptimConfig, ReportConfig, Source, TrainConfig
from jaxdesc.methods.cold import Config
from jaxdesc.types import UserError

EPOCH = 368  # steps of 8 pairs in 2,940 rows


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(backbone="resnet18", dim=64, image_px=160),
        data=DataConfig(synthetic_per_batch=0, real_per_batch=0, semantic_per_batch=4, canvas_px=512),
        draw=DrawConfig(crop_px=160, brightness=0.2, contrast=0.2, saturation=0.2),
        optim=OptimConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=10, weight_decay=0.0, clip_norm=5.0),
        train=TrainConfig(steps=300),
        report=ReportConfig(validate_every=100, checkpoint_every=100, validation_pairs=16),
    )


def _paper() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(),
        data=DataConfig(semantic=(Source("pf-pascal", ""),), synthetic_per_batch=0, real_per_batch=0, semantic_per_batch=8, canvas_px=512),
        draw=DrawConfig(crop_px=240, flip_probability=0.0),
        optim=OptimConfig(learning_rate=3e-4, schedule="cosine", weight_decay=0.0),
        train=TrainConfig(steps=50 * EPOCH),
        report=ReportConfig(validate_every=EPOCH, checkpoint_every=EPOCH, validation_pairs=308),
    )


def _smoke() -> ExperimentConfig:
    base = _default()
    return replace(
        base,
        method=Config(backbone="resnet10", width=4, dim=4, image_px=32),
        data=replace(base.data, semantic_per_batch=2, canvas_px=256, threads=1),
        draw=replace(base.draw, crop_px=32),
        optim=replace(base.optim, warmup_steps=0),
        train=TrainConfig(steps=2),
        report=ReportConfig(log_every=1, validate_every=2, checkpoint_every=1, validation_pairs=2),
    )


VARIANTS = {"default": _default, "paper": _paper, "smoke": _smoke}


def get_config(variant: str = "default") -> ExperimentConfig:
    """A name of VARIANTS, "dim=N", or both joined by a comma."""
    name, _, dim = variant.rpartition("dim=") if "dim=" in variant else (variant, "", "")
    name = name.removesuffix(",") or "default"
    if name not in VARIANTS or (dim and not dim.isdecimal()) or variant.endswith("dim="):
        raise UserError(f"configs/cold.py has no variant {variant!r}; it has {', '.join(VARIANTS)} and dim=N, as in dim=64 or paper,dim=64.")
    config = VARIANTS[name]()
    return replace(config, method=replace(config.method, dim=int(dim))) if dim else config
