"""Files wherever they lie: of this machine, or of what ``pyarrow.fs`` reaches.

An address is an absolute path, or begins with one of `SCHEMES`. What is written appears whole or
not at all.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol
from uuid import uuid4

SCHEMES = ("file", "s3", "gs")
DRAFT = ".draft-"
"""How the names of files begin that are being written; whoever reads a folder skips them."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")


class Entry(NamedTuple):
    """What lies in a folder: its address, and whether it is a folder itself."""

    address: str
    is_folder: bool


@dataclass(frozen=True)
class Draft:
    """A file that is being written; ``keep`` puts it in its place, ``discard`` removes it."""

    file: BinaryIO
    keep: Callable[[], None]
    discard: Callable[[], None]


class Place(Protocol):
    """Where files lie. All methods take addresses, and raise OSError where they fail."""

    def kind(self, address: str) -> Literal["file", "folder"] | None:
        """Say what lies there."""
        ...

    def entries(self, folder: str) -> list[Entry]:
        """List a folder by name."""
        ...

    def open(self, address: str) -> BinaryIO:
        """Open a file to read it, anywhere in it."""
        ...

    def draft(self, address: str) -> Draft:
        """Begin a file; its folder is made where it is missing."""
        ...

    def remove(self, address: str) -> None:
        """Remove a file."""
        ...


def scheme_of(address: str) -> str | None:
    """Give the scheme of an address, None for a path."""
    found = _SCHEME.match(address)
    return found[1] if found else None


def absolute(address: str) -> str:
    """Make an address of what the user typed.

    Raises:
        ValueError: Nothing of ours reads such an address.
    """
    scheme = scheme_of(address)
    if scheme is None:
        return os.path.abspath(address)  # noqa: PTH100 - a pattern may stand in it
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise ValueError(f"{address}: expected a path, or an address that begins with {known}")
    return address.rstrip("/")


def place_of(address: str) -> Place:
    """Give where an address leads.

    Raises:
        ValueError: It needs pyarrow, which is not installed.
    """
    scheme = scheme_of(address)
    if scheme is None:
        return _Here()
    require_pyarrow(f"{scheme}://")
    return _connected(scheme, _path(address).partition("/")[0] if scheme != "file" else "")


def require_pyarrow(what: str) -> None:
    """Look for the library before any work is done.

    Raises:
        ValueError: It is not installed.
    """
    if find_spec("pyarrow") is None:
        raise ValueError(f"{what} needs pyarrow: pip install 'caption-service[tables]'")


def join(folder: str, name: str) -> str:
    """Give the address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def _name(address: str) -> str:
    return address.rpartition("/")[2]


def _draft_of(address: str) -> str:
    folder, _, name = address.rpartition("/")
    return f"{folder}/{DRAFT}{uuid4().hex}-{name}"


class _Here:
    """The files of this machine."""

    def kind(self, address: str) -> Literal["file", "folder"] | None:
        path = Path(address)
        return "folder" if path.is_dir() else "file" if path.exists() else None

    def entries(self, folder: str) -> list[Entry]:
        with os.scandir(folder) as found:
            # a folder that is a link may lead back to us
            return sorted(
                Entry(entry.path, entry.is_dir(follow_symlinks=False))
                for entry in found
                if not (entry.is_symlink() and entry.is_dir())
            )

    def open(self, address: str) -> BinaryIO:
        return Path(address).open("rb")

    def draft(self, address: str) -> Draft:
        path, draft = Path(address), Path(_draft_of(address))
        draft.parent.mkdir(parents=True, exist_ok=True)
        file = draft.open("wb")

        def keep() -> None:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            draft.replace(path)

        def discard() -> None:
            file.close()
            draft.unlink(missing_ok=True)

        return Draft(file, keep, discard)

    def remove(self, address: str) -> None:
        Path(address).unlink(missing_ok=True)


class _There:
    """The files of one of pyarrow's file systems.

    Args:
        files: The file system.
        scheme: With which its addresses begin.
    """

    def __init__(self, files: Any, scheme: str) -> None:
        self._files = files
        self._scheme = scheme

    def kind(self, address: str) -> Literal["file", "folder"] | None:
        from pyarrow.fs import FileType  # noqa: PLC0415 - an extra

        (found,) = self._files.get_file_info([_path(address)])
        kinds: dict[Any, Literal["file", "folder"]] = {
            FileType.File: "file",
            FileType.Directory: "folder",
        }
        return kinds.get(found.type)

    def entries(self, folder: str) -> list[Entry]:
        from pyarrow.fs import FileSelector, FileType  # noqa: PLC0415 - an extra

        found = self._files.get_file_info(FileSelector(_path(folder)))
        return sorted(
            Entry(f"{self._scheme}://{each.path}", each.type == FileType.Directory)
            for each in found
        )

    def open(self, address: str) -> BinaryIO:
        return BufferedReader(self._files.open_input_file(_path(address)))  # which has no lines

    def draft(self, address: str) -> Draft:
        path, draft = _path(address), _path(_draft_of(address))
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        file = self._files.open_output_stream(draft, compression=None)

        def keep() -> None:
            file.close()
            self._files.move(draft, path)  # of an object store: a copy, which is whole or absent

        def discard() -> None:
            file.close()
            self._files.delete_file(draft)

        return Draft(file, keep, discard)

    def remove(self, address: str) -> None:
        self._files.delete_file(_path(address))


def _path(address: str) -> str:
    return address.partition("://")[2]


@cache
def _connected(scheme: str, bucket: str) -> Place:
    """Connect once; keys may hold what a URI would have to escape, so only the bucket is told."""
    from pyarrow.fs import FileSystem  # noqa: PLC0415 - an extra

    files, _ = FileSystem.from_uri(f"{scheme}://{bucket or '/'}")
    return _There(files, scheme)
