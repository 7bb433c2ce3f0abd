"""Captions of a part -> one file, Parquet or JSON lines, which appears when it is whole."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, Protocol

from app.bulk.places import DRAFT, Draft, join, place_of
from app.files.outcome import Candidate, Outcome

Format = Literal["parquet", "jsonl"]
Row = dict[str, Any]
_ROWS = 1000  # held before they are written
_NAME = re.compile(r"part-(\d+)\.(?:parquet|jsonl)")


class Shards:
    """The files of one output.

    Args:
        output: Address of the folder.
        form: Of the files.
        n_best: More than one: each row has its ``candidates``.
        tags: Each row has its ``tags``.
    """

    def __init__(self, output: str, form: Format, *, n_best: int, tags: bool) -> None:
        self._output = output
        self._form = form
        self._n_best = n_best
        self._tags = tags

    def done(self) -> frozenset[int]:
        """Give the parts that are done; what runs that were ended had begun is removed.

        Raises:
            OSError: The folder cannot be listed.
        """
        place, done = place_of(self._output), set[int]()
        for entry in place.entries(self._output):
            name = entry.address.rpartition("/")[2]
            if name.startswith(DRAFT):
                place.remove(entry.address)
            elif found := _NAME.fullmatch(name):
                done.add(int(found[1]))
        return frozenset(done)

    def begin(self, part: int) -> "Shard":
        """Begin the file of a part.

        Raises:
            OSError: It cannot be written.
        """
        address = join(self._output, f"part-{part:06}.{self._form}")
        draft = place_of(self._output).draft(address)
        write = (
            _Parquet(draft, n_best=self._n_best, tags=self._tags)
            if self._form == "parquet"
            else _JsonLines(draft)
        )
        return Shard(draft, write, self._row)

    def _row(self, outcome: Outcome) -> Row:
        best = outcome.candidates[0] if outcome.candidates else None
        row: Row = {
            "image": os.fsencode(outcome.source.name).decode(errors="backslashreplace"),
            "caption": best and outcome.caption,
            "log_prob": best and best.log_prob,
            "confidence": best and best.confidence,
            "withheld": outcome.withheld,
            "warning": outcome.warning,
            "error": outcome.error or None,
        }
        if self._n_best > 1:
            row["candidates"] = [vars(each) for each in outcome.candidates]
        if self._tags:
            row["tags"] = [{"label": label, "probability": p} for label, p in outcome.tags or ()]
        return row


class Shard:
    """The file of one part, while it is written."""

    def __init__(self, draft: Draft, write: "_Write", as_row: Any) -> None:
        self._draft = draft
        self._write = write
        self._as_row = as_row
        self._held: list[Row] = []
        self.rows = self.errors = 0

    def add(self, outcome: Outcome) -> None:
        """Add what became of a photo.

        Raises:
            OSError: It cannot be written.
        """
        self._held.append(self._as_row(outcome))
        self.rows += 1
        self.errors += bool(outcome.error)
        if len(self._held) == _ROWS:
            self._flush()

    def keep(self) -> None:
        """Put the file in its place.

        Raises:
            OSError: It cannot be written.
        """
        self._flush()
        self._write.end()
        self._draft.keep()

    def discard(self) -> None:
        """Leave the part to a later run."""
        with suppress(OSError):  # a full disk, perhaps
            self._write.end()
        self._draft.discard()

    def _flush(self) -> None:
        if self._held:
            self._write.rows(self._held)
            self._held = []


class _Write(Protocol):
    def rows(self, rows: list[Row]) -> None: ...
    def end(self) -> None: ...


class _JsonLines:
    def __init__(self, draft: Draft) -> None:
        self._file = draft.file

    def rows(self, rows: list[Row]) -> None:
        lines: Iterable[str] = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._file.write("".join(lines).encode())

    def end(self) -> None:
        """There is nothing behind the last line."""


class _Parquet:
    def __init__(self, draft: Draft, *, n_best: int, tags: bool) -> None:
        from pyarrow.parquet import ParquetWriter  # noqa: PLC0415 - an extra

        self._schema = _schema(n_best=n_best, tags=tags)
        self._writer = ParquetWriter(draft.file, self._schema, compression="zstd")

    def rows(self, rows: list[Row]) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an extra

        self._writer.write_table(pa.Table.from_pylist(rows, self._schema))

    def end(self) -> None:
        self._writer.close()


def _schema(*, n_best: int, tags: bool) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    text, number = pa.string(), pa.float64()
    candidate = dict.fromkeys(Candidate.__annotations__, number) | {"caption": text}
    fields = {"image": text, "caption": text, "log_prob": number, "confidence": number}
    fields |= {"withheld": text, "warning": text, "error": text}
    if n_best > 1:
        fields["candidates"] = pa.list_(pa.struct(candidate))
    if tags:
        fields["tags"] = pa.list_(pa.struct({"label": text, "probability": number}))
    return pa.schema(fields)
