"""GSF (ECCV 2020). Lab note.

default  embedded photographs and warps of them, a ResNet-18 tapped at 1/8, 160 px, networks of half the width: for two CPU cores.
         Stages A1 and A2; there are no embedded pairs of objects of one category for stage B.
         The backbone is RANDOM unless --config.method.weights=imagenet:FILE or caps:RUN names one. Cosines of its features are all alike (0.85 on average), so that
           method.confidence_contrast = 24   brings the density of confident matches to the 0.75 of the paper (0.77; without it 1.0, and 80 matches a cell)
           method.sharpness = 20             keeps L_geo from making all features alike in A2, as happened with 1 and a learning rate of 2e-3
           method.geo_weight = qprime        makes A1 lower the guidance's error, if little (1.248 to 1.242 cells); with recon L_geo falls, the error does not
           optim.b2 = 0.9                    lets A1 go on once the loss has pulled it back: with 0.999 the steep moment is remembered for a thousand steps
paper    ResNet-101 up to conv4_23, 320 px, 20x20 cells; stages A1, A2, B of 10, 10 and 20 epochs on PF-PASCAL (2,940 training rows, flips among them), 16 pairs
         a step, Adam 1e-4, a tenth of it for the backbone, cosine, gradients clipped at 1. Bring
           --config.data.synthetic=photos:PF_PASCAL/JPEGImages --config.data.semantic=pf-pascal:PF_PASCAL --config.method.weights=imagenet:RESNET101.pth
         and, for silhouettes in L_sil, PASCAL VOC 2012's SegmentationClass/ somewhere below PF_PASCAL. The optimiser and the schedule of the paper are not known;
         these are decisions. So is confidence_contrast = 1: look at the density that is printed before the first step.
smoke    two steps of tiny networks, for tests.

Any pairs of objects with masks serve for stage B: --config.data.semantic=masks:FOLDER, see data.builders.semantic; keypoints are not needed.

Synthetic pairs have a keypoint at the centre of every cell (data.common_keypoints = method.grid^2), which end-point errors are measured at; no loss sees them.
Other choices that the supplementary leaves open, by the field that changes them: method.confidence_power, confidence_contrast, gauss, mls_order, sil_masks,
geo_weight, sharpness, trained, backbone_rate, stages; ranges of the warps: draw.warp.
"""

from dataclasses import replace

from jaxdesc.config import DataConfig, DrawConfig, ExperimentConfig, OptimConfig, ReportConfig, Source, TrainConfig
from jaxdesc.methods.gsf import Config
from jaxdesc.types import UserError

EPOCH = 184  # steps of 16 pairs in 2,940 rows


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(
            **{"backbone": "resnet18", "tap": "layer2", "trained": ("layer2",), "unet_width": 32, "confidence_contrast": 24.0},
            **{"geo_weight": "qprime", "sharpness": 20.0, "backbone_rate": 0.05, "stages": ("A1", "A2"), "stage_shares": (1.0, 2.0)},
        ),
        data=DataConfig(synthetic_per_batch=0, real_per_batch=0, semantic_per_batch=4, common_keypoints=400, canvas_px=512),
        draw=DrawConfig(crop_px=160),
        optim=OptimConfig(learning_rate=2e-3, schedule="cosine", weight_decay=0.0, clip_norm=1.0, b2=0.9),
        train=TrainConfig(steps=450),
        report=ReportConfig(validate_every=75, checkpoint_every=75, validation_pairs=16),
    )


def _paper() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(),
        data=DataConfig(
            synthetic=(Source("photos", ""),),
            semantic=(Source("pf-pascal", ""),),
            synthetic_per_batch=0,
            real_per_batch=0,
            semantic_per_batch=16,
            common_keypoints=400,
            canvas_px=512,
        ),
        draw=DrawConfig(crop_px=320, flip_probability=0.0),
        optim=OptimConfig(learning_rate=1e-4, schedule="cosine", weight_decay=0.0, clip_norm=1.0),
        train=TrainConfig(steps=40 * EPOCH),
        report=ReportConfig(validate_every=EPOCH, checkpoint_every=EPOCH, validation_pairs=308),
    )


def _smoke() -> ExperimentConfig:
    base = _default()
    return replace(
        base,
        method=Config(
            backbone="resnet10", width=4, tap="layer2", trained=("layer2",), grid=4, unet_width=2, unet_levels=1, stages=("A1", "A2"), stage_shares=(1.0, 1.0)
        ),
        data=replace(base.data, semantic_per_batch=2, common_keypoints=16, canvas_px=256, threads=1),
        draw=replace(base.draw, crop_px=32),
        train=TrainConfig(steps=2),
        report=ReportConfig(log_every=1, validate_every=2, checkpoint_every=1, validation_pairs=2),
    )


VARIANTS = {"default": _default, "paper": _paper, "smoke": _smoke}


def get_config(variant: str = "default") -> ExperimentConfig:
    if variant not in VARIANTS:
        raise UserError(f"configs/gsf.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    return VARIANTS[variant]()
