"""JSON from strangers -> plain values: bounded before it is parsed, fit for a log, a page, a JSON.

Python's own parser nests as deep as the stack, takes fifty bytes for three, and lets through what
no JSON may hold: NaN, infinity, and halves of characters that cannot be written down again.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

MOST_DEEP = 32
_MOST_INTEGER = 2**63
_MARKS = (b",", b":", b"[", b"{")
# Halves of characters, what steers a terminal, what turns the direction of the text around it
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def parse(content: bytes, *, most_values: int) -> Any:
    """Parse UTF-8.

    Args:
        content: as it was read; its length is the caller's business.
        most_values: what the document may hold, counted by its commas, colons and brackets.

    Returns:
        Strings without control characters and surrogates, integers of 64 bits, finite floats; None
        stands for NaN and infinity, which Python writes and JSON does not know.

    Raises:
        ValueError: it is no such document; the message may quote it.
    """
    if sum(map(content.count, _MARKS)) > most_values:
        raise ValueError(f"expected at most {most_values} values")
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_named_once,
            parse_constant=_nothing,
            parse_float=_finite,
        )
    except (RecursionError, MemoryError):
        raise ValueError(f"expected at most {MOST_DEEP} brackets around a value") from None
    for each in _leaves(value, 0):
        _check(each)
    return value


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a key comes twice in one object")
    return named


def _nothing(constant: str) -> None:
    """Stand for a number that is none."""


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    """Give every key and every value that holds no others."""
    if depth > MOST_DEEP:
        raise ValueError(f"expected at most {MOST_DEEP} brackets around a value")
    if isinstance(value, dict):
        yield from value
        value = value.values()
    elif not isinstance(value, list):
        yield value
        return
    for each in value:
        yield from _leaves(each, depth + 1)


def _check(leaf: Any) -> None:
    if isinstance(leaf, str):
        if found := _UNFIT.search(leaf):
            raise ValueError(f"the character {found[0]!a} has no place in a text")
    elif isinstance(leaf, int) and not -_MOST_INTEGER <= leaf < _MOST_INTEGER:
        raise ValueError("a whole number is too large")
