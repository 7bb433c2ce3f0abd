"""Base64 as people send it -> bytes: either alphabet, padded or not, in lines, in a ``data:`` URI.

Reference: RFC 4648 sections 4 and 5, RFC 2045 section 6.8, RFC 2397
"""

import binascii
from collections.abc import Iterator

_PIECE_CHARACTERS = 2**18  # one call holds the GIL for less than a millisecond
_MOST_URI_HEAD = 256
_MOST_PADDING = 2
_WHITE = b" \t\r\n\f\v"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# What an encoder of URIs writes for characters of base64 and for line ends.
_PERCENT = {b"%2b": b"+", b"%2f": b"/", b"%3d": b"=", b"%0a": b"", b"%0d": b"", b"%20": b""}
_EXPECTED = "expected base64, or a data: URI with it"


def is_data_uri(text: bytes) -> bool:
    """Say whether it begins like a ``data:`` URI; no image does."""
    return text[:5].lower() == b"data:"


def decoded(text: bytes) -> bytes:
    """Decode base64, with or without the head of a ``data:`` URI.

    Raises:
        ValueError: It is not base64; the message is fixed.
    """
    bare = _without_head(text).rstrip(_WHITE)
    payload = bare.rstrip(b"=" + _WHITE)
    if bare.count(b"=", len(payload)) > _MOST_PADDING or b"=" in payload:
        raise ValueError(_EXPECTED)
    try:
        return b"".join(_pieces(payload))
    except binascii.Error:
        raise ValueError(_EXPECTED) from None


def _without_head(text: bytes) -> bytes:
    text = text.lstrip(_WHITE)
    if not is_data_uri(text):
        return text
    comma = text.find(b",", 0, _MOST_URI_HEAD)
    head = text[: max(0, comma)].rstrip().lower()
    if not head.endswith(b"base64"):
        raise ValueError("expected a data: URI with base64, such as data:image/jpeg;base64,/9j/...")
    payload = text[comma + 1 :]
    return _unquoted(payload) if b"%" in payload else payload


def _unquoted(payload: bytes) -> bytes:
    for quoted, plain in _PERCENT.items():
        payload = payload.replace(quoted, plain).replace(quoted.upper(), plain)
    return payload


def _pieces(payload: bytes) -> Iterator[bytes]:
    """Decode piece by piece; what does not fill four characters waits for the next."""
    rest = b""
    for start in range(0, len(payload), _PIECE_CHARACTERS):
        piece = payload[start : start + _PIECE_CHARACTERS]
        rest += piece.translate(_TO_STANDARD, _WHITE)
        whole = len(rest) - len(rest) % 4
        yield binascii.a2b_base64(rest[:whole], strict_mode=True)
        rest = rest[whole:]
    if rest:
        yield binascii.a2b_base64(rest + b"=" * (4 - len(rest)), strict_mode=True)
