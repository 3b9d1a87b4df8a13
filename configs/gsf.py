"""GSF (ECCV 2020). Lab note.

default  embedded photographs and warps of them, stages A1 and A2, a ResNet-18 tapped at 1/8,
         160 px, networks of half the width: for two CPU cores. No pairs of objects come with the
         package, so there is no stage B. The backbone is RANDOM unless
         --config.method.weights=imagenet:FILE or caps:RUN names one.
           confidence_contrast = 64  cosines of random features are all alike (0.85 on average).
             Error of G' in cells on 16 warped pairs (arg-max C: 1.91), c_P a variance of 5: 1.16
             at a contrast of 24 (density 0.76), 0.97 at 64 (0.65), 0.91 at 1000 (0.52). 64 is the
             best whose density is within 0.1 of the paper's. As a width of 5: 1.33, 1.16, 1.06
             450 steps at 64: G' 0.99 to 0.92, PCK@0.1 0.871 to 0.886 at the best checkpoint (half
             way); at 24: 1.18 to 0.99, 0.816 to 0.870
           sharpness = 20            keeps L_geo from making all features alike in A2, as happened
             with 1 and a learning rate of 2e-3
           geo_weight = qprime       with recon L_geo falls in A1, the error of the guidance not
           optim.b2 = 0.9            with 0.999 Adam remembers the steep moment in which the loss
             pulls A1 back for a thousand steps
         With an ImageNet backbone take confidence_contrast=8 gauss=width guide_width=1, see below.
paper    ResNet-101 up to conv4_23, 320 px, 20x20 cells; stages A1, A2, B of 10, 10 and 20 epochs
         on PF-PASCAL (2,940 training rows, flips among them), 16 pairs a step. Bring
           --config.data.keypoints.sources=photos:TRAIN_IMAGES,pf-pascal:PF_PASCAL
           --config.method.weights=imagenet:RESNET101.pth
         and, for silhouettes in L_sil, PASCAL VOC 2012's SegmentationClass/ somewhere below
         PF_PASCAL. TRAIN_IMAGES holds the images of the training list alone (JPEGImages has those
         of the test as well); mkdir it, then
           cut -d, -f1,2 PF_PASCAL/train_pairs*.csv | grep -o '[^/,]*[.]jpg' | sort -u |
             xargs -I @ ln -s "$PWD/PF_PASCAL/JPEGImages/@" TRAIN_IMAGES
smoke    two steps of tiny networks, for tests.

Stages A1 and A2 take the photographs among the sources, B the others. Any pairs of objects with
masks serve for stage B: masks:FOLDER, see data.builders.semantic; keypoints are not needed.

What the supplementary leaves open was decided so:
  backbone, tap     ResNet-101 to conv4_23, as NC-Net and SFNet; 320 px make the 20x20 cells
  trained, backbone_rate  the last stage alone, at a tenth, as RTN; batch statistics stay ImageNet's
  confidence_power  0: with NC-Net's further factor C the density at rho = 0.9 follows the cosines
                    and is next to 0 on real features; without, Q is 1 at mutual nearest neighbours
  confidence_contrast  `paper`: 0, chosen before the first step for the density that the paper
                    names, on held-out pairs of the last stage; the run says which and keeps it
  gauss             variance: the paper's word for c_P and c_M, and better than a width of 5.
                    On 210 pairs of PF-WILLOW, EfficientNet-Lite0 d8 d9 d12 d13 at 320 px, PCK@0.1
                    (extent) of arg-max C 0.583; of G' at contrast 1, 2, 8 (density 0.97, 0.81,
                    0.39): variance 5 0.289 0.455 0.588; width 0.5 0.483 0.587 0.650; width 1 0.435
                    0.562 0.624; at 2.37, density 0.75: 0.478 0.603 0.573. So `paper` starts below
                    the arg-max on such features, and 8 with width 1 above it
  mls_order         0: affine guidance is better on clean matches and worse with wrong ones
  sil_masks, mask_share  the paper uses masks and names no other consumer than L_sil; above 0.1 of
                    a cell, as SFNet
  geo_weight, sharpness  recon, 1: the sentence about (12) and equation (14) as they stand
  stages            synthetic pairs first and two stages are facts; lengths as RTN's 10 + 20 epochs
  optim             Adam, 1e-4, cosine, clipped at 1: behind a sigmoid of 10 gradients are 5e-7,
                    and plain SGD does not move; RTN's SGD is the only schedule known
  warp              ranges are facts; shift_std is half the range, so that 95 % lie in it; 3x3
                    control points, as RTN; affine, then spline
  data.canvas_px    512: photographs of PF-PASCAL, of at most 500 px, are not shrunk
  common_keypoints  grid^2: warped pairs have a keypoint at the centre of every cell, which
                    end-point errors are measured at; no loss sees them
"""

from dataclasses import replace

from jaxdesc.config import DrawConfig, ExperimentConfig, OptimConfig, ReportConfig, Source, TrainConfig
from jaxdesc.data.kinds import DataConfig, KeypointPairs
from jaxdesc.methods.gsf import Config
from jaxdesc.types import UserError

EPOCH = 184  # steps of 16 pairs in 2,940 rows


def _default() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(
            **{"backbone": "resnet18", "tap": "layer2", "trained": ("layer2",), "unet_width": 32},
            confidence_contrast=64.0,
            **{"geo_weight": "qprime", "sharpness": 20.0, "backbone_rate": 0.05, "stages": ("A1", "A2"), "stage_shares": (1.0, 2.0)},
        ),
        data=DataConfig(
            keypoints=KeypointPairs(per_batch=4, image_px=160, common_keypoints=400),
            canvas_px=512,
        ),
        optim=OptimConfig(learning_rate=2e-3, schedule="cosine", weight_decay=0.0, clip_norm=1.0, b2=0.9),
        train=TrainConfig(steps=450),
        report=ReportConfig(validate_every=75, checkpoint_every=75, validation_pairs=16),
    )


def _paper() -> ExperimentConfig:
    return ExperimentConfig(
        method=Config(confidence_contrast=0.0),
        data=DataConfig(
            keypoints=KeypointPairs(
                sources=(Source("photos", ""), Source("pf-pascal", "")),
                per_batch=16,
                image_px=320,
                common_keypoints=400,
            ),
            canvas_px=512,
        ),
        draw=DrawConfig(flip_probability=0.0),
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
        data=replace(
            base.data,
            keypoints=KeypointPairs(per_batch=2, image_px=32, common_keypoints=16),
            canvas_px=256,
            threads=1,
        ),
        train=TrainConfig(steps=2),
        report=ReportConfig(log_every=1, validate_every=2, checkpoint_every=1, validation_pairs=2, pictured_pairs=0),
    )


VARIANTS = {"default": _default, "paper": _paper, "smoke": _smoke}


def get_config(variant: str = "default") -> ExperimentConfig:
    if variant not in VARIANTS:
        raise UserError(f"configs/gsf.py has no variant {variant!r}; it has {', '.join(VARIANTS)}.")
    return VARIANTS[variant]()
