"""Paths, bytes and files -> bytes; folders -> paths."""

import mimetypes
from collections.abc import Iterator
from os import PathLike, walk
from pathlib import Path

from caption_client.models import Image

IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif"),
    ]
)
"""How the names of files end that a folder is searched for."""


def images_in(folder: str | PathLike[str]) -> Iterator[Path]:
    """Walk over the images in a folder and in the folders inside it, by name; links stay links."""
    for place, folders, files in walk(folder):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(place, name)


def read(image: Image) -> tuple[bytes, str]:
    """Give the bytes of an image, and a media type; the service looks at the bytes.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(image, bytes):
        return image, "image/jpeg"
    if isinstance(image, (str, PathLike)):
        kind = mimetypes.guess_type(Path(image).name)[0] or ""
        return Path(image).read_bytes(), kind if kind.startswith("image/") else "image/jpeg"
    return image.read(), "image/jpeg"
