"""An evaluation -> one HTML file that needs nothing else: no script, no network, no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from app.captioner.architecture import attention_rows
from app.captioner.captions import Caption
from app.captioner.pipeline import Captioner
from trainer.data.flickr8k import Example, Split, still_of
from trainer.data.pixels import MAX_PIXELS
from trainer.evaluation.calibration import Calibration, calibrate
from trainer.evaluation.caption_cards import Card, card_html
from trainer.evaluation.captioning import caption_texts, confidence_and_right, references_of
from trainer.evaluation.charts import learning_curves, reliability, risk_and_coverage
from trainer.scoring.faithfulness import faithfulness
from trainer.scoring.metrics import METRICS
from trainer.scoring.reliability import reliability as reliability_of
from trainer.scoring.reliability import risk_and_coverage as risk_points
from trainer.scoring.scores import TITLES, Scores, image_ciders

PAGE = "index.html"
SHOWN = 4

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid
#ddd}td:first-child,th:first-child{text-align:left}svg{margin-right:1rem}svg text{font-size:11px;
fill:#555}.line{fill:none;stroke:#06c;stroke-width:2}circle{fill:#06c}.stage,.ideal{fill:none;
stroke:#999;stroke-dasharray:4 3}.bar{fill:#6af}article{display:grid;
grid-template-columns:224px 1fr;gap:0 1rem;margin:1.5rem 0;padding-top:1rem;border-top:1px
solid #ddd}article h3{margin:0}
article ul{margin:0;padding-left:1.2rem;color:#555}.photo{width:224px;height:224px;background-size:
cover}.words{grid-column:1/-1;display:flex;flex-wrap:wrap;gap:.5rem;margin-top:.5rem}
figure{margin:0;width:112px}.map{width:112px;height:112px;background-size:cover}.map img{width:100%;
height:100%;display:block}figcaption{font-size:12px;text-align:center}
"""


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint said of a split, and what it is worth.

    Attributes:
        captioner: the checkpoint that spoke.
        split: images and references.
        captions: image -> its best caption.
        scores: of these captions.
    """

    captioner: Captioner
    split: Split
    captions: dict[str, Caption]
    scores: Scores


def write_report(directory: Path, evaluation: Evaluation) -> Path:
    """Write the page.

    Args:
        directory: made if it is not there.
        evaluation: what to show.

    Returns:
        The file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / PAGE
    path.write_text(page(evaluation), encoding="utf-8")
    return path


def page(evaluation: Evaluation) -> str:
    """Put the parts of the page together."""
    manifest = evaluation.captioner.manifest
    title = f"{manifest.name} {manifest.version} on {evaluation.split.name}"
    references = {item.image: item.captions for item in evaluation.split.examples}
    parts = [
        f"<h1>{escape(title)}</h1>",
        _score_part(evaluation),
        _curve_part(manifest.history),
        _confidence_part(evaluation, references),
        _calibration_part(
            calibrate(evaluation.captions, references, tokeniser_name=evaluation.scores.tokeniser)
        ),
        *_caption_parts(evaluation),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _score_part(evaluation: Evaluation) -> str:
    scores, texts = evaluation.scores, caption_texts(evaluation.captions)
    found = [(title, getattr(scores, name)) for name, title in zip(METRICS, TITLES, strict=True)]
    rows = "".join(
        f"<tr><td>{title}<td>{each.value:.4f}<td>{each.low:.4f} to {each.high:.4f}"
        for title, each in found
    )
    return (
        f"<h2>Scores</h2><table><tr><th>metric<th>value<th>95 % interval{rows}</table>"
        f"<p>{scores.images} images, tokeniser {escape(scores.tokeniser)}, "
        f"{escape(scores.scorer)}; {escape(str(evaluation.captioner.manifest.search))}.</p>"
        f"<p>{scores.caption_statistics.as_text()}.</p>"
        f"<p>{faithfulness(texts, references_of(evaluation.split)).as_text()}.</p>"
    )


def _curve_part(history: Sequence[dict[str, object]]) -> str:
    curves = learning_curves(history)
    said = "Up to the epoch that was kept. A broken line is the start of a stage."
    if not curves:
        said = "The checkpoint has no history of its training."
    return f"<h2>Learning curves</h2><p>{said}</p>{curves}"


def _confidence_part(evaluation: Evaluation, references: Mapping[str, Sequence[str]]) -> str:
    judged = confidence_and_right(evaluation.captions, references)
    if judged is None:
        return "<h2>Confidence</h2><p>This checkpoint has no confidence model.</p>"
    found = reliability_of(*judged)
    rows = "".join(
        f"<tr><td>{count}<td>{confidence:.3f}<td>{right:.3f}"
        for count, confidence, right in found.bins
    )
    ranking = "" if found.auroc is None else f"AUROC {found.auroc:.3f}, "
    return (
        "<h2>Confidence</h2><p>A caption is right if it names something, and nothing that no "
        f"reference bears out. {ranking}expected calibration error {found.calibration_error:.3f}. "
        "The curve shows what share is wrong of those told, as the least confidence falls.</p>"
        f"{risk_and_coverage(risk_points(*judged))}"
        f"<table><tr><th>captions<th>mean confidence<th>right{rows}</table>"
    )


def _calibration_part(calibration: Calibration) -> str:
    rows = "".join(
        f"<tr><td>{index / 10:.1f} to {(index + 1) / 10:.1f}<td>{each.words}"
        f"<td>{each.confidence:.3f}<td>{each.accuracy:.3f}"
        for index, each in enumerate(calibration.bins)
        if each
    )
    return (
        "<h2>Calibration of words</h2><p>A word's confidence is its probability, given the words "
        "before it. It counts as correct when any reference of the image holds it. On the diagonal "
        "confidence equals accuracy. Expected calibration error "
        f"{calibration.expected_error:.3f} over {calibration.words} words."
        f"</p>{reliability(calibration)}"
        "<table><tr><th>confidence<th>words<th>mean confidence<th>accuracy" + rows + "</table>"
    )


def _caption_parts(evaluation: Evaluation) -> list[str]:
    candidates = {image: caption.text for image, caption in evaluation.captions.items()}
    references = {item.image: item.captions for item in evaluation.split.examples}
    ciders = image_ciders(candidates, references, tokeniser_name=evaluation.scores.tokeniser)
    ordered = sorted(evaluation.split.examples, key=lambda item: (-ciders[item.image], item.image))
    return [
        f"<h2>{title} captions by CIDEr</h2>"
        + "".join(card_html(_card(evaluation, item, ciders[item.image])) for item in chosen)
        for title, chosen in _chosen(ordered).items()
    ]


def _chosen(ordered: list[Example]) -> dict[str, list[Example]]:
    """Take the first, the middle and the last; of a small set each image once."""
    count = max(1, min(SHOWN, len(ordered) // 3))
    middle = (len(ordered) - count) // 2
    chosen = {
        "Best": ordered[:count],
        "Median": ordered[middle : middle + count],
        "Worst": ordered[-count:],
    }
    return chosen if len(ordered) >= 3 else {"All": ordered}


def _card(evaluation: Evaluation, example: Example, cider: float) -> Card:
    """Show an image, or of a clip the frame in the middle, without attention to others."""
    square_SS3 = evaluation.captioner.read(still_of(example).read_bytes(), max_pixels=MAX_PIXELS)
    caption = evaluation.captions[example.image]
    if attention_rows(evaluation.captioner.manifest.architecture):
        words = (word._replace(attention=None) for word in caption.words)
        caption = replace(caption, words=tuple(words))
    return Card(example.image, square_SS3, caption, example.captions, cider)
