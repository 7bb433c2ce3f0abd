"""What a search found -> captions: words as text, as floats and as numpy arrays, no tensors.

B images, K beams, T steps, R regions
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from app.captioner.beam import Beams
from app.captioner.vocabulary import Vocabulary


@dataclass(frozen=True)
class Word:
    """One word of a caption.

    Attributes:
        text: the word.
        log_prob: its log-probability given the words before, in nats.
        attention: float32 ``(rows, columns)``, how much the word looked at each region; with the
            sentinel it sums to 1. None where the decoder has no attention.
        sentinel: 0..1, how much of the word came from language instead of the image; or None.
    """

    text: str
    log_prob: float
    attention: npt.NDArray[np.float32] | None = None
    sentinel: float | None = None


@dataclass(frozen=True)
class Caption:
    """A finished caption.

    Attributes:
        text: words joined by spaces.
        log_prob: sum over its words and the end mark, in nats.
        score: log_prob after the length penalty; candidates are ranked by it.
        words: one by one.
    """

    text: str
    log_prob: float
    score: float
    words: tuple[Word, ...]


class Found(NamedTuple):
    """`beam.Beams` as numpy arrays: one copy from the device, and fit to leave the process."""

    words_BKT: npt.NDArray[np.int64]
    lengths_BK: npt.NDArray[np.int64]
    log_probs_BK: npt.NDArray[np.float32]
    scores_BK: npt.NDArray[np.float32]
    word_log_probs_BKT: npt.NDArray[np.float32]
    attention_BKTR: npt.NDArray[np.float32] | None

    @classmethod
    def of(cls, beams: Beams) -> Self:
        """Copy beams from their device."""
        arrays: list[Any] = [None if tensor is None else tensor.cpu().numpy() for tensor in beams]
        return cls(*arrays)


class Findings(NamedTuple):
    """What became of a batch.

    Attributes:
        images: those of the batch that somebody still waited for.
        found: what was found for them, in that order; None where there were none.
    """

    images: list[int]
    found: Found | None


def told(found: Found, vocabulary: Vocabulary) -> list[tuple[Caption, ...]]:
    """Put what was found into words: per image its candidates, best first."""
    return [
        tuple(_caption(found, vocabulary, b, int(k)) for k in np.flatnonzero(np.isfinite(scores_K)))
        for b, scores_K in enumerate(found.scores_BK)
    ]


def _caption(found: Found, vocabulary: Vocabulary, b: int, k: int) -> Caption:
    words = tuple(_word(found, vocabulary, b, k, t) for t in range(found.lengths_BK[b, k]))
    return Caption(
        " ".join(word.text for word in words),
        float(found.log_probs_BK[b, k]),
        float(found.scores_BK[b, k]),
        words,
    )


def _word(found: Found, vocabulary: Vocabulary, b: int, k: int, t: int) -> Word:
    (text,) = vocabulary.decode([int(found.words_BKT[b, k, t])])
    log_prob = float(found.word_log_probs_BKT[b, k, t])
    if found.attention_BKTR is None:
        return Word(text, log_prob)
    *_, sentinel = attention_R = found.attention_BKTR[b, k, t]
    side = math.isqrt(len(attention_R) - 1)
    return Word(text, log_prob, attention_R[:-1].reshape(side, side), float(sentinel))
