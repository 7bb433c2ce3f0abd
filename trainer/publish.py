"""The verb ``publish``: a run's best checkpoint -> an immutable directory of the model store."""

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from app.captioner import checkpoint
from app.captioner.checkpoint import Checkpoint
from app.captioner.manifest import Golden, Manifest
from app.captioner.pipeline import GOLDEN_MAX_PIXELS, Captioner
from trainer.data import read_split
from trainer.devices import available_device
from trainer.errors import TrainerError
from trainer.evaluate import add_search, evaluate, training_captions, with_search

GOLDEN_SIDE_PX = 256


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


def draw_golden_image() -> bytes:
    """Draw a sunny beach with a figure and a ball: ours, so that it can be shipped.

    Returns:
        A PNG file; the same bytes under the same Pillow.
    """
    picture = Image.fromarray(_sky_and_sand())
    pen = ImageDraw.Draw(picture)
    pen.ellipse((188, 18, 228, 58), fill=(255, 240, 180))
    pen.rectangle((0, 120, 256, 165), fill=(40, 110, 160))
    pen.ellipse((112, 88, 138, 114), fill=(205, 160, 130))
    pen.rectangle((108, 114, 142, 172), fill=(190, 40, 50))
    pen.line((118, 172, 104, 222), fill=(60, 50, 90), width=12)
    pen.line((132, 172, 150, 220), fill=(60, 50, 90), width=12)
    pen.line((142, 122, 180, 96), fill=(205, 160, 130), width=9)
    pen.ellipse((180, 70, 208, 98), fill=(245, 245, 245))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _sky_and_sand() -> npt.NDArray[np.uint8]:
    rows = np.linspace(0, 1, GOLDEN_SIDE_PX)[:, None, None]
    sky = np.array([110, 170, 230]) + rows * np.array([90, 50, 10])
    sand = np.array([225, 200, 150]) - rows * np.array([40, 40, 40])
    picture = np.where(rows < 0.6, sky, sand)
    return np.repeat(picture, GOLDEN_SIDE_PX, axis=1).round().astype(np.uint8)


def _golden(published: Checkpoint, drawn: bytes) -> Golden:
    """Ask the network as it will be loaded, in half precision, what it sees."""
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / "rounded"
        checkpoint.save(rounded, published)
        captioner = Captioner.load(rounded)
    best = captioner.caption([captioner.read(drawn, max_pixels=GOLDEN_MAX_PIXELS)])[0][0]
    return Golden(caption=best.text, log_prob=best.log_prob)


def card(published: Checkpoint, notes: str) -> str:
    """Write the model card: what a stranger must know before using the captions."""
    manifest = published.manifest
    parts = [
        f"# {manifest.name}, version {manifest.version}",
        _network_text(published),
        "## Scores\n\n" + (_score_tables(manifest.scores) or "None were computed."),
        "## Data\n\n" + _bullets(manifest.data),
        notes.strip(),
        f"## Recipe\n\n```json\n{json.dumps(manifest.recipe, indent=2)}\n```",
        f"## Versions\n\nSource commit {manifest.source_commit or 'unknown'}. "
        + ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
        + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _network_text(published: Checkpoint) -> str:
    architecture, image = published.manifest.architecture, published.manifest.image
    search = published.manifest.search
    parameters = sum(tensor.numel() for tensor in published.network.parameters()) / 1e6
    return (
        f"Encoder {architecture.encoder} ({architecture.features}), decoder "
        f"{architecture.decoder}, {parameters:.1f} million parameters, "
        f"{architecture.words} word ids. Images are fitted to {image.size_px} px ({image.fit}). "
        f"Beam search of width {search.beam_width}, length penalty {search.length_penalty:g}"
        f"{_repeats_text(search.no_repeat_ngram_size)}."
    )


def _repeats_text(size: int) -> str:
    return f", no {size} words in a row twice" if size else ""


def _score_tables(scores: dict[str, Any]) -> str:
    return "\n\n".join(
        _score_table(split, values)
        for split, values in scores.items()
        if isinstance(values, dict) and "cider" in values
    )


def _score_table(split: str, values: dict[str, Any]) -> str:
    metrics = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
    rows = [
        f"| {name} | {values[name]['value']:.3f} | "
        f"{values[name]['low']:.3f} to {values[name]['high']:.3f} |"
        for name in metrics
    ]
    habits = ", ".join(f"{name} {_short(value)}" for name, value in values["habits"].items())
    origin = f"{values['images']} images, tokeniser {values['tokeniser']}, {values['scorer']}"
    return "\n".join(
        [
            f"On {split}: {origin}.\n",
            "| metric | value | 95 % interval |",
            "|---|---|---|",
            *rows,
            f"\n{habits}",
        ]
    )


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def _bullets(data: dict[str, Any]) -> str:
    return "\n".join(
        f"- {name}: " + ", ".join(f"{key} {value}" for key, value in about.items())
        for name, about in data.items()
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``publish``."""
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="what fit wrote")
    parser.add_argument("--version", required=True, help="of the new directory")
    parser.add_argument("--name", help="of the checkpoint, in place of the recipe's")
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--data", type=Path, help="score the split dev of this directory first")
    parser.add_argument(
        "--notes", type=Path, help="Markdown for the card: origin, limits, licences"
    )
    add_search(parser)
    parser.add_argument("--device", default=available_device())


def run(args: argparse.Namespace) -> int:
    """Publish, and say where."""
    directory = args.run_directory / "best"
    source = with_search(checkpoint.load(directory), args)
    scores: dict[str, Any] = {}
    if args.data:
        captioner = Captioner(source, device=args.device)
        training = training_captions(args.data, evaluated="dev")
        found, _ = evaluate(captioner, read_split(args.data, "dev"), training=training)
        print(found.table())
        scores["dev"] = found.as_dict()
    notes = _notes(args.notes)
    print(publish(source, args.store, args.version, scores=scores, notes=notes, name=args.name))
    return 0


def _notes(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TrainerError(f"notes {path} cannot be read: {error}") from error
