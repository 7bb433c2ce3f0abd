"""Bytes -> uint8 RGB, upright and opaque, with Pillow and numpy alone.

H/W pixels, C channels.

Uploads are hostile until proven otherwise. Pillow is given only what the pixels need: metadata is
cut away first (EXIF, ICC, text and animation have all been used against decoders), the header is
checked before any pixel is allocated, and every message is fixed, because the text of a decoder's
exception can tell secrets.

Nothing here knows torch, so that a process that only decodes starts soon and stays small.
"""

import io
import re
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401 - else Pillow loads all its plugins when it first meets WebP
from numpy.typing import NDArray
from PIL import Image

from app.captioner.errors import (
    ImageError,
    ImageTooLarge,
    TooCostly,
    UndecodableImage,
    UnsupportedImage,
)

Pixels = NDArray[np.uint8]


class Decode(Protocol):
    """What does as `decode` does, here or elsewhere."""

    def __call__(self, data: bytes, *, at_least_px: int, max_pixels: int) -> Pixels:
        """Decode one upload."""


_MAX_JPEG_SCANS = 50  # encoders write a dozen; at 25 megapixels a scan of 42 bytes costs 28 ms
_QUICK_BYTES, _QUICK_PIXELS = 4 * 2**20, 16_000_000
_MOST_SEGMENTS = 64  # of the header of a JPEG that is quick; cameras write a dozen
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_SOS, _EOI, _EXIF_SEGMENT = 0xDA, 0xD9, 0xE1
# SOFn, DHT and DAC; DQT, DRI, JFIF and Adobe.
_JPEG_KEPT = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE0, 0xEE} - {0xC8})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_JPEG_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # markers without a length
_JPEG_NO_SEGMENT = _JPEG_BARE | {0xFF}
_JPEG_IN_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_EXIF = b"Exif\0\0"
_BYTE_ORDER: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, *, at_least_px: int, max_pixels: int) -> Pixels:
    """Decode one upload: upright, opaque (on white), first frame.

    Args:
        data: a whole JPEG, PNG or WebP file.
        at_least_px: a large JPEG may come back scaled down by 2, 4 or 8, but never below this
            on either side.
        max_pixels: width times height that the header may declare.

    Returns:
        uint8 RGB of shape (H, W, 3), values 0..255, contiguous and writable.

    Raises:
        UnsupportedImage: the bytes are of another format.
        ImageTooLarge: the header declares more than ``max_pixels``.
        UndecodableImage: the format is right, the content is broken.
        TooCostly: there is not enough memory.
    """
    try:
        return _upright_rgb(data, at_least_px, max_pixels)
    except ImageError:
        raise
    except MemoryError:
        raise TooCostly("decoding the image takes more memory than it may") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large() from None
    except Exception:  # noqa: BLE001 - decoders raise anything; nothing of it may leave
        raise _damaged() from None


def is_quick(data: bytes) -> bool:
    """Say from the header alone whether decoding takes some ten milliseconds at most.

    So does a JPEG of a camera's size in one scan. What comes in many scans, or is compressed as
    PNG and WebP are, can take seconds. The look itself is short whatever the bytes are: it ends at
    the first thing between two segments.
    """
    if len(data) > _QUICK_BYTES or not data.startswith(_JPEG_MAGIC):
        return False
    at = 2
    frames: list[bytes] = []
    for _ in range(_MOST_SEGMENTS):
        head = data[at : at + 10]
        if len(head) < 10 or head[0] != 0xFF or head[1] in _JPEG_NO_SEGMENT:
            return False
        if head[1] == _SOS:
            return _is_in_one_scan(frames, head[:5]) and _pixels(frames[0]) <= _QUICK_PIXELS
        if head[1] in _JPEG_FRAMES:
            frames.append(head)
        at += 2 + int.from_bytes(head[2:4], "big")
    return False


def _pixels(frame: bytes) -> int:
    return int.from_bytes(frame[5:7], "big") * int.from_bytes(frame[7:9], "big")


def _upright_rgb(data: bytes, at_least_px: int, max_pixels: int) -> Pixels:
    kind = _kind(data)
    if kind == "WEBP":
        _check_pixels(*_webp_size(data), max_pixels)
    pixels, exif = _without_metadata(data, kind)
    with Image.open(io.BytesIO(pixels), formats=[kind]) as image:
        _check_pixels(*image.size, max_pixels)
        orientation = _orientation(exif or image.info.get("exif", b""))
        image.draft(None, (at_least_px, at_least_px))
        image.decodermaxblock = len(pixels)  # between two blocks it would wait for Python's lock
        return np.array(_upright(_rgb(image), orientation))


def _kind(data: bytes) -> str:
    if data.startswith(_JPEG_MAGIC):
        return "JPEG"
    if data.startswith(_PNG_MAGIC):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    raise UnsupportedImage("expected a JPEG, PNG or WebP image")


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large()


def _too_large() -> ImageTooLarge:
    return ImageTooLarge("the image has more pixels than this service accepts")


def _damaged() -> UndecodableImage:
    return UndecodableImage("the image is damaged or incomplete")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height, read by hand: Pillow's plugin allocates the canvas while it opens."""
    if data[12:16] == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if data[12:16] == b"VP8L":
        return (_little(data[21:25]) & 0x3FFF) + 1, (_little(data[21:25]) >> 14 & 0x3FFF) + 1
    return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF


def _little(number: bytes) -> int:
    return int.from_bytes(number, "little")


def _without_metadata(data: bytes, kind: str) -> tuple[bytes, bytes]:
    """The file with only what its pixels need, and its EXIF where that was cut out."""
    if kind == "JPEG":
        return _bare_jpeg(data)
    return (_bare_png(data) if kind == "PNG" else data), b""


def _bare_jpeg(data: bytes) -> tuple[bytes, bytes]:
    kept, frames, exif, scans_at = [data[:2]], [], b"", len(data)
    for marker, start, end in _jpeg_segments(data):
        if marker == _SOS:
            scans_at = start
        elif marker in _JPEG_KEPT:
            kept.append(data[start:end])
            if marker in _JPEG_FRAMES:
                frames.append(data[start:end])
        elif marker == _EXIF_SEGMENT and not exif and data[start + 4 : start + 10] == _EXIF:
            exif = data[start + 4 : end]
    if not _is_in_one_scan(frames, data[scans_at : scans_at + 5]):
        _check_scans(data, scans_at)
    return b"".join([*kept, memoryview(data)[scans_at:]]), exif


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment up to the first scan, junk between them skipped."""
    at = data.find(b"\xff", 2)
    while 0 <= at < len(data) - 3:
        marker, end = data[at + 1], at + 2
        if marker == 0xFF:
            end = at + 1
        elif marker not in _JPEG_BARE:
            end += max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
            yield marker, at, end
        if marker == _SOS:
            return
        at = data.find(b"\xff", end)


def _is_in_one_scan(frames: Sequence[bytes], scan: bytes) -> bool:
    """Say whether the first scan has it all: libjpeg then takes a second one for an error."""
    return len(frames) == 1 and frames[0][1] in _JPEG_SEQUENTIAL and frames[0][9:10] == scan[4:5]


def _check_scans(data: bytes, at: int) -> None:
    """Refuse the progressive JPEG whose thousand empty scans each walk over the whole image."""
    scans = 0
    while (found := _JPEG_IN_SCAN.search(data, at)) and found[0][1] != _EOI:
        scans += found[0][1] == _SOS
        if scans > _MAX_JPEG_SCANS:
            raise _damaged()
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")


def _bare_png(data: bytes) -> bytes:
    kept, name, at = [_PNG_MAGIC], b"", len(_PNG_MAGIC)
    while name != b"IEND":
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise _damaged()
        if name in _PNG_KEPT:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _orientation(exif: bytes) -> int:
    """The orientation tag of the first directory, 1 where there is none that can be read."""
    tiff = exif.removeprefix(_EXIF)
    order = _BYTE_ORDER.get(tiff[:2])
    if order is None:
        return 1
    first = int.from_bytes(tiff[4:8], order)
    entries = int.from_bytes(tiff[first : first + 2], order)
    for at in range(first + 2, min(first + 2 + 12 * entries, len(tiff)), 12):
        if int.from_bytes(tiff[at : at + 2], order) == _ORIENTATION_TAG:
            return int.from_bytes(tiff[at + 8 : at + 10], order)
    return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which copies even RGB
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 (Pillow's own conversion clips), its transparent value made white."""
    grey = np.asarray(image)
    scaled = (grey >> 8).astype(np.uint8)
    if "transparency" in image.info:
        scaled[grey == image.info["transparency"]] = 255
    return Image.fromarray(scaled)
