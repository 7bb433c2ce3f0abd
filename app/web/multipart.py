"""multipart/form-data that is whole in memory -> parts.

Boundaries are looked for with ``bytes.find``, so the time is that of a walk over the body whatever
its bytes are, and a part is copied once. An incremental parser looks at every byte that might begin
a boundary, and 20 MB of such bytes held the event loop for a second.
"""

from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from app.web.problems import MalformedBody

_MAX_BOUNDARY_BYTES = 256
_MAX_HEAD_BYTES = 4096
_MAX_SEMICOLONS = 64  # file names may have some
_BLANK_LINE = b"\r\n\r\n"


@dataclass(frozen=True)
class Part:
    """One part of a form: a file when it has a filename, else a field."""

    name: str
    filename: str | None
    data: bytes


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
    return [_part(body, *section) for section in _sections(body, delimiter, max_parts)]


def _sections(body: bytes, delimiter: bytes, most: int) -> list[tuple[int, int]]:
    """Find where each part begins and ends."""
    sections: list[tuple[int, int]] = []
    bare = delimiter.removeprefix(b"\r\n")  # at the very start no line ends before it
    at = len(bare) if body.startswith(bare) else _found(body, delimiter, 0) + len(delimiter)
    while not body.startswith(b"--", at):
        if len(sections) == most:
            raise TooManyParts
        end = _found(body, delimiter, at)
        sections.append((at, end))
        at = end + len(delimiter)
    return sections


def _found(body: bytes, wanted: bytes, start: int, end: int | None = None) -> int:
    at = body.find(wanted, start, end)
    if at < 0:
        raise MalformedBody
    return at


def _boundary(content_type: str) -> bytes:
    boundary = _parameters(content_type.encode("latin-1", "replace")).get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES:
        raise MalformedBody
    return boundary


def _part(body: bytes, start: int, end: int) -> Part:
    head_ends = _found(body, _BLANK_LINE, start, min(end, start + _MAX_HEAD_BYTES))
    padding, line_end, head = body[start:head_ends].partition(b"\r\n")
    if not line_end or padding.strip(b" \t"):
        raise MalformedBody
    name, filename = _disposition(head)
    return Part(name, filename, body[head_ends + len(_BLANK_LINE) : end])


def _disposition(head: bytes) -> tuple[str, str | None]:
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            options = _parameters(value)
            filename = options.get(b"filename")
            return _text(options.get(b"name")), None if filename is None else _text(filename)
    raise MalformedBody


def _parameters(value: bytes) -> dict[bytes, bytes]:
    """Read the parameters behind the value of a header.

    The library looks at all that follows again for each semicolon, so they are counted first.

    Reference: RFC 9110 section 5.6.6, RFC 7578 section 4.2
    """
    if value.count(b";") > _MAX_SEMICOLONS:
        raise MalformedBody
    return parse_options_header(value.strip())[1]


def _text(value: bytes | None) -> str:
    if value is None:
        raise MalformedBody
    return value.decode("utf-8", errors="replace")
