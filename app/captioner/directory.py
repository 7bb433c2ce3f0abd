"""A directory that a stranger may have written -> the bytes of its files.

Links may lead anywhere inside it, as in a volume of Kubernetes, and the directory itself may be
one. What they lead to is opened without following any: a file that is swapped for a link, a pipe or
a device in between is not read.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from app.captioner.errors import CheckpointError

MOST_ENTRIES = 10_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# a pipe without a writer would be waited for; a terminal would become ours
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Directory:
    """A directory that is held open: what its name leads to later does not matter.

    Args:
        path: of the directory, or of a link to it.

    Raises:
        OSError: it is no directory, or none that we may open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = os.path.realpath(path, strict=True)
        self._descriptor = os.open(self._root, _FOLDER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def refuse(self, reason: str) -> NoReturn:
        """Say of this directory why it cannot be trusted.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"checkpoint {self.path}: {reason}") from None

    def has(self, name: str) -> bool:
        """Say whether anything has this name, were it a link that leads nowhere."""
        return os.path.lexists(Path(self._root, name))

    def read(self, name: str, *, most_bytes: int) -> bytes:
        """Read a regular file.

        Args:
            name: relative, with ``/`` between its parts.
            most_bytes: a larger file is not read.

        Raises:
            CheckpointError: it is missing or no regular file, its link leads out of the directory,
                it is too large, changes meanwhile or cannot be read.
        """
        try:
            descriptor = self._open(name)
        except OSError as error:
            self.refuse(f"{name} is missing ({error.strerror}): copy the whole directory again")
        try:
            return self._whole(name, descriptor, most_bytes)
        except OSError as error:
            self.refuse(f"{name} cannot be read: {error.strerror}")
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> int:
        """Resolve the links of a name, then open where they led, following none."""
        *folders, last = self._parts(name)
        within = os.dup(self._descriptor)
        try:
            for folder in folders:
                inner = os.open(folder, _FOLDER, dir_fd=within)
                os.close(within)
                within = inner
            # before it is opened too: to open a device may be to start it
            self._check_regular(name, os.stat(last, dir_fd=within, follow_symlinks=False))
            return os.open(last, _FILE, dir_fd=within)
        finally:
            os.close(within)

    def _parts(self, name: str) -> list[str]:
        path = os.path.realpath(Path(self._root, name), strict=True)
        if os.path.commonpath((path, self._root)) != self._root:
            self.refuse(f"{name} leads out of the directory")
        return list(Path(path).relative_to(self._root).parts)

    def _check_regular(self, name: str, state: os.stat_result) -> None:
        if not stat.S_ISREG(state.st_mode):
            self.refuse(f"{name} is no regular file")

    def _whole(self, name: str, descriptor: int, most_bytes: int) -> bytes:
        """Read what is there, and see that it is as much as there was."""
        state = os.fstat(descriptor)
        self._check_regular(name, state)
        if state.st_size > most_bytes:
            self.refuse(f"{name} has {state.st_size} bytes, expected at most {most_bytes}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(state.st_size + 1)
        if len(content) != state.st_size:
            self.refuse(f"{name} changes while it is read: copy the whole directory again")
        return content

    def names(self) -> Iterator[str]:
        """Give the names of all entries, in folders too; no link is followed.

        Raises:
            CheckpointError: there are more than ``MOST_ENTRIES``.
        """
        folders, count = [self._root], 0
        while folders:
            try:
                entries = os.scandir(folders.pop())
            except OSError:  # nothing of what we may not list is read either
                continue
            with entries:
                for entry in entries:
                    count += 1
                    if count > MOST_ENTRIES:
                        self.refuse(f"expected at most {MOST_ENTRIES} files in it")
                    yield entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
