"""multipart/form-data that is whole in memory -> parts.

Boundaries are looked for with ``bytes.find``, so the time is that of a walk over the body whatever
its bytes are, and a part is copied once. An incremental parser looks at every byte that might begin
a boundary, and 20 MB of such bytes held the event loop for a second.
"""

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from app.web.problems import MalformedBody

_MAX_BOUNDARY_BYTES = 256
_MAX_HEAD_BYTES = 4096
_MAX_SEMICOLONS = 64  # file names may have some
_BLANK_LINE = b"\r\n\r\n"
# Closed or not, so that nothing is looked at twice; but for what `filename*` itself has in quotes.
_QUOTED = re.compile(rb'(?<!\*=)"(?:[^"\\]|\\.?)*+(?:"|\Z)', re.DOTALL)
_EXTENDED_NAME = re.compile(
    rb";\s*filename\*\s*=\s*\"?([\w!#$&+^`{}~-]{1,40})'[^';\"]*'([^;\s\"]*)", re.IGNORECASE
)
_ENCODED_WORD = re.compile(r"=\?[\w-]{1,40}\?[bq]\?[^?]*\?=", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """One part of a form: a file when it has a filename, else a field.

    Attributes:
        name: of the field.
        filename: None where the part has none.
        data: its content.
        is_base64: whether its head says that the content is, as clients for e-mail write it.
    """

    name: str
    filename: str | None
    data: bytes
    is_base64: bool = False


class TooManyParts(Exception):
    """The form has more parts than asked for."""


def parse(content_type: str, body: bytes, *, max_parts: int) -> list[Part]:
    """Split a form into its parts, in order.

    Raises:
        MalformedBody: It does not follow the syntax.
        TooManyParts: There are more than ``max_parts``.

    Reference: RFC 2046 section 5.1.1, RFC 7578
    """
    delimiter = b"\r\n--" + _boundary(content_type)
    sections = _sections(body, delimiter, max_parts)
    return [_part(body, *section, number) for number, section in enumerate(sections, 1)]


def _sections(body: bytes, delimiter: bytes, most: int) -> list[tuple[int, int]]:
    """Find where each part begins and ends."""
    sections: list[tuple[int, int]] = []
    bare = delimiter.removeprefix(b"\r\n")  # at the very start no line ends before it
    at = len(bare) if body.startswith(bare) else _first(body, delimiter) + len(delimiter)
    while not body.startswith(b"--", at):
        if len(sections) == most:
            raise TooManyParts
        end = body.find(delimiter, at)
        if end < 0:
            raise MalformedBody(f"Part {len(sections) + 1} of the form is cut off, or has no end")
        sections.append((at, end))
        at = end + len(delimiter)
    return sections


def _first(body: bytes, delimiter: bytes) -> int:
    at = body.find(delimiter)
    if at < 0:
        raise MalformedBody("The boundary that the Content-Type names is not in the body")
    return at


def _boundary(content_type: str) -> bytes:
    boundary = _parameters(content_type.encode("latin-1", "replace")).get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES:
        raise MalformedBody(
            "The Content-Type names no boundary: leave that header to your HTTP library"
        )
    return boundary


def _part(body: bytes, start: int, end: int, number: int) -> Part:
    head_ends = body.find(_BLANK_LINE, start, min(end, start + _MAX_HEAD_BYTES))
    padding, line_end, head = body[start : max(start, head_ends)].partition(b"\r\n")
    if head_ends >= 0 and not line_end and not padding.strip(b" \t"):
        raise MalformedBody(f"Part {number} of the form has no Content-Disposition")
    if not line_end or padding.strip(b" \t"):
        raise MalformedBody(f"Part {number} of the form has no head that ends in an empty line")
    fields = _head_fields(head)
    name, filename = _disposition(fields, number)
    coding = fields.get(b"content-transfer-encoding", b"").lower()
    return Part(name, filename, body[head_ends + len(_BLANK_LINE) : end], coding == b"base64")


def _head_fields(head: bytes) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        fields.setdefault(header.strip().lower(), value.strip())
    return fields


def _disposition(fields: dict[bytes, bytes], number: int) -> tuple[str, str | None]:
    value = fields.get(b"content-disposition")
    if value is None:
        raise MalformedBody(f"Part {number} of the form has no Content-Disposition")
    options = _parameters(value)
    if b"name" not in options:
        raise MalformedBody(f"Part {number} of the form has no name")
    return _text(options[b"name"]), _filename(value, options.get(b"filename"))


def _filename(disposition: bytes, plain: bytes | None) -> str | None:
    """Give the name of a file in whichever of its spellings, the most explicit first.

    Reference: RFC 8187; RFC 2047, which old clients apply here although it forbids that
    """
    extended = _EXTENDED_NAME.search(_QUOTED.sub(b'""', disposition))
    if extended is not None:
        charset = extended[1].decode("ascii", "replace")
        try:
            return unquote_to_bytes(extended[2]).decode(charset, "replace")
        except (LookupError, ValueError):  # a character set that nobody knows
            pass
    if plain is None:
        return None
    text = _text(plain)
    return _decoded_words(text) if _ENCODED_WORD.search(text) else text


def _decoded_words(text: str) -> str:
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        return text


def _parameters(value: bytes) -> dict[bytes, bytes]:
    """Read the parameters behind the value of a header.

    The library looks at all that follows again for each semicolon, so they are counted first.

    Reference: RFC 9110 section 5.6.6, RFC 7578 section 4.2
    """
    if value.count(b";") > _MAX_SEMICOLONS:
        raise MalformedBody("A header has too many parameters")
    return parse_options_header(value.strip())[1]


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
