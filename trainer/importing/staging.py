"""Where images lie, between a source that holds them itself and the directory that is written."""

import hashlib
from itertools import count
from pathlib import Path, PurePosixPath


class Staging:
    """A folder of images that were unpacked or converted.

    Args:
        folder: an empty one; made when the first image comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = count()
        self._known: dict[bytes, Path] = {}

    def add(self, content: bytes, name: str) -> Path:
        """Write an image under a name of its own, with the suffix of ``name``.

        The same bytes are written once: tables with a row for each caption repeat their images.
        """
        digest = hashlib.sha256(content).digest()
        if digest not in self._known:
            self._known[digest] = self.next_path(PurePosixPath(name).suffix)
            self._known[digest].write_bytes(content)
        return self._known[digest]

    def next_path(self, suffix: str) -> Path:
        """Give a path that nothing lies at."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{next(self._numbers):09}{suffix}"
