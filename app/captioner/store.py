"""Which directory of a model store is meant: a checkpoint, a name's newest version, or a given one.

A store is folders ``<name>/<version>``. Knows paths alone; `checkpoint` reads what lies there.
"""

import os
import re
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from app.captioner.checkpoint import MANIFEST
from app.captioner.errors import CheckpointError
from app.captioner.manifest import NAME_PATTERN

STORE = "model_store"
_MOST_TOLD = 8
_VERSION = re.compile(NAME_PATTERN)
_NUMBERS = re.compile(r"(\d+)")


def find(named: Path, roots: Sequence[Path], version: str | None = None) -> Path:
    """Give the directory of a checkpoint.

    Args:
        named: its directory; or the folder of a name, which means the newest version in it; or
            either with ``@VERSION`` at the end.
        roots: where a relative path is looked up, in this order; a bare name in their
            ``model_store`` as well.
        version: in place of the one that is named.

    Raises:
        CheckpointError: there is no such version. A place without any checkpoint is given as it
            is: `checkpoint.load` says what is missing there.
    """
    place, asked = _place(named, roots)
    version = version or asked
    if version is not None:
        return _of_version(place.resolve().parent if _has_checkpoint(place) else place, version)
    if _has_checkpoint(place):
        return place
    newest = versions(place)[-1:]
    return place / newest[0] if newest else place


def versions(folder: Path) -> list[str]:
    """Give the versions in the folder of a name, the newest last: 9 is before 10."""
    try:
        names = [place.name for place in folder.iterdir()]
    except OSError:
        return []
    published = (name for name in names if _VERSION.fullmatch(name))
    return sorted((name for name in published if _has_checkpoint(folder / name)), key=age)


def fingerprint(directory: Path) -> Hashable:
    """Tell from names, sizes and times which files lie there, wherever links lead to.

    Another value may be another checkpoint. Half a copy has another value than the whole.
    """
    files = {str(path): _state(path) for path in sorted(directory.rglob("*"))}
    return os.path.realpath(directory), tuple(files.items())


def age(version: str) -> tuple[list[str | int], str]:
    """Order versions: numbers in them by their value, all else as text."""
    parts: list[str | int] = list(_NUMBERS.split(version))
    parts[1::2] = map(int, parts[1::2])
    return parts, version


def _place(named: Path, roots: Sequence[Path]) -> tuple[Path, str | None]:
    """Give where a name leads to, and the version after its ``@``."""
    for place in _places(named, roots):
        if place.exists():
            return place, None
    name, at, version = named.name.rpartition("@")
    if at and name and version:
        for place in _places(named.with_name(name), roots):
            if place.exists():
                return place, version
    return roots[-1] / named, None


def _places(named: Path, roots: Sequence[Path]) -> Iterator[Path]:
    yield from (root / named for root in roots)
    if len(named.parts) == 1:
        yield from (root / STORE / named for root in roots)


def _of_version(folder: Path, version: str) -> Path:
    known = versions(folder)
    if version not in known:
        there = ", ".join(known[-_MOST_TOLD:]) or "none"
        raise CheckpointError(f"checkpoint {folder}: no version {version}; there are: {there}")
    return folder / version


def _has_checkpoint(place: Path) -> bool:
    return (place / MANIFEST).is_file()


def _state(path: Path) -> tuple[int, ...]:
    with suppress(OSError):  # it goes while we look
        state = path.stat()
        return state.st_ino, state.st_size, state.st_mtime_ns
    return ()
