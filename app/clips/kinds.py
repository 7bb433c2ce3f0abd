"""What kind of clip a file is, by its first bytes."""

from typing import Final, Literal

from app.captioner.errors import UndecodableImage, UnsupportedImage
from app.captioner.image import formats

CLIPS: Final = "MP4, MOV, WebM, GIF, APNG, WebP or AVIF"
"""What is read, as users are told."""

Container = Literal["mov", "matroska"]
"""A demuxer of FFmpeg; each is opened by name, so that no other looks at the file."""
Animation = Literal["GIF", "PNG", "WEBP", "AVIF"]
_ANIMATIONS: Final[frozenset[str]] = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
_QUICKTIME: Final = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_EBML: Final = b"\x1a\x45\xdf\xa3"
_OTHERS: Final = {
    b"#EXTM3U": "a playlist has no pictures of its own: send the video that it names",
    b"ffconcat": "a playlist has no pictures of its own: send the video that it names",
    b"OggS": "an Ogg file is not read: save it as WebM",
    b"\0\0\1\xba": "an MPEG program stream is not read: save it as MP4",
    b"FLV\1": "a Flash video is not read: save it as MP4",
    b"\x30\x26\xb2\x75": "a Windows Media file is not read: save it as MP4",
}


def container_of(data: bytes) -> Container | None:
    """Tell a video by its container; None for what is no video that is read.

    Reference: ISO/IEC 14496-12 section 4.2; RFC 8794 section 11.2.1
    """
    if data.startswith(_EBML):
        return "matroska"
    if data[4:8] in _QUICKTIME and not formats.is_image(data):
        return "mov"
    return None


def animation_of(data: bytes) -> Animation | None:
    """Tell an image of a format that may move; None for others."""
    kind = formats.kind_of(data) if formats.is_image(data) else ""
    return kind if kind in _ANIMATIONS else None  # type: ignore[return-value]


def is_clip(data: bytes) -> bool:
    """Say whether a file may have several frames."""
    return container_of(data) is not None or animation_of(data) is not None


def check(data: bytes) -> None:
    """Refuse what is neither a clip nor an image.

    Raises:
        UndecodableImage: it is empty.
        UnsupportedImage: it is something else; the text says what would work.
    """
    if not data:
        raise UndecodableImage("the file is empty: it has 0 bytes")
    if container_of(data) or formats.is_image(data):
        return
    for start, advice in _OTHERS.items():
        if data.startswith(start):
            raise UnsupportedImage(f"{advice}; expected {CLIPS}")
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        raise UnsupportedImage(f"an AVI file is not read: save it as MP4; expected {CLIPS}")
    raise UnsupportedImage(f"this is neither a clip nor an image: expected {CLIPS}")
