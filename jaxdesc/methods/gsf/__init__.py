"""GSF: Guided Semantic Flow.

Jeon, Min, Kim, Choe, Sohn, ECCV 2020. Two images of objects of one category are aligned: of all pairs of cells the confident ones are selected, a network
prunes those that contradict their neighbours, what is left guides the search for the others. Only the supplementary was available: the networks, their
starts, the losses' weights and neighbourhoods, the warps and the two stages are its facts; every other choice is a decision, a field below or a named function.

Modules and tests without a folder are those of methods/gsf and tests/methods/gsf.

| paper                                             | function                                   | test                     |
|---------------------------------------------------|--------------------------------------------|--------------------------|
| Table 1, and how both networks start              | volume_unet.VolumeUNet                     | test_volume_unet.py      |
| correlation, confidence Q, sparse G, dense G', C' | flow.correlation ... modulate              | test_flow.py             |
| density of confident matches 0.75 at rho = 0.9    | flow.contrast_of, calibration              | test_gsf.py              |
| (11) L_sil, (12) L_geo                            | flow.silhouette_loss, reconstruction_loss  | test_flow.py             |
| (13), (14) L_M; L_sm                              | flow.classification_loss, smoothness_loss  | test_flow.py             |
| the losses together                               | loss.gsf_loss                              | test_gsf.py              |
| two stages, synthetic pairs first                 | stages.schedule, rates                     | test_gsf.py              |
| random affine and TPS warps                       | ops.tps.warp, data.warps                   | data/test_warps.py       |
| masks of the objects                              | data.builders.semantic, data.kinds         | data/test_semantic.py    |
| dense flow, keypoints, figures of section 3       | infer, figures.alignment                   | test_gsf.py              |
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from jaxdesc.config import MethodConfig, Stage, option
from jaxdesc.method import Definition, Method
from jaxdesc.methods.gsf import calibration, infer, loss, network, stages
from jaxdesc.nets.resnet import DEPTHS, check_weights, tapped_channels
from jaxdesc.types import Batch, UserError, Variables

TRAINED = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Config(MethodConfig):
    """Fact: what the supplementary states; the other defaults are decisions."""

    name: ClassVar[str] = "gsf"
    kinds: ClassVar[tuple[str, ...]] = ("keypoints",)
    calibrates: ClassVar[tuple[str, ...]] = ("confidence_contrast",)

    backbone: str = option("resnet101", "of the features", choices=tuple(f"resnet{depth}" for depth in DEPTHS))
    width: int = option(64, "channels of the backbone's stem; 64 in ResNets", at_least=1)
    tap: str = option("layer3", "the activation that is the feature map: layer3 is conv4_23 of a ResNet-101, at 1/16")
    weights: str = option(
        "",
        "what training starts from: imagenet:FILE with a torchvision or timm ResNet (.pth or .safetensors); caps:PATH with a workdir or a weight file of CAPS, "
        "whose ResNet ends with layer3; empty: random numbers",
    )
    trained: tuple[str, ...] = option(("layer3",), "stages of the backbone that learn when everything learns; batch statistics never change")
    grid: int = option(
        20, "cells a side that images are cut into; images are squashed to squares of so many times the stride of the tap (fact: 20)", at_least=2
    )
    unet_width: int = option(64, "channels of conv1 of the pruning and matching networks (fact: 64)", at_least=1)
    unet_levels: int = option(3, "poolings of the pruning and matching networks (fact: 3)", at_least=1)
    dtype: str = option("float32", "of the networks' computation; volumes and losses are float32", choices=("float32", "bfloat16"))

    confidence_power: int = option(0, "power of C by which the ratio product of Q is multiplied: 0, or 1 as in NC-Net", at_least=0)
    confidence_contrast: float = option(
        1.0,
        "power that the ratio product of Q is raised to, at least 1; 0: a run chooses, before its "
        "first step, the one at which 0.75 of the cells have a confident match (fact: 0.75)",
        at_least=0,
    )
    rho: float = option(0.9, "matches of a greater confidence count (fact)", above=0, at_most=1)
    guide_width: float = option(
        5.0, "c_P: Gaussian of the interpolation of the guidance (fact: 5), see gauss", above=0
    )
    modulation_width: float = option(
        5.0, "c_M: Gaussian around the guidance that modulates C (fact: 5), see gauss", above=0
    )
    gauss: str = option(
        "variance",
        "exp(-d^2 / (2 c)), c_P and c_M variances in cells^2 (fact: \"variances c_P, c_M\"), or "
        "exp(-d^2 / (2 c^2)), both widths in cells",
        choices=("width", "variance"),
    )
    mls_order: int = option(0, "of the moving least squares that interpolate the guidance: 0, a weighted mean, or 1, affine", at_least=0, at_most=1)

    sil_masks: bool = option(True, "where pairs have masks, L_sil pulls matches between object and background to 0")
    mask_share: float = option(0.1, "a cell is of the object if more than this share of it is", at_least=0, at_most=1)
    geo_weight: str = option("recon", "L_geo: every confident match counts the same, or by its Q'", choices=("recon", "qprime"))
    geo_window: int = option(5, "N, cells: neighbourhood of L_geo (fact: 5), odd", at_least=1)
    match_window: int = option(5, "M, cells: neighbourhood of L_M (fact: 5), odd", at_least=3)
    sharpness: float = option(1.0, "b of (14), factor on the matching scores", above=0)
    geo_factor: float = option(3.0, "lambda, weight of L_geo (fact)", at_least=0)
    match_factor: float = option(5.0, "lambda_M, weight of L_M (fact)", at_least=0)
    smooth_factor: float = option(0.1, "lambda_sm, weight of L_sm (fact)", at_least=0)

    stages: tuple[str, ...] = option(("A1", "A2", "B"), "of the run, in order: A1, W_P alone, and A2 train on the photographs among config.data.keypoints.sources, with warps of themselves; B on its other sources")
    stage_shares: tuple[float, ...] = option((10.0, 10.0, 20.0), "relative lengths of the stages")
    backbone_rate: float = option(0.1, "learning rate of the backbone, relative to that of the other networks", at_least=0)

    def plan(self, config) -> tuple[Stage, ...]:
        """The stages of a run as the training loop wants them."""
        return tuple(
            Stage(
                **{"name": stage.name, "start": stage.start, "steps": stage.steps, "pairs": stage.source},
                data=stages.data_of(stage, config.data),
                options={"pruning_only": stage.pruning_only},
                rates=partial(stages.rates, stage=stage, backbone_rate=self.backbone_rate),
            )
            for stage in stages.schedule(self.stages, self.stage_shares, config.train.steps)
        )

    def calibrated(self, variables: Variables, batch: Batch, say) -> "Config":
        """With the contrast chosen, if it is 0, on pairs `batch`, as training begins.

        Args:
          say: is told in a sentence what was chosen.
        """
        if self.confidence_contrast:
            return self
        contrast, sentence = calibration.chosen(variables, batch, network.GsfNet(self))
        say(sentence)
        return replace(self, confidence_contrast=contrast)

    def check(self) -> None:
        """What `option` cannot say; raises UserError naming the field."""
        tapped_channels(int(self.backbone.removeprefix("resnet")), (self.tap,), self.width)
        if 0 < self.confidence_contrast < 1:
            raise UserError(
                f"config.method.confidence_contrast = {self.confidence_contrast} must be at least "
                "1, or 0 for the one that a run chooses."
            )
        if self.confidence_power and not self.confidence_contrast:
            raise UserError(
                "config.method.confidence_contrast = 0 is chosen for the ratio product alone: set "
                "it, or config.method.confidence_power = 0."
            )
        for name in ("geo_window", "match_window"):
            if getattr(self, name) % 2 == 0:
                raise UserError(f"config.method.{name} = {getattr(self, name)} must be odd.")
        if unknown := [name for name in self.trained if name not in TRAINED]:
            raise UserError(f"config.method.trained names {unknown[0]!r}; there are {', '.join(TRAINED)}.")
        check_weights(self.weights, self.width)

    def validate(self, config) -> None:
        """What the stages need of the pairs; raises UserError naming the field."""
        plan = stages.schedule(self.stages, self.stage_shares, config.train.steps)
        side = network.side_px(self)
        image_px = config.data.keypoints.image_px
        if image_px != side:
            raise UserError(
                f"config.data.keypoints.image_px = {image_px} must be {side}: {self.grid} cells of "
                f"{side // self.grid} px, those of {self.tap}."
            )
        for stage in plan:
            if not stages.data_of(stage, config.data).keypoints.sources:
                raise UserError(
                    f"config.data.keypoints.sources has none for stage {stage.name} of "
                    f"config.method.stages: {stages.LACKING[stage.source]}."
                )


def build(cfg: Config, axis_name: str | None = None, pruning_only: bool = False) -> Method:
    """GSF as a Method; `axis_name` is the mapped axis that batch statistics are shared over, `pruning_only` a property of the stage of training."""
    net = network.GsfNet(cfg, axis_name)
    return Method(
        init=partial(network.init, net),
        loss=partial(loss.gsf_loss, net=net, cfg=cfg, pruning_only=pruning_only, axis_name=axis_name),
        describe=partial(network.describe, net),
        grid=partial(network.grid, cfg),
        match=partial(infer.match, net=net),
        transfer=partial(infer.transfer, net=net),
        square_px=network.side_px(cfg),
        dense=partial(infer.dense, net=net),
    )


METHOD = Definition(
    Config, build, infer.MatchOptions, published={"density": calibration.DENSITY}
)
