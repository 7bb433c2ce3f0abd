"""Tiny real things: a checkpoint that loads in milliseconds, photos, a data directory."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.captioner.beam import SearchOptions
from app.captioner.checkpoint import Checkpoint
from app.captioner.manifest import ImageGeometry, Manifest
from app.captioner.network import Architecture, Network
from app.captioner.vocabulary import Vocabulary
from trainer.publishing.publish import publish

WORDS = ("a", "dog", "runs", "on", "grass", "girl", "plays", "in", "water", "red", "blue", "ball")
SUBJECTS, PLACES = ("dog", "girl", "boy", "cat"), ("grass", "water", "snow", "sand")
SIZE_PX = 64


def tiny_network(
    decoder: str = "attention", *, encoder: str = "mobilenet_v2", **changes
) -> Network:
    torch.manual_seed(0)
    fields = {"features": "grid", "embedding_width": 16, "hidden_width": 16, **changes}
    words = len(Vocabulary(WORDS))
    network = Network(Architecture(encoder=encoder, decoder=decoder, words=words, **fields))
    with torch.no_grad():  # random weights say nothing: make words differ and captions end
        network.decoder.words.weight.mul_(8)
        network.decoder.words.bias[2] += 1
    return network.eval()


def tiny_unpublished(decoder: str = "attention", **changes) -> Checkpoint:
    network = tiny_network(decoder, **changes)
    manifest = Manifest(
        name="tiny",
        version="0",
        architecture=network.architecture,
        image=ImageGeometry(size_px=SIZE_PX, fit="squeeze"),
        search=SearchOptions(beam_width=3, max_words=8),
    )
    return Checkpoint(network, Vocabulary(WORDS), manifest)


def save_tiny_checkpoint(store: Path, decoder: str = "attention") -> Path:
    """Publish a tiny checkpoint as ``<store>/tiny/1`` and return that directory."""
    return publish(tiny_unpublished(decoder), store, "1", scores={}, notes="For tests.")


def photo(seed: int = 0, *, width: int = 96, height: int = 72, kind: str = "PNG") -> bytes:
    """Draw blocks of random colours, the same for the same seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


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


def slow_png(width=6000, height=6000):
    """A second of a core and more: 16 bits in four channels, each row told from the one above."""
    squeezer, row = zlib.compressobj(1), b"\4" + bytes(8 * width)
    data = b"".join([*(squeezer.compress(row) for _ in range(height)), squeezer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
