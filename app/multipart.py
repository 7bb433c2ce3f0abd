"""multipart/form-data that is whole in memory -> parts.

The body is split with ``bytes.split``, so the time is that of a copy whatever the bytes are. An
incremental parser looks at every byte that might begin a boundary, and 20 MB of such bytes held the
event loop for a second.
"""

from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from app.problems import MalformedBody

_MAX_BOUNDARY_BYTES = 256
_MAX_HEAD_BYTES = 4096
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
    _, *sections = (b"\r\n" + body).split(delimiter, max_parts + 1)
    if not sections:
        raise MalformedBody
    *parts, last = sections
    if not last.startswith(b"--"):
        raise TooManyParts if len(parts) == max_parts else MalformedBody
    return [_part(section) for section in parts]


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES:
        raise MalformedBody
    return boundary


def _part(section: bytes) -> Part:
    head_ends = section.find(_BLANK_LINE, 0, _MAX_HEAD_BYTES)
    padding, line_end, head = section[: max(head_ends, 0)].partition(b"\r\n")
    if not line_end or padding.strip(b" \t"):
        raise MalformedBody
    name, filename = _disposition(head)
    return Part(name, filename, section[head_ends + len(_BLANK_LINE) :])


def _disposition(head: bytes) -> tuple[str, str | None]:
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value.strip())
            return _text(options.get(b"name")), _text(options[b"filename"]) if (
                b"filename" in options
            ) else None
    raise MalformedBody


def _text(value: bytes | None) -> str:
    if value is None:
        raise MalformedBody
    return value.decode("utf-8", errors="replace")
