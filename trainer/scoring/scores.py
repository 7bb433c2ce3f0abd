"""Captions against references: BLEU-1..4, ROUGE-L and CIDEr-D, with their uncertainty.

Candidates and references go through one tokeniser, whose name stands beside every figure, because
the same captions score several points apart under another (docs/scoring.md).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from app.captioner.tokenisers import tokeniser
from app.captioner.vocabulary import TOKENISER
from trainer.errors import ScoringError
from trainer.scoring.caption_statistics import CaptionStatistics, caption_statistics
from trainer.scoring.faithfulness import Faithfulness
from trainer.scoring.metrics import METRICS, RESAMPLES, SEED, Estimate, ciders, estimates
from trainer.scoring.special_tokens import refuse_special_tokens

TITLES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")


@dataclass(frozen=True)
class Scores:
    """What the candidates are worth, with the names of the tokeniser and the scorer.

    Attributes:
        images: number of images scored; CIDEr of sets of different images does not compare.
        tokeniser: name of the tokeniser of candidates and references.
        scorer: the package that counted, with its version.
        faithfulness: whether captions say what is there; `score` does not look.
    """

    images: int
    tokeniser: str
    scorer: str
    bleu_1: Estimate
    bleu_2: Estimate
    bleu_3: Estimate
    bleu_4: Estimate
    rouge_l: Estimate
    cider: Estimate
    caption_statistics: CaptionStatistics
    faithfulness: Faithfulness | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings and dictionaries, ready for JSON."""
        interval = {"percent": 95, "resamples": RESAMPLES, "seed": SEED, "over": "images"}
        judged = {"faithfulness": self.faithfulness.as_dict()} if self.faithfulness else {}
        plain = asdict(self)
        del plain["faithfulness"]
        return {**plain, **judged, "interval": interval}

    def table(self) -> str:
        """Give the scores as plain text, several lines without a final line break."""
        rows = (
            _row(title, getattr(self, name)) for name, title in zip(METRICS, TITLES, strict=True)
        )
        return "\n".join(
            [
                f"{'metric':<9}{'value':>6}   95 % interval",
                *rows,
                "",
                f"{self.images} images, tokeniser {self.tokeniser}, {self.scorer}",
                f"interval: bootstrap over images, {RESAMPLES} resamples, seed {SEED}",
                self.caption_statistics.as_text(),
                *([self.faithfulness.as_text()] if self.faithfulness else []),
            ]
        )


def score(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    training: Iterable[str] | None = None,
    tokeniser_name: str = TOKENISER,
) -> Scores:
    """Score one caption per image against that image's references.

    BLEU is the corpus score (closest reference length). ROUGE-L (beta 1.2) and CIDEr (CIDEr-D,
    inverse document frequencies from the references given, times ten) are means over images.

    The interval is the 2.5 to 97.5 percentile over resamples of the images. For BLEU the clipped
    counts and lengths of the resampled images are summed again; CIDEr and ROUGE-L are the mean of
    the per-image scores, with the document frequencies kept as they are in the full set. The
    interval holds for the choice of images, not for the choice of the training seed.

    Args:
        candidates: image -> caption, as written. A caption without a word scores 0.
        references: image -> captions, as written, for exactly the same images.
        training: captions of the training set, to count the candidates copied from it.
        tokeniser_name: of the tokeniser of both sides.

    Raises:
        ScoringError: nothing to score, different images on the two sides, an image whose
            references hold no word, or a text that carries another tokenisation's special tokens.

    Reference:
        Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015, section 4.1
        (CIDEr-D), Chen et al. 2015 (coco-caption).
    """
    _refuse_mismatch(candidates, references)
    refuse_special_tokens(candidates, references)
    images = sorted(candidates)
    words = _words_of(tokeniser_name)
    candidate_texts = {image: [words(candidates[image])] for image in images}
    reference_texts = {image: [words(text) for text in references[image]] for image in images}
    _refuse_wordless(reference_texts)
    found = estimates(candidate_texts, reference_texts)
    captions = [candidate_texts[image][0] for image in images]
    known = None if training is None else [words(text) for text in training]
    return Scores(
        images=len(images),
        tokeniser=tokeniser_name,
        scorer=f"pycocoevalcap {version('pycocoevalcap')}",
        bleu_1=found["bleu_1"],
        bleu_2=found["bleu_2"],
        bleu_3=found["bleu_3"],
        bleu_4=found["bleu_4"],
        rouge_l=found["rouge_l"],
        cider=found["cider"],
        caption_statistics=caption_statistics(captions, known),
    )


def image_ciders(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokeniser_name: str = TOKENISER,
) -> dict[str, float]:
    """Give the CIDEr-D of each image's caption; the mean is what `score` gives.

    Raises:
        ScoringError: as `score`.
    """
    _refuse_mismatch(candidates, references)
    words = _words_of(tokeniser_name)
    candidate_texts = {image: [words(text)] for image, text in candidates.items()}
    reference_texts = {
        image: [words(text) for text in references[image]] for image in candidate_texts
    }
    _refuse_wordless(reference_texts)
    return ciders(candidate_texts, reference_texts)


def _words_of(tokeniser_name: str) -> Callable[[str], str]:
    tokenise = tokeniser(tokeniser_name).tokenise
    return lambda text: " ".join(tokenise(text))


def _row(title: str, estimate: Estimate) -> str:
    return f"{title:<9}{estimate.value:>6.4f}   {estimate.low:.4f} to {estimate.high:.4f}"


def _refuse_mismatch(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> None:
    if not candidates:
        raise ScoringError("expected at least one caption to score, got none: give captions")
    missing, extra = references.keys() - candidates.keys(), candidates.keys() - references.keys()
    if missing or extra:
        raise ScoringError(
            "expected captions and references for the same images; without a caption: "
            f"{_some(missing)}; without references: {_some(extra)}: complete the shorter side"
        )


def _refuse_wordless(reference_texts: Mapping[str, list[str]]) -> None:
    wordless = [image for image, texts in reference_texts.items() if not any(texts)]
    if wordless:
        raise ScoringError(
            f"expected a reference with a word for every image, got none for {_some(wordless)}: "
            "add references, or leave the images out"
        )


def _some(images: Iterable[str]) -> str:
    names = sorted(images)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more
