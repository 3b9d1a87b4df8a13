"""Variables that training starts from."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdesc.nets.torch_names import start_from_imagenet
from jaxdesc.store import weights
from jaxdesc.store.checkpoint import read_run
from jaxdesc.store.convert import read_tensors
from jaxdesc.types import UserError, Variables

MODULE = "backbone"  # of the networks that have a ResNet


def pretrained(variables: Variables, spec: str, say: Callable[[str], None]) -> Variables:
    """The variables with what `spec`, config.method.weights, names put in.

    Args:
      variables: as `Method.init` gives them, with a ResNet called "backbone".
      spec: "imagenet:FILE", a torchvision or timm ResNet as .pth or .safetensors; "caps:PATH", the ResNet of a run of CAPS, a workdir or a weight file; "": nothing.
      say: is told in a sentence what training starts from.
    Raises:
      UserError: another `spec`; what it names cannot be read or does not have the ResNet of the configuration.
    """
    if not spec:
        say("config.method.weights is empty: training starts from RANDOM weights, where the paper started from a ResNet trained on ImageNet (imagenet:FILE).")
        return variables
    kind, _, path = spec.partition(":")
    if kind not in ("imagenet", "caps") or not path:
        raise UserError(f"config.method.weights = {spec!r} must be imagenet:FILE or caps:PATH, or empty.")
    try:
        found = start_from_imagenet(variables, read_tensors(path)) if kind == "imagenet" else start_from_run(variables, trained(Path(path), "caps"))
    except UserError as e:
        raise UserError(f"config.method.weights = {spec}: {e}") from e
    say(f"The backbone starts from {path}." if kind == "imagenet" else f"The backbone starts from {path}, trained by CAPS, not on ImageNet as the paper's.")
    return found


def trained(path: Path, method: str) -> Variables:
    """Variables of a training workdir, of its best checkpoint, or of a weight file.

    Raises:
      UserError: there is none, it is damaged, or of another method.
    """
    name, _, variables, *_ = read_run(path) if path.is_dir() else weights.load(path)
    if name != method:
        raise UserError(f"{path} is of the method {name!r}, not of {method!r}.")
    return variables


def start_from_run(variables: Variables, theirs: Variables) -> Variables:
    """The variables with those of the ResNet replaced by a ResNet's that was trained here, whichever collection ("params", "frozen", "batch_stats") they are in.

    What comes behind the network's last block is left out.

    Raises:
      UserError: theirs ends before ours; it has other blocks or another width.
    """
    source = {("stats" if name == "batch_stats" else "params", path): leaf for name in theirs for path, leaf in _resnet(theirs, name).items()}
    ours = {name: _resnet(variables, name) for name in variables}
    blocks, known = ({path[0] for path in paths} for paths in ([p for tree in ours.values() for p in tree], [path for _, path in source]))
    ends = [max((int(match[1]) for block in names if (match := re.match(r"layer(\d)_", block))), default=0) for names in (blocks, known)]
    if ends[0] > ends[1]:
        raise UserError(
            f"its ResNet ends with layer{ends[1]}, and the network's with layer{ends[0]}: choose activations up to layer{ends[1]}, see config.method."
        )
    if other := sorted((known ^ blocks) - {block for block in known - blocks if re.match(rf"layer[{ends[0]}-4]_", block)}):
        raise UserError(f"its ResNet is of another depth: {other[0]} is only in one of the two; see config.method.backbone.")
    filled = {}
    for name, tree in ours.items():
        leaves = {path: source.get(("stats" if name == "batch_stats" else "params", path)) for path in tree}
        if wrong := next((path for path, leaf in leaves.items() if np.shape(leaf) != np.shape(tree[path])), None):
            raise UserError(
                f"its ResNet is of another width or kind: {'/'.join(wrong)} is {np.shape(leaves[wrong])} there and {np.shape(tree[wrong])} here; "
                "see config.method.width and backbone."
            )
        filled[name] = {**variables[name], MODULE: unflatten_dict(leaves)} if tree else variables[name]
    return filled


def _resnet(variables: Variables, collection: str) -> dict[tuple[str, ...], np.ndarray]:
    return flatten_dict(variables[collection].get(MODULE, {}))
