"""Released PyTorch weights of CAPS to ours, strict both ways."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxdesc.methods.caps import Config, network
from jaxdesc.nets import torch_names
from jaxdesc.nets.resnet import DEPTHS
from jaxdesc.types import UserError, Variables

LICENCE = (
    "the program released with CAPS is under the MIT licence (Qianqian Wang, 2021); weights converted from its checkpoints keep the terms that came with them"
)

# What a decoder's convolution is called: upconv3.conv.conv there (a module within a module), upconv3/conv here.
DECODER = re.compile(r"(upconv3|iconv3|upconv2|iconv2|conv_coarse|conv_fine)\.(?:conv\.)?(conv|bn)\.")


def canonical(name: str) -> str:
    """Their name of a tensor, without wrappers and with torchvision's names for the encoder."""
    name = re.sub(r"^(module\.|net\.)*", "", name).replace("firstconv.", "conv1.", 1).replace("firstbn.", "bn1.", 1)
    return DECODER.sub(r"\1.\2.", name)


def encoder_first(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """iconv3 and iconv2 with the input channels [encoder, decoder] instead of [decoder, encoder].

    The released network concatenates in the latter order, ours with either decoder in
    the former, that of Table 3 of CAPS's supplementary: the converter, and nothing
    else, turns the halves round. So what was trained here, with `decoder="released"`
    too, is right as it is. Weight files that were converted before the halves were
    turned give useless fine descriptors; `Config.check_file` refuses them.
    """

    def turned(name: str, w: np.ndarray) -> np.ndarray:
        if name not in ("iconv3.conv.weight", "iconv2.conv.weight") or w.ndim != 4:
            return w
        return np.roll(w, -len(w), axis=1)  # as many channels come from the decoder as go out

    return {name: turned(name, w) for name, w in tensors.items()}


def _name(path: str) -> str:
    if path.startswith("backbone/"):
        return torch_names.resnet_name(path.removeprefix("backbone/"))
    *modules, leaf = (part for part in path.split("/") if part != "norm")
    return ".".join([*modules, torch_names.ROLES[leaf]])


def infer_config(tensors: dict[str, np.ndarray]) -> Config:
    """The network that canonical names and shapes belong to.

    Raises:
      UserError: they are not those of CAPS's network.
    """
    blocks = [len({m[1] for name in tensors if (m := re.match(rf"layer{i}\.(\d+)\.", name))}) for i in (1, 2, 3)]
    bottleneck = "layer1.0.conv3.weight" in tensors
    depth = next((d for d, (counts, deep) in DEPTHS.items() if list(counts[:3]) == blocks and deep == bottleneck), None)
    heads = [tensors.get(f"{name}.conv.weight") for name in ("upconv3", "upconv2", "conv_coarse", "conv_fine")]
    stem = tensors.get("conv1.weight")
    if depth is None or stem is None or any(head is None for head in heads):
        raise UserError(f"These are not the weights of CAPS's network: stages of {', '.join(map(str, blocks))} blocks, or no decoder.")
    eighth, quarter, coarse, fine = (int(head.shape[0]) for head in heads)
    return Config(backbone=f"resnet{depth}", width=int(stem.shape[0]), decoder="released", decoder_features=(eighth, quarter), coarse_dim=coarse, fine_dim=fine)


def from_torch(tensors: dict[str, np.ndarray]) -> tuple[Config, Variables]:
    """Torch tensors by name -> (Config with the released decoder, our variables).

    Raises:
      UserError: listing every tensor that is missing, not used or of another shape.
    """
    tensors = encoder_first({canonical(name): value for name, value in tensors.items()})
    cfg = infer_config(tensors)
    net = network.build(cfg)
    like = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    return cfg, torch_names.from_torch(tensors, like, _name, lambda name: False, f"CAPS with a {cfg.backbone}")
