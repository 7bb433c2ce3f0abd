"""The images of items, each decoded once: what the service cannot read is converted to PNG.

JPEG, PNG and WebP stay as they are, whatever their names say. All else that Pillow opens becomes a
PNG without loss: upright, opaque, its first frame.
"""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from app.captioner.errors import ImageError, UnsupportedImage
from app.captioner.image.formats import kind_of
from trainer.data.pixels import MAX_PIXELS, PixelHashes, pixels_sha256
from trainer.data.shards import SUFFIXES
from trainer.errors import EntryError
from trainer.importing.image_folder import picture_formats
from trainer.importing.items import Item
from trainer.importing.staging import Staging

_HEAD_BYTES = 32
_BROKEN = "the image cannot be read"
_USUAL_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass
class UsableImages:
    """Items whose images can be read, and what was wrong with the others.

    Attributes:
        items: their paths lead to what the service reads.
        hashes: of what the images show, by the names of the items.
        faults: one for each image that cannot be read.
        notes: what was converted.
    """

    items: list[Item]
    hashes: PixelHashes
    faults: list[EntryError]
    notes: list[str]


def usable_images(items: Iterable[Item], staging: Staging) -> UsableImages:
    """Decode every image once; convert those of other formats into ``staging``."""
    usable = UsableImages([], PixelHashes({}, {}), [], [])
    items = list(items)
    taken = {item.name for item in items}
    converted: Counter[str] = Counter()
    for item in tqdm(items, "images", unit="image", leave=False):
        try:
            ready, kind = _ready(item, staging, taken)
            usable.hashes.sha256[ready.name] = pixels_sha256(ready.path)
        except (ImageError, OSError, EntryError) as error:
            usable.faults.append(_fault(item, error))
            continue
        usable.items.append(ready)
        converted[kind] += bool(kind)
    usable.notes = [
        f"{count} images are {kind}: their copies here are PNG, the originals stay as they are"
        for kind, count in converted.items()
        if kind
    ]
    return usable


def _ready(item: Item, staging: Staging, taken: set[str]) -> tuple[Item, str]:
    """Give an item that the service can read, and the format it was converted from, if it was."""
    kind = _known_kind(item.path)
    if kind is None or kind not in _USUAL_SUFFIX:
        path, other = _converted(item, staging, is_heif=kind == "HEIF")
        return replace(item, name=_renamed(item.name, ".png", taken), path=path), other
    suffix = PurePosixPath(item.name).suffix.removeprefix(".").lower()
    if suffix in SUFFIXES:
        return item, ""
    return replace(item, name=_renamed(item.name, _USUAL_SUFFIX[kind], taken)), ""


def _known_kind(path: Path) -> str | None:
    """Name the format of a file as the service tells it; None where it knows none."""
    try:
        kind: str = kind_of(_head(path))
    except UnsupportedImage:
        return None
    return kind


def _renamed(name: str, suffix: str, taken: set[str]) -> str:
    path = PurePosixPath(name)
    known = path.suffix and len(path.suffix) <= 5
    new = str(path.with_suffix(suffix)) if known else f"{name}{suffix}"
    if new in taken:
        new = f"{name.replace('.', '_')}{suffix}"
    taken.add(new)
    return new


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _converted(item: Item, staging: Staging, *, is_heif: bool) -> tuple[Path, str]:
    """Write an image of another format as PNG.

    Raises:
        EntryError: nobody here can read it; the message names the extra that could.
    """
    if is_heif:
        _register_heif(item)
    try:
        content = io.BytesIO(item.path.read_bytes())
        with Image.open(content, formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise EntryError(item.where, _BROKEN, f"{item.path.name} of {image.size} pixels")
            kind = image.format or "of an unknown format"
            rgb = _opaque(ImageOps.exif_transpose(_eight_bits(image)))
            path = staging.next_path(".png")
            rgb.save(path, compress_level=1)
    except UnidentifiedImageError:
        raise EntryError(
            item.where, "expected an image that Pillow can open", str(item.path)
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EntryError(item.where, _BROKEN, f"{item.path} ({error})") from None
    return path, kind


def _formats() -> tuple[str, ...]:
    return tuple(kind for kind in (*picture_formats(), "HEIF") if kind in Image.OPEN)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits or of floats to 8 bits; Pillow's own conversion clips."""
    if not image.mode.startswith(("I", "F")):
        image.load()
        return image
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(min=0)
    most = next((top for top in (1.0, 255.0, 65_535.0) if grey.max() <= top), grey.max())
    if most == 1.0 and not image.mode.startswith("F"):
        most = 255.0
    return Image.fromarray((grey * (255 / most)).round().astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """Lay what shines through on white, as the service does."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba)
    return white


def _register_heif(item: Item) -> None:
    if find_spec("pillow_heif") is None:
        raise EntryError(
            item.where,
            "HEIC needs pillow-heif, which is not installed: pip install 'caption-service[heif]'",
            item.path.name,
        )
    from pillow_heif import register_heif_opener  # noqa: PLC0415 - an extra

    register_heif_opener()


def _fault(item: Item, error: Exception) -> EntryError:
    if isinstance(error, EntryError):
        return error
    return EntryError(item.where, _BROKEN, f"{item.path} ({error})")
