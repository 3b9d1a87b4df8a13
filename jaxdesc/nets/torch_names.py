"""PyTorch state dicts to our variables, by name and strict both ways; torchvision's and timm's ResNets, whose names are the same.

Convolutions (O, I, h, w) become (h, w, I, O); normalisations give scale, bias and running statistics.
"""

import re
from collections.abc import Callable, Iterable

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdesc.types import UserError, Variables

ROLES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def resnet_name(path: str) -> str:
    """Our path in `nets.resnet.ResNet`, "layer1_0/downsample_bn/norm/scale" -> torchvision's name, "layer1.0.downsample.1.weight"."""
    *modules, leaf = (part for part in path.split("/") if part != "norm")
    name = re.sub(r"layer(\d)_(\d+)", r"layer\1.\2", ".".join(modules)).replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return f"{name}.{ROLES[leaf]}"


def from_torch(tensors: dict[str, np.ndarray], like: Variables, name: Callable[[str], str], spare: Callable[[str], bool], what: str) -> Variables:
    """Variables of the structure and the shapes of `like`, filled from a state dict.

    Args:
      tensors: by their names; counters (num_batches_tracked) are left out.
      like: {"params": ..., "batch_stats": ...}, arrays or shapes.
      name: our path, "conv1/kernel" -> their name.
      spare: whether a tensor of theirs is known and not needed, such as a classifier.
      what: the network, for the message.
    Raises:
      UserError: listing every tensor that is missing, not used or of another shape.
    """
    theirs = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    found: dict[str, np.ndarray] = {}
    missing, misshapen, used = [], [], set()
    for collection, tree in like.items():
        for path, leaf in flatten_dict(tree, sep="/").items():
            key = name(path)
            if key not in theirs:
                missing.append(key)
                continue
            used.add(key)
            value = theirs[key].transpose(2, 3, 1, 0) if theirs[key].ndim == 4 else theirs[key]
            if value.shape != tuple(leaf.shape):
                shape = tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if len(leaf.shape) == 4 else tuple(leaf.shape)
                misshapen.append(f"{key} is {theirs[key].shape} instead of {shape}")
            found[f"{collection}/{path}"] = np.ascontiguousarray(value, np.float32)
    refuse(what, missing, [key for key in theirs if key not in used and not spare(key)], misshapen)
    return unflatten_dict(found, sep="/")


def refuse(what: str, missing: Iterable[str], unused: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raises UserError if there is anything to list."""
    kinds = (("missing", missing), ("not used", unused), ("of another shape", misshapen))
    if told := "; ".join(f"{word}: {', '.join(names)}" for word, names in kinds if names):
        raise UserError(f"The checkpoint does not fit {what}: {told}.")


def start_from_imagenet(variables: Variables, tensors: dict[str, np.ndarray], module: str = "backbone") -> Variables:
    """The variables with those of the ResNet `module` replaced, whichever collection ("params", "frozen", "batch_stats") they are in.

    Args:
      tensors: a torchvision or timm ResNet; its classifier and the stages that the network does not have are left out.
    Raises:
      UserError: as `from_torch`.
    """
    ours = {collection: tree[module] for collection, tree in variables.items() if module in tree}
    stages = {re.match(r"layer\d", name)[0] for tree in ours.values() for name in tree if name.startswith("layer")}

    def spare(name: str) -> bool:
        stage = re.match(r"layer[1-4](?=\.)", name)
        return name in ("fc.weight", "fc.bias") or bool(stage and stage[0] not in stages)

    filled = from_torch(tensors, ours, resnet_name, spare, "the ResNet of the configuration")
    return {name: {**tree, module: filled[name]} if name in filled else tree for name, tree in variables.items()}
