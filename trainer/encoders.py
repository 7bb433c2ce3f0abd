"""Where an encoder's first weights come from."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from trainer.errors import TrainerError


def initial_classifier(name: str, weights: Path | None, *, random: bool) -> nn.Module:
    """Build a torchvision classifier with weights to start from.

    Args:
        name: torchvision's name of it.
        weights: safetensors file with its complete state dict; torchvision's own ImageNet weights
            are downloaded without it.
        random: take random weights instead.

    Raises:
        TrainerError: the file does not fit, or the download failed.
    """
    if random:
        net: nn.Module = models.get_model(name, weights=None)
        return net
    return _downloaded(name) if weights is None else _from_file(name, weights)


def _downloaded(name: str) -> nn.Module:
    try:
        net: nn.Module = models.get_model(name, weights="DEFAULT")
    except OSError as error:
        raise TrainerError(
            f"torchvision's weights of {name} cannot be downloaded ({error}): give a file with "
            "--encoder-weights, or --random-encoder"
        ) from error
    return net


def _from_file(name: str, weights: Path) -> nn.Module:
    net: nn.Module = models.get_model(name, weights=None)
    try:
        net.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TrainerError(
            f"{weights} does not hold a state dict of torchvision's {name}: {reason}"
        ) from error
    return net
