"""The chunked transfer coding: bytes as they come -> the pieces of the body. Strict and bounded.

Reference: RFC 9112 section 7.1
"""

import re
from enum import Enum, auto

_MOST_LINE_BYTES = 256
_MOST_TRAILER_BYTES = 8192
_CHUNKS_FREE = 16_384
_BYTES_PER_CHUNK = 256  # on average beyond that: a chunk of one byte costs as much as a large one
# Up to 15 digits; extensions are ignored. They hold no control character, least of all a bare CR.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class ChunkedError(Exception):
    """The bytes do not follow the coding, or split a body into far too many chunks."""


class _Expected(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    NOTHING = auto()


class ChunkedBody:
    """Decodes one body."""

    def __init__(self) -> None:
        self._expected = _Expected.SIZE
        self._line = bytearray()
        self._left = 0  # bytes of the chunk still to come
        self._chunks = 0
        self._body_bytes = 0
        self._trailer_bytes = 0

    @property
    def complete(self) -> bool:
        """Whether the body has ended."""
        return self._expected is _Expected.NOTHING

    def take(self, data: bytes, at: int, into: bytearray) -> int:
        """Decode from ``data[at]`` on, append to ``into``, and give where the body or data ends.

        Raises:
            ChunkedError: see there. Nothing of the connection can be trusted any more.
        """
        while at < len(data) and not self.complete:
            if self._expected is _Expected.DATA:
                at = self._take_data(data, at, into)
            else:
                at = self._take_line(data, at)
        return at

    def _take_data(self, data: bytes, at: int, into: bytearray) -> int:
        end = min(len(data), at + self._left)
        into += memoryview(data)[at:end]
        self._left -= end - at
        self._body_bytes += end - at
        if not self._left:
            self._expected = _Expected.DATA_END
        return end

    def _take_line(self, data: bytes, at: int) -> int:
        found = data.find(b"\n", at, at + _MOST_LINE_BYTES)
        end = min(len(data), at + _MOST_LINE_BYTES) if found < 0 else found + 1
        self._line += memoryview(data)[at:end]
        if len(self._line) > _MOST_LINE_BYTES or (
            found < 0 and len(self._line) == _MOST_LINE_BYTES
        ):
            raise ChunkedError("a line without end")
        if found >= 0:
            line, self._line = bytes(self._line), bytearray()
            if not line.endswith(b"\r\n"):
                raise ChunkedError("a line without CR")
            self._read_line(line[:-2])
        return end

    def _read_line(self, line: bytes) -> None:
        if self._expected is _Expected.SIZE:
            self._begin_chunk(line)
        elif self._expected is _Expected.TRAILER:
            self._pass_trailer(line)
        elif line:
            raise ChunkedError("a chunk longer than its size")
        else:
            self._expected = _Expected.SIZE

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise ChunkedError("no size of a chunk")
        self._left = int(match[1], 16)
        self._expected = _Expected.DATA if self._left else _Expected.TRAILER
        self._chunks += 1
        if self._chunks > _CHUNKS_FREE + self._body_bytes // _BYTES_PER_CHUNK:
            raise ChunkedError("too many chunks")

    def _pass_trailer(self, line: bytes) -> None:
        """Ignore a field behind the body: nothing here asks for one."""
        self._trailer_bytes += len(line)
        if self._trailer_bytes > _MOST_TRAILER_BYTES:
            raise ChunkedError("trailers without end")
        if not line:
            self._expected = _Expected.NOTHING
