"""The first page of a TIFF, alone, and only in the codings that scanners and cameras write.

A TIFF is a directory of tags that may point anywhere, to further pages and to each other. What a
decoder is given has a new directory, with the tags that pixels need and no page behind it.

Reference: TIFF revision 6.0; its supplement 2 of 2002 for Deflate and JPEG
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from app.captioner.errors import UnsupportedImage
from app.captioner.image.bare import Bare, damaged

MAGIC = (b"II*\0", b"MM\0*")
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _SAMPLE_FORMAT = 273, 322, 323, 324, 339
_KEPT = frozenset({
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _STRIPS, _SAMPLE_FORMAT,
    266,  # FillOrder
    278, 279,  # RowsPerStrip, StripByteCounts
    284,  # PlanarConfiguration
    292, 293,  # T4Options, T6Options
    317,  # Predictor
    320,  # ColorMap
    _TILE_WIDTH, _TILE_HEIGHT, _TILES, 325,  # TileByteCounts
    338,  # ExtraSamples
    347,  # JPEGTables
    529, 530, 531, 532,  # YCbCr: coefficients, subsampling, positions, reference
})  # fmt: skip
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_SHORT, _LONG = 3, 4
# None, CCITT, LZW, JPEG, Deflate twice, PackBits. Old JPEG, LZMA, Zstandard and WebP have each a
# decoder of their own, and no photo needs them.
_JPEG = 7
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773})
_PHOTOMETRICS = frozenset({0, 1, 2, 3, 5, 6})  # grey twice, RGB, palette, CMYK, YCbCr
_MOST_BITS = 16
_MOST_ENTRIES = 1000
_MOST_TAG_BYTES = 2**21
_MOST_TILE_PIXELS = 2**24
_SCANS_FREE = 64
_ENTRY_BYTES = 12


class _Entry(NamedTuple):
    tag: int
    kind: int
    values: int
    raw: bytes


def size(data: bytes) -> tuple[int, int]:
    """Width and height of the first page; 0 where it does not say."""
    order = _order(data)
    tags = {entry.tag: entry for entry in _entries(data, order)}
    return _number(data, order, tags.get(_WIDTH)), _number(data, order, tags.get(_HEIGHT))


def bare(data: bytes) -> Bare:
    """Keep the first page.

    Raises:
        UndecodableImage: its directory is damaged, or larger than any encoder writes.
        UnsupportedImage: its coding is none of those that are read.
    """
    order = _order(data)
    tags: dict[int, _Entry] = {}
    for entry in _entries(data, order):
        if entry.tag in _KEPT:
            tags.setdefault(entry.tag, entry)
    if sum(_TYPE_BYTES[entry.kind] * entry.values for entry in tags.values()) > _MOST_TAG_BYTES:
        raise damaged()
    _check_coding(data, order, tags)
    bits = _number(data, order, tags.get(_BITS), 1) * _number(data, order, tags.get(_SAMPLES), 1)
    return Bare(_with_directory(data, order, tags), data, bits=min(bits, 8))


def _order(data: bytes) -> str:
    return "<" if data.startswith(b"II") else ">"


def _entries(data: bytes, order: str) -> Iterator[_Entry]:
    """Read the first directory; entries of unknown types are passed over."""
    if len(data) < 8:
        return
    (at,) = struct.unpack_from(order + "I", data, 4)
    if at + 2 > len(data):
        return
    (count,) = struct.unpack_from(order + "H", data, at)
    for n in range(min(count, _MOST_ENTRIES)):
        start = at + 2 + _ENTRY_BYTES * n
        raw = data[start : start + _ENTRY_BYTES]
        if len(raw) < _ENTRY_BYTES:
            return
        tag, kind, values = struct.unpack_from(order + "HHI", raw)
        if kind in _TYPE_BYTES:
            yield _Entry(tag, kind, values, raw)


def _number(data: bytes, order: str, entry: _Entry | None, default: int = 0) -> int:
    """Give the first value of an entry that holds whole numbers."""
    if entry is None or entry.kind not in {_SHORT, _LONG} or not entry.values:
        return default
    kind, size = ("H", 2) if entry.kind == _SHORT else ("I", 4)
    if entry.values * size <= 4:
        return int(struct.unpack_from(order + kind, entry.raw, 8)[0])
    (at,) = struct.unpack_from(order + "I", entry.raw, 8)
    return int(struct.unpack_from(order + kind, data, at)[0]) if at + size <= len(data) else default


def _check_coding(data: bytes, order: str, tags: dict[int, _Entry]) -> None:
    def number(tag: int, default: int) -> int:
        return _number(data, order, tags.get(tag), default)

    compression = number(_COMPRESSION, 1)
    if (
        compression not in _COMPRESSIONS
        or number(_PHOTOMETRIC, 1) not in _PHOTOMETRICS
        or number(_BITS, 1) > _MOST_BITS
        or number(_SAMPLE_FORMAT, 1) != 1
    ):
        raise UnsupportedImage(
            "this TIFF is in a rare coding: save it with LZW or Deflate and 8 bits a channel"
        )
    if number(_TILE_WIDTH, 0) * number(_TILE_HEIGHT, 0) > _MOST_TILE_PIXELS:
        raise damaged()
    pieces = tags.get(_STRIPS) or tags.get(_TILES)
    most_scans = _SCANS_FREE + 8 * (pieces.values if pieces else 0)
    if compression == _JPEG and data.count(b"\xff\xda") > most_scans:
        raise damaged()


def _with_directory(data: bytes, order: str, tags: dict[int, _Entry]) -> bytes:
    """Put a new directory behind the file, and its address to the front."""
    padding = b"\0" * (len(data) % 2)
    entries = b"".join(tags[tag].raw for tag in sorted(tags))
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    head = data[:4] + struct.pack(order + "I", len(data) + len(padding))
    return b"".join([head, memoryview(data)[8:], padding, directory])
