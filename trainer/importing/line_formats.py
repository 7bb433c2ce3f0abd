"""Caption files of one entry per line -> records: tables, JSON lines, token files, plain lines."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from trainer.data.records import CaptionRecord, FieldNames, make_record
from trainer.data.text_files import numbered_lines, read_text
from trainer.errors import DataError, EntryError
from trainer.importing.columns import COLUMN, Row, is_header
from trainer.importing.faults import Parsed, parse_each
from trainer.importing.image_folder import ImageFolder, looks_like_image
from trainer.importing.tables import Source, read_rows

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAMPLE_LINES = 50

_TOKEN = re.compile(r"([^\t]+)#([0-9]+) *\t\s*(.*)")
_SPACED_TOKEN = re.compile(r"(\S+?)#([0-9]+)\s+(.*)")
_GLUED = re.compile(r"\S#[0-9]+\t")
_NAMED_LINE = re.compile(r"(.+?\.[A-Za-z0-9]{2,4})[\s,;|]+(\S.*)")

TokenLine = tuple[str, int, str]


def read_csv(source: Source) -> Parsed:
    """Read a table with any of `DELIMITERS`, with or without a line of column names."""
    text = read_text(source.path, source.encoding)
    lines = list(io.StringIO(text, newline=""))
    delimiter = sniff_delimiter(lines, source.keys)
    rows = list(_csv_rows(lines, delimiter))
    if not rows:
        return Parsed()
    _, first = rows[0]
    headed = has_header(first, source.keys, source.images)
    names = _named_columns(first) if headed else _numbered_columns(first)
    if len(set(names)) < len(names):
        raise DataError(f"{source.path} line 1 names a column twice, got {', '.join(names)}")

    def parse(numbered: tuple[int, list[str]]) -> Row:
        number, fields = numbered
        where = f"{source.path} line {number}"
        if not fields:
            raise EntryError(where, 'expected text between two quotes: write " inside as ""')
        if len(fields) > len(names) and not any(map(str.strip, fields[len(names) :])):
            fields = fields[: len(names)]  # a spreadsheet's empty cells
        if len(fields) != len(names):
            raise EntryError(
                where,
                f"expected {len(names)} fields as in line 1, captions that hold "
                f'{DELIMITERS[delimiter]} in "quotes"',
                str(len(fields)),
            )
        return where, dict(zip(names, fields, strict=True))

    entries, faults = parse_each(rows[1:] if headed else rows, parse)
    parsed = read_rows(source, entries)
    return Parsed(
        parsed.records,
        [*faults, *parsed.faults],
        [*_told_layout(source, delimiter, headed=headed), *parsed.notes],
    )


def sniff_delimiter(lines: list[str], keys: FieldNames) -> str:
    """Say what stands between the fields of a table.

    `csv.Sniffer` counts characters, and captions are full of commas: the names of the columns, and
    whether all lines have as many fields as the first, say more.
    """

    def worth(delimiter: str) -> tuple[bool, bool, float]:
        rows = [row for row in _loose_reader(lines[:_SAMPLE_LINES], delimiter) if row]
        if not rows or len(rows[0]) < 2:
            return False, False, 0.0
        alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        return is_header(rows[0], keys), alike > 0.9, alike

    return max(DELIMITERS, key=worth)


def has_header(first: list[str], keys: FieldNames, images: ImageFolder) -> bool:
    """Tell whether the first row of a table names its columns."""
    if keys.image or is_header(first, keys):
        return True
    return not any(name in images or looks_like_image(name) for name in first)


def _named_columns(first: list[str]) -> list[str]:
    """Give the names of columns without the empty ones at the end, which spreadsheets leave."""
    filled = max(number for number, name in enumerate(first, start=1) if name.strip())
    return [name.strip() for name in first[:filled]]


def _numbered_columns(first: list[str]) -> list[str]:
    return [f"{COLUMN} {number}" for number in range(1, len(first) + 1)]


def _told_layout(source: Source, delimiter: str, *, headed: bool) -> Iterator[str]:
    if delimiter != ",":
        yield f"{source.path} has {DELIMITERS[delimiter]} between its columns"
    if not headed:
        yield f"{source.path} has no line of column names"


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Give number and fields of each row; without fields where its quotes do not match.

    A quote that is opened and never closed would take the rest of the file with it: reading goes
    on at the line after the one where it stands.
    """
    start = 0
    while start < len(lines):
        reader = csv.reader(
            (lines[number] for number in range(start, len(lines))),
            delimiter=delimiter,
            skipinitialspace=True,
            strict=True,
        )
        begun = start
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield begun + 1, fields
                begun = start + reader.line_num
            start = len(lines)
        except csv.Error:
            yield begun + 1, _unquoted(lines[begun], delimiter)
            start = begun + 1


def _unquoted(line: str, delimiter: str) -> list[str]:
    """Split a line whose quotes are text; with commas that cannot be told from a mistake."""
    return [] if delimiter == "," else [part.strip() for part in line.split(delimiter)]


def _loose_reader(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    except csv.Error:
        return


def read_jsonl(source: Source) -> Parsed:
    """Read one JSON object per line."""

    def parse(numbered: tuple[int, str]) -> Row:
        number, line = numbered
        where = f"{source.path} line {number}"
        return where, _object(line, where)

    rows, faults = parse_each(numbered_lines(source.path, source.encoding), parse)
    parsed = read_rows(source, rows)
    return Parsed(parsed.records, [*faults, *parsed.faults], parsed.notes)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise EntryError(where, "no JSON", f"column {error.colno}: {error.msg}") from None
    if not isinstance(value, dict):
        raise EntryError(where, "expected a JSON object", repr(line[:80]))
    return value


def is_token_line(line: str) -> bool:
    """Tell whether a line is one of a token file, ``image.jpg#n`` and a caption."""
    return bool(_TOKEN.fullmatch(line) or _SPACED_TOKEN.fullmatch(line))


def read_tokens(source: Source) -> Parsed:
    """Read lines ``image.jpg#n<TAB>caption``; captions of an image come in the order of n."""
    seen: set[tuple[str, int]] = set()

    def parse(numbered: tuple[int, str]) -> tuple[int, CaptionRecord]:
        line_number, line = numbered
        where = f"{source.path} line {line_number}"
        image, number, caption = _token_line(line.strip(), where)
        if (image, number) in seen:
            raise EntryError(where, "this image#n came before", f"{image}#{number}")
        seen.add((image, number))
        return number, make_record(image, [caption], None, where)

    records, faults = parse_each(numbered_lines(source.path, source.encoding), parse)
    return Parsed([record for _, record in sorted(records, key=lambda item: item[0])], faults)


def _token_line(line: str, where: str) -> TokenLine:
    match = _TOKEN.fullmatch(line) or _SPACED_TOKEN.fullmatch(line)
    if match is None:
        raise EntryError(where, "expected image.jpg#n<TAB>caption", repr(line[:80]))
    if _GLUED.search(match[3]) or "\t" in match[1]:
        raise EntryError(where, "two lines are glued together", repr(line[:80]))
    return match[1].strip(), int(match[2]), match[3]


def read_lines(source: Source) -> Parsed:
    """Read lines of a name, white space and a caption: ``beach.jpg a dog runs``."""

    def parse(numbered: tuple[int, str]) -> CaptionRecord:
        number, line = numbered
        image, caption = named_line(line)
        return make_record(image, [caption], None, f"{source.path} line {number}")

    lines = list(numbered_lines(source.path, source.encoding))
    if is_header(lines[0][1].split(), source.keys):
        lines = lines[1:]
    return Parsed(*parse_each(lines, parse))


def named_line(line: str) -> tuple[str, str]:
    """Take a name and a caption apart; the name may hold spaces if it has the suffix of an image.

    A line without a caption gives an empty one.
    """
    match = _NAMED_LINE.fullmatch(line.strip())
    if match and looks_like_image(match[1]):
        return match[1], match[2]
    name, _, caption = line.strip().partition(" ")
    return name, caption
