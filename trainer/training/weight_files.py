"""Files of weights that others wrote -> a state dict, without running what they hold."""

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import TrainerError

_PICKLES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".tar"})
_INSIDE = ("state_dict", "model_state_dict", "model")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read safetensors, or a file of `torch.save` that holds nothing but tensors.

    Raises:
        OSError, SafetensorError: the file is missing or no safetensors.
        TrainerError: a file of `torch.save` is damaged, or holds more than tensors.
    """
    if path.suffix.lower() not in _PICKLES:
        return load_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise TrainerError(
            f"{path} is damaged, or holds more than a state dict, which is not run: give a state "
            "dict alone, or safetensors"
        ) from None
    for name in _INSIDE:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
        raise TrainerError(f"{path} holds no state dict: save module.state_dict() and nothing else")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}
