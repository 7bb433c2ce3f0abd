"""BLEU-1..4, ROUGE-L and CIDEr-D of coco-caption with bootstrap intervals, on tokenised text.

The counting is pycocoevalcap's, its pure-Python classes only: no Java.

Shapes: N images, S resamples, F figures per image, K n-gram orders, M metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

RESAMPLES = 1000
SEED = 0
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")

Texts = Mapping[str, list[str]]
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A corpus score with its 95 % bootstrap interval, all on the scale where BLEU ends at 1."""

    value: float
    low: float
    high: float


def estimates(candidates: Texts, references: Texts) -> dict[str, Estimate]:
    """Score tokenised candidates and give each of `METRICS` with its bootstrap interval.

    Args:
        candidates: image -> its one candidate, words separated by single spaces.
        references: image -> its references, likewise, for the same images in any order.
    """
    statistics_NF = _statistics_per_image(candidates, references)
    value_M = _corpus_scores(statistics_NF.sum(axis=0)[None], len(statistics_NF))[0]
    resampled_SM = _corpus_scores(_resampled_sums(statistics_NF), len(statistics_NF))
    low_M, high_M = np.percentile(resampled_SM, [2.5, 97.5], axis=0)
    columns = zip(METRICS, value_M, low_M, high_M, strict=True)
    return {
        name: Estimate(float(value), float(low), float(high)) for name, value, low, high in columns
    }


def ciders(candidates: Texts, references: Texts) -> dict[str, float]:
    """Give the CIDEr-D of each candidate; their mean is the corpus score.

    Args:
        candidates: as in `estimates`.
        references: likewise.
    """
    images = list(candidates)
    _, cider_N = Cider().compute_score({image: references[image] for image in images}, candidates)
    return {image: float(cider) for image, cider in zip(images, cider_N, strict=True)}


def _statistics_per_image(candidates: Texts, references: Texts) -> _Floats:
    """Give per image: 2 lengths, 4 counts of n-grams, 4 of clipped matches, ROUGE-L, CIDEr."""
    bleu = BleuScorer(n=4)
    for image, captions in candidates.items():
        bleu += (captions[0], references[image])
    counts = [[c["testlen"], _closest(c), *c["guess"], *c["correct"]] for c in bleu.ctest]
    _, rouge_N = Rouge().compute_score(references, candidates)
    _, cider_N = Cider().compute_score(references, candidates)
    return np.column_stack([np.array(counts, dtype=np.float64), rouge_N, cider_N])


def _closest(counts: Mapping[str, Any]) -> int:
    """Of the reference lengths take the closest to the candidate's, of two the shorter."""
    length: int = min(counts["reflen"], key=lambda each: (abs(each - counts["testlen"]), each))
    return length


def _resampled_sums(statistics_NF: _Floats) -> _Floats:
    generator = np.random.default_rng(SEED)
    images = len(statistics_NF)
    draws = (generator.integers(images, size=images) for _ in range(RESAMPLES))
    return np.stack([np.bincount(draw, minlength=images) @ statistics_NF for draw in draws])


def _corpus_scores(sums_SF: _Floats, images: int) -> _Floats:
    """Turn sums over images into the six corpus scores, BLEU with coco-caption's own guards."""
    length_S, reference_S = sums_SF[:, 0], sums_SF[:, 1]
    precision_SK = (sums_SF[:, 6:10] + 1e-15) / (sums_SF[:, 2:6] + 1e-9)
    bleu_SK = np.cumprod(precision_SK, axis=1) ** (1 / np.arange(1, 5))
    ratio_S = (length_S + 1e-15) / (reference_S + 1e-9)
    brevity_S = np.exp(np.minimum(0, 1 - 1 / ratio_S))
    return np.column_stack([bleu_SK * brevity_S[:, None], sums_SF[:, 10:] / images])
