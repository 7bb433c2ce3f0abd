"""A directory of the model store <-> the network in torch, for the trainer and for a GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from app.captioner import checkpoint, graphs, tensors
from app.captioner.checkpoint import Checkpoint, GoldenSample
from app.captioner.errors import CheckpointError
from app.captioner.image.decode import Pixels
from app.captioner.manifest import WEIGHTS, Manifest
from app.captioner.model import export, weights
from app.captioner.model.network import Network
from app.captioner.tensors import GRAPH_CONSTANTS
from app.captioner.vocabulary import Vocabulary


class TorchCheckpoint(NamedTuple):
    """A network with its words and its manifest.

    A loaded network is on the CPU, in float32, for inference. A run's own checkpoint has no golden
    sample; to publish one is to give it one.
    """

    network: Network
    vocabulary: Vocabulary
    manifest: Manifest
    golden: GoldenSample | None = None


def load(directory: Path) -> TorchCheckpoint:
    """Load and verify a directory of the model store.

    Raises:
        CheckpointError: what was expected, what came, what to do.
    """
    return of(checkpoint.load(directory), directory)


def of(loaded: Checkpoint, directory: Path | str = "") -> TorchCheckpoint:
    """Build the network of a checkpoint.

    Raises:
        CheckpointError: the weights are those of another architecture.
    """
    try:
        network = weights.network_from(loaded.weights, loaded.manifest.architecture)
    except ValueError as error:
        where = directory or f"{loaded.manifest.name}/{loaded.manifest.version}"
        raise CheckpointError(f"checkpoint {where}: {WEIGHTS}: {error}") from None
    return TorchCheckpoint(network, loaded.vocabulary, loaded.manifest, loaded.golden)


def save(
    directory: Path,
    trained: TorchCheckpoint,
    *,
    extra_files: Mapping[str, bytes] | None = None,
    calibration: Sequence[Pixels] = (),
) -> Manifest:
    """Write an immutable directory, with the graphs that run without torch.

    Args:
        directory: must not exist yet.
        trained: ``manifest.files`` is computed here.
        extra_files: golden and card, by their names in the directory.
        calibration: images for the graph in int8, as `export.int8_template` wants them; without
            them the checkpoint has none.

    Returns:
        The manifest with its hashes.

    Raises:
        CheckpointError: the directory exists; a published checkpoint never changes.
    """
    files = {**contents(trained.network, calibration), **(extra_files or {})}
    return checkpoint.write(directory, trained.manifest, trained.vocabulary, files)


def contents(network: Network, calibration: Sequence[Pixels] = ()) -> dict[str, bytes]:
    """Give weights and graphs as files of a checkpoint, by their names there; see `save`."""
    templates = dict(export.templates(network.architecture))
    if calibration:
        rounded = weights.network_from(weights.written(network), network.architecture)
        templates[graphs.ENCODE_INT8] = export.int8_template(rounded, calibration)
    constants, starts = bytearray(), {}
    for name, template in templates.items():
        starts[name] = len(constants)
        constants.extend(template.constants + bytes(-len(template.constants) % 64))
    numbers = weights.written(network, bytes(constants))
    places = tensors.layout(numbers)
    at = places[GRAPH_CONSTANTS].offset
    texts = {
        name: graphs.placed(template, places, at + starts[name])
        for name, template in templates.items()
    }
    return {WEIGHTS: numbers, **texts}
