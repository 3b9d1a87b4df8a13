"""Variables that training starts from."""

from collections.abc import Callable

from jaxdesc.nets.torch_names import start_from_imagenet
from jaxdesc.store.convert import read_tensors
from jaxdesc.types import UserError, Variables


def pretrained(variables: Variables, spec: str, say: Callable[[str], None]) -> Variables:
    """The variables with what `spec`, config.method.weights, names put in.

    Args:
      variables: as `Method.init` gives them, with a ResNet called "backbone".
      spec: "imagenet:FILE", a torchvision or timm ResNet as .pth or .safetensors; "": nothing.
      say: is told in a sentence what training starts from.
    Raises:
      UserError: another `spec`; the file cannot be read or is not the ResNet of the configuration.
    """
    if not spec:
        say("config.method.weights is empty: training starts from RANDOM weights, where the paper started from a ResNet trained on ImageNet (imagenet:FILE).")
        return variables
    kind, _, path = spec.partition(":")
    if kind != "imagenet" or not path:
        raise UserError(f"config.method.weights = {spec!r} must be imagenet:FILE, or empty.")
    try:
        found = start_from_imagenet(variables, read_tensors(path))
    except UserError as e:
        raise UserError(f"config.method.weights = {spec}: {e}") from e
    say(f"The backbone starts from {path}.")
    return found
