"""Checkpoints as versions before 0.2.0 wrote them -> what this version publishes."""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from app.captioner import documents
from app.captioner.checkpoint import CARD, MANIFEST, VOCABULARY
from app.captioner.directory import Directory
from app.captioner.errors import CheckpointError
from app.captioner.manifest import FORMAT_VERSION, WEIGHTS, Manifest
from app.captioner.model.network import Network
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from app.captioner.tensors import MOST_BYTES
from app.captioner.vocabulary import Vocabulary

_RENAMED = {"decoder.whole.": "decoder.global_feature."}
_MOST_VALUES = 2**20


def load_format_1(directory: Path) -> tuple[TorchCheckpoint, str]:
    """Load and verify a checkpoint of format 1.

    Returns:
        The checkpoint, and the text of its card.

    Raises:
        CheckpointError: it is of another format, or cannot be trusted.
    """
    try:
        files = Directory(directory)
    except OSError as error:
        raise CheckpointError(f"checkpoint {directory}: {error.strerror}") from None
    with files:
        fields = _json(files, MANIFEST)
        if fields.get("format_version") != 1:
            files.refuse(f"format {fields.get('format_version')} needs no conversion")
        try:
            manifest = Manifest.model_validate({**fields, "format_version": FORMAT_VERSION})
            words = _json(files, VOCABULARY, manifest)["words"]
            network = _network(manifest, _verified(files, WEIGHTS, manifest))
            vocabulary = Vocabulary(tuple(words))
        except (ValidationError, ValueError, KeyError, TypeError, RuntimeError) as error:
            files.refuse(str(error).splitlines()[0])
        card = _verified(files, CARD, manifest).decode() if CARD in manifest.files else ""
        return TorchCheckpoint(network, vocabulary, manifest), card


def _json(files: Directory, name: str, manifest: Manifest | None = None) -> dict[str, Any]:
    content = _verified(files, name, manifest)
    try:
        fields: object = documents.parse(content, most_values=_MOST_VALUES)
    except ValueError as error:
        files.refuse(f"{name}: {error}")
    if not isinstance(fields, dict):
        files.refuse(f"{name}: expected an object")
    return fields


def _verified(files: Directory, name: str, manifest: Manifest | None) -> bytes:
    content = files.read(name, most_bytes=MOST_BYTES)
    if manifest and hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        files.refuse(f"{name} is not the file that {MANIFEST} lists: copy it again")
    return content


def _network(manifest: Manifest, content: bytes) -> Network:
    try:
        state = load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS}: {error}") from None
    network = Network(manifest.architecture)
    network.load_state_dict({_renamed(name): each for name, each in state.items()})
    return network.eval()


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name
