"""PUMP: Pyramidal and Uniqueness Matching Priors for Unsupervised Learning of Local Descriptors.

Revaud, Leroy, Weinzaepfel, Chidlovskii, CVPR 2022. Descriptors learn from two kinds of pairs: a photograph and a warped copy
of it, where the true position of every pixel is known, and two photographs of one place, where nothing is known but that most
high-level patches of one have exactly one match in the other.

Modules and tests without a folder are those of methods/pump and tests/methods/pump.

| paper                                     | function                   | test                      |
|-------------------------------------------|----------------------------|---------------------------|
| L = L_AP + 0.3 L_uniq                     | loss.pump_loss             | test_pump.py              |
| L_AP, pixel-wise average precision (R2D2) | average_precision.pixel_ap | test_average_precision.py |
| Eq. 1, 2: l1 normalisation, uniqueness    | uniqueness.uniqueness_loss | test_uniqueness.py        |
| matching pyramid                          | pyramid                    | test_pyramid.py           |
| ConvMixer; Table A: R2D2's backbone       | conv_mixer, l2net          | nets/test_nets.py         |
| R2D2's detector (its paper)               | detector                   | test_detector.py          |
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from jaxdesc.config import MethodConfig, option
from jaxdesc.method import Definition, Method, Released
from jaxdesc.methods.pump import detector, heatmaps, infer, loss, network
from jaxdesc.ops.sampling import PIXELS
from jaxdesc.types import UserError


@dataclass(frozen=True)
class Config(MethodConfig):
    name: ClassVar[str] = "pump"
    kinds: ClassVar[tuple[str, ...]] = ("homography", "unlabelled")

    backbone: str = option("convmixer", "network", choices=("convmixer", "r2d2"))
    output_dim: int = option(128, "length of a descriptor", at_least=1)
    hidden: int = option(512, "ConvMixer: channels, a multiple of 4", at_least=4)
    depth: int = option(7, "ConvMixer: mixer layers", at_least=0)
    patch: int = option(4, "ConvMixer: side of a patch, even, pixels", at_least=2)
    kernel: int = option(9, "ConvMixer: side of the depthwise filters, odd, patches", at_least=1)
    keypoint_heads: bool = option(
        False, "r2d2: its detector's heads are kept, as released weights have them"
    )
    dtype: str = option("float32", "of the network's computation; losses are float32", choices=("float32", "bfloat16"))
    batch_statistics: str = option(
        "joint",
        "images 1 and 2 of a batch share normalisation statistics, as in runs of before this "
        "field, or each have their own, as in the released program",
        choices=("joint", "separate"),
    )
    uniq_weight: float = option(0.3, "weight of L_uniq beside L_AP", at_least=0)
    uniq_border_px: int = option(16, "L_uniq: border that is left out, pixels", at_least=0)
    uniq_subsample: int = option(2, "L_uniq: every n-th pixel is kept", at_least=1)
    ap_border_px: int = option(16, "L_AP: queries keep this distance from the border, pixels", at_least=0)
    ap_spacing_px: int = option(8, "L_AP: one query in a square of this side, on average, pixels", at_least=1)
    ap_positive_px: float = option(2.0, "L_AP: positives are the pixels within this distance of the truth", at_least=0)
    ap_negative_px: tuple[float, float] = option((4.0, 7.0), "L_AP: negatives are the pixels at such distances of the truth")
    ap_bins: int = option(20, "L_AP: soft bins over [0, 1]", at_least=2)

    def check(self) -> None:
        """What depends on other fields; raises UserError naming them."""
        if self.keypoint_heads and self.backbone != "r2d2":
            raise UserError(
                "config.method.keypoint_heads is for config.method.backbone = 'r2d2', "
                f"not {self.backbone!r}."
            )
        if self.hidden % 4:
            raise UserError(f"config.method.hidden = {self.hidden} is not a multiple of 4.")
        if self.patch % 2:
            raise UserError(f"config.method.patch = {self.patch} must be even.")
        if self.kernel % 2 == 0:
            raise UserError(f"config.method.kernel = {self.kernel} must be odd.")
        low, high = self.ap_negative_px
        if not self.ap_positive_px < low <= high:
            raise UserError(
                f"config.method.ap_negative_px = {self.ap_negative_px} must rise and lie above config.method.ap_positive_px = {self.ap_positive_px}."
            )

    def validate(self, config) -> None:
        """What crops have to hold; raises UserError naming the field."""
        if config.draw.crop_px % self.patch:
            raise UserError(
                f"config.method.patch = {self.patch} must divide config.draw.crop_px = "
                f"{config.draw.crop_px}."
            )
        least = 2 * max(self.uniq_border_px, self.ap_border_px) + 32
        if config.draw.crop_px < least:
            raise UserError(f"config.draw.crop_px = {config.draw.crop_px} leaves nothing inside the borders of the losses: at least {least} px.")


def build(cfg: Config, axis_name: str | None = None) -> Method:
    """PUMP as a Method; `axis_name` is the mapped axis that batch statistics and L_AP's distractors are shared over."""
    net = network.build(cfg, axis_name)
    return Method(
        init=partial(network.init, net, heads=cfg.keypoint_heads),
        loss=partial(loss.pump_loss, net=net, cfg=cfg, axis_name=axis_name),
        describe=partial(network.describe, net, multiple=network.multiple(cfg)),
        grid=lambda height, width: PIXELS,
        match=partial(infer.match, net=net, multiple=network.multiple(cfg)),
        detect=partial(detector.detect, net=net) if cfg.keypoint_heads else None,
        explain=partial(heatmaps.explain, net=net, multiple=network.multiple(cfg)),
    )


def _released() -> Released:
    from jaxdesc.methods.pump import weights  # which knows Config

    return Released(weights.from_torch, weights.LICENCE)


def _benchmarks() -> dict:
    from jaxdesc.methods.pump import benchmark  # which nothing else needs

    return {"losses": benchmark.losses, "match": benchmark.match}


METHOD = Definition(Config, build, infer.MatchOptions, _released, benchmarks=_benchmarks)
