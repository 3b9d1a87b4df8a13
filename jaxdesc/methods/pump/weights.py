"""Released PyTorch weights of PUMP's networks to ours, strict both ways.

A torch state dict lists modules in the order of the forward pass, and so do the tables below; module names carry no meaning and are
not looked at, only their order, the roles of the tensors (weight, bias, running_mean, running_var) and the shapes.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxdesc.methods.pump import Config, network
from jaxdesc.nets.torch_names import refuse
from jaxdesc.types import UserError, Variables

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


def _convolutions(tensors) -> list[np.ndarray]:
    return [roles["weight"] for _, roles in _modules(tensors) if roles.get("weight") is not None and roles["weight"].ndim == 4]


def infer_config(tensors: dict[str, np.ndarray]) -> Config:
    """The network that the shapes belong to.

    Raises:
      UserError: neither a ConvMixer nor the R2D2 backbone.
    """
    shapes = [w.shape for w in _convolutions(tensors)]
    if [s[2] for s in shapes] == [3] * 6 + [2] * 3:
        return Config(backbone="r2d2", output_dim=shapes[-1][0])
    depth = (len(shapes) - 3) // 2
    if len(shapes) >= 3 and len(shapes) == 3 + 2 * depth and shapes[0][1:] == (3, 5, 5):
        hidden, patch = shapes[1][0], shapes[1][2]
        return Config(hidden=hidden, depth=depth, patch=patch, kernel=shapes[2][2] if depth else 9, output_dim=shapes[-1][0] // (patch // 2) ** 2)
    raise UserError(f"These are not the weights of a ConvMixer or of the R2D2 backbone: the convolutions have the shapes {shapes}.")


def _layout(cfg: Config) -> list[tuple[str, bool]]:
    """(our module, whether it is a normalisation) in the order of the forward pass."""
    if cfg.backbone == "r2d2":
        return [item for i in range(9) for item in [(f"conv{i}", False), (f"bn{i}/norm", True)][: 1 if i == 8 else 2]]
    blocks = ["stem", "patches", *(f"{kind}{i}" for i in range(cfg.depth) for kind in ("depthwise", "pointwise"))]
    return [item for block in blocks for item in ((f"{block}/conv", False), (f"{block}/bn/norm", True))] + [("head", False)]


def _put(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = np.ascontiguousarray(value, np.float32)


def from_torch(tensors: dict[str, np.ndarray]) -> tuple[Config, Variables]:
    """Torch tensors by name -> (Config, our variables).

    Convolutions (O, I, h, w) become (h, w, I, O); normalisations give scale, bias and running statistics.

    Raises:
      UserError: listing every tensor that is missing, not used or of another shape.
    """
    cfg = infer_config(tensors)
    affine = cfg.backbone == "convmixer"
    net = network.build(cfg)
    shapes = flatten_dict(jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)), sep="/")
    params: dict = {}
    statistics: dict = {}
    modules, missing, unused, misshapen = _modules(tensors), [], [], []
    layout = _layout(cfg)
    for (ours, is_norm), (theirs, roles) in zip(layout, modules, strict=False):
        if is_norm:
            wanted = {"running_mean": "mean", "running_var": "var"}
            if affine:
                wanted |= {"weight": "scale", "bias": "bias"}
        else:
            wanted = {"weight": "kernel", "bias": "bias"}
        missing += [f"{theirs}.{role}" for role in wanted if role not in roles]
        unused += [f"{theirs}.{role}" for role in roles if role not in wanted]
        for role, name in wanted.items():
            if role in roles:
                value = roles[role].transpose(2, 3, 1, 0) if name == "kernel" and roles[role].ndim == 4 else roles[role]
                tree, collection = (statistics, "batch_stats") if name in ("mean", "var") else (params, "params")
                _put(tree, f"{ours}/{name}", value)
                if value.shape != (shape := shapes[f"{collection}/{ours}/{name}"].shape):
                    misshapen.append(f"{theirs}.{role} is {value.shape} instead of {shape}, as we lay it out")
    missing += [f"{ours} (ours)" for ours, _ in layout[len(modules) :]]
    unused += [f"{theirs}.{role}" for theirs, roles in modules[len(layout) :] for role in roles]
    refuse(f"a {cfg.backbone} of depth {cfg.depth}", missing, unused, misshapen)
    return cfg, {"params": params, "batch_stats": statistics}
