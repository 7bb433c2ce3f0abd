"""Captions without the gender that a network guesses from appearance.

Microsoft's image description service calls it gender-neutral captions. The words are English.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Final

from app.captioner.captions import Candidates, Caption

_NEUTRAL: Final = {
    **dict.fromkeys(("man", "woman", "guy", "lady", "gentleman", "male", "female"), "person"),
    **dict.fromkeys(("men", "women", "guys", "ladies", "gentlemen", "males", "females"), "people"),
    **dict.fromkeys(("boy", "girl"), "child"),
    **dict.fromkeys(("boys", "girls"), "children"),
    **dict.fromkeys(("he", "she"), "they"),
    **dict.fromkeys(("his", "her", "hers"), "their"),
    **dict.fromkeys(("himself", "herself"), "themselves"),
    "him": "them",
}
_PAIRS: Final = {
    "a person and a person": "two people",
    "a child and a child": "two children",
    "people and people": "people",
    "children and children": "children",
    "person person": "person",
}


def neutral(candidates: Candidates) -> Candidates:
    """Say person, people, child and children, and rank the candidates anew.

    Candidates that then say the same become one; their probabilities add up.
    """
    merged: dict[str, Caption] = {}
    for caption in map(_neutral, candidates):
        known = merged.get(caption.text)
        merged[caption.text] = caption if known is None else _sum(known, caption)
    ranked = sorted(merged.values(), key=lambda caption: -caption.score)
    return candidates.told_as(ranked)


def neutral_text(text: str) -> str:
    """Say it without gender."""
    words = " ".join(_NEUTRAL.get(word, word) for word in text.split())
    return reduce(_paired, _PAIRS.items(), f" {words} ").strip()


def _paired(text: str, pair: tuple[str, str]) -> str:
    said, better = pair
    return text.replace(f" {said} ", f" {better} ")


def _neutral(caption: Caption) -> Caption:
    text = neutral_text(caption.text)
    if text == caption.text:
        return caption
    words = tuple(word._replace(text=_NEUTRAL.get(word.text, word.text)) for word in caption.words)
    return replace(caption, text=text, words=words)


def _sum(first: Caption, second: Caption) -> Caption:
    """Add the probabilities of two captions that say the same; the better one's words stay."""
    better = max(first, second, key=lambda caption: caption.score)
    log_prob = _log_of_sum((first.log_prob, second.log_prob))
    penalty = better.log_prob / better.score if better.score else 1.0
    confidences = [each.confidence for each in (first, second) if each.confidence is not None]
    return replace(
        better,
        log_prob=log_prob,
        score=log_prob / penalty,
        confidence=max(confidences, default=None),
    )


def _log_of_sum(values: Iterable[float]) -> float:
    values = tuple(values)
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
