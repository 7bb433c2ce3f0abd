"""Entries that cannot be used: collected one by one, told in one line."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from trainer.data.records import CaptionRecord
from trainer.errors import DataError, EntryError

SKIP_OPTION = "--skip-bad"
_PLACES_SHOWN = 3
_KINDS_SHOWN = 5

_Raw = TypeVar("_Raw")
_Read = TypeVar("_Read")


@dataclass
class Parsed:
    """What was read of caption files.

    Attributes:
        records: that can be used.
        faults: one for each entry that cannot.
        notes: what a person should know about how it was read, a line each.
    """

    records: list[CaptionRecord] = field(default_factory=list)
    faults: list[EntryError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: "Parsed") -> None:
        """Take up what was read of another file, or by another step."""
        self.records += other.records
        self.faults += other.faults
        self.notes += [note for note in other.notes if note not in self.notes]


def parse_each(
    items: Iterable[_Raw], parse: Callable[[_Raw], _Read]
) -> tuple[list[_Read], list[EntryError]]:
    """Parse all items: the values, and what was wrong with the others."""
    values: list[_Read] = []
    faults: list[EntryError] = []
    for item in items:
        try:
            values.append(parse(item))
        except EntryError as error:
            faults.append(error)
    return values, faults


def refuse(faults: Sequence[EntryError], used: int) -> None:
    """Raise one error that tells all faults in one line, if there are any.

    Args:
        faults: of single entries.
        used: how many others can be used.

    Raises:
        DataError: there are faults; the message has each kind with its count and first places,
            and the option that goes on without these entries, if any is left.
    """
    if not faults:
        return
    total = len(faults) + used
    kinds: dict[str, list[EntryError]] = {}
    for fault in faults:
        kinds.setdefault(fault.what, []).append(fault)
    told = [_kind(of) for of in kinds.values()]
    if len(told) > _KINDS_SHOWN:
        told = [*told[:_KINDS_SHOWN], f"{len(told) - _KINDS_SHOWN} other kinds of faults"]
    remedy = (
        f"repair them, or go on without them with {SKIP_OPTION}"
        if used
        else "see whether the file was read as what it is (--format, --image-key, --caption-key)"
    )
    raise DataError(f"{len(faults)} of {total} entries cannot be used: {'; '.join(told)}: {remedy}")


def _kind(faults: list[EntryError]) -> str:
    """Tell the first fault of a kind, and where its like stands."""
    first, *others = faults
    if not others:
        return str(first)
    places = ", ".join(_place(fault) for fault in others[: _PLACES_SHOWN - 1])
    more = len(others) - _PLACES_SHOWN + 1
    return f"{first} (and {len(others)} like it: {places}{' ...' if more > 0 else ''})"


def _place(fault: EntryError) -> str:
    return fault.where + (f", got {fault.got}" if fault.got else "")
