"""A directory of the model store <-> (network, vocabulary, manifest).

manifest.json         what the network is, where it comes from, sha256 of every other file
weights.safetensors   matrices in half precision, vectors in single; never a pickle
vocabulary.json       the words, in order of their ids
golden/image.png      an image drawn by ourselves ...
golden/caption.json   ... and what the network must say about it
CARD.md               data, recipe, scores, limits, licences
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from app.captioner.beam import SearchOptions
from app.captioner.errors import CheckpointError
from app.captioner.image import Fit
from app.captioner.network import Architecture, Network
from app.captioner.vocabulary import TOKENISER, Vocabulary

FORMAT_VERSION: Final = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
VOCABULARY = "vocabulary.json"
GOLDEN_IMAGE = "golden/image.png"
GOLDEN_CAPTION = "golden/caption.json"
CARD = "CARD.md"
_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}


class ImageGeometry(BaseModel):
    """How an image becomes the network's square.

    Attributes:
        size_px: side of the square.
        fit: ``squeeze``, ``crop`` or ``pad``, see `app.captioner.image.fit`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_px: int = Field(ge=32, le=1024)
    fit: Fit


class Manifest(BaseModel):
    """What the network is and where it comes from. What a machine may do stands in CAPTION_*."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    architecture: Architecture
    image: ImageGeometry
    search: SearchOptions
    tokeniser: str = TOKENISER
    files: dict[str, str] = {}
    scores: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    versions: dict[str, str] = {}
    source_commit: str = ""

    def public(self) -> dict[str, Any]:
        """Return what a client may know, JSON-ready."""
        hidden = {"recipe", "data", "versions", "files", "history"}
        return {**self.model_dump(mode="json", exclude=hidden), "sha256": self.files.get(WEIGHTS)}


class Golden(BaseModel):
    """What the network must say about the golden image.

    Attributes:
        caption: the best caption, word for word.
        log_prob: its log-probability, in nats.
        tolerance: how far, in nats, another CPU or a GPU may be from it in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    caption: str
    log_prob: float
    tolerance: float = 0.05


class Checkpoint(NamedTuple):
    """A loaded directory: float32 weights on the CPU, evaluation mode."""

    network: Network
    vocabulary: Vocabulary
    manifest: Manifest


# --- saving -------------------------------------------------------------------------------------


def save(
    directory: Path, checkpoint: Checkpoint, *, extra_files: Mapping[str, bytes] | None = None
) -> Manifest:
    """Write an immutable directory and return the manifest with its hashes.

    Args:
        directory: must not exist yet.
        checkpoint: ``manifest.files`` is computed here.
        extra_files: golden and card, by their names in the directory.

    Raises:
        CheckpointError: the directory exists; a published checkpoint never changes.
    """
    contents = {
        WEIGHTS: save_tensors(_halved(checkpoint.network.state_dict())),
        VOCABULARY: _json({"words": checkpoint.vocabulary.words}),
        **(extra_files or {}),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = checkpoint.manifest.model_copy(update={"files": hashes})
    contents[MANIFEST] = _json(manifest.model_dump(mode="json"))
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise CheckpointError(f"{directory} exists: publish under a new version") from None
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return manifest


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in half precision; biases and batch-norm statistics stay exact."""
    return {
        name: (tensor.half() if tensor.ndim > 1 else tensor).detach().cpu().contiguous()
        for name, tensor in state.items()
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# --- loading ------------------------------------------------------------------------------------


def load(directory: Path) -> Checkpoint:
    """Read a directory and verify all of it: hashes, words, names and shapes.

    Raises:
        CheckpointError: what was expected, what came, what to do.
    """
    manifest = read_manifest(directory)
    _refuse_pickles(directory)
    contents = {name: _verified(directory, name, sha) for name, sha in manifest.files.items()}
    for name in (WEIGHTS, VOCABULARY):
        if name not in contents:
            _refuse(directory, f"{MANIFEST} does not list {name}")
    vocabulary = _vocabulary(directory, contents[VOCABULARY], manifest.architecture.words)
    network = _network(directory, contents[WEIGHTS], manifest.architecture)
    return Checkpoint(network, vocabulary, manifest)


def read_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json`` alone.

    Raises:
        CheckpointError: it is missing, not ours, or newer than this program.
    """
    path = directory / MANIFEST
    if not path.is_file():
        _refuse(directory, f"no {MANIFEST} there: name a directory <name>/<version> of model_store")
    try:
        fields = json.loads(path.read_bytes())
        version = fields.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            _refuse(
                directory, f"format {version} is newer than {FORMAT_VERSION}: update the service"
            )
        manifest = Manifest.model_validate(fields)
    except (ValueError, AttributeError) as error:
        _refuse(directory, f"{MANIFEST} is not a manifest: {_first_line(error)}")
    if manifest.tokeniser != TOKENISER:
        _refuse(directory, f"tokeniser {manifest.tokeniser!r} is unknown, expected {TOKENISER!r}")
    return manifest


def read_golden(directory: Path) -> tuple[bytes, Golden]:
    """Return the golden image's bytes and what must be said about it.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    try:
        image = (directory / GOLDEN_IMAGE).read_bytes()
        golden = Golden.model_validate_json((directory / GOLDEN_CAPTION).read_bytes())
    except (OSError, ValidationError) as error:
        _refuse(directory, f"the golden caption cannot be read: {_first_line(error)}")
    return image, golden


def _refuse_pickles(directory: Path) -> None:
    pickles = sorted(path.name for path in directory.rglob("*") if path.suffix in _PICKLES)
    if pickles:
        _refuse(directory, f"pickle files are never loaded, remove {', '.join(pickles)}")


def _verified(directory: Path, name: str, sha256: str) -> bytes:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()) or not path.is_file():
        _refuse(directory, f"{name} is missing: copy the whole directory again")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        _refuse(
            directory,
            f"{name} has sha256 {found[:12]}, {MANIFEST} expects {sha256[:12]}: copy it again",
        )
    return content


def _vocabulary(directory: Path, content: bytes, words: int) -> Vocabulary:
    try:
        vocabulary = Vocabulary(tuple(json.loads(content)["words"]))
    except (ValueError, KeyError, TypeError) as error:
        _refuse(directory, f"{VOCABULARY} is not a vocabulary: {_first_line(error)}")
    if len(vocabulary) != words:
        _refuse(
            directory,
            f"{WEIGHTS} expects {words} words, {VOCABULARY} has {len(vocabulary)}: "
            "restore the pair or retrain",
        )
    return vocabulary


def _network(directory: Path, content: bytes, architecture: Architecture) -> Network:
    """Build the network without drawing random weights, then let it take over the tensors."""
    with torch.device("meta"):
        network = Network(architecture)
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        _refuse(directory, f"{WEIGHTS} is not a safetensors file: {_first_line(error)}")
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            _refuse(
                directory,
                f"{WEIGHTS} has {name} of shape {found.get(name)}, the architecture in {MANIFEST} "
                f"expects {expected.get(name)}: restore the pair or retrain",
            )
    single = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    network.load_state_dict(single, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _refuse(directory: Path, reason: str) -> NoReturn:
    raise CheckpointError(f"checkpoint {directory}: {reason}")
