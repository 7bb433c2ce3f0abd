"""Parquet files and datasets that Hugging Face saved -> records; needs the extra ``tables``.

What `datasets.save_to_disk` writes are streams of Arrow, which pyarrow reads by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.importing.faults import Parsed
from trainer.importing.folder_formats import split_of
from trainer.importing.tables import Source, read_rows

_ROWS = 256


def read_parquet(source: Source) -> Parsed:
    """Read a Parquet file, or all those of a folder, whose names may tell their splits."""
    _require_pyarrow(source.path)
    from pyarrow import parquet  # noqa: PLC0415 - an extra

    parsed = Parsed()
    for path in _files(source.path, "*.parquet"):
        with _told(path), parquet.ParquetFile(path) as file:
            _add(parsed, source, path, file.iter_batches(batch_size=_ROWS))
    return parsed


def read_arrow(source: Source) -> Parsed:
    """Read a folder that `datasets.save_to_disk` wrote, with or without splits."""
    _require_pyarrow(source.path)
    from pyarrow import ipc, memory_map  # noqa: PLC0415 - an extra

    parsed = Parsed()
    for path in _files(source.path, "*.arrow"):
        with _told(path), memory_map(str(path)) as content:
            _add(parsed, source, path, ipc.open_stream(content))
    return parsed


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in a sentence what pyarrow finds wrong with a file."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read ({reason}): copy it again") from None


def _files(path: Path, pattern: str) -> list[Path]:
    return sorted(path.rglob(pattern)) if path.is_dir() else [path]


def _add(parsed: Parsed, source: Source, path: Path, batches: Iterator[Any]) -> None:
    """Read a file batch by batch: its images go to disk, not into memory."""
    split = _split(source.path, path)
    table = replace(source, path=path)
    first = 0
    for batch in batches:
        rows = batch.to_pylist()
        numbered = [(f"{path} row {first + index}", row) for index, row in enumerate(rows)]
        parsed.add(read_rows(table, numbered, split=split))
        first += len(rows)


def _split(root: Path, path: Path) -> str | None:
    """Tell a split by the file's name, or by the folder it lies in below the dataset's."""
    below = path.parent != root and path.parent.is_relative_to(root)
    return split_of(path) or (split_of(path.parent) if below else None)


def _require_pyarrow(path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise DataError(
            f"{path} needs pyarrow, which is not installed: pip install 'caption-service[tables]'"
        )
