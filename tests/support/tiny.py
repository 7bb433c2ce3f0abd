"""Tiny real things: a checkpoint that loads in milliseconds, a data directory.

The graphs of an architecture take two seconds to make, once in a process.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from app.captioner import graphs
from app.captioner.architecture import Architecture
from app.captioner.checkpoint import Checkpoint
from app.captioner.engines.engine import Precision
from app.captioner.manifest import WEIGHTS, ImageGeometry, Manifest
from app.captioner.model import torch_checkpoint
from app.captioner.model.network import Network
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from app.captioner.pipeline import Captioner
from app.captioner.search import SearchOptions
from app.captioner.vocabulary import Vocabulary
from support.photos import photo, slow_png  # noqa: F401 - slow_png for who looks for it here
from trainer.publishing.publish import publish

WORDS = ("a", "dog", "runs", "on", "grass", "girl", "plays", "in", "water", "red", "blue", "ball")
SUBJECTS, PLACES = ("dog", "girl", "boy", "cat"), ("grass", "water", "snow", "sand")
SIZE_PX = 64


def tiny_network(
    decoder: str = "attention", *, encoder: str = "mobilenet_v2", **changes: Any
) -> Network:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"features": "grid", "embedding_width": 16, "hidden_width": 16}
    fields |= {"encoder": encoder, "decoder": decoder, "words": len(Vocabulary(WORDS))}
    network = Network(Architecture(**fields | changes))
    with torch.no_grad():  # random weights say nothing: make words differ and captions end
        words = cast("nn.Linear", network.decoder.words)
        tied = network.architecture.tied_words
        (network.decoder.embedding.weight if tied else words.weight).mul_(8)
        words.bias[2] += 1
    return network.eval()


def tiny_unpublished(decoder: str = "attention", **changes: Any) -> TorchCheckpoint:
    network = tiny_network(decoder, **changes)
    manifest = Manifest(
        name="tiny",
        version="0",
        architecture=network.architecture,
        image=ImageGeometry(size_px=SIZE_PX, fit="squeeze"),
        search=SearchOptions(beam_width=3, max_words=8),
    )
    return TorchCheckpoint(network, Vocabulary(WORDS), manifest)


def as_loaded(unpublished: TorchCheckpoint) -> Checkpoint:
    """Give what `checkpoint.load` would, had it been saved: weights in half precision, graphs."""
    contents = torch_checkpoint.contents(unpublished.network)
    texts = {name: contents[name] for name in graphs.NAMES if name in contents}
    _, vocabulary, manifest, golden = unpublished
    return Checkpoint(manifest, vocabulary, contents[WEIGHTS], texts, golden)


def captioner_of(
    unpublished: TorchCheckpoint, *, precision: Precision = "float32", workers: int = 1
) -> Captioner:
    """Put a network that was never published on the CPU."""
    return Captioner.of(as_loaded(unpublished), precision=precision, workers=workers)


def save_tiny_checkpoint(store: Path, decoder: str = "attention") -> Path:
    """Publish a tiny checkpoint as ``<store>/tiny/1`` and return that directory."""
    return publish(
        tiny_unpublished(decoder), store, "1", scores={}, notes="For tests.", degenerate=True
    )


def save_other_version(store: Path, version: str) -> Path:
    """Publish a tiny checkpoint as ``<store>/tiny/<version>`` that differs in whatever it can.

    It sees larger squares, says one word at most, keeps the classes of its encoder, and has a
    narrower beam.
    """
    network = tiny_network(classes=True)
    about = tiny_unpublished().manifest.model_copy(
        update={
            "architecture": network.architecture,
            "image": ImageGeometry(size_px=SIZE_PX + 32, fit="squeeze"),
            "search": SearchOptions(beam_width=2, max_words=1),
        }
    )
    source = TorchCheckpoint(network, Vocabulary(WORDS), about)
    return publish(source, store, version, scores={}, notes="For tests.", degenerate=True)


def data_directory(directory: Path, *, train: int = 4, dev: int = 2) -> Path:
    """Write a directory in Flickr8k's layout: every image has its own colours and its own words."""
    folder = directory / "Flicker8k_Dataset"
    folder.mkdir(parents=True)
    tokens = []
    for split, count in (("train", train), ("dev", dev)):
        names = [f"{split}{index}.png" for index in range(count)]
        for index, name in enumerate(names):
            (folder / name).write_bytes(photo(index))
            subject, place = SUBJECTS[index % 4], PLACES[index % 4]
            tokens.append(f"{name}#0\tA {subject} plays in the {place} .")
            tokens.append(f"{name}#1\tThe {subject} runs on {place} .")
        (directory / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    (directory / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n")
    return directory


def clip_directory(directory: Path, *, train: int = 4, dev: int = 2, frames: int = 3) -> Path:
    """Write as `data_directory` does, with a clip in place of each image: a directory of frames."""
    data_directory(directory, train=train, dev=dev)
    folder = directory / "Flicker8k_Dataset"
    for number, image in enumerate(sorted(folder.iterdir())):
        image.unlink()
        clip = image.with_suffix("")
        clip.mkdir()
        for n in range(frames):
            (clip / f"{n:03}.png").write_bytes(photo(10 * number + n))
    for path in directory.glob("*.txt"):
        path.write_text(path.read_text().replace(".png", ""))
    return directory
