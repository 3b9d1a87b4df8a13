"""CAPS: Learning Feature Descriptors using Camera Pose Supervision.

Wang, Zhou, Hariharan, Snavely, ECCV 2020. Descriptors learn from pairs of photographs whose relative camera pose is known, and nothing else: the expected
location of a point in the other image shall lie on the point's epipolar line, and lead back to the point. Coarse descriptors search the whole image, fine
ones a window around what the coarse ones found.

Modules and tests without a folder are those of methods/caps and tests/methods/caps.

| paper                                         | function                             | test                 |
|-----------------------------------------------|--------------------------------------|----------------------|
| suppl. Table 3: the network                   | unet.CapsNet, nets.resnet.ResNet     | nets/test_resnet.py  |
| differentiable matching layer, coarse to fine | matching.match_pair                  | test_caps.py         |
| epipolar and cycle losses, reweighting        | loss.pair_losses                     | test_caps.py         |
| distance of a point to an epipolar line       | ops.epipolar.epipolar_distance       | ops/test_epipolar.py |
| suppl. 5: dense matches; pairs of points      | infer.match, query                   | test_caps.py         |
| suppl. 4, Fig. 1 and 2                        | infer.distributions, figures         | test_match_verb.py   |
| suppl. 7: pairs, pruning, curriculum          | data.builders.posed, data.kinds.posed | data/test_posed.py  |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from jaxdesc.config import MethodConfig, option
from jaxdesc.method import Definition, Method, Released
from jaxdesc.methods.caps import explain, infer, loss, network
from jaxdesc.nets.resnet import DEPTHS
from jaxdesc.types import UserError


@dataclass(frozen=True)
class Config(MethodConfig):
    name: ClassVar[str] = "caps"
    kinds: ClassVar[tuple[str, ...]] = ("posed",)

    backbone: str = option("resnet50", "the encoder: its stages at 1/4, 1/8 and 1/16", choices=tuple(f"resnet{depth}" for depth in DEPTHS))
    width: int = option(64, "channels of the encoder's stem; 64 in ResNets", at_least=1)
    weights: str = option("", "what training starts from: imagenet:FILE with a torchvision or timm ResNet (.pth or .safetensors); empty: random numbers")
    decoder: str = option(
        "paper",
        "paper: convolution, ReLU, norm; released, for the released weights: convolution, "
        "norm, ELU, and where sides are no multiples of 16 the encoder's maps are padded",
        choices=("paper", "released"),
    )
    decoder_features: tuple[int, int] = option((512, 256), "channels of the decoder at 1/8 and at 1/4")
    coarse_dim: int = option(128, "length of the coarse descriptors", at_least=1)
    fine_dim: int = option(128, "length of the fine descriptors", at_least=1)
    dtype: str = option("float32", "of the network's computation; losses are float32", choices=("float32", "bfloat16"))
    similarity: str = option("correlation", "of descriptors: their product, or minus their squared distance", choices=("correlation", "distance"))
    use_nn: bool = option(
        True,
        "fine windows lie around the most probable coarse location, and coarse loops start there; "
        "else the expected one",
    )
    window: float = option(0.125, "half side of the fine windows, of half the image's side", above=0, at_most=1)
    reweight: bool = option(True, "points count by the inverse of their standard deviation")
    weights_over: str = option(
        "pair",
        "points whose weights have the mean 1 and over which losses are means: those of each pair, "
        "or of the whole batch on all devices (then config.train.accumulate must be 1)",
        choices=("pair", "batch"),
    )
    coarse_weight: float = option(1.0, "weight of the coarse epipolar loss", at_least=0)
    fine_weight: float = option(1.0, "weight of the fine epipolar loss", at_least=0)
    coarse_cycle_weight: float = option(0.1, "weight of the coarse cycle loss", at_least=0)
    fine_cycle_weight: float = option(0.1, "weight of the fine cycle loss", at_least=0)
    epipolar_share: float = option(0.5, "epipolar losses: points nearer to their line than this share of the shorter side count", above=0)
    fine_share: float = option(
        0.125, "fine epipolar loss: points whose coarse location is nearer to the line than this share of the shorter side count", above=0
    )
    cycle_share: float = option(0.025, "cycle losses: points nearer to their line than this share of the shorter side count", above=0)
    cycle_px: float = option(40.0, "cycle losses: distances below this count, others are 0", above=0)

    @classmethod
    def check_file(cls, fields: Mapping[str, Any], version: int, where: Any) -> None:
        """The converter of format 1 mixed up two halves of the released decoder's channels.

        Such a file does not say whether it was converted or trained here, so it is refused.
        """
        if version == 1 and fields.get("decoder") == "released" and Path(where).is_file():
            raise UserError(
                f"{where} may hold CAPS weights that an earlier version converted wrongly: "
                "make it again with `jaxdesc convert`."
            )

    def check(self) -> None:
        """What `option` cannot say; raises UserError naming the field."""
        if min(self.decoder_features) < 1:
            raise UserError(f"config.method.decoder_features = {self.decoder_features} must be at least 1 each.")
        if self.weights and not self.weights.startswith("imagenet:"):
            raise UserError(f"config.method.weights = {self.weights!r} must be imagenet:FILE, or empty.")
        if self.weights and self.width != 64:
            raise UserError(f"config.method.width = {self.width} must be 64 where config.method.weights names a ResNet's weights.")

    def validate(self, config) -> None:
        """What parts of a batch allow; raises UserError naming the field."""
        if self.weights_over == "batch" and config.train.accumulate > 1:
            raise UserError(
                f"config.method.weights_over = 'batch' needs config.train.accumulate = 1, not "
                f"{config.train.accumulate}: a part does not see the other parts' points."
            )


def build(cfg: Config, axis_name: str | None = None) -> Method:
    """CAPS as a Method; over `axis_name`, a mapped axis, batch statistics and PCK are shared, and
    the weights of points with weights_over = "batch"."""
    net = network.build(cfg, axis_name)
    return Method(
        init=partial(network.init, net),
        loss=partial(loss.caps_loss, net=net, cfg=cfg, axis_name=axis_name),
        describe=partial(network.describe, net),
        grid=partial(network.grid, cfg),
        match=partial(infer.match, net=net),
        describe_at=partial(infer.describe_at, net=net),
        points=partial(infer.points, net=net, cfg=cfg),
        explain=partial(explain.explain, net=net, cfg=cfg),
    )


def _released() -> Released:
    from jaxdesc.methods.caps import weights  # which knows Config

    return Released(weights.from_torch, weights.LICENCE)


METHOD = Definition(Config, build, infer.MatchOptions, _released)
