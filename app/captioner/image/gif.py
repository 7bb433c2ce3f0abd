"""The first picture of a GIF, alone.

Reference: GIF89a specification, W3C, sections 17 to 27
"""

from app.captioner.image.bare import Bare, damaged

MAGIC = (b"GIF87a", b"GIF89a")
_SCREEN_END = 13
_HAS_PALETTE = 0x80
_EXTENSION, _PICTURE, _TRAILER = b"!", b",", b";"
_CONTROL = b"\xf9"
_IS_TRANSPARENT = 0x01
_PICTURE_HEAD_BYTES = 10  # with its mark
_MOST_EXTENSIONS = 1000
_BLOCKS_FREE, _BYTES_PER_BLOCK = 1000, 64  # encoders fill blocks of 255


def size(data: bytes) -> tuple[int, int]:
    """Width and height of the screen; a picture may be larger."""
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def bare(data: bytes) -> Bare:
    """Keep the screen, what is transparent, and the first picture.

    Raises:
        UndecodableImage: there is none, or it comes in more parts than any encoder writes.
    """
    at = _SCREEN_END + _palette_bytes(data[10:11])
    screen, control = data[:at], b""
    for _ in range(_MOST_EXTENSIONS):
        mark = data[at : at + 1]
        if mark == _PICTURE:
            return Bare(b"".join([screen, control, _picture(data, at), _TRAILER]), b"")
        if mark != _EXTENSION:
            break
        if data[at + 1 : at + 2] == _CONTROL and data[at + 2 : at + 3] == b"\4":
            control = _transparency(data[at : at + 8])
        at = _end_of_blocks(data, at + 2)
    raise damaged()


def _palette_bytes(flags: bytes) -> int:
    number = flags[0] if flags else 0
    return 3 << (number & 7) + 1 if number & _HAS_PALETTE else 0


def _transparency(control: bytes) -> bytes:
    """Keep what it says of transparency; what becomes of the picture afterwards is left out."""
    is_transparent = len(control) == 8 and control[3] & _IS_TRANSPARENT
    return control[:3] + b"\1\0\0" + control[6:7] + b"\0" if is_transparent else b""


def _picture(data: bytes, at: int) -> bytes:
    codes = at + _PICTURE_HEAD_BYTES + _palette_bytes(data[at + 9 : at + 10])
    return data[at : _end_of_blocks(data, codes + 1)]


def _end_of_blocks(data: bytes, at: int) -> int:
    for _ in range(_BLOCKS_FREE + len(data) // _BYTES_PER_BLOCK):
        if at >= len(data):
            break
        length = data[at]
        at += 1 + length
        if not length:
            return at
    raise damaged()
