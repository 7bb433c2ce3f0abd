"""What a file says before its pixels are read: format, size, scans, orientation.

Every walk over a file here is short, whatever its bytes are: what comes one by one is counted, and
what comes in runs is skipped by a search in C.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from app.captioner.errors import FORMATS, UndecodableImage, UnsupportedImage
from app.captioner.image import gif, tiff
from app.captioner.image.bare import Bare, damaged

Kind = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]


_MOST_SCANS = 50  # encoders write a dozen
_MOST_MARKERS = 1000  # of a JPEG outside its scans; a profile and an XMP of 20 MB need 600
_MOST_FILL = 4096  # bytes in a row before a marker; encoders write none or a few
_MOST_CHUNKS = 1000  # and one more for each half kilobyte; encoders write 8 kB into one
_ARITHMETIC_WALKS = 4
_USUAL_PX = 224
_QUICK_BYTES, _QUICK_PIXELS = 4 * 2**20, 16_000_000
_MOST_SEGMENTS = 64  # of the header of a JPEG that is quick; cameras write a dozen
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MAGIC: Final[dict[Kind, bytes | tuple[bytes, ...]]] = {
    "JPEG": _JPEG_MAGIC,
    "PNG": _PNG_MAGIC,
    "GIF": gif.MAGIC,
    "TIFF": tiff.MAGIC,
}
_BMP_HEADS = frozenset({12, 40, 52, 56, 64, 108, 124})
_MOST_BRANDS_END = 256
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1",
})  # fmt: skip
_OTHERS = {
    rb"(<\?xml.*?)?(<!doctype\s+svg.*?|<!--.*?)?<svg": "an SVG is a drawing: render it as PNG",
    rb"<(!doctype\s+)?html": "this is a web page, perhaps an error page in the place of a photo",
    rb"%pdf": "a PDF holds pages: save the page as JPEG or PNG",
    rb"%!ps": "a PostScript file holds pages: save the page as JPEG or PNG",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000 is not read: save it as JPEG",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL is not read: save it as JPEG",
    rb"8BPS": "a Photoshop file is not read: export it as JPEG or PNG",
    rb"\0\0\x01\0": "an icon is not read: save it as PNG",
    rb"(II|MM)[+\0][\0+]": "a BigTIFF is not read: save it as TIFF",
    rb"....ftyp|\x1aE\xdf\xa3": "this is a video: send it to /v1/clips, or a picture of it here",
    rb"PK\x03\x04|\x1f\x8b": "this is an archive: send the photos in it",
    rb"/9j/|iVBORw0KGgo|UklGR|R0lGOD": "this is base64: send the bytes, or JSON with it",
}
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IEND", b"eXIf"})
_PNG_CHANNELS = {b"\0": 1, b"\2": 3, b"\3": 1, b"\4": 2, b"\6": 4}
_PNG_ALPHA = frozenset({b"\4", b"\6"})
_SOS, _EOI, _EXIF_SEGMENT = 0xDA, 0xD9, 0xE1
_EOI_MARKER = b"\xff\xd9"
_COEFFICIENTS, _UNSENT = 64, 14  # of a block; bits that are missing before the first scan
# SOFn, DHT and DAC; DQT, DRI, JFIF and Adobe.
_JPEG_KEPT = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE0, 0xEE} - {0xC8})
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_JPEG_ARITHMETIC = frozenset(range(0xC9, 0xD0)) - {0xCC}
_JPEG_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})  # markers without a length
_JPEG_NO_SEGMENT = _JPEG_BARE | {0xFF}
_JPEG_IN_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_NO_FILL = re.compile(rb"[^\xff]")
_EXIF = b"Exif\0\0"
_BYTE_ORDER: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
_ORIENTATION_TAG = 0x0112
_WEBP_FLAGS = 0x12  # of an extended file: alpha, animation; the others promise what is cut away
_WEBP_FIRST = frozenset({b"VP8X", b"ANIM", b"ALPH"})  # what the first picture needs before it
_WEBP_PICTURE = frozenset({b"VP8 ", b"VP8L", b"ANMF"})
_MOST_BOXES_END = 2**20
_BMP_RUNS = frozenset({b"\1", b"\2"})  # RLE8 and RLE4, which Pillow reads in Python
_BMP_RUN_S = 0.5e-6
_COST_S: Final[dict[Kind, tuple[float, float]]] = {  # of a pixel, and of a byte
    "WEBP": (20e-9, 25e-9),
    "GIF": (6e-9, 15e-9),
    "BMP": (4e-9, 1e-9),
    "TIFF": (12e-9, 15e-9),
    "AVIF": (20e-9, 60e-9),
    "HEIF": (30e-9, 60e-9),
}


def kind_of(data: bytes) -> Kind:
    """Tell a format by its first bytes, in Pillow's word.

    Raises:
        UndecodableImage: there are no bytes at all.
        UnsupportedImage: it is none of ours; the text says what to do where that is known.
    """
    kind = _kind(data)
    if kind is not None:
        return kind
    if not data:
        raise UndecodableImage("the file is empty: it has 0 bytes")
    raise UnsupportedImage(_advice(data))


def is_image(data: bytes) -> bool:
    """Say whether the bytes begin like an image that is read here."""
    return _kind(data) is not None


def _kind(data: bytes) -> Kind | None:
    for kind, magic in _MAGIC.items():
        if data.startswith(magic):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and _little(data[14:18]) in _BMP_HEADS:
        return "BMP"
    return _boxed_kind(data)


def _boxed_kind(data: bytes) -> Kind | None:
    """Tell AVIF and HEIF, which are boxes of MPEG-4, by their brands.

    Reference: ISO/IEC 14496-12 section 4.3, ISO/IEC 23008-12
    """
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), len(data), _MOST_BRANDS_END)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    if not _AVIF_BRANDS.isdisjoint(brands):
        return "AVIF"
    return "HEIF" if not _HEIF_BRANDS.isdisjoint(brands) else None


def _advice(data: bytes) -> str:
    """Say what would work in the place of another kind of file."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    for pattern, advice in _OTHERS.items():
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f"{advice}; expected a {FORMATS} image"
    return f"expected a {FORMATS} image"


def bare(data: bytes, kind: Kind) -> Bare:
    """Cut away what the pixels do not need.

    Raises:
        UndecodableImage: there are more scans, segments or chunks than any encoder writes.
        UnsupportedImage: it is coded in a way that is not read.
    """
    strip = _BARE.get(kind)
    return Bare(data, b"") if strip is None else strip(data)


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height, read by hand: Pillow's plugin allocates the canvas while it opens."""
    if data[12:16] == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if data[12:16] == b"VP8L":
        return (_little(data[21:25]) & 0x3FFF) + 1, (_little(data[21:25]) >> 14 & 0x3FFF) + 1
    return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF


def _little(number: bytes) -> int:
    return int.from_bytes(number, "little")


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


def pixels(data: bytes) -> int:
    """Give width times height as the header of a file says; 0 of what is no image."""
    kind = _kind(data)
    if kind is None:
        return 0
    if kind == "JPEG":
        return _jpeg_pixels(data)
    return math.prod(_size(data, kind))


def _jpeg_pixels(data: bytes) -> int:
    try:
        starts = (start for marker, start, _ in _jpeg_segments(data) if marker in _JPEG_FRAMES)
        at = next(starts)
    except (StopIteration, UndecodableImage):
        return 0
    return _pixels(data[at : at + 10])


def cost_s(data: bytes) -> float:
    """Estimate the CPU seconds of decoding a file for a square of `_USUAL_PX`, from its header.

    For what encoders write it is right within a factor of about two, for most of what
    `benchmarks/costliest.py` tries within three. Deflate blocks with tables and no content cost
    ten times as much as they look. What cannot be decoded may cost less.
    """
    kind = _kind(data)
    if kind is None:
        return 0.0
    if kind == "JPEG":
        return _jpeg_cost_s(data)
    if kind == "PNG":
        return _png_cost_s(data)
    if kind == "BMP" and data[30:31] in _BMP_RUNS:
        return _BMP_RUN_S * len(data)
    pixel_s, byte_s = _COST_S[kind]
    return pixel_s * math.prod(_size(data, kind)) + byte_s * len(data)


def _size(data: bytes, kind: Kind) -> tuple[int, int]:
    """Give width and height as the header says; of what has several, the largest."""
    if kind == "WEBP":
        return webp_size(data)
    if kind == "PNG":
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if kind == "GIF":
        return gif.size(data)
    if kind == "TIFF":
        return tiff.size(data)
    if kind == "BMP":
        sides = (18, 20, 2) if _little(data[14:18]) == 12 else (18, 22, 4)
        return _bmp_side(data, sides[0], sides[2]), _bmp_side(data, sides[1], sides[2])
    return _boxed_size(data)


def _bmp_side(data: bytes, at: int, nbytes: int) -> int:
    return abs(int.from_bytes(data[at : at + nbytes], "little", signed=nbytes == 4))


def _boxed_size(data: bytes) -> tuple[int, int]:
    """Give the largest extent of the pictures; tiles and thumbnails have theirs, too."""
    sizes, at = [(0, 0)], data.find(b"ispe", 0, _MOST_BOXES_END)
    while at >= 0 and len(sizes) < _MOST_MARKERS:
        width, height = data[at + 8 : at + 12], data[at + 12 : at + 16]
        sizes.append((int.from_bytes(width, "big"), int.from_bytes(height, "big")))
        at = data.find(b"ispe", at + 16, _MOST_BOXES_END)
    return max(sizes, key=math.prod)


def _jpeg_cost_s(data: bytes) -> float:
    """Each scan walks over all pixels; colours are made of those that are left after the draft."""
    try:
        heads = [data[start : start + 10] for _, start, _ in _jpeg_segments(data)]
    except UndecodableImage:
        return 0.0
    frames = [head for head in heads if head[1] in _JPEG_FRAMES and len(head) == 10]
    if not frames:
        return 0.0
    pixels, walks, byte_s = _pixels(frames[-1]), 1, 10e-9
    if not _is_in_one_scan(frames, heads[-1][:5]):
        walks += min(data.count(b"\xff\xda"), _MOST_SCANS) * _slowness(frames)
        byte_s *= 2
    draft = max(1, min(8, _shorter(frames[-1]) // _USUAL_PX))
    return (15e-9 / draft**2 + 0.6e-9 * walks) * pixels + byte_s * _slowness(frames) * len(data)


def _png_cost_s(data: bytes) -> float:
    """Pixels are unpacked, their filters undone, what is transparent laid on white."""
    pixels = math.prod(_size(data, "PNG"))
    depth, colour = data[24:25], data[25:26]
    nbytes = pixels * (depth[0] if depth else 0) * _PNG_CHANNELS.get(colour, 0) / 8
    alpha_s = 6e-9 if colour in _PNG_ALPHA else 0.0
    return (3e-9 + alpha_s) * pixels + 2.2e-9 * nbytes + 16e-9 * len(data)


def ends_early(data: bytes) -> bool:
    """Say whether it is a JPEG without its end, as what is cut while it is sent or stored."""
    if not data.startswith(_JPEG_MAGIC) or data.endswith(_EOI_MARKER):
        return False
    try:
        scans_at = next(start for marker, start, _ in _jpeg_segments(data) if marker == _SOS)
    except (StopIteration, UndecodableImage):
        return False
    return data.rfind(_EOI_MARKER, scans_at) < 0


def _shorter(frame: bytes) -> int:
    return min(int.from_bytes(frame[5:7], "big"), int.from_bytes(frame[7:9], "big"))


def _bare_jpeg(data: bytes) -> Bare:
    kept, frames, exif, scans_at, scans = [data[:2]], [], b"", len(data), 1
    for marker, start, end in _jpeg_segments(data):
        if marker == _SOS:
            scans_at = start
        elif marker in _JPEG_KEPT:
            kept.append(data[start:end])
            if marker in _JPEG_FRAMES:
                frames.append(data[start:end])
        elif marker == _EXIF_SEGMENT and not exif and data[start + 4 : start + 10] == _EXIF:
            exif = data[start + 4 : end]
    is_sequential = _is_in_one_scan(frames, data[scans_at : scans_at + 5])
    if not is_sequential:
        heads = _scan_heads(data, scans_at)
        scans = len(heads) * _slowness(frames)
    is_cut = scans_at < len(data) and data.rfind(_EOI_MARKER, scans_at) < 0
    if is_cut and not is_sequential and not _is_in_last_scan(heads):
        raise damaged()
    closing = _EOI_MARKER if is_cut else b""
    file = b"".join([*kept, memoryview(data)[scans_at:], closing])
    return Bare(file, exif, scans, is_sequential=is_sequential, is_cut=is_cut)


def _slowness(frames: Sequence[bytes]) -> int:
    """How many walks of Huffman's code a walk takes: arithmetic code has no runs of blocks."""
    return _ARITHMETIC_WALKS if any(frame[1] in _JPEG_ARITHMETIC for frame in frames) else 1


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment up to the first scan, junk between them skipped."""
    at = 2
    for _ in range(_MOST_MARKERS):
        at = _jpeg_marker(data, at)
        if not 0 <= at < len(data) - 3:
            return
        marker, end = data[at + 1], at + 2
        if marker not in _JPEG_BARE:
            end += max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
            yield marker, at, end
        if marker == _SOS:
            return
        at = end
    raise damaged()


def _jpeg_marker(data: bytes, at: int) -> int:
    """Where the next marker begins, its fill bytes skipped; below 0 if none is near."""
    fill_at = data.find(b"\xff", at)
    code = _NO_FILL.search(data, fill_at, fill_at + _MOST_FILL) if fill_at >= 0 else None
    return code.start() - 1 if code else -1


def _is_in_one_scan(frames: Sequence[bytes], scan: bytes) -> bool:
    """Say whether the first scan has it all: libjpeg then takes a second one for an error."""
    return len(frames) == 1 and frames[0][1] in _JPEG_SEQUENTIAL and frames[0][9:10] == scan[4:5]


def _scan_heads(data: bytes, at: int) -> list[bytes]:
    """Find the scans and give their heads, marker and length left out.

    They are counted, so that a thousand empty ones do not each walk over the whole image.

    Raises:
        UndecodableImage: there are more, or more between them, than any encoder writes.
    """
    heads: list[bytes] = []
    for _ in range(_MOST_MARKERS):
        found = _JPEG_IN_SCAN.search(data, at)
        if not found or found[0][1] == _EOI:
            return heads
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        if found[0][1] == _SOS:
            heads.append(data[found.end() + 2 : at])
        if len(heads) > _MOST_SCANS:
            break
    raise damaged()


def _is_in_last_scan(heads: Sequence[bytes]) -> bool:
    """Say whether every coefficient was sent, or was about to be, with its last bit.

    Reference: ITU-T T.81 section G.1.1.1; a head has the components, Ss, Se, and Ah and Al
    """
    bits: dict[int, list[int]] = {}
    for head in heads:
        count = head[0] if head else 0
        if len(head) != 4 + 2 * count:
            return False
        first, last, approximation = head[-3:]
        for component in head[1 : 1 + 2 * count : 2]:
            left = bits.setdefault(component, [_UNSENT] * _COEFFICIENTS)
            left[first : last + 1] = [approximation & 0x0F] * len(left[first : last + 1])
    return bool(bits) and not any(any(left) for left in bits.values())


def _bare_png(data: bytes) -> Bare:
    """Keep the critical chunks; pixels that come in many chunks become one."""
    kept, pixels = [_PNG_MAGIC], list[bytes]()
    for name, start, end in _png_chunks(data):
        if name == b"IDAT":
            pixels.append(data[start + 8 : end - 4])
        elif name in _PNG_KEPT:
            kept += [*_png_pixels(pixels), data[start:end]]
            pixels = []
    return Bare(b"".join([*kept, *_png_pixels(pixels)]), b"")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of every chunk up to the last."""
    at = len(_PNG_MAGIC)
    for _ in range(_MOST_CHUNKS + len(data) // 512):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise damaged()
        yield name, at, end
        if name == b"IEND":
            return
        at = end
    raise damaged()


def _png_pixels(parts: Sequence[bytes]) -> list[bytes]:
    if not parts:
        return []
    body = b"".join(parts)
    crc = zlib.crc32(body, zlib.crc32(b"IDAT"))
    return [len(body).to_bytes(4, "big"), b"IDAT", body, crc.to_bytes(4, "big")]


def _bare_webp(data: bytes) -> Bare:
    """Keep the first picture: of an animation nobody reads the others, but each costs time."""
    kept, exif, complete = list[bytes](), b"", False
    for name, start, end in _webp_chunks(data):
        if name == b"EXIF" and not exif:
            exif = data[start + 8 : end]
        elif not complete and name in _WEBP_FIRST | _WEBP_PICTURE:
            kept.append(data[start:end] if name != b"VP8X" else _webp_canvas(data[start:end]))
            complete = name in _WEBP_PICTURE
    body = b"".join([b"WEBP", *kept])
    if not complete:
        raise damaged()
    return Bare(b"RIFF" + len(body).to_bytes(4, "little") + body, exif)


def _webp_canvas(chunk: bytes) -> bytes:
    return chunk[:8] + bytes([chunk[8] & _WEBP_FLAGS]) + chunk[9:]


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the first chunks; an EXIF behind more than these is not looked for."""
    at, stop = 12, 8 + _little(data[4:8])
    if stop > len(data):
        raise damaged()
    for _ in range(_MOST_CHUNKS + len(data) // 512):
        size = _little(data[at + 4 : at + 8])
        end = at + 8 + size + size % 2
        if at + 8 > stop:
            return
        if end > stop:
            raise damaged()
        yield data[at : at + 4], at, end
        at = end


_BARE: Final[dict[Kind, Callable[[bytes], Bare]]] = {
    "JPEG": _bare_jpeg,
    "PNG": _bare_png,
    "WEBP": _bare_webp,
    "GIF": gif.bare,
    "TIFF": tiff.bare,
}


def orientation(exif: bytes) -> int:
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
