"""Parquet files of images: which column, which row groups, and the rows; needs ``pyarrow``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.bulk.places import place_of, require_pyarrow

_COLUMNS = (
    *("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content", "data"),
    *("url", "image_url", "path", "image_path", "file_name", "filename", "file", "photo"),
)
_BUFFER_BYTES = 2**20
_ROWS = 64  # decoded at once


class Damaged(Exception):
    """A file that holds photos cannot be read to its end, now or later."""


def choose_column(address: str, asked: str | None) -> str:
    """Say which column holds the images.

    Raises:
        ValueError: It has none that is known, or not the one that was asked for.
        OSError: It cannot be opened.
    """
    with _opened(address) as file:
        names: list[str] = file.schema_arrow.names
    known = (asked,) if asked else _COLUMNS
    plain = {name if asked else name.lower(): name for name in reversed(names)}
    found = next((plain[name] for name in known if name in plain), None)
    if found is None:
        raise ValueError(
            f"{address} has the columns {', '.join(names)}: name the one with the images, their "
            "addresses or paths: --column NAME"
        )
    return found


def row_groups(address: str, rows: int) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Divide a file at its row groups.

    Args:
        address: Of the file.
        rows: As many as a part should have at least.

    Yields:
        The first row group and the first that is not in the part, the number of the part's first
        row, and how many it has.
    """
    with _opened(address) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    first, first_row, held = 0, 0, 0
    for n, size in enumerate(sizes, 1):
        held += size
        if held >= rows or n == len(sizes):
            yield (first, n), first_row, held
            first, first_row, held = n, first_row + held, 0


def values(address: str, column: str, groups: tuple[int, int]) -> Iterator[Any]:
    """Give what a column holds, row by row; a few rows are in memory at once.

    Raises:
        Damaged: The file is at fault.
        OSError: It cannot be read now.
    """
    import pyarrow as pa  # noqa: PLC0415 - an extra

    try:
        with _opened(address) as file:
            batches = file.iter_batches(_ROWS, row_groups=range(*groups), columns=[column])
            for batch in batches:
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise Damaged(str(error)) from None


@contextmanager
def _opened(address: str) -> Iterator[Any]:
    """Open a file that is read piece by piece.

    Raises:
        ValueError: It is none.
        OSError: It cannot be read.
    """
    require_pyarrow(address)
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    with place_of(address).open(address) as opened:
        try:
            file = ParquetFile(opened, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{address} is no Parquet file ({error}): copy it again") from None
        yield file
