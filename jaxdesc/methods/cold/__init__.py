"""COLD: Learning to Distill Convolutional Features into Compact Local Descriptors.

Lee, Jeong, Kim, Min, Cho, WACV 2021. Intermediate activations of a ResNet trained on ImageNet, which stays as it is, are brought to D channels each and added:
one unit descriptor for every 4 x 4 pixels, of any length from 4. They learn from keypoints of objects of a category. Only the supplementary material and the
abstract were at hand: what they do not say was decided after closely related work of the same authors, and is a field of Config or a function with a name.

Modules and tests without a folder are those of methods/cold and tests/methods/cold.

| paper                                          | function                            | test          |
|------------------------------------------------|-------------------------------------|---------------|
| suppl. 1: feature transformation to D channels | network.Cold                        | test_cold.py  |
| keypoint transfer by nearest neighbours        | cells.transfer, infer.transfer      | test_cells.py |
| loss on the z-scored rows, easy and hard       | cells.cross_entropy, loss.pair_loss | test_cold.py  |
| suppl. 2: nearest neighbours between images    | infer.match                         | test_cold.py  |
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from jaxdesc.config import MethodConfig, option
from jaxdesc.method import Definition, Method
from jaxdesc.methods.cold import infer, loss, network
from jaxdesc.nets.resnet import DEPTHS, check_weights, tapped_channels
from jaxdesc.types import UserError

LEAST_DIM = 4


@dataclass(frozen=True)
class Config(MethodConfig):
    name: ClassVar[str] = "cold"
    kinds: ClassVar[tuple[str, ...]] = ("keypoints",)

    backbone: str = option("resnet101", "the frozen network whose activations are distilled", choices=tuple(f"resnet{depth}" for depth in DEPTHS))
    width: int = option(64, "channels of the backbone's stem; 64 in ResNets", at_least=1)
    weights: str = option(
        "",
        "what the backbone is: imagenet:FILE with a torchvision or timm ResNet (.pth or .safetensors); caps:PATH with a workdir or a weight file of CAPS, whose "
        "ResNet ends with layer3; empty: random numbers",
    )
    taps: tuple[str, ...] = option((), "activations that are distilled, by their names; empty: the pooled stem and every block's output")
    before_relu: bool = option(True, "blocks' outputs are taken before their last ReLU, else after it (only where taps is empty)")
    relu: bool = option(False, "a ReLU follows each transform")
    resize: str = option(
        "aligned",
        "activations are brought to the cells with aligned corners (precedent: Dynamic Hyperpixel Flow), or exactly, "
        "by where each of their cells lies on the image",
        choices=("aligned", "exact"),
    )
    dim: int = option(1024, "length of the descriptors, at least 4")
    eps: float = option(1e-6, "added to the squared length that descriptors are divided by the root of", above=0)
    dtype: str = option("float32", "of the network's computation; losses are float32", choices=("float32", "bfloat16"))
    image_px: int = option(240, "side that images of objects are squashed to, in training and in transfer", at_least=32)
    box_px: int = option(11, "odd side of a cell's box: the cells whose boxes hold a keypoint move it", at_least=1)
    mutual_filter: bool = option(False, "A A^2 / (rowmax colmax) instead of A before the nearest neighbours of a transfer are taken")
    bidirectional: bool = option(True, "the loss is the mean of both directions, else from image 1 to image 2 only")
    deviation_gradient: bool = option(
        True,
        "the loss's gradient goes through the standard deviation of the rows too; without, sd "
        "counts as a constant, as in Dynamic Hyperpixel Flow",
        absent=False,
    )
    hard_alpha: float = option(0.1, "keypoints predicted within this share of the longer side are easy, and count by the square of how near they are", above=0)

    def validate(self, config) -> None:
        """Training and transfer see the same squares; raises UserError naming the field."""
        side = config.data.keypoints.image_px
        if side != self.image_px:
            raise UserError(
                f"config.data.keypoints.image_px = {side} is what training squashes images to, and "
                f"config.method.image_px = {self.image_px} what transfer does: make them the same."
            )

    def check(self) -> None:
        """What no network can be built with; raises UserError naming the field."""
        check_weights(self.weights, self.width)
        if self.dim < LEAST_DIM:
            raise UserError(
                f"config.method.dim = {self.dim} must be at least {LEAST_DIM}: the paper's training failed to converge with fewer channels (supplementary, section 1)."
            )
        if self.box_px % 2 == 0:
            raise UserError(f"config.method.box_px = {self.box_px} must be odd: a box has its cell's centre in the middle.")
        try:
            tapped_channels(int(self.backbone.removeprefix("resnet")), self.taps, self.width)
        except UserError as e:
            raise UserError(f"config.method.taps: {e}") from e
        if len(set(self.taps)) < len(self.taps):
            raise UserError(f"config.method.taps = {self.taps} names an activation twice.")


def build(cfg: Config, axis_name: str | None = None) -> Method:
    """COLD as a Method; `axis_name` is the mapped axis that batch statistics and PCK are shared over. Raises UserError as `Config.check`."""
    cfg.check()
    net = network.build(cfg, axis_name)
    return Method(
        init=partial(network.init, net),
        loss=partial(loss.cold_loss, net=net, cfg=cfg, axis_name=axis_name),
        describe=partial(network.describe, net),
        grid=network.grid,
        match=partial(infer.match, net=net),
        transfer=partial(infer.transfer, net=net, cfg=cfg),
        square_px=network.side_px(cfg),
    )


METHOD = Definition(Config, build, infer.MatchOptions)
