"""Texts of another tokenisation, found by the special tokens they carry, are refused."""

import re
from collections.abc import Iterable, Mapping

from trainer.errors import ScoringError

_SPECIAL_TOKEN = re.compile(
    r"\b(?:startseq|endseq)\b|<(?:start|end|s|/s|bos|eos|pad|unk)>", re.IGNORECASE
)


def refuse_special_tokens(
    candidates: Mapping[str, str], references: Mapping[str, Iterable[str]]
) -> None:
    """Refuse captions or references that still carry special tokens of another program.

    Counted as words, such tokens on both sides raise BLEU-1 by several points.

    Raises:
        ScoringError: a text holds one; the message names image and token.
    """
    for side, texts in (
        ("caption", ((image, text) for image, text in candidates.items())),
        ("reference", ((image, text) for image, of in references.items() for text in of)),
    ):
        for image, text in texts:
            found = _SPECIAL_TOKEN.search(text)
            if found:
                raise ScoringError(
                    f"expected captions as people write them, got the token {found[0]!r} in a "
                    f"{side} of {image}: it is of another tokenisation, give the bare captions"
                )
