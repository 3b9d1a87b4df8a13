"""Reading the tensors of PyTorch checkpoints and safetensors files, nothing but tensors."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxdesc.errors import UserError

NESTS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where checkpoints keep the network's tensors


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors, .pt or .pth file, in the file's order.

    PyTorch files are unpickled with `weights_only`, so that they cannot run code; this needs torch (`pip install jaxdesc[torch]`).

    Raises:
      UserError: no such file, torch is missing, or no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(str(path))
        except SafetensorError as e:
            raise UserError(f"{path} cannot be read as safetensors: {e}.") from e
    try:
        import torch
    except ImportError as e:
        raise UserError(f"Reading {path} needs PyTorch: pip install 'jaxdesc[torch]', or convert the file to safetensors first.") from e
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint of plain tensors: {str(e).splitlines()[0]}") from e
    except Exception as e:  # the unpickler refuses what is not a tensor with an exception of its own
        raise UserError(f"{path} holds more than tensors, which is refused for safety: {str(e).splitlines()[0]}") from e
    tensors = _tensors(content, torch.Tensor)
    if not tensors:
        raise UserError(f"{path} holds no tensors by name, neither at its top nor under {', '.join(NESTS)}.")
    return {name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy() for name, tensor in tensors.items()}


def _tensors(content: Any, kind: type) -> dict[str, Any]:
    if not isinstance(content, dict):
        return {}
    if content and all(isinstance(value, kind) for value in content.values()):
        return dict(content)
    return next((found for nest in NESTS if (found := _tensors(content.get(nest), kind))), {})
