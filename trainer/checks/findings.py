"""A finding of the doctor, and how it speaks of images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing to know about a directory.

    Attributes:
        severity: an ``error`` stops training or makes scores worthless; a ``note`` does not.
        what: what was found.
        remedy: what to do.
    """

    severity: Literal["error", "note"]
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}: {self.remedy}"


def count_images(names: Iterable[str]) -> str:
    """Say how many images there are."""
    count = len(list(names))
    return f"{count} image{'' if count == 1 else 's'}"


def some(names: Iterable[str]) -> str:
    """Name the first few, and say how many more there are."""
    first = sorted(names)
    more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
    return ", ".join(first[:_SHOWN]) + more
