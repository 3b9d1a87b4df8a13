"""Released PyTorch weights of PUMP's networks to ours, strict both ways.

A torch state dict lists modules in the order of the forward pass, and so do the tables below;
module names carry no meaning and are not looked at, only their order, the roles of the tensors
(weight, bias, running_mean, running_var) and the shapes. R2D2's heads for keypoints alone go by
their names, `clf` and `sal`; a checkpoint has both or none.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdesc.methods.pump import Config, network
from jaxdesc.nets.torch_names import refuse
from jaxdesc.types import Pair, UserError, Variables

LICENCE = "the weights released with PUMP and R2D2 are CC BY-NC-SA 4.0 (non-commercial use only), and so is what is converted from them"


def _modules(tensors: dict[str, np.ndarray]) -> list[tuple[str, dict[str, np.ndarray]]]:
    """[(module, {role: tensor})] in natural order of the names ("ops.2" before "ops.10"), which is the order of construction."""
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        module, _, role = name.removeprefix("module.").rpartition(".")
        if role != "num_batches_tracked":
            grouped.setdefault(module, {})[role] = tensor
    natural = lambda item: [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.]", item[0])]  # noqa: E731
    return sorted(grouped.items(), key=natural)


def _head(module: str) -> str:
    """ "net.clf" -> "clf"; "" if the module is no head for keypoints."""
    name = module.rpartition(".")[2]
    return name if name in network.HEADS else ""


def _convolutions(modules) -> list[np.ndarray]:
    weights = [roles["weight"] for name, roles in modules if "weight" in roles and not _head(name)]
    return [weight for weight in weights if weight.ndim == 4]


def infer_config(tensors: dict[str, np.ndarray]) -> Config:
    """The network that the shapes belong to.

    Raises:
      UserError: neither a ConvMixer nor the R2D2 backbone.
    """
    modules = _modules(tensors)
    shapes = [w.shape for w in _convolutions(modules)]
    if [s[2] for s in shapes] == [3] * 6 + [2] * 3:
        heads = any(_head(name) for name, _ in modules)
        return Config(backbone="r2d2", output_dim=shapes[-1][0], keypoint_heads=heads)
    depth = (len(shapes) - 3) // 2
    if len(shapes) >= 3 and len(shapes) == 3 + 2 * depth and shapes[0][1:] == (3, 5, 5):
        hidden, patch = shapes[1][0], shapes[1][2]
        return Config(hidden=hidden, depth=depth, patch=patch, kernel=shapes[2][2] if depth else 9, output_dim=shapes[-1][0] // (patch // 2) ** 2)
    raise UserError(f"These are not the weights of a ConvMixer or of the R2D2 backbone: the convolutions have the shapes {shapes}.")


def _in_order(modules, heads: bool) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The network's modules, then one of each head if it has heads, then what is left over."""
    network_modules = [item for item in modules if not _head(item[0])]
    left = [item for item in modules if _head(item[0])]
    found = []
    for head in network.HEADS if heads else ():
        item = next((item for item in left if _head(item[0]) == head), (head, {}))
        found.append(item)
        left = [other for other in left if other is not item]
    return network_modules + found + left


def _layout(cfg: Config) -> list[tuple[str, str, bool]]:
    """(collection, our module, whether it is a normalisation) as `_in_order` has them."""
    if cfg.backbone == "r2d2":
        convolutions = [("params", f"conv{i}", False) for i in range(9)]
        norms = [("params", f"bn{i}/norm", True) for i in range(8)]
        pairs = zip(convolutions[:-1], norms, strict=True)
        heads = [("heads", name, False) for name in network.HEADS if cfg.keypoint_heads]
        return [*(item for pair in pairs for item in pair), convolutions[-1], *heads]
    mixers = (f"{kind}{i}" for i in range(cfg.depth) for kind in ("depthwise", "pointwise"))
    stages = [
        item
        for block in ("stem", "patches", *mixers)
        for item in (("params", f"{block}/conv", False), ("params", f"{block}/bn/norm", True))
    ]
    return [*stages, ("params", "head", False)]


def from_torch(tensors: dict[str, np.ndarray]) -> tuple[Config, Variables]:
    """Torch tensors by name -> (Config, our variables).

    Convolutions (O, I, h, w) become (h, w, I, O); normalisations give scale, bias and running
    statistics. R2D2's heads for keypoints go to a collection of their own, "heads".

    Raises:
      UserError: listing every tensor that is missing, not used or of another shape.
    """
    cfg = infer_config(tensors)
    statistics = {"running_mean": "mean", "running_var": "var"}
    affine = {"weight": "scale", "bias": "bias"} if cfg.backbone == "convmixer" else {}
    image = jnp.zeros((1, 32, 32, 3))
    example = {"homography": Pair(image, image, None, jnp.zeros(1, jnp.int32))}
    init = partial(network.init, network.build(cfg), heads=cfg.keypoint_heads)
    shapes = flatten_dict(jax.eval_shape(init, jax.random.key(0), example), sep="/")
    modules, layout = _in_order(_modules(tensors), cfg.keypoint_heads), _layout(cfg)
    variables, missing, unused, misshapen = {}, [], [], []
    for (collection, ours, is_norm), (theirs, roles) in zip(layout, modules, strict=False):
        wanted = {**statistics, **affine} if is_norm else {"weight": "kernel", "bias": "bias"}
        missing += [f"{theirs}.{role}" for role in wanted if role not in roles]
        unused += [f"{theirs}.{role}" for role in roles if role not in wanted]
        for role, name in wanted.items():
            if role in roles:
                turn = name == "kernel" and roles[role].ndim == 4
                value = roles[role].transpose(2, 3, 1, 0) if turn else roles[role]
                where = "batch_stats" if role in statistics else collection
                path = f"{where}/{ours}/{name}"
                variables[path] = np.ascontiguousarray(value, np.float32)
                if value.shape != (shape := shapes[path].shape):
                    misshapen.append(
                        f"{theirs}.{role} is {value.shape} instead of {shape}, as we lay it out"
                    )
    missing += [f"{ours} (ours)" for _, ours, _ in layout[len(modules) :]]
    unused += [f"{theirs}.{role}" for theirs, roles in modules[len(layout) :] for role in roles]
    refuse(f"a {cfg.backbone} of depth {cfg.depth}", missing, unused, misshapen)
    return cfg, unflatten_dict(variables, sep="/")
