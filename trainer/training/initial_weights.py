"""Where first weights come from: the encoder's, or those of a whole network."""

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision import models

from app.captioner.architecture import Architecture
from app.captioner.manifest import ImageGeometry
from app.captioner.model import torch_checkpoint
from app.captioner.model.network import Encoder, Network
from app.captioner.vocabulary import Vocabulary
from trainer.errors import TrainerError
from trainer.training.weight_files import read_state_dict

NEW_LAYER_SCALE = 0.1
"""Size of the weights of a layer that a trained network gets, as a part of what is usual."""


def initial_classifier(name: str, weights: Path | None, *, random: bool) -> nn.Module:
    """Build a torchvision classifier with weights to start from.

    Args:
        name: torchvision's name of it.
        weights: file with its complete state dict, safetensors or torchvision's own ``.pth``, or
            a checkpoint directory whose encoder is taken over; torchvision's own ImageNet weights
            are downloaded without it.
        random: take random weights instead.

    Raises:
        CheckpointError: the directory cannot be trusted.
        TrainerError: the file or the checkpoint does not fit, or the download failed.
    """
    if random:
        net: nn.Module = models.get_model(name, weights=None)
        return net
    if weights is None:
        return _downloaded(name)
    return (_from_checkpoint if weights.is_dir() else _from_file)(name, weights)


def initial_network(
    directory: Path, architecture: Architecture, vocabulary: Vocabulary, image: ImageGeometry
) -> Network:
    """Load a checkpoint to train on.

    Its dropout may differ from what is asked for. Where it has no ``global_feature`` and one is
    asked for, that layer starts at random and small, so that captions are hardly touched.

    Raises:
        CheckpointError: the directory cannot be trusted.
        TrainerError: it holds another architecture, other words or another image geometry.
    """
    loaded = torch_checkpoint.load(directory)
    has = loaded.network.architecture
    grows = architecture.global_feature and not has.global_feature
    asked = architecture.model_copy(
        update={
            "dropout": has.dropout,
            "global_feature": has.global_feature and architecture.global_feature,
        }
    )
    pairs = {
        "vocabulary": (loaded.vocabulary, vocabulary),
        "architecture": (loaded.network.architecture, asked),
        "image": (loaded.manifest.image, image),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise TrainerError(
                f"{directory} cannot be the start of this run, its {name} differs: expected "
                f"{_short(expected)}, got {_short(found)}: use its own recipe and data"
            )
    network = Network(architecture)
    weights = loaded.network.state_dict()
    if grows:
        weights = {**_small(network, "decoder.global_feature."), **weights}
    network.load_state_dict(weights)
    return network


def _small(network: Network, prefix: str) -> dict[str, Tensor]:
    state = network.state_dict()
    return {name: each * NEW_LAYER_SCALE for name, each in state.items() if name.startswith(prefix)}


def _short(value: object) -> str:
    if isinstance(value, Vocabulary):
        return f"{len(value.words)} words, {', '.join(value.words[:5])} and so on"
    return str(value)


def _downloaded(name: str) -> nn.Module:
    try:
        net: nn.Module = models.get_model(name, weights="DEFAULT")
    except OSError as error:
        raise TrainerError(
            f"torchvision's weights of {name} cannot be downloaded ({error}): give a file with "
            "--encoder-weights, or --random-encoder"
        ) from error
    return net


def _from_checkpoint(name: str, directory: Path) -> nn.Module:
    trained = torch_checkpoint.load(directory).network
    if trained.architecture.encoder != name:
        raise TrainerError(
            f"{directory} holds the encoder {trained.architecture.encoder}, this recipe asks for "
            f"{name}: give another checkpoint, or a file of torchvision's weights"
        )
    net: nn.Module = models.get_model(name, weights=None)
    parts = Encoder(trained.architecture, net)  # shares its parts with net
    parts.load_state_dict(trained.encoder.state_dict())
    return net


def _from_file(name: str, weights: Path) -> nn.Module:
    net: nn.Module = models.get_model(name, weights=None)
    try:
        net.load_state_dict(read_state_dict(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TrainerError(
            f"{weights} does not hold a state dict of torchvision's {name}: {reason}"
        ) from error
    return net
