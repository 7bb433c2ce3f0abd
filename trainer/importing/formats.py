"""Caption files and folders of many kinds -> records: which kind each is, and what it says."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.text_files import read_json, read_text
from trainer.errors import DataError
from trainer.importing.arrow_formats import read_arrow, read_parquet
from trainer.importing.columns import is_header
from trainer.importing.faults import Parsed
from trainer.importing.folder_formats import (
    kind_of_folder,
    read_folder,
    read_imagefolder,
    read_shards,
    split_of,
)
from trainer.importing.image_folder import looks_like_image
from trainer.importing.json_formats import (
    kind_of_document,
    read_coco,
    read_json_table,
    read_karpathy,
)
from trainer.importing.line_formats import (
    is_token_line,
    named_line,
    read_csv,
    read_jsonl,
    read_lines,
    read_tokens,
    sniff_delimiter,
)
from trainer.importing.tables import Source

READERS: dict[str, Callable[[Source], Parsed]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "json": read_json_table,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "tokens": read_tokens,
    "lines": read_lines,
    "folder": read_folder,
    "imagefolder": read_imagefolder,
    "shards": read_shards,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
FOLDERS = frozenset({"folder", "imagefolder", "shards", "parquet", "arrow"})
"""Kinds that may bring their images themselves."""

_BY_SUFFIX = {".parquet": "parquet", ".arrow": "arrow", ".tar": "shards"}
_UNREADABLE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet: save it as CSV, and import that"),
    **dict.fromkeys(
        (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"),
        "is packed: unpack it, and import what is in it",
    ),
    **dict.fromkeys(
        (".pkl", ".pickle", ".p", ".mat", ".npy", ".npz", ".h5", ".hdf5", ".pt", ".mdb"),
        "holds objects or arrays of a program: write image and caption into a CSV or JSON file",
    ),
}
_SAMPLE_LINES = 20


def read_sources(sources: Sequence[Source], kind: str | None = None) -> Parsed:
    """Read caption files that belong together.

    Args:
        sources: one or more. Of several, a name such as ``captions_val2014.json`` tells the split
            of a file that does not tell it itself.
        kind: one of `READERS`; without it each file's content decides.

    Raises:
        DataError: a kind is unknown, or a file holds nothing that could be an entry.
    """
    parsed = Parsed()
    for source in sources:
        found_kind = kind or kind_of(source)
        found = READERS[found_kind](source)
        if not found.records and not found.faults:
            raise DataError(
                f"{source.path} expects at least one caption and has none: add captions"
            )
        parsed.notes.append(f"{source.path} is read as {found_kind}")
        parsed.add(_with_split(found, source.path) if len(sources) > 1 else found)
    return parsed


def kind_of(source: Source) -> str:
    """Tell the kind of a caption file or folder by what it holds.

    Raises:
        DataError: it is none of those that are known.
    """
    path = source.path
    if path.is_dir():
        return kind_of_folder(path)
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if suffix in _UNREADABLE:
        raise DataError(f"{path} {_UNREADABLE[suffix]}")
    text = read_text(path, source.encoding)
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"{path} expects at least one caption and is empty: add captions")
    if text.lstrip()[:1] in {"{", "["}:
        return _kind_of_json(source, lines)
    return _kind_of_lines(source, lines[:_SAMPLE_LINES])


def _kind_of_json(source: Source, lines: list[str]) -> str:
    """Tell JSON lines from one document: each line of them is an object by itself."""
    closed = lines[0].strip().startswith("{") and lines[0].strip().endswith("}")
    if closed and (len(lines) > 1 or source.path.suffix.lower() == ".jsonl"):
        return "jsonl"
    return kind_of_document(source.path, read_json(source.path, source.encoding))


def _kind_of_lines(source: Source, lines: list[str]) -> str:
    if sum(map(is_token_line, lines)) * 2 > len(lines):
        return "tokens"
    suffix = source.path.suffix.lower()
    if suffix in {".csv", ".tsv"} or _is_table(source, lines):
        return "csv"
    named = [named_line(line)[0] for line in lines]
    known = sum(looks_like_image(name) or name in source.images for name in named)
    if known * 2 > len(lines):
        return "lines"
    raise DataError(
        f"{source.path} is no kind of caption file that is known, its first line is "
        f"{lines[0][:60]!r}: write a line image,caption and then an image and its caption on each "
        "line, or say with --format what it is"
    )


def _is_table(source: Source, lines: list[str]) -> bool:
    """Tell a table by its lines: led by names of columns, or a name and more on each of them."""
    delimiter = sniff_delimiter(lines, source.keys)
    if is_header(lines[0].split(delimiter), source.keys):
        return True
    firsts = [line.split(delimiter)[0].strip().strip('"') for line in lines]
    names = all(" " not in first or looks_like_image(first) for first in firsts)
    return names and all(delimiter in line for line in lines)


def _with_split(parsed: Parsed, path: Path) -> Parsed:
    split = split_of(path)
    if split is None or any(record.split for record in parsed.records):
        return parsed
    records = [replace(record, split=split) for record in parsed.records]
    return replace(parsed, records=records, notes=[*parsed.notes, f"{path} becomes split {split}"])
