"""What every beam search is told and what it gives, whatever it runs on.

B images, K beams, T steps, R regions
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

StillWaiting = Callable[[int], bool]
"""Says whether somebody still waits for image b; once it said no, it says no for ever."""


def always_waiting(image: int) -> bool:  # noqa: ARG001 - the signature of StillWaiting
    """Say that somebody waits for each image of the batch."""
    return True


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        beam_width: beams kept per image; 1 is greedy search.
        min_words: no caption ends before it has so many words.
        max_words: a beam that has so many words must end, however unlikely its end is.
        length_penalty: alpha in ``score = log_prob / steps ** alpha`` (Wu et al. 2016, eq. 14,
            without its constant 5). Steps count the end mark. 0 ranks by log-probability.
        no_repeat_ngram_size: no sequence of so many words comes twice in a caption; 0 allows all.
    """

    beam_width: int = 3
    min_words: int = 1
    max_words: int = 20
    length_penalty: float = 0.7
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        if self.no_repeat_ngram_size < 0 or self.no_repeat_ngram_size == 1:
            raise ValueError(f"no_repeat_ngram_size is 0, or 2 and more, in {self}")
        if self.beam_width < 1 or not 0 <= self.min_words <= self.max_words or self.max_words < 1:
            raise ValueError(f"no search is possible with {self}")


class BeamArrays(NamedTuple):
    """The result, best beam first.

    Attributes:
        words_BKT: int64 ids; after the last word comes ``eos``, then filling.
        lengths_BK: int64, words before the end mark.
        log_probs_BK: float32, the caption's log-probability, end mark included.
        scores_BK: float32, log-probability after the length penalty; ``-inf`` marks a slot that
            holds no caption (fewer captions exist than beams, or nobody waited for its end).
        word_log_probs_BKT: float32.
        attention_BKTR: float32, the sentinel last; None where the decoder has no attention.
        summary_BW: float32, the image in one vector, as the decoder sees it.
        classes_BC: float32, the probabilities of the ImageNet classes; None where the network has
            none.
    """

    words_BKT: npt.NDArray[np.int64]
    lengths_BK: npt.NDArray[np.int64]
    log_probs_BK: npt.NDArray[np.float32]
    scores_BK: npt.NDArray[np.float32]
    word_log_probs_BKT: npt.NDArray[np.float32]
    attention_BKTR: npt.NDArray[np.float32] | None
    summary_BW: npt.NDArray[np.float32] | None = None
    classes_BC: npt.NDArray[np.float32] | None = None

    def over_frames(self, frames: int) -> "BeamArrays":
        """Give the attention of shots as of photos: a region has what it has in all frames.

        Args:
            frames: F, whose regions lie one frame after the other, the sentinel last.
        """
        paid = self.attention_BKTR
        if paid is None or frames == 1:
            return self
        by_frame = paid[..., :-1].reshape(*paid.shape[:-1], frames, -1)
        folded = np.concatenate((by_frame.sum(-2), paid[..., -1:]), axis=-1)
        return self._replace(attention_BKTR=folded)
