"""Paths, bytes and files -> bytes; folders -> paths."""

import mimetypes
from collections.abc import Iterator
from os import PathLike, walk
from pathlib import Path

from caption_client.models import File

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


def read(file: File, kinds: tuple[str, ...], otherwise: str) -> tuple[bytes, str]:
    """Give the bytes of a file, and a media type; the service looks at the bytes.

    Args:
        file: A path, bytes or an open file.
        kinds: How a media type may begin that is told by the name of a file.
        otherwise: The media type where none is.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(file, bytes):
        return file, otherwise
    if isinstance(file, (str, PathLike)):
        told = mimetypes.guess_type(Path(file).name)[0] or ""
        return Path(file).read_bytes(), told if told.startswith(kinds) else otherwise
    return file.read(), otherwise
