"""Rows of a table, whatever file they come from -> records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.data.records import EMPTY, CaptionRecord, FieldNames, make_record
from trainer.errors import EntryError
from trainer.importing.columns import Columns, Row, choose_columns, is_left_out
from trainer.importing.faults import Parsed, parse_each
from trainer.importing.image_folder import ImageFolder
from trainer.importing.staging import Staging

_TEXT_KEYS = ("raw", "caption", "text", "sentence")


@dataclass(frozen=True)
class Source:
    """A caption file with all that is known of it.

    Attributes:
        path: the file, or a folder.
        images: the folder of images.
        staging: where images go that the file itself holds.
        keys: what a person said of its columns.
        encoding: of its text.
    """

    path: Path
    images: ImageFolder
    staging: Staging
    keys: FieldNames = field(default_factory=FieldNames)
    encoding: str = "utf-8"


def read_rows(source: Source, rows: Sequence[Row], *, split: str | None = None) -> Parsed:
    """Turn the rows of a table into records.

    Args:
        source: where they come from.
        rows: place and fields of each.
        split: of all of them, where the table has no column for it.

    Raises:
        DataError: the columns cannot be told.
    """
    if not rows:
        return Parsed()
    columns = choose_columns(source.path, rows, source.keys, source.images)
    kept = [row for row in rows if not is_left_out(row[1])]
    found, faults = parse_each(kept, lambda row: _records(source, columns, row, split))
    notes = [] if columns.are_usual() else [f"{source.path} has {columns}"]
    return Parsed(
        [record for of in found for record in of], faults, [*notes, *left_out(rows, kept)]
    )


def left_out(all_of: Sequence[object], kept: Sequence[object]) -> list[str]:
    """Say how many captions stay out because their own file says that they are of no use."""
    count = len(all_of) - len(kept)
    return [f"{count} captions marked is_rejected or is_precanned stay out"] if count else []


def _records(source: Source, columns: Columns, row: Row, split: str | None) -> list[CaptionRecord]:
    """One record for each image of a row: a report may speak of several."""
    where, fields = row
    texts = [text for name in columns.captions for text in texts_of(fields.get(name), where)]
    spoken = [text for text in texts if text.strip()]
    own = fields.get(columns.split) if columns.split else None
    own = str(own).strip() if own is not None else ""
    made = []
    for image, file in _images(source, fields.get(columns.image), where):
        record = make_record(image, spoken, own or split, where)
        made.append(replace(record, file=file, image_id=_id(fields)))
    return made


def _id(fields: Mapping[str, Any]) -> str | None:
    value = fields.get("image_id")
    return None if value is None else str(value)


def _images(source: Source, value: Any, where: str) -> list[tuple[str, Path | None]]:
    if isinstance(value, dict):
        return [_embedded(source, value, where)]
    names = value if isinstance(value, list) else [value]
    found = [str(name) for name in names if isinstance(name, str | int) and str(name).strip()]
    if not found:
        raise EntryError(where, EMPTY)
    return [(name, None) for name in found]


def _embedded(source: Source, value: dict[str, Any], where: str) -> tuple[str, Path | None]:
    """Take an image as Parquet and Hugging Face keep it: its bytes, its path, or both."""
    content, path = value.get("bytes"), value.get("path")
    if content is None:
        if not isinstance(path, str):
            raise EntryError(where, EMPTY)
        return path, None
    file = source.staging.add(content, str(path or ""))
    return str(path or file.name), file


def texts_of(value: Any, where: str) -> list[str]:
    """Give the captions that a field holds: a text, a list of texts, or of objects with one."""
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [_text(each, where) for each in values]


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        for key in _TEXT_KEYS:
            if isinstance(value.get(key), str):
                return str(value[key])
        tokens = value.get("tokens")
        if isinstance(tokens, list) and all(isinstance(each, str) for each in tokens):
            return " ".join(tokens)
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - NaN of a table
        return ""
    raise EntryError(where, "expected a caption that is text", repr(value)[:60])
