"""Caption files of five kinds -> records: which kind a file is, and all that is wrong with it."""

from collections.abc import Callable
from pathlib import Path

from trainer.data.records import CaptionRecord, FieldNames, ParsedRecords
from trainer.data.text_files import read_json
from trainer.errors import DataError
from trainer.importing.json_formats import read_coco, read_karpathy
from trainer.importing.line_formats import read_csv, read_jsonl, read_tokens

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".txt": "tokens", ".token": "tokens"}
READERS: dict[str, Callable[[Path, FieldNames], ParsedRecords]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "tokens": read_tokens,
}
_FAULTS_SHOWN = 20


def read_source(
    path: Path, kind: str | None = None, keys: FieldNames | None = None
) -> list[CaptionRecord]:
    """Read a caption file.

    Args:
        path: the file.
        kind: one of `READERS`; without it the file's suffix and, for JSON, its top keys decide.
        keys: column names, CSV and JSON lines only.

    Raises:
        DataError: the kind is unknown or records are malformed; each of them is named.
    """
    records, faults = READERS[kind or kind_of(path)](path, keys or FieldNames())
    refuse(faults)
    if not records:
        raise DataError(f"{path} expects at least one caption and has none: add captions")
    return records


def kind_of(path: Path) -> str:
    """Tell the kind of a caption file.

    Raises:
        DataError: the suffix, or the top of a JSON file, is of no kind that is known.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix == ".json":
        return _kind_of_json(path)
    raise DataError(
        f"{path} has the suffix {suffix or 'none'!r}, expected .csv, .jsonl, .json, .txt "
        "or .token: say what it is with --format"
    )


def refuse(faults: list[str]) -> None:
    """Raise one error that names all faults, if there are any.

    Raises:
        DataError: there are.
    """
    if len(faults) > _FAULTS_SHOWN:
        faults = [*faults[:_FAULTS_SHOWN], f"and {len(faults) - _FAULTS_SHOWN} more"]
    if faults:
        raise DataError("\n".join(faults))


def _kind_of_json(path: Path) -> str:
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list):
        if isinstance(content.get("annotations"), list):
            return "coco"
        if images and isinstance(images[0], dict) and "sentences" in images[0]:
            return "karpathy"
    raise DataError(
        f'{path} is neither COCO (keys "images" and "annotations") nor Karpathy ("images", each '
        'with "sentences"): write one of the two, CSV, or JSON lines'
    )
