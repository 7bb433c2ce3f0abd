"""A trained network -> an immutable directory of the model store."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.captioner import checkpoint, confidence, graphs
from app.captioner.checkpoint import Checkpoint
from app.captioner.engines.cpu import CpuEngine
from app.captioner.engines.torch_engine import TorchEngine
from app.captioner.image.decode import Pixels
from app.captioner.manifest import Golden, Manifest, Said
from app.captioner.model import torch_checkpoint
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from app.captioner.pipeline import GOLDEN_MAX_PIXELS, Captioner
from app.captioner.search import always_waiting
from trainer.errors import TrainerError
from trainer.publishing.golden_image import draw_golden_image
from trainer.publishing.model_card import card
from trainer.scoring.scores import Scores

GRAPH_TOLERANCE: Final = 0.01
"""In nats, of a whole caption: between the graphs and torch, both in float32."""
INT8_MOST_CIDER_LOST: Final = 0.005
INT8_SCORES: Final = "dev_int8"
_CHECKED_IMAGES = 8

Scorer = Callable[[Captioner], Scores]


class Confidence(NamedTuple):
    """How far captions can be trusted.

    Attributes:
        content: of ``confidence.safetensors``.
        scores: what it is worth, for the manifest.
    """

    content: bytes
    scores: dict[str, Any]


def publish(
    source: TorchCheckpoint,
    store: Path,
    version: str,
    *,
    scores: dict[str, Any],
    notes: str,
    name: str | None = None,
    calibration: Sequence[Pixels] = (),
    model_card: str | None = None,
    dev_scorers: Mapping[str, Scorer] | None = None,
    fit_confidence: Callable[[Checkpoint], Confidence | None] | None = None,
    degenerate: bool = False,
) -> Path:
    """Write ``<store>/<name>/<version>`` with golden caption and card, then load and check it.

    Before anything is written, the graphs say of images what the network in torch says.

    Args:
        source: what was trained.
        store: the model store.
        version: of the new directory.
        scores: for the manifest and the card, as `Scores.as_dict` gives them, by split.
        notes: Markdown for the card: origin, limits and licences of data and initial weights.
        name: in place of the recipe's.
        calibration: some hundred training images as the network sees them, uint8 ``(S, S, 3)``;
            without them there is no encoder in int8.
        model_card: in place of the one that is written from the manifest and ``notes``.
        dev_scorers: score captions of dev images, by the name of their kind; the first is the kind
            that the network is made for. It is scored in int8 too, if that is there; an encoder in
            int8 that costs more than `INT8_MOST_CIDER_LOST` is left out.
        fit_confidence: fits what tells how far its captions can be trusted.
        degenerate: publish also what says one caption for all images, or a word over and over.

    Raises:
        CheckpointError: the version exists already.
        TrainerError: name or version cannot be a directory of the store, or a graph says something
            else than the network.
    """
    manifest = _changed(source.manifest, version=version, name=name or source.manifest.name)
    directory = store / manifest.name / version
    if directory.exists():  # before the work, which takes a minute
        checkpoint.refuse_existing(directory)
    if not degenerate:
        _refuse_one_caption_for_all(manifest)
    files = torch_checkpoint.contents(source.network, calibration)
    written = _as_written(source._replace(manifest=manifest), files)
    drawn = draw_golden_image()
    squares = [_square(written, drawn), *calibration[:_CHECKED_IMAGES]]
    _check_graphs(written, squares)
    frames = source.manifest.architecture.frames_per_clip
    if frames:
        _check_graphs(written, [_moving(square, frames) for square in squares])
    if not degenerate:
        _refuse_repetition(_said(_captioner(written), drawn).caption)
    dev_scores = _dev_scores(written, dev_scorers) if dev_scorers else {}
    if graphs.ENCODE_INT8 in files and dev_scorers and INT8_SCORES not in dev_scores:
        files = torch_checkpoint.contents(source.network)  # its constants go too
        written = _as_written(source._replace(manifest=manifest), files)
    confident = fit_confidence(written) if fit_confidence else None
    if confident:
        files[confidence.FILE] = confident.content
        dev_scores["confidence"] = confident.scores
    kept = {**source.manifest.scores, **dev_scores, **scores}
    manifest = _changed(manifest, scores=kept)
    published = source._replace(manifest=manifest)
    extra = {
        checkpoint.GOLDEN_IMAGE: drawn,
        checkpoint.GOLDEN_CAPTION: _golden(written, drawn).model_dump_json(indent=2).encode(),
        checkpoint.CARD: (model_card or card(published, notes)).encode(),
    }
    checkpoint.write(directory, manifest, source.vocabulary, {**files, **extra})
    Captioner.load(directory).check_golden()
    return directory


def _refuse_one_caption_for_all(manifest: Manifest) -> None:
    row = manifest.history[-1] if manifest.history else {}
    images = manifest.data.get("dev", {}).get("images", 0)
    if row.get("dev_distinct_captions") == 1 and images > 1:
        raise TrainerError(
            f"the network says one caption for all {images} dev images: train it longer or on more "
            "photos, start from a checkpoint (--initial), or publish it with --degenerate"
        )


def _refuse_repetition(caption: str) -> None:
    words = caption.split()
    if any(words[n : n + 3] == [words[n]] * 3 for n in range(len(words) - 2)):
        raise TrainerError(
            f"the network repeats itself ({caption[:80]!r}): train it longer, set "
            "search.no_repeat_ngram_size, or publish it with --degenerate"
        )


def _changed(manifest: Manifest, **changes: object) -> Manifest:
    try:
        return Manifest.model_validate(manifest.model_dump() | changes)
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"])) or "checkpoint"
        given = "" if place == "checkpoint" else f" {wrong['input']!r}"
        raise TrainerError(f"{place}{given} cannot be published: {_rule(wrong)}") from None


def _rule(wrong: ErrorDetails) -> str:
    """Say in words what a pattern says, and else what pydantic does."""
    if wrong["type"] == "string_pattern_mismatch":
        return "expected small letters, digits, and . _ - after the first of them"
    return wrong["msg"]


def _as_written(published: TorchCheckpoint, files: Mapping[str, bytes]) -> Checkpoint:
    """Load what will be written, weights in half precision among it."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "written")
        checkpoint.write(directory, published.manifest, published.vocabulary, files)
        return checkpoint.load(directory)


def _moving(square_SSC: Pixels, frames: int) -> Pixels:
    """Make a clip of a square: it is moved on by a part of its side, uint8 ``(F, S, S, 3)``."""
    step_px = max(1, len(square_SSC) // frames)
    return np.stack([np.roll(square_SSC, n * step_px, axis=1) for n in range(frames)])


def _square(written: Checkpoint, photo: bytes) -> Pixels:
    return _captioner(written).read(photo, max_pixels=GOLDEN_MAX_PIXELS)


def _captioner(written: Checkpoint) -> Captioner:
    return Captioner.of(written, precision="float32")


def _check_graphs(written: Checkpoint, squares: Sequence[Pixels]) -> None:
    """See that the graphs give every image the log-probability that torch gives it."""
    network = torch_checkpoint.of(written).network
    engines = (
        TorchEngine(network, written.manifest.search),
        CpuEngine(written, precision="float32", workers=1),
    )
    expected, found = (engine.run(squares, always_waiting).beams for engine in engines)
    if expected is None or found is None:
        raise TrainerError("a graph says nothing where the network speaks")
    furthest = float(np.abs(expected.log_probs_BK[:, 0] - found.log_probs_BK[:, 0]).max())
    if not furthest <= GRAPH_TOLERANCE:
        raise TrainerError(
            f"a graph is {furthest:.3f} nats from the network in torch, expected at most "
            f"{GRAPH_TOLERANCE}: nothing was published"
        )


def _dev_scores(
    written: Checkpoint, dev_scorers: Mapping[str, Scorer]
) -> dict[str, dict[str, Any]]:
    home, *others = dev_scorers
    single = dev_scorers[home](_captioner(written))
    scores = {"dev": single.as_dict()}
    for name in others:
        scores[f"dev of {name}"] = dev_scorers[name](_captioner(written)).as_dict()
    if graphs.ENCODE_INT8 in written.graphs:
        int8 = dev_scorers[home](Captioner.of(written, precision="int8"))
        if int8.cider.value >= single.cider.value - INT8_MOST_CIDER_LOST:
            scores[INT8_SCORES] = int8.as_dict()
        else:
            print(f"int8 is left out: it costs more than {INT8_MOST_CIDER_LOST} CIDEr")
    return scores


def _golden(written: Checkpoint, drawn: bytes) -> Golden:
    """Ask the network as it will be loaded what it sees."""
    said = _said(_captioner(written), drawn)
    int8 = None
    if graphs.ENCODE_INT8 in written.graphs:
        int8 = _said(Captioner.of(written, precision="int8"), drawn)
    return Golden(caption=said.caption, log_prob=said.log_prob, int8=int8)


def _said(captioner: Captioner, drawn: bytes) -> Said:
    image = captioner.read(drawn, max_pixels=GOLDEN_MAX_PIXELS)
    best = captioner.caption([image]).captions[0][0]
    return Said(caption=best.text, log_prob=best.log_prob)
