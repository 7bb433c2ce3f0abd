"""The model card of a published checkpoint, in Markdown.

Reference: Mitchell et al. 2019, "Model cards for model reporting".
"""

import json
from collections.abc import Iterator
from typing import Any

from app.captioner.model.torch_checkpoint import TorchCheckpoint
from trainer.scoring.faithfulness import Faithfulness


def card(published: TorchCheckpoint, notes: str) -> str:
    """Write the model card: what a stranger must know before using the captions."""
    manifest = published.manifest
    parts = [
        f"# {manifest.name}, version {manifest.version}",
        _network_text(published),
        "## Scores\n\n" + (_score_tables(manifest.scores) or "None were computed."),
        confidence_text(manifest.scores),
        "## Data\n\n" + _bullets(manifest.data),
        notes.strip(),
        f"## Recipe\n\n```json\n{json.dumps(manifest.recipe, indent=2)}\n```",
        f"## Versions\n\nSource commit {manifest.source_commit or 'unknown'}. "
        + ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
        + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def confidence_text(scores: dict[str, Any]) -> str:
    """Tell how far confidences can be believed; nothing where there are none."""
    about = scores.get("confidence")
    if not about:
        return ""
    rows = [
        f"| {name} | {found['captions']} | {found['right']:.2f} | {_figure(found['auroc'])} | "
        f"{found['calibration_error']:.3f} | {found['coverage']:.2f} | "
        f"{_figure(found['wrong_told'])} |"
        for name, found in about["by_domain"].items()
    ]
    return "\n".join(
        [
            "## Confidence\n",
            (
                f"Measured by {about['measured']}. Told: captions of confidence "
                f"{about['advised_min_confidence']} and more.\n"
            ),
            "| images | captions | right | AUROC | calibration error | told | wrong of these |",
            "|---|---|---|---|---|---|---|",
            *rows,
            (
                "\nPhotos like those it was trained on against pictures that are no photos: AUROC "
                f"{about['home_against_no_photos']:.3f}."
            ),
        ]
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _network_text(published: TorchCheckpoint) -> str:
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
    statistics = values.get("caption_statistics") or values["habits"]  # the name before 0.2.0
    counts = ", ".join(f"{name} {_short(value)}" for name, value in statistics.items())
    origin = f"{values['images']} images, tokeniser {values['tokeniser']}, {values['scorer']}"
    return "\n".join(
        [
            f"On {split}: {origin}.\n",
            "| metric | value | 95 % interval |",
            "|---|---|---|",
            *rows,
            f"\n{counts}",
            *_faithfulness_lines(values),
        ]
    )


def _faithfulness_lines(values: dict[str, Any]) -> list[str]:
    judged = values.get("faithfulness")
    return [f"\n{Faithfulness(**judged).as_text()} (docs/scoring.md)"] if judged else []


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def _bullets(data: dict[str, Any]) -> str:
    return "\n".join(
        f"- {name}: " + ", ".join(f"{key} {value}" for key, value in about.items())
        for name, about in _flat(data)
    )


def _flat(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Take sets of sets apart: one kind of photo a line."""
    for name, about in data.items():
        for inner, value in about.items():
            if isinstance(value, dict):
                yield f"{name.removesuffix('_sets')} of {inner}", value
        plain = {key: value for key, value in about.items() if not isinstance(value, dict)}
        if plain:
            yield name, plain
