"""Bytes -> uint8 RGB, upright and opaque, with Pillow and numpy alone.

H/W pixels, C channels.

Uploads are hostile until proven otherwise. Pillow is given only what the pixels need: metadata is
cut away first (EXIF, ICC, text and animation have all been used against decoders), what the header
declares is checked before any pixel is allocated, and every message is fixed, because the text of
a decoder's exception can tell secrets.

Nothing here knows torch, so that a process that only decodes starts soon and stays small.
"""

import io
from importlib.util import find_spec
from typing import Final, NamedTuple, Protocol

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401 - else Pillow loads all its plugins when it first meets WebP
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin

from app.captioner.errors import ImageError, ImageTooLarge, TooCostly, UnsupportedImage
from app.captioner.image import formats
from app.captioner.image.bare import Bare, damaged
from app.captioner.image.formats import cost_s as cost
from app.captioner.image.formats import is_quick

__all__ = ["Decode", "EncodedImage", "Pixels", "cost", "decode", "is_quick"]

Pixels = NDArray[np.uint8]


class EncodedImage(NamedTuple):
    """An upload that is quick to decode, and is still to be.

    Attributes:
        data: the file.
        max_pixels: width times height that the header may declare.
        nbytes: none of its own: whoever has the upload has made room for it.
    """

    data: bytes
    max_pixels: int
    nbytes: int = 0


class Decode(Protocol):
    """What does as `decode` does, here or elsewhere."""

    def __call__(self, data: bytes, *, at_least_px: int, max_pixels: int) -> Pixels:
        """Decode one upload."""


_LONGEST_PX = 65_535  # what a JPEG can have; each row of pixels costs some memory of its own
_FREE_PIXELS = 9_000_000  # a blank page at 300 dpi, a screen of 3840 x 2160
_PIXELS_PER_BYTE = 2_000  # flat colours have up to 400 as JPEG and lossy WebP
_FREE_SCANNED_PIXELS = 100_000_000
_SCANS_OF_THE_LARGEST = 20  # encoders write ten or twelve, 18 for four colours
_LARGE_PIXELS = 4_000_000
_SPARE = 2  # a large image keeps twice the sides that are asked for: resizing still smooths it
_FLATTEST = 64  # a side longer than so many times ``at_least_px`` is shortened by itself
_STRIP_PIXELS = 2**18  # converted at a time: they stay in the cache of a core
_SEQUENTIAL_SHARE = 6  # of the pixels that others may have: decoding costs less than a sixth
_MISSING, _NEAR = 128, 2
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
        data: a whole file of a format that is read.
        at_least_px: a large image may come back scaled down by a whole number, but never below
            this on either side. A side of a large image above 64 times as much is shortened to
            that by itself.
        max_pixels: width times height that the header may declare; a JPEG in one scan, which is
            scaled down while it is decoded, may declare six times as much.

    Returns:
        uint8 RGB of shape (H, W, 3), values 0..255, contiguous and writable.

    Raises:
        UnsupportedImage: the bytes are of another format.
        ImageTooLarge: the header declares more than ``max_pixels``, or a side above 65,535.
        TooCostly: it declares far more pixels, or scans, than its bytes are worth, or there
            is not enough memory for it.
        UndecodableImage: the format is right, the content is broken. A JPEG that only ends early
            is decoded, if two thirds of its rows are there.
    """
    try:
        return _upright_rgb(data, at_least_px, max_pixels)
    except ImageError:
        raise
    except MemoryError:
        raise TooCostly("decoding the image takes more memory than it may") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)  # Pillow looks first
        raise ImageTooLarge("the image has more pixels than this service accepts", limit) from None
    except Exception:  # noqa: BLE001 - decoders raise anything; nothing of it may leave
        raise damaged() from None


def _upright_rgb(data: bytes, at_least_px: int, max_pixels: int) -> Pixels:
    kind = formats.kind_of(data)
    if kind == "WEBP":
        _check_size(*formats.webp_size(data), max_pixels)
    bare = formats.bare(data, kind)
    if kind == "WEBP":
        _check_cost(*formats.webp_size(data), bare, kind, max_pixels)
    with opened(bare, kind) as image:
        _check_size(*image.size, max_pixels * (_SEQUENTIAL_SHARE if bare.is_sequential else 1))
        _check_cost(*image.size, bare, kind, max_pixels)
        orientation = formats.orientation(bare.exif or image.info.get("exif") or b"")
        image.draft(None, (at_least_px, at_least_px))
        _check_size(*image.size, max_pixels)
        image.decodermaxblock = _in_one_go(image, bare)
        if bare.is_cut:
            _check_rows(image)
        return np.array(_upright(_shrunk(image, at_least_px), orientation))


def opened(bare: Bare, kind: formats.Kind) -> ImageFile.ImageFile:
    """Read the header, with the plugin of this format and no other.

    Pillow's own bound on pixels is ours as well, except for JPEG, which it scales down.
    """
    file = io.BytesIO(bare.file)
    if kind == "JPEG":
        return JpegImagePlugin.JpegImageFile(file)
    _PLUGINS.get(kind, _nothing)()
    return Image.open(file, formats=[kind])


def _nothing() -> None:
    """Pillow has the plugin already."""


def _import_avif() -> None:
    from PIL import AvifImagePlugin  # noqa: PLC0415 - a codec of two megabytes

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # an upload has one core


def _import_tiff() -> None:
    import PIL.TiffImagePlugin  # noqa: F401, PLC0415


def _import_heif() -> None:
    if find_spec("pillow_heif") is None:
        raise UnsupportedImage(
            "HEIC is not read here: send a JPEG, or install caption-service[heif]"
        )
    import pillow_heif  # noqa: PLC0415 - brings codecs

    pillow_heif.register_heif_opener(
        thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
    )


_PLUGINS: Final = {"AVIF": _import_avif, "TIFF": _import_tiff, "HEIF": _import_heif}


def _in_one_go(image: Image.Image, bare: Bare) -> int:
    """Bytes of the only block: between two, a decoder would wait for the GIL.

    What WebP's decoder gives comes as a block too, of four bytes a pixel.
    """
    return max(len(bare.file), 4 * image.width * image.height)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge("the image has more pixels than this service accepts", max_pixels)
    if max(width, height) > _LONGEST_PX:
        raise ImageTooLarge(f"a side of the image is longer than {_LONGEST_PX} px", _LONGEST_PX)


def _check_cost(width: int, height: int, bare: Bare, kind: formats.Kind, max_pixels: int) -> None:
    """Hold what is declared against what is there; deflate does so for PNG by itself."""
    pixels = width * height
    most = _FREE_PIXELS + _PIXELS_PER_BYTE * len(bare.file)
    most_scanned = max(_FREE_SCANNED_PIXELS, _SCANS_OF_THE_LARGEST * max_pixels)
    if (kind != "PNG" and pixels * bare.bits / 8 > most) or (
        bare.scans > 1 and pixels * bare.scans > most_scanned
    ):
        raise TooCostly("the image would take longer to decode than its size allows")


def _check_rows(image: Image.Image) -> None:
    """Refuse a JPEG that ends early, if its lower third is missing: libjpeg leaves that grey.

    Raises:
        UndecodableImage: it is.
    """
    image.load()
    lower = image.crop((0, image.height * 2 // 3, *image.size))
    least, most = np.ravel(lower.getextrema()).min(), np.ravel(lower.getextrema()).max()
    if abs(least - _MISSING) <= _NEAR and abs(most - _MISSING) <= _NEAR:
        raise damaged()


def _shrunk(image: Image.Image, at_least_px: int) -> Image.Image:
    """RGB, opaque; of a large image each square of pixels is one, its mean.

    It is converted and shrunk in strips: as a whole that would take more memory than the decoder
    did, and most of the time. Colours are mixed after they are opaque, so none shines through.
    """
    by_x, by_y = _scales(image, at_least_px)
    if by_x == by_y == 1:
        return opaque(image)
    image.load()
    small = Image.new("RGB", (-(-image.width // by_x), -(-image.height // by_y)))
    rows = max(1, _STRIP_PIXELS // (image.width * by_y)) * by_y
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(opaque(strip).reduce((by_x, by_y)), (0, top // by_y))
    return small


def _scales(image: Image.Image, at_least_px: int) -> tuple[int, int]:
    """By which whole numbers width and height are divided; libjpeg has shrunk JPEGs already."""
    if image.width * image.height <= _LARGE_PIXELS:
        return 1, 1
    spare = min(image.size) // (_SPARE * at_least_px)
    by = 1 if image.format == "JPEG" else max(1, spare)
    longest = _FLATTEST * at_least_px
    return max(by, -(-image.width // longest)), max(by, -(-image.height // longest))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def opaque(image: Image.Image) -> Image.Image:
    """Give an image as RGB, on white where it is transparent."""
    if image.mode in {"I;16", "I;16B"}:
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which copies even RGB
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
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
