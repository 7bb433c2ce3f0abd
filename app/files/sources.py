"""What the user typed -> photos: files, folders, patterns and standard input."""

import glob
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from app.files.outcome import STDIN, Source
from caption_client.images import IMAGE_SUFFIXES, images_in


def find(names: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Find the photos, each once, in the order in which they were typed.

    Args:
        names: Files, folders, patterns such as ``photos/**/*.jpg``, or ``-``.

    Returns:
        The photos, and for each name that leads to none what is wrong with it.
    """
    photos: dict[str, Source] = {}
    wrong: list[str] = []
    for name in names:
        found = list(_found(name))
        photos |= {source.name: source for source in found if source.name not in photos}
        if not found:
            wrong.append(_missing(name))
    return list(photos.values()), wrong


def _found(name: str) -> Iterable[Source]:
    if name == STDIN:
        return [Source(STDIN, None, sys.stdin.buffer.read())]
    path = Path(name)
    if path.is_dir():
        return [Source(str(photo), photo) for photo in images_in(path)]
    if path.exists():
        return [Source(name, path)]
    if not glob.has_magic(name):
        return []
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - it may be absolute
    return [Source(match, Path(match)) for match in matches if Path(match).is_file()]


def _missing(name: str) -> str:
    if name.startswith(("http://", "https://")):
        return f"{name}: expected a file, not a web address: download it first"
    if Path(name).is_dir():
        return f"{name}: no file in it ends in {', '.join(sorted(IMAGE_SUFFIXES))}"
    if glob.has_magic(name):
        return f"{name}: No such file, and no file has such a name"
    return f"{name}: No such file or directory"
