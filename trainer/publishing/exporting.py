"""A checkpoint -> forms that others load: ONNX graphs, and a folder for a model hub."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.captioner import checkpoint
from app.captioner.checkpoint import Checkpoint
from app.captioner.manifest import Manifest
from app.captioner.model import torch_checkpoint
from app.captioner.model.export import encode_module, step_module
from app.captioner.model.network import Network
from trainer.errors import TrainerError

ENCODE_FILE, STEP_FILE, ABOUT_FILE = "encode.onnx", "step.onnx", "onnx.json"
OPSET = 18
_SIDE_PX = 64


def export_onnx(loaded: Checkpoint, directory: Path) -> list[Path]:
    """Write the encoder and one step of the decoder as ONNX graphs, in float32.

    ``onnx.json`` names what goes in and out, and the words by their ids.

    Args:
        loaded: the checkpoint.
        directory: made if it is not there.

    Raises:
        TrainerError: the package onnx is not installed, or the network reads clips.
    """
    if loaded.manifest.architecture.frames:
        raise TrainerError(
            "ONNX graphs are of networks of images, and this one reads clips: use --hub"
        )
    network = torch_checkpoint.of(loaded).network
    directory.mkdir(parents=True, exist_ok=True)
    images_BHWC = torch.zeros(2, _SIDE_PX, _SIDE_PX, 3, dtype=torch.uint8)
    encode = encode_module(network)
    with torch.no_grad():
        found = encode(images_BHWC)
    names = _names(network, len(found))
    _write(encode, (images_BHWC,), directory / ENCODE_FILE, ["images"], names)
    rows, image = found[:2], found[2 : len(found) - network.architecture.classes]
    words_B1 = torch.zeros(2, 1, dtype=torch.int64)
    inputs = ["words", *names[: 2 + len(image)]]
    attention = ["attention"] if network.architecture.decoder == "attention" else []
    outputs = ["scores", "next_hidden", "next_cell", *attention]
    _write(step_module(network), (words_B1, *rows, *image), directory / STEP_FILE, inputs, outputs)
    about = {
        "encode": {"inputs": ["images"], "outputs": names},
        "step": {"inputs": inputs, "outputs": outputs},
        "image": loaded.manifest.image.model_dump(),
        "words": ["<pad>", "<bos>", "<eos>", "<unk>", *loaded.vocabulary.words],
    }
    (directory / ABOUT_FILE).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n")
    return [directory / name for name in (ENCODE_FILE, STEP_FILE, ABOUT_FILE)]


def _names(network: Network, count: int) -> list[str]:
    last = ["classes"] if network.architecture.classes else []
    image = [f"image_{n}" for n in range(count - 2 - len(last))]
    return ["hidden", "cell", *image, *last]


def _write(
    module: nn.Module, example: tuple[Any, ...], path: Path, inputs: list[str], outputs: list[str]
) -> None:
    """Leave open how many images there are, and the size of photos."""
    axes: dict[str, dict[int, str]] = {name: {0: "images"} for name in (*inputs, *outputs)}
    if inputs == ["images"]:
        axes["images"] |= {1: "height", 2: "width"}
    for name in (*inputs, *outputs):
        if name in {"words", "hidden", "cell", "scores", "next_hidden", "next_cell", "attention"}:
            axes[name][1] = "beams"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter that traces is called legacy
            torch.onnx.export(
                module.eval(),
                example,
                path,
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    except ModuleNotFoundError as missing:
        raise TrainerError(
            f"ONNX needs {missing.name}: pip install 'caption-service[onnx]'"
        ) from None


def export_hub(loaded: Checkpoint, source: Path, directory: Path) -> list[Path]:
    """Write a folder as model hubs expect it: the checkpoint, ``README.md`` and ``config.json``.

    The folder is a checkpoint too: the service loads it as it is.

    Args:
        loaded: the checkpoint.
        source: where it lies.
        directory: must not exist yet.

    Raises:
        TrainerError: the directory exists.
    """
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise TrainerError(f"{directory} exists: name another directory") from None
    names = [*loaded.manifest.files, checkpoint.MANIFEST]
    for name in names:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes((source / name).read_bytes())
    card = (directory / checkpoint.CARD).read_text() if checkpoint.CARD in names else ""
    (directory / "README.md").write_text(f"{_metadata(loaded.manifest)}\n{card}", encoding="utf-8")
    about = {"model_type": "caption-service", **loaded.manifest.architecture.model_dump()}
    (directory / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    return [directory / name for name in (*names, "README.md", "config.json")]


def _metadata(manifest: Manifest) -> str:
    """Give the YAML head of a model card, as hubs read it; JSON is YAML."""
    fields = {
        "pipeline_tag": "image-to-text",
        "tags": ["image-captioning", "lstm", manifest.architecture.encoder],
        "library_name": "caption-service",
        "model_name": f"{manifest.name}/{manifest.version}",
    }
    return "\n".join(
        ["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"]
    )
