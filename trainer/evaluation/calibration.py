"""How far the network's probabilities can be believed: said with .8, right in 80 of 100?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.captioner.captions import Caption
from app.captioner.vocabulary import tokenise

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Words that were said with like probability.

    Attributes:
        words: how many.
        said: mean probability the network gave them, 0 to 1.
        right: share of them that stand in a reference of their image, 0 to 1.
    """

    words: int
    said: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """Reliability of the probability of single words.

    Attributes:
        bins: ten equal parts of 0 to 1, lowest first; None where no word fell.
        error: expected calibration error, 0 to 1: mean distance of said and right over words.

    Reference:
        Guo et al. 2017, equation 3 (expected calibration error).
    """

    bins: tuple[Bin | None, ...]
    error: float

    @property
    def words(self) -> int:
        """Count the words."""
        return sum(each.words for each in self.bins if each)


def calibrate(
    captions: Mapping[str, Caption], references: Mapping[str, Sequence[str]]
) -> Calibration:
    """Compare each word's probability with whether a reference of the image holds the word.

    Args:
        captions: image -> what was said.
        references: image -> what people wrote, for at least these images.
    """
    pairs = [
        pair for image, caption in captions.items() for pair in _pairs(caption, references[image])
    ]
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for said, right in pairs:
        bins[min(BINS - 1, int(said * BINS))].append((said, right))
    filled = tuple(_bin(each) for each in bins)
    gaps = (each.words * abs(each.said - each.right) for each in filled if each)
    return Calibration(filled, sum(gaps) / max(1, len(pairs)))


def _pairs(caption: Caption, references: Iterable[str]) -> list[tuple[float, bool]]:
    known = {word for text in references for word in tokenise(text)}
    return [(float(np.exp(word.log_prob)), word.text in known) for word in caption.words]


def _bin(pairs: list[tuple[float, bool]]) -> Bin | None:
    if not pairs:
        return None
    said, right = np.mean(pairs, axis=0)
    return Bin(len(pairs), float(said), float(right))
