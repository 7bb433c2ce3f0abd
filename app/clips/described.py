"""Shots with their captions: neighbours that say the same become one, and what sums them up."""

from dataclasses import dataclass, replace
from typing import Any, Final

from app.captioner.presentation import Told

_ALIKE: Final = 0.8
"""The share of words that captions of one thing have in common."""
_ARTICLES: Final = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class DescribedShot:
    """A shot and what is told of it.

    Attributes:
        start_s: when it begins.
        end_s: when the next one does, or the clip ends.
        keyframe_s: the time of the frame nearest to its middle.
        told: its candidates.
    """

    start_s: float
    end_s: float
    keyframe_s: float
    told: Told

    @property
    def duration_s(self) -> float:
        """Give how long it lasts."""
        return self.end_s - self.start_s

    def members(self, n_best: int) -> dict[str, Any]:
        """Give it as JSON has it, with so many candidates."""
        best = self.told[0]
        return {
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "keyframe_s": round(self.keyframe_s, 3),
            "caption": self.told.text,
            "log_prob": best.log_prob,
            "confidence": best.confidence,
            **({"withheld": self.told.withheld} if self.told.withheld else {}),
            "candidates": [
                {
                    "caption": each.text,
                    "log_prob": each.log_prob,
                    "score": each.score,
                    "confidence": each.confidence,
                }
                for each in self.told[:n_best]
            ],
        }


def say_the_same(one: str, other: str) -> bool:
    """Say whether two captions are near-identical: they share nearly all words but articles.

    Reference: Jaccard 1912, the size of the intersection over that of the union
    """
    words, others = _words(one), _words(other)
    union = words | others
    return not union or len(words & others) / len(union) >= _ALIKE


def _words(caption: str) -> frozenset[str]:
    return frozenset(caption.lower().rstrip(".").split()) - _ARTICLES


class Merging:
    """Makes one shot of neighbours that say the same, as they come."""

    def __init__(self) -> None:
        self._pending: DescribedShot | None = None

    def add(self, shot: DescribedShot) -> DescribedShot | None:
        """Take the next shot, and give the one before it once it is known to have ended."""
        before, self._pending = self._pending, shot
        if before is None or not say_the_same(before.told[0].text, shot.told[0].text):
            return before
        longer = before if before.duration_s >= shot.duration_s else shot
        self._pending = replace(longer, start_s=before.start_s, end_s=shot.end_s)
        return None

    def end(self) -> DescribedShot | None:
        """Give the last shot."""
        pending, self._pending = self._pending, None
        return pending


class Summary:
    """The caption that stands for a whole clip, of its shots' captions.

    It is the one that is told for the longest time, weighed by its confidence; shots that say the
    same in different places of the clip count together. No sentence is made of several.
    """

    def __init__(self) -> None:
        self._weights: dict[frozenset[str], float] = {}
        self._best: dict[frozenset[str], tuple[float, str]] = {}

    def add(self, shot: DescribedShot) -> None:
        """Take a shot; one whose caption is withheld says nothing."""
        text = shot.told.text
        if text is None:
            return
        confidence = shot.told[0].confidence
        weight = max(shot.duration_s, 1e-3) * (1.0 if confidence is None else confidence)
        words = _words(text)
        self._weights[words] = self._weights.get(words, 0.0) + weight
        self._best[words] = max(self._best.get(words, (0.0, text)), (weight, text))

    @property
    def text(self) -> str | None:
        """Give the caption; None where none is told."""
        if not self._weights:
            return None
        return self._best[max(self._weights, key=lambda words: self._weights[words])][1]
