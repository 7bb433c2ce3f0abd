"""The parts of a collection, each of which becomes one file: made once, and read by every run.

A part is done when its file is there. So it must never change what is in it: the plan lies in the
output beside the files, and a later run reads it, whatever has become of the collection.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from itertools import count
from typing import Any, NamedTuple

from app.bulk.finding import Found, Kind
from app.bulk.parquet import choose_column, row_groups
from app.bulk.places import join, place_of

NAME = "_plan.jsonl"
"""It begins with what readers of folders of Parquet skip."""


@dataclass(frozen=True)
class Part:
    """What one file of captions is about.

    Attributes:
        number: From 0.
        kind: Of its sources.
        addresses: Of each photo, or of the one file that holds them.
        rows: How many photos; None where only reading can tell.
        groups: Of a Parquet file: its first row group, and the first that is not in the part.
        first_row: Of a Parquet file: the number of the part's first row.
        column: Of a Parquet file: what holds the images.
    """

    number: int
    kind: Kind
    addresses: tuple[str, ...]
    rows: int | None = None
    groups: tuple[int, int] = (0, 0)
    first_row: int = 0
    column: str = ""


class PlannedPart(NamedTuple):
    """Where a part stands in the plan, so that ten thousand of them take no memory."""

    number: int
    rows: int | None
    offset_bytes: int


class AnotherRun(ValueError):
    """The output holds something else than what this run would write."""


def parts_of(
    found: Iterator[Found], *, rows_per_part: int, column: str | None = None
) -> Iterator[Part]:
    """Divide a collection.

    Args:
        found: Its files, in order.
        rows_per_part: Photos of a part; a tar file is one part, and so is a large row group.
        column: Of Parquet files, where the names do not tell.

    Raises:
        ValueError: A Parquet file has no such column, or cannot be read.
        OSError: As well.
    """
    numbers = count()
    photos: list[str] = []
    for kind, address in found:
        if kind == "images":
            photos.append(address)
            if len(photos) == rows_per_part:
                yield Part(next(numbers), "images", tuple(photos), len(photos))
                photos = []
        elif kind == "tar":
            yield Part(next(numbers), "tar", (address,))
        else:
            name = choose_column(address, column)
            for groups, first_row, rows in row_groups(address, rows_per_part):
                part = next(numbers)
                yield Part(part, "parquet", (address,), rows, groups, first_row, name)
    if photos:
        yield Part(next(numbers), "images", tuple(photos), len(photos))


class Plan:
    """The plan of one output.

    Args:
        output: Address of the folder.
    """

    def __init__(self, output: str) -> None:
        self.address = join(output, NAME)
        self._place = place_of(output)

    def exists(self) -> bool:
        """Say whether a run has made it."""
        return self._place.kind(self.address) is not None

    def write(self, run: Mapping[str, Any], parts: Iterator[Part]) -> None:
        """Write the plan; it is there when it is whole.

        Args:
            run: What all runs with this output must agree on.
            parts: In order.

        Raises:
            ValueError: From the parts.
            OSError: From them as well, or it cannot be written.
        """
        draft = self._place.draft(self.address)
        try:
            draft.file.write(_line(run))
            for part in parts:
                draft.file.write(_line(asdict(part)))
        except BaseException:
            draft.discard()
            raise
        draft.keep()

    def check(self, run: Mapping[str, Any]) -> None:
        """Compare what this run would write with what the plan was made for.

        Raises:
            AnotherRun: They differ; the message says in what.
            OSError: It cannot be read.
        """
        with self._place.open(self.address) as file:
            planned = json.loads(file.readline())
        wanted = json.loads(_line(run))
        for name in wanted | planned:
            if planned.get(name) != wanted.get(name):
                raise AnotherRun(
                    f"{self.address} was made with {name} {_told(planned.get(name))}, not "
                    f"{_told(wanted.get(name))}: repeat that, or choose another --output"
                )

    def parts(self) -> Iterator[PlannedPart]:
        """Go through the plan.

        Raises:
            OSError: It cannot be read.
        """
        with self._place.open(self.address) as file, TextIOWrapper(file, "ascii") as lines:
            offset_bytes = len(lines.readline())
            for line in lines:
                fields = json.loads(line)
                yield PlannedPart(fields["number"], fields["rows"], offset_bytes)
                offset_bytes += len(line)

    def read(self, planned: PlannedPart) -> Part:
        """Read one part.

        Raises:
            OSError: The plan cannot be read.
        """
        with self._place.open(self.address) as file:
            file.seek(planned.offset_bytes)
            fields = json.loads(file.readline())
        lists = {"addresses": tuple(fields["addresses"]), "groups": tuple(fields["groups"])}
        return Part(**fields | lists)


def _line(fields: Mapping[str, Any]) -> bytes:
    """Escape all that is not ASCII, so that names of any bytes come back as they were."""
    return json.dumps(fields).encode("ascii") + b"\n"


def _told(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
