"""A caption into the metadata of its photo: XMP and EXIF, and IPTC where the format has it.

exiv2 rewrites the metadata and leaves the pixels alone.
"""

import os
import shutil
import tempfile
from pathlib import Path


class NoMetadata(Exception):
    """The caption cannot be written into the photo; the message says why."""


def check_library() -> None:
    """Look for the library before any work is done.

    Raises:
        NoMetadata: It is not installed.
    """
    try:
        import pyexiv2  # noqa: F401, PLC0415 - an extra
    except ImportError:
        message = "--write-metadata needs pyexiv2: pip install 'caption-service[metadata]'"
        raise NoMetadata(message) from None


def write(photo: Path, caption: str) -> None:
    """Write a caption into a copy of the photo, and put it in its place when it is whole.

    Raises:
        NoMetadata: The file cannot be written, or its format has no place for it.
    """
    try:
        handle, name = tempfile.mkstemp(dir=photo.parent, prefix=f".{photo.name}.")
        os.close(handle)
        copy = Path(name)
        try:
            shutil.copy2(photo, copy)
            _describe(copy, caption)
            copy.replace(photo)
        finally:
            copy.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise NoMetadata(str(error)) from None


def _describe(photo: Path, caption: str) -> None:
    import pyexiv2  # noqa: PLC0415 - an extra

    with pyexiv2.Image(str(photo)) as image:
        image.modify_xmp({"Xmp.dc.description": {'lang="x-default"': caption}})
        image.modify_exif({"Exif.Image.ImageDescription": caption})
        if image.get_mime_type() in {"image/jpeg", "image/tiff"}:  # IPTC's own places
            image.modify_iptc(
                {"Iptc.Envelope.CharacterSet": "\x1b%G", "Iptc.Application2.Caption": caption}
            )
