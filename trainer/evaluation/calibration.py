"""How far the network's probabilities can be believed: of words given .8, are 80 % right?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.captioner.captions import Caption
from app.captioner.tokenisers import Tokeniser, tokeniser
from app.captioner.vocabulary import TOKENISER

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Words of like confidence.

    Attributes:
        words: how many.
        confidence: mean probability the network gave them, 0 to 1.
        accuracy: share of them that stand in a reference of their image, 0 to 1.
    """

    words: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Reliability of the probability of single words.

    Attributes:
        bins: ten equal parts of 0 to 1, lowest first; None where no word fell.
        expected_error: expected calibration error, 0 to 1: mean distance of confidence and accuracy
            over words.

    Reference:
        Guo et al. 2017, equation 3 (expected calibration error).
    """

    bins: tuple[Bin | None, ...]
    expected_error: float

    @property
    def words(self) -> int:
        """Count the words."""
        return sum(each.words for each in self.bins if each)


def calibrate(
    captions: Mapping[str, Caption],
    references: Mapping[str, Sequence[str]],
    *,
    tokeniser_name: str = TOKENISER,
) -> Calibration:
    """Compare each word's probability with whether a reference of the image holds the word.

    Args:
        captions: image -> what was said.
        references: image -> what people wrote, for at least these images.
        tokeniser_name: of the tokeniser that the captions' words come from.
    """
    of = tokeniser(tokeniser_name)
    pairs = [
        pair
        for image, caption in captions.items()
        for pair in _pairs(caption, references[image], of)
    ]
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, correct in pairs:
        bins[min(BINS - 1, int(confidence * BINS))].append((confidence, correct))
    filled = tuple(_bin(each) for each in bins)
    gaps = (each.words * abs(each.confidence - each.accuracy) for each in filled if each)
    return Calibration(filled, sum(gaps) / max(1, len(pairs)))


def _pairs(caption: Caption, references: Iterable[str], of: Tokeniser) -> list[tuple[float, bool]]:
    known = {word for text in references for word in of.tokenise(text)}
    return [(float(np.exp(word.log_prob)), word.text in known) for word in caption.words]


def _bin(pairs: list[tuple[float, bool]]) -> Bin | None:
    if not pairs:
        return None
    confidence, accuracy = np.mean(pairs, axis=0)
    return Bin(len(pairs), float(confidence), float(accuracy))
