"""How captions are worded, scores aside: enough to see when they are degenerate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BAD_ENDINGS = frozenset(
    {"a", "an", "the", "in", "for", "at", "of", "with", "before", "after", "on", "upon", "near"}
    | {"to", "is", "are", "am", "and"}
)


@dataclass(frozen=True)
class CaptionStatistics:
    """How the candidates are worded, scores aside: enough to see when they are degenerate.

    Attributes:
        distinct_captions: number of different captions after tokenisation.
        words_used: number of different words in all captions.
        mean_length_words: words per caption.
        bad_endings_percent: captions that end in one of `BAD_ENDINGS`, 0 to 100.
        copied_percent: captions that stand word for word in the training set, 0 to 100;
            None where no training captions were given.
    """

    distinct_captions: int
    words_used: int
    mean_length_words: float
    bad_endings_percent: float
    copied_percent: float | None

    def as_text(self) -> str:
        """Give them as one line of text, without a line break."""
        copied = self.copied_percent
        return (
            f"{self.distinct_captions} distinct captions, {self.words_used} words used, "
            f"{self.mean_length_words:.1f} words per caption, "
            f"bad endings {self.bad_endings_percent:.1f} %"
            + ("" if copied is None else f", copied from training {copied:.1f} %")
        )


def caption_statistics(
    captions: Sequence[str], training: Iterable[str] | None
) -> CaptionStatistics:
    """Count.

    Args:
        captions: tokenised, words separated by single spaces; at least one.
        training: captions of the training set, tokenised likewise.
    """
    words = [caption.split() for caption in captions]
    known = None if training is None else set(training)
    return CaptionStatistics(
        distinct_captions=len(set(captions)),
        words_used=len({word for caption in words for word in caption}),
        mean_length_words=sum(map(len, words)) / len(words),
        bad_endings_percent=_percent(not BAD_ENDINGS.isdisjoint(each[-1:]) for each in words),
        copied_percent=None if known is None else _percent(each in known for each in captions),
    )


def _percent(answers: Iterable[bool]) -> float:
    counted = list(answers)
    return 100 * sum(counted) / len(counted)
