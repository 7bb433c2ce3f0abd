"""What a search found -> captions: words as text, as floats and as numpy arrays, no tensors.

B images, K beams, T steps, R regions
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from app.captioner.confidence import ConfidenceModel, Floats
from app.captioner.search import BeamArrays
from app.captioner.tags import Tag, tags
from app.captioner.vocabulary import Vocabulary


class Word(NamedTuple):
    """One word of a caption.

    Attributes:
        text: the word.
        log_prob: its log-probability given the words before, in nats.
        attention: float32 ``(rows, columns)``, how much the word looked at each region; with the
            sentinel it sums to 1. Of a network that reads clips with an LSTM it is one row, with a
            column for each frame. None where the decoder has no attention.
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
        text: the words as the vocabulary writes them.
        log_prob: sum over its words and the end mark, in nats.
        score: log_prob after the length penalty; candidates are ranked by it.
        words: one by one.
        confidence: 0..1, the calibrated probability that the caption is right; None where the
            checkpoint has no confidence model.
    """

    text: str
    log_prob: float
    score: float
    words: tuple[Word, ...]
    confidence: float | None = None


class Candidates(tuple[Caption, ...]):  # noqa: SLOT001 - a tuple cannot have slots
    """The captions of one image, best first, and what else the network told of it.

    Attributes:
        tags: what the image may show, the likeliest first; None where the network has no classes.
        one_colour: there is nothing to see in the image: it is a single pixel, or plain.
    """

    tags: tuple[Tag, ...] | None
    one_colour: bool

    def __new__(
        cls,
        captions: Iterable[Caption] = (),
        tags: tuple[Tag, ...] | None = None,
        *,
        one_colour: bool = False,
    ) -> Self:
        """Join them."""
        made = super().__new__(cls, captions)
        made.tags, made.one_colour = tags, one_colour
        return made

    def told_as(self, captions: Iterable[Caption]) -> Self:
        """Say the same of the image in other captions."""
        return type(self)(captions, self.tags, one_colour=self.one_colour)


def to_captions(
    found: BeamArrays,
    vocabulary: Vocabulary,
    model: ConfidenceModel | None = None,
    rows: int | None = None,
) -> list[Candidates]:
    """Put what was found into words: per image its candidates, best first.

    Args:
        found: by a search.
        vocabulary: the words.
        model: says how far each candidate can be trusted.
        rows: of regions; without it they lie in a square, see `architecture.attention_rows`.
    """
    confidence_BK = model.confidences(found) if model else None
    return [
        Candidates(
            (
                _caption(found, vocabulary, b, int(k), confidence_BK, rows=rows)
                for k in np.flatnonzero(np.isfinite(scores_K))
            ),
            None if found.classes_BC is None else tags(found.classes_BC[b]),
        )
        for b, scores_K in enumerate(found.scores_BK)
    ]


def _caption(
    found: BeamArrays,
    vocabulary: Vocabulary,
    b: int,
    k: int,
    confidence_BK: Floats | None,
    *,
    rows: int | None,
) -> Caption:
    length = int(found.lengths_BK[b, k])
    texts = vocabulary.decode(found.words_BKT[b, k, :length].tolist())
    log_probs = found.word_log_probs_BKT[b, k, :length].tolist()
    looked: Sequence[Iterable[Any]] = ()
    if found.attention_BKTR is not None:
        looked = _where_it_looked(found.attention_BKTR[b, k, :length], rows)
    words = tuple(map(Word, texts, log_probs, *looked))
    log_prob, score = float(found.log_probs_BK[b, k]), float(found.scores_BK[b, k])
    confidence = None if confidence_BK is None else round(float(confidence_BK[b, k]), 4)
    return Caption(vocabulary.text(texts), log_prob, score, words, confidence)


def _where_it_looked(
    attention_TR: npt.NDArray[np.float32], rows: int | None
) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Give the regions of each word in their rows, and its sentinel, which comes last."""
    T, R = len(attention_TR), attention_TR.shape[1] - 1
    rows = rows or math.isqrt(R)
    return attention_TR[:, :-1].reshape(T, rows, R // rows), attention_TR[:, -1].tolist()
