"""Caption files of one entry per line -> records: CSV, JSON lines, token file."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.records import CaptionRecord, FieldNames, ParsedRecords, is_text_list, make_record
from trainer.data.text_files import caption_line, numbered_lines, parse_each, read_text
from trainer.errors import DataError


def read_csv(path: Path, keys: FieldNames) -> ParsedRecords:
    """Read comma-separated lines under a line of column names."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    lines = _csv_lines(path, reader)
    _, header = next(lines, (1, []))
    for key in (keys.image, keys.caption):
        if header.count(key) != 1:
            raise DataError(
                f"{path} line 1: expected comma-separated column names with one {key!r}, got "
                f"{', '.join(header) or 'nothing'}: rename a column, or give --image-key and "
                "--caption-key"
            )

    def parse(numbered: tuple[int, list[str]]) -> CaptionRecord:
        number, fields = numbered
        where = f"{path} line {number}"
        if len(fields) != len(header):
            raise DataError(
                f"{where}: expected {len(header)} fields as in the header, got {len(fields)}: "
                'put captions with commas in "quotes"'
            )
        named = dict(zip(header, fields, strict=True))
        split = named.get(keys.split, "").strip() or None
        return make_record(named[keys.image], [named[keys.caption]], split, where)

    return parse_each(lines, parse)


def _csv_lines(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}: repair the quotes") from None


def read_jsonl(path: Path, keys: FieldNames) -> ParsedRecords:
    """Read one JSON object per line."""

    def parse(numbered: tuple[int, str]) -> CaptionRecord:
        number, line = numbered
        where = f"{path} line {number}"
        fields = _object(line, where)
        captions: Any = fields.get(keys.caption, fields.get("captions"))
        if isinstance(captions, str):
            captions = [captions]
        image, split = fields.get(keys.image), fields.get(keys.split)
        if not isinstance(image, str) or not is_text_list(captions) or not _optional(split):
            raise DataError(
                f'{where}: expected {{"{keys.image}": NAME, "{keys.caption}": TEXT or [TEXT, ...], '
                f'"{keys.split}": NAME if there are splits}}, got {line[:80]!r}: repair the line, '
                "or give --image-key and --caption-key"
            )
        return make_record(image, captions, split, where)

    return parse_each(numbered_lines(path), parse)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON at column {error.colno}: {error.msg}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {line[:80]!r}")
    return value


def read_tokens(path: Path, keys: FieldNames) -> ParsedRecords:  # noqa: ARG001 - a token file has no keys
    """Read lines ``image.jpg#n<TAB>caption``; captions of an image come in the order of n."""
    seen: set[tuple[str, int]] = set()

    def parse(numbered: tuple[int, str]) -> tuple[int, CaptionRecord]:
        line_number, line = numbered
        image, number, caption = caption_line(path, line_number, line.rstrip("\r"))
        where = f"{path} line {line_number}"
        if (image, number) in seen:
            raise DataError(f"{where}: {image}#{number} came before: remove one of the two lines")
        seen.add((image, number))
        return number, make_record(image, [caption], None, where)

    records, faults = parse_each(numbered_lines(path), parse)
    return [record for _, record in sorted(records, key=lambda item: item[0])], faults


def _optional(value: Any) -> bool:
    return value is None or isinstance(value, str)
