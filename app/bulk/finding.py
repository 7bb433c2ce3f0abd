"""What the user typed -> photos, tar files and Parquet files, folder by folder, in order."""

import glob
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from app.bulk.places import absolute, join, place_of, scheme_of
from caption_client.images import IMAGE_SUFFIXES

Kind = Literal["images", "tar", "parquet"]
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_ANY_DEPTH = "**"


class Found(NamedTuple):
    """A file, and what is in it."""

    kind: Kind
    address: str


def find(sources: Sequence[str]) -> Iterator[Found]:
    """Find the files; no more than a folder is listed at once.

    Args:
        sources: Files, folders, or patterns, as paths or addresses.

    Raises:
        ValueError: One leads to no file.
        OSError: A folder cannot be listed.
    """
    for source in sources:
        found = False
        for each in _found(absolute(source)):
            found = True
            yield each
        if not found:
            raise ValueError(
                f"{source}: expected photos, .tar or .parquet files there, and found none"
            )


def _found(address: str) -> Iterator[Found]:
    kind = place_of(address).kind(address)
    if kind == "file":
        yield Found(kind_of(address) or "images", address)  # whatever its name: it was asked for
    elif kind == "folder":
        yield from _inside(address)
    elif glob.has_magic(address):
        for match in _expanded(*_split(address)):
            if place_of(match).kind(match) == "file":
                yield Found(kind_of(match) or "images", match)
            elif _ANY_DEPTH not in address:  # else what is inside is matched by itself
                yield from _inside(match)


def kind_of(address: str) -> Kind | None:
    """Tell from a name what is in a file, None where it is nothing of ours."""
    name = address.lower()
    if name.endswith(_TAR_SUFFIXES):
        return "tar"
    if name.endswith(".parquet"):
        return "parquet"
    return "images" if PurePosixPath(name).suffix in IMAGE_SUFFIXES else None


def _inside(folder: str) -> Iterator[Found]:
    for entry in place_of(folder).entries(folder):
        if entry.is_folder:
            yield from _inside(entry.address)
        elif kind := kind_of(entry.address):
            yield Found(kind, entry.address)


def _split(pattern: str) -> tuple[str, list[str]]:
    """Give the folder above the first name that is a pattern, and the names from there on."""
    scheme = scheme_of(pattern)
    root = f"{scheme}://" if scheme else "/"
    names = pattern.removeprefix(root).split("/")
    first = next(n for n, name in enumerate(names) if glob.has_magic(name))
    above = "/".join(names[:first])
    return f"{root}{above}" if above else root, names[first:]


def _expanded(folder: str, names: Sequence[str]) -> Iterator[str]:
    """Give what a pattern leads to, by name; ``**`` stands for any folders, or none."""
    first, rest = names[0], names[1:]
    if not glob.has_magic(first):
        below = join(folder, first)
        if place_of(below).kind(below):
            yield from _expanded(below, rest) if rest else [below]
        return
    if first == _ANY_DEPTH:
        yield from _expanded(folder, rest or ["*"])
    for entry in place_of(folder).entries(folder):
        if first == _ANY_DEPTH:
            if entry.is_folder:
                yield from _expanded(entry.address, names)
        elif _matches(entry.address.rpartition("/")[2], first):
            if not rest:
                yield entry.address
            elif entry.is_folder:
                yield from _expanded(entry.address, rest)


def _matches(name: str, pattern: str) -> bool:
    """Match as a shell does: a hidden file is asked for by its dot."""
    return fnmatchcase(name, pattern) and name.startswith(".") <= pattern.startswith(".")
