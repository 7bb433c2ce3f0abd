"""Caption records: what every kind of caption file is read into."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trainer.errors import DataError


@dataclass(frozen=True)
class CaptionRecord:
    """What one place of a caption file says.

    Attributes:
        image: path inside the image folder, as written.
        captions: one or more, white space brought to single spaces.
        split: as written, or None where the file has no splits.
        where: the place, for messages.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    where: str


@dataclass(frozen=True)
class FieldNames:
    """Names of the columns of CSV and of the keys of JSON lines."""

    image: str = "image"
    caption: str = "caption"
    split: str = "split"


ParsedRecords = tuple[list[CaptionRecord], list[str]]
"""Records, and what was wrong with the others."""


def make_record(
    image: str, captions: Iterable[str], split: str | None, where: str
) -> CaptionRecord:
    """Bring white space to single spaces.

    Raises:
        DataError: the image or a caption is empty.
    """
    texts = tuple(" ".join(text.split()) for text in captions)
    if not image.strip() or not texts or not all(texts):
        raise DataError(
            f"{where}: expected an image and a caption, one is empty: fill it or remove the entry"
        )
    return CaptionRecord(image.strip(), texts, split, where)


def is_text_list(value: Any) -> bool:
    """Tell whether a JSON value is a filled list of strings."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
