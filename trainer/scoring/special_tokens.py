"""Texts of another tokenisation, found by the markers they carry, are refused."""

import re
from collections.abc import Iterable, Mapping

from trainer.errors import ScoringError

_MARKER = re.compile(r"\b(?:startseq|endseq)\b|<(?:start|end|s|/s|bos|eos|pad|unk)>", re.IGNORECASE)


def refuse_markers(candidates: Mapping[str, str], references: Mapping[str, Iterable[str]]) -> None:
    """Refuse captions or references that still carry the markers of the program they come from.

    Counted as words, markers on both sides raise BLEU-1 by several points.

    Raises:
        ScoringError: a text holds a marker; the message names image and marker.
    """
    for side, texts in (
        ("caption", ((image, text) for image, text in candidates.items())),
        ("reference", ((image, text) for image, of in references.items() for text in of)),
    ):
        for image, text in texts:
            found = _MARKER.search(text)
            if found:
                raise ScoringError(
                    f"expected captions as people write them, got the marker {found[0]!r} in a "
                    f"{side} of {image}: it is of another tokenisation, give the bare captions"
                )
