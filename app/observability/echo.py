"""The caller's own text in what others read: harmless, and cut where it would be long."""

import re

_FIELD_CHARACTERS = 64
_MESSAGE_CHARACTERS = 160  # ours are shorter
_FILENAME_CHARACTERS = 255  # what file systems allow, so that an honest name comes back as it was
_CUT = "…"
_REPLACED = "\ufffd"
# Controls, line ends, what turns the direction of writing around, and halves of characters.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
OTHER_METHOD = "_OTHER"


def method(given: str) -> str:
    """Give a method that is known, or what stands for all others.

    Reference: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
    """
    return given if given in _METHODS else OTHER_METHOD


def field(name: str) -> str:
    """Give the name of a field for an answer, 64 characters of it."""
    return _harmless(name, _FIELD_CHARACTERS)


def message(text: str) -> str:
    """Give what is wrong with a field for an answer, 160 characters of it."""
    return _harmless(text, _MESSAGE_CHARACTERS)


def filename(name: str) -> str:
    """Give the name of a file for an answer, 255 characters of it."""
    return _harmless(name, _FILENAME_CHARACTERS)


def _harmless(text: str, most: int) -> str:
    cut = text if len(text) <= most else text[:most] + _CUT
    return _HARMFUL.sub(_REPLACED, cut)
