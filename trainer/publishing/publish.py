"""A run's best checkpoint -> an immutable directory of the model store."""

import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.captioner import checkpoint
from app.captioner.checkpoint import Checkpoint
from app.captioner.manifest import Golden, Manifest
from app.captioner.pipeline import GOLDEN_MAX_PIXELS, Captioner
from trainer.errors import TrainerError
from trainer.publishing.golden_image import draw_golden_image
from trainer.publishing.model_card import card


def publish(
    source: Checkpoint,
    store: Path,
    version: str,
    *,
    scores: dict[str, Any],
    notes: str,
    name: str | None = None,
) -> Path:
    """Write ``<store>/<name>/<version>`` with golden caption and card, then load and check it.

    Args:
        source: what was trained.
        store: the model store.
        version: of the new directory.
        scores: for the manifest and the card, as `Scores.as_dict` gives them, by split.
        notes: Markdown for the card: origin, limits and licences of data and initial weights.
        name: in place of the recipe's.

    Raises:
        CheckpointError: the version exists already.
        TrainerError: name or version cannot be a directory of the store.
    """
    kept = {**source.manifest.scores, **scores}
    manifest = _changed(
        source.manifest, version=version, scores=kept, name=name or source.manifest.name
    )
    published = source._replace(manifest=manifest)
    drawn = draw_golden_image()
    extra = {
        checkpoint.GOLDEN_IMAGE: drawn,
        checkpoint.GOLDEN_CAPTION: _golden(published, drawn).model_dump_json(indent=2).encode(),
        checkpoint.CARD: card(published, notes).encode(),
    }
    directory = store / manifest.name / version
    checkpoint.save(directory, published, extra_files=extra)
    Captioner.load(directory).check_golden()
    return directory


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


def _golden(published: Checkpoint, drawn: bytes) -> Golden:
    """Ask the network as it will be loaded, in float16, what it sees."""
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / "rounded"
        checkpoint.save(rounded, published)
        captioner = Captioner.load(rounded)
    best = captioner.caption([captioner.read(drawn, max_pixels=GOLDEN_MAX_PIXELS)])[0][0]
    return Golden(caption=best.text, log_prob=best.log_prob)
