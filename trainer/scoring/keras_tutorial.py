"""The scoring rules of the well-known Keras captioning tutorial, to place our captions beside its.

They are not ours and never mixed with ours: other words (no punctuation, no word of one letter, no
word with a digit, hyphens closed up), a start and an end marker that count as words on both sides,
and BLEU-3 with weights .3 .3 .3, which do not add up to 1. All three raise or lower the figures by
points, whatever the captions are worth (docs/scoring.md).

Reference:
    J. Brownlee, "How to Develop a Deep Learning Photo Caption Generator from Scratch": functions
    clean_descriptions, load_clean_descriptions and evaluate_model; NLTK's corpus_bleu without
    smoothing.
"""

import math
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.errors import ScoringError

TOKENISER = "keras-tutorial"
START, END = "startseq", "endseq"
WEIGHTS = {
    "bleu_1": (1.0,),
    "bleu_2": (0.5, 0.5),
    "bleu_3": (0.3, 0.3, 0.3),
    "bleu_4": (0.25, 0.25, 0.25, 0.25),
}
PUBLISHED = {"bleu_1": 0.579, "bleu_2": 0.345, "bleu_3": 0.252, "bleu_4": 0.131}
"""What the tutorial reports for its merge network on Flickr8k's 1000 test images."""

_ORDERS = 4
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TutorialScores:
    """BLEU by the tutorial's rules; no other table may be compared with it.

    Attributes:
        images: number of images scored.
    """

    images: int
    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float

    def as_dict(self) -> dict[str, Any]:
        """Give plain numbers and strings, ready for JSON, with the names of rules and tokeniser."""
        return {"rules": "tutorial", "tokeniser": TOKENISER, **asdict(self)}

    def table(self) -> str:
        """Give the scores as plain text beside those that the tutorial reports."""
        rows = [
            f"{'BLEU-' + name[-1]:<9}{getattr(self, name):>6.4f}   {published:.3f}"
            for name, published in PUBLISHED.items()
        ]
        return "\n".join(
            [
                "by the tutorial's rules, to be compared with no other table:",
                f"{'metric':<9}{'value':>6}   reported by the tutorial on Flickr8k's test images",
                *rows,
                "",
                f"{self.images} images, tokeniser {TOKENISER}, without interval",
                f"{START} and {END} count as words; words of one letter or with digits do not",
                "BLEU-3 has weights .3 .3 .3",
            ]
        )


def tutorial_score(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> TutorialScores:
    """Score captions as the tutorial does.

    Args:
        candidates: image -> caption without markers; ours, or any other.
        references: image -> captions without markers, for the same images.

    Raises:
        ScoringError: nothing to score, or different images on the two sides.
    """
    if not candidates or candidates.keys() != references.keys():
        raise ScoringError("expected captions and references for the same images, at least one")
    counts = [
        _counts(clean(text), [clean(each) for each in references[image]])
        for image, text in candidates.items()
    ]
    sums = [sum(column) for column in zip(*counts, strict=True)]
    found = {name: _bleu(sums, weights) for name, weights in WEIGHTS.items()}
    return TutorialScores(images=len(candidates), **found)


def clean(text: str) -> list[str]:
    """Tokenise as the tutorial does, markers included."""
    stripped = (word.translate(_NO_PUNCTUATION) for word in text.lower().split())
    return [START, *(word for word in stripped if len(word) > 1 and word.isalpha()), END]


def _counts(said: list[str], references: list[list[str]]) -> list[int]:
    """Give lengths of candidate and closest reference, then matches and totals per order."""
    closest = min((abs(len(each) - len(said)), len(each)) for each in references)[1]
    per_order = [_matches(said, references, order) for order in range(1, _ORDERS + 1)]
    return [len(said), closest, *(count for pair in per_order for count in pair)]


def _matches(said: list[str], references: list[list[str]], order: int) -> tuple[int, int]:
    """Give clipped matches and, as NLTK counts, at least one n-gram even of a short caption."""
    ours = _grams(said, order)
    most: Counter[tuple[str, ...]] = Counter()
    for each in references:
        most |= _grams(each, order)
    return (ours & most).total(), max(1, ours.total())


def _grams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def _bleu(sums: Sequence[int], weights: Sequence[float]) -> float:
    said, closest, *per_order = sums
    pairs = list(zip(per_order[::2], per_order[1::2], strict=True))[: len(weights)]
    if any(matches == 0 for matches, _ in pairs):
        return 0.0
    brevity = min(0.0, 1 - closest / said)
    logs = (
        weight * math.log(matches / total)
        for weight, (matches, total) in zip(weights, pairs, strict=True)
    )
    return math.exp(brevity + sum(logs))
