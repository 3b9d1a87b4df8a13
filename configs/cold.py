"""COLD (WACV 2021). Lab note.

default  embedded photographs and warps of them (affine, thin-plate spline), a small ResNet,
         160 px: shows on two CPU cores in minutes that everything works. The backbone is RANDOM
         unless --config.method.weights=imagenet:FILE (or caps:RUN, of CAPS) names one, so what is
         learnt are combinations of random filters.
paper    ResNet-101, 34 activations, D = 1024, 240 px, PF-PASCAL through NC-Net's lists (2,940
         training rows, flips among them), 8 pairs a step, 100 epochs of 368 steps, best kept. Bring
           --config.data.keypoints.sources=pf-pascal:PF_PASCAL
           --config.method.weights=imagenet:RESNET101.pth
paper_adam  the same with AdamW 3e-4, weight decay 1e-4, cosine, 50 epochs: should SGD be unstable
         with linear transforms.
keypoints  a small folder of images with keypoints (a folder a category, <name>.jpg with <name>.txt
         of rows "x y"), of which 30 % of the images are held out. Bring
           --config.data.keypoints.sources=keypoints:MY_FOLDER
         Some hundred pairs are learnt by heart in 200 steps, so validation comes often, and the
         best checkpoint counts.
smoke    two steps of a tiny network, for tests.
dim=N    the default with descriptors of length N; "paper,dim=64" likewise. The lengths of the
         channel study (supplementary, Table 1) are 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536,
         2048 and 3072: jaxdesc sweep --study cold-channels trains them in turn.

What the supplementary leaves open was decided so; DHPF is Dynamic Hyperpixel Flow (Min et al.,
ECCV 2020), of the same laboratory, whose published program is the nearest precedent:
  taps, before_relu    all 34 activations of a ResNet-101, before the last ReLU, as DHPF reads them
  relu                 no: with D = 4, numbers that are not negative leave one orthant of directions
  dim                  1024: Table 1 gains a point at most beyond it; 64 where descriptors are small
  image_px, box_px     240 and 11, as DHPF squashes images and sizes the boxes of cells
  mutual_filter        off: the supplementary says nearest neighbours
  bidirectional        both directions have the same keypoints; DHPF uses one
  deviation_gradient   on. DHPF holds the rows' standard deviation fixed: a step then also raises
                       it, which lowers z, and over random features training raised the loss (8.5
                       after 200 steps, from 6.6). Over real ones (EfficientNet-Lite0, D = 64, SGD,
                       42 held-out pairs of PF-WILLOW, dhpf-240, two seeds) none is ahead: PCK@0.1
                       after 20, 40, 100 steps 0.68 0.71 0.66 and 0.72 0.75 0.71 with the gradient,
                       0.71 0.76 0.76 and 0.70 0.63 0.71 without, from 0.31 and 0.34
  hard_alpha           0.1, as DHPF: the alpha at which PCK is usually compared
  optim                `paper`: SGD 0.03, momentum 0.5, no decay, as DHPF with strong supervision.
                       `default`, `keypoints`: Adam, clipped at 5, as rows of descriptors that are
                       nearly alike have a tiny deviation to divide by; 3e-3 unclipped diverged
  draw                 `default` changes colours by up to 20 %, as a photograph and its own warp
                       would be matched by colour; `paper` mirrors what NC-Net's list says, no more
  data.canvas_px       512: photographs of PF-PASCAL, of at most 500 px, are not shrunk
  eps, dtype           1e-6, float32: nothing is known
"""

from dataclasses import replace

from jaxdesc.config import DrawConfig, ExperimentConfig, OptimConfig, ReportConfig, Source, TrainConfig
from jaxdesc.data.kinds import DataConfig, KeypointPairs
from jaxdesc.methods.cold import Config
from jaxdesc.types import UserError

EPOCH = 368  # steps of 8 pairs in 2,940 rows


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(backbone="resnet18", dim=64, image_px=160),
        data=DataConfig(keypoints=KeypointPairs(per_batch=4, image_px=160), canvas_px=512),
        draw=DrawConfig(brightness=0.2, contrast=0.2, saturation=0.2),
        optim=OptimConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=10, weight_decay=0.0, clip_norm=5.0),
        train=TrainConfig(steps=300),
        report=ReportConfig(validate_every=100, checkpoint_every=100, validation_pairs=16),
    )


def _keypoints() -> ExperimentConfig:
    base = _default()
    pairs = replace(base.data.keypoints, sources=(Source("keypoints", ""),), per_batch=8)
    return replace(
        base,
        data=replace(base.data, keypoints=pairs, canvas_px=320),
        optim=replace(base.optim, learning_rate=3e-3),
        train=TrainConfig(steps=200),
        report=ReportConfig(validate_every=25, checkpoint_every=25, validation_pairs=42),
    )


def _paper() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(),
        data=DataConfig(
            keypoints=KeypointPairs(
                sources=(Source("pf-pascal", ""),), per_batch=8, image_px=240
            ),
            canvas_px=512,
        ),
        draw=DrawConfig(flip_probability=0.0),
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
        method=Config(backbone="resnet10", width=4, dim=4, image_px=32),
        data=replace(
            base.data,
            keypoints=replace(base.data.keypoints, per_batch=2, image_px=32),
            canvas_px=256,
            threads=1,
        ),
        optim=replace(base.optim, warmup_steps=0),
        train=TrainConfig(steps=2),
        report=ReportConfig(log_every=1, validate_every=2, checkpoint_every=1, validation_pairs=2, pictured_pairs=0),
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
