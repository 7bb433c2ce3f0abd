"""Caption records: what every kind of caption file is read into."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import EntryError

SPLIT_NAMES = {
    "training": "train",
    "restval": "train",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "develop": "dev",
    "development": "dev",
    "testing": "test",
}
"""What splits are called elsewhere -> here."""

_YEAR = re.compile(r"[\W_]*(?:19|20)\d\d$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NO_CAPTION = frozenset({"", "nan", "null", "none"})
EMPTY = "expected an image and a caption, one is empty"


@dataclass(frozen=True)
class CaptionRecord:
    """What one place of a caption file says.

    Attributes:
        image: path inside the image folder, as written.
        captions: one or more, white space brought to single spaces.
        split: as written, or None where the file has no splits.
        where: the place, for messages.
        image_id: the number or name that results of the same set call the image by, if any.
        file: where the image lies, if the source holds it itself.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    where: str
    image_id: str | None = None
    file: Path | None = None


@dataclass(frozen=True)
class FieldNames:
    """Names of the columns of a table that a person gave; what is not given is found out.

    Attributes:
        image: holds names of images.
        captions: hold captions; names, lists with commas, or patterns such as ``caption_*``.
        split: holds names of splits.
    """

    image: str | None = None
    captions: tuple[str, ...] = ()
    split: str | None = None


def make_record(
    image: str, captions: Iterable[str], split: str | None, where: str
) -> CaptionRecord:
    """Bring white space to single spaces and letters to their composed form (NFC).

    Raises:
        EntryError: the image or a caption is empty.
    """
    texts = tuple(" ".join(_CONTROL.sub(" ", composed(text)).split()) for text in captions)
    if not image.strip() or not texts or not all(map(_says_something, texts)):
        raise EntryError(where, EMPTY)
    return CaptionRecord(image.strip(), texts, split, where)


def composed(text: str) -> str:
    """Write letters with their accents as one character where there is one (Unicode's NFC)."""
    return unicodedata.normalize("NFC", text)


def split_name(name: str) -> str:
    """Give our name of a split: small letters, no year, and ``dev`` for what others call val."""
    bare = _YEAR.sub("", name.strip().casefold())
    return SPLIT_NAMES.get(bare, bare)


def is_text_list(value: Any) -> bool:
    """Tell whether a JSON value is a filled list of strings."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _says_something(text: str) -> bool:
    """Tell a caption from an empty cell, which tables also write as NaN."""
    return text.casefold() not in _NO_CAPTION
