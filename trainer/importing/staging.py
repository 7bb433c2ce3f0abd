"""Where images lie, between a source that holds them itself and the directory that is written."""

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

    def add(self, content: bytes, name: str) -> Path:
        """Write an image under a name of its own, with the suffix of ``name``."""
        path = self.next_path(PurePosixPath(name).suffix)
        path.write_bytes(content)
        return path

    def next_path(self, suffix: str) -> Path:
        """Give a path that nothing lies at."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{next(self._numbers):09}{suffix}"
