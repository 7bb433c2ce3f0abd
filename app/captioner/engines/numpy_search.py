"""`model.beam.search` on numpy: the bookkeeping between two steps of a decoder that runs elsewhere.

It finds the same beams. Only beams that still grow are computed: one per image at the first word,
none of an image that has all its captions or that nobody waits for.

B images, L images still in the search, K beams, G beams computed (of an image), N words that may
follow a beam, T steps, V words, H width of the LSTM, R regions and the sentinel
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from app.captioner.search import BeamArrays, SearchOptions, StillWaiting

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


class Encoded(NamedTuple):
    """What the encoder leaves of a batch.

    Attributes:
        hidden_B1H: of the LSTM before the first word.
        cell_B1H: of the LSTM before the first word.
        image: what the steps need of the image, ``(B, ...)`` each.
    """

    hidden_B1H: Floats
    cell_B1H: Floats
    image: Sequence[Floats]


class Following(NamedTuple):
    """What a step gives; it may be overwritten by the next one.

    Attributes:
        log_probs_LGN: of the likeliest words after each beam, the likeliest first.
        words_LGN: these words.
        end_log_probs_LG1: of the end mark.
        hidden_LGH: the next state.
        cell_LGH: the next state.
        attention_LGR: or None.
    """

    log_probs_LGN: Floats
    words_LGN: Integers
    end_log_probs_LG1: Floats
    hidden_LGH: Floats
    cell_LGH: Floats
    attention_LGR: Floats | None


class Step(Protocol):
    """A decoder that reads a word per beam."""

    words: int

    def __call__(
        self,
        words_LG: Integers,
        hidden_LGH: Floats,
        cell_LGH: Floats,
        image: Sequence[Floats],
        barred: Floats,
    ) -> Following:
        """Read one word per beam.

        ``barred`` is added to word scores; it is ``(1, 1, V)`` or ``(L, G, V)``.
        """


class _Marks(NamedTuple):
    """Ids that are no words."""

    bos: int
    eos: int
    forbidden: list[int]


class _Trace(NamedTuple):
    """What one step leaves behind, read backwards once the search is over."""

    images_L: Integers
    parents_LK: Integers
    words_LK: Integers
    word_log_probs_LK: Floats
    attention_LKR: Floats | None


def search(
    step: Step,
    encoded: Encoded,
    options: SearchOptions,
    *,
    bos: int,
    eos: int,
    banned: Iterable[int],
    still_waiting: StillWaiting,
) -> BeamArrays:
    """Search the best captions of every image, as `model.beam.search` does.

    Args:
        step: the decoder.
        encoded: what it starts from.
        options: width, lengths and length penalty.
        bos: id that starts every caption.
        eos: id that ends it.
        banned: ids that are never emitted.
        still_waiting: asked after every step; an image that nobody waits for may get no caption.
    """
    running = _Search(step, encoded, options, _Marks(bos, eos, [bos, *banned]))
    while running.advance(still_waiting):
        pass
    return running.beams()


class _Search:
    """A search under way."""

    def __init__(
        self,
        step: Step,
        encoded: Encoded,
        options: SearchOptions,
        marks: "_Marks",
    ) -> None:
        self._step, self._options, self._eos = step, options, marks.eos
        self._hidden, self._cell, self._image = encoded
        B, K = len(self._hidden), options.beam_width
        self._taken = 0
        self._images_L = np.arange(B)
        self._L1 = self._images_L[:, None]
        self._words_LK = np.full((B, K), marks.bos)
        self._log_probs_LK = np.full((B, K), -np.inf, np.float32)
        self._log_probs_LK[:, 0] = 0  # beam 0 holds BOS; the others hold nothing
        self._scores_LK = self._log_probs_LK.copy()
        self._finished_LK = np.ones((B, K), np.bool_)
        self._finished_LK[:, 0] = False
        self._slots_LG = np.zeros((B, 1), np.int64)
        self._said_LKT = self._words_LK[..., None]
        self._traces: list[_Trace] = []
        self._last_BK = (self._log_probs_LK.copy(), self._scores_LK.copy())
        self._barred_11V = np.zeros((1, 1, step.words), np.float32)
        self._barred_11V[..., marks.forbidden] = -np.inf
        self._too_early_11V = self._barred_11V.copy()
        self._too_early_11V[..., marks.eos] = -np.inf

    def advance(self, still_waiting: StillWaiting) -> bool:
        """Let every beam take its next word; say whether any has more to say."""
        words_LG = self._words_LK[self._L1, self._slots_LG]
        following = self._step(words_LG, self._hidden, self._cell, self._image, self._barred())
        rows_LK = self._choose(following)
        self._taken += 1
        staying_L = self._staying(still_waiting)
        if not staying_L.any() or self._taken > self._options.max_words:
            self._keep_last(np.ones_like(staying_L))
            return False
        staying = np.arange(len(staying_L))
        if not staying_L.all():
            self._keep_last(~staying_L)
            staying = np.flatnonzero(staying_L)
            rows_LK = rows_LK[staying]
            self._leave(staying)
        self._go_on(following, staying[:, None], rows_LK)
        return True

    def _barred(self) -> Floats:
        """Give what makes words impossible: too early an end, or a sequence said before.

        Reference: Paulus et al. 2018, "A deep reinforced model for abstractive summarization", 2.5.
        """
        too_early = self._taken < self._options.min_words
        barred_11V = self._too_early_11V if too_early else self._barred_11V
        size = self._options.no_repeat_ngram_size
        if not 0 < size <= self._taken + 1:
            return barred_11V
        said_LGT = self._said_LKT[self._L1, self._slots_LG]
        begun_LGW = said_LGT[..., : self._taken + 2 - size] == said_LGT[..., 1 - size, None]
        for n in range(1, size - 1):
            later_LGW = said_LGT[..., n : self._taken + 2 - size + n]
            begun_LGW &= later_LGW == said_LGT[..., 1 - size + n, None]
        if not begun_LGW.any():
            return barred_11V
        barred_LGV = np.tile(barred_11V, (*self._slots_LG.shape, 1))
        l_, g, begins = begun_LGW.nonzero()
        barred_LGV[l_, g, said_LGT[l_, g, begins + size - 1]] = -np.inf
        return barred_LGV

    def _choose(self, following: Following) -> Integers:
        """Keep the K best continuations of all beams of an image.

        A finished beam has one continuation: itself. Gives the computed row that each comes from.
        """
        log_probs_LGN, words_LGN = self._continuations(following)
        L, G, N = log_probs_LGN.shape
        K, M, L1 = self._options.beam_width, G * N, self._L1
        log_probs_LG = self._log_probs_LK[L1, self._slots_LG]
        if self._finished_LK.any():  # a finished beam may fill up a row
            log_probs_LG[self._finished_LK[L1, self._slots_LG]] = -np.inf
        totals_LM = (log_probs_LG[..., None] + log_probs_LGN).reshape(L, M)
        scores_LS = np.empty((L, M + K), np.float32)  # what grew, then what was finished
        scores_LS[:, :M] = totals_LM
        scores_LS[:, :M] /= np.float32((self._taken + 1) ** self._options.length_penalty)
        scores_LS[:, M:] = self._scores_LK
        scores_LS[:, M:][~self._finished_LK] = -np.inf
        best_LK = np.argsort(-scores_LS, axis=1, kind="stable")[:, :K]
        made_LK = np.minimum(best_LK, M - 1)
        rows_LK: Integers = made_LK // N
        parents_LK = self._slots_LG[L1, rows_LK]
        words_LK = words_LGN.reshape(L, M)[L1, made_LK]
        word_log_probs_LK = log_probs_LGN.reshape(L, M)[L1, made_LK]
        log_probs_LK = totals_LM[L1, made_LK]
        held_LK = best_LK >= M
        if held_LK.any():
            parents_LK[held_LK] = best_LK[held_LK] - M
            words_LK[held_LK] = self._eos
            word_log_probs_LK[held_LK] = 0
            log_probs_LK[held_LK] = self._log_probs_LK[L1, parents_LK][held_LK]
        self._words_LK, self._log_probs_LK = words_LK, log_probs_LK
        self._scores_LK = scores_LS[L1, best_LK]
        self._finished_LK = (words_LK == self._eos) | (self._scores_LK == -np.inf)
        self._remember(following, rows_LK, parents_LK, word_log_probs_LK)
        return rows_LK

    def _continuations(self, following: Following) -> tuple[Floats, Integers]:
        """Give the likeliest words, and the end mark alone at the last step, however unlikely."""
        if self._taken < self._options.max_words:
            return following.log_probs_LGN, following.words_LGN
        least = np.finfo(np.float32).min / 2
        ends_LG1 = np.maximum(following.end_log_probs_LG1, least)
        return ends_LG1, np.full(ends_LG1.shape, self._eos)

    def _remember(
        self,
        following: Following,
        rows_LK: Integers,
        parents_LK: Integers,
        word_log_probs_LK: Floats,
    ) -> None:
        paid_LGR = following.attention_LGR
        attention_LKR = None if paid_LGR is None else paid_LGR[self._L1, rows_LK]
        self._traces.append(
            _Trace(self._images_L, parents_LK, self._words_LK, word_log_probs_LK, attention_LKR)
        )
        if self._options.no_repeat_ngram_size:
            before_LKT = self._said_LKT[self._L1, parents_LK]
            self._said_LKT = np.concatenate((before_LKT, self._words_LK[..., None]), axis=-1)

    def _staying(self, still_waiting: StillWaiting) -> Booleans:
        """Say which images have a beam to grow and somebody who waits for it."""
        ended = [all(row) for row in self._finished_LK.tolist()]
        pairs = zip(self._images_L.tolist(), ended, strict=True)
        return np.array([not over and still_waiting(image) for image, over in pairs])

    def _keep_last(self, leaving_L: Booleans) -> None:
        """Note the result of images that leave; a beam that has not ended is none."""
        images, finished_LK = self._images_L[leaving_L], self._finished_LK[leaving_L]
        found = zip(self._last_BK, (self._log_probs_LK, self._scores_LK), strict=True)
        for all_BK, some_LK in found:
            all_BK[images] = np.where(finished_LK, some_LK[leaving_L], -np.inf)

    def _leave(self, staying: Integers) -> None:
        """Keep of the images only these."""
        self._images_L, self._L1 = self._images_L[staying], np.arange(len(staying))[:, None]
        self._words_LK, self._scores_LK = self._words_LK[staying], self._scores_LK[staying]
        self._log_probs_LK = self._log_probs_LK[staying]
        self._finished_LK = self._finished_LK[staying]
        if self._options.no_repeat_ngram_size:
            self._said_LKT = self._said_LKT[staying]
        self._image = [part[staying] for part in self._image]

    def _go_on(self, following: Following, staying_L1: Integers, rows_LK: Integers) -> None:
        """Bring the states of the beams that grow together for the next step."""
        K = self._options.beam_width
        growing = K - int(self._finished_LK.sum(axis=1).min())
        self._slots_LG = np.argsort(self._finished_LK, axis=1, kind="stable")[:, :growing]
        rows_LG = rows_LK[self._L1, self._slots_LG]
        self._hidden = following.hidden_LGH[staying_L1, rows_LG]
        self._cell = following.cell_LGH[staying_L1, rows_LG]

    def beams(self) -> BeamArrays:
        """Follow the parents from the last step to the first; the best beam is the first slot."""
        log_probs_BK, scores_BK = self._last_BK
        size = (*scores_BK.shape, len(self._traces))
        words_BKT = np.full(size, self._eos)
        word_log_probs_BKT = np.zeros(size, np.float32)
        paid = self._traces[0].attention_LKR
        attention_BKTR = None if paid is None else np.zeros((*size, paid.shape[-1]), np.float32)
        slots_BK = np.tile(np.arange(size[1]), (size[0], 1))
        for step in range(len(self._traces) - 1, -1, -1):
            trace = self._traces[step]
            images_L, slots_LK = trace.images_L, slots_BK[trace.images_L]
            L1 = np.arange(len(images_L))[:, None]
            words_BKT[images_L, :, step] = trace.words_LK[L1, slots_LK]
            word_log_probs_BKT[images_L, :, step] = trace.word_log_probs_LK[L1, slots_LK]
            if attention_BKTR is not None and trace.attention_LKR is not None:
                attention_BKTR[images_L, :, step] = trace.attention_LKR[L1, slots_LK]
            slots_BK[images_L] = trace.parents_LK[L1, slots_LK]
        lengths_BK = (words_BKT != self._eos).sum(-1)
        return BeamArrays(
            words_BKT, lengths_BK, log_probs_BK, scores_BK, word_log_probs_BKT, attention_BKTR
        )
