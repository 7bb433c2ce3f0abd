"""A folder of images, and which of its files a name in a caption file means."""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from PIL import Image

from trainer.data.records import composed

AS_WRITTEN = "as written"
_SPELLING = "spelled otherwise"
_SUFFIX = "with another suffix"
_FOLDERS = "without the folders before it"
_NUMBER = "by the number in their names"
_DEEPER = "in a folder below"

_NUMBERED = re.compile(r"(?:^|_)0*([0-9]{1,18})$")  # COCO_val2014_000000000042
_NO_PICTURES = frozenset(  # programs that another program would run, films, and mere stubs
    {"EPS", "WMF", "PDF", "MPEG", "BUFR", "GRIB", "HDF5"}
)
_BEYOND_PILLOW = frozenset({".heic", ".heif", ".hif", ".avif"})  # with the extra, or a later Pillow


@cache
def picture_formats() -> tuple[str, ...]:
    """Give the formats of pictures, in Pillow's words."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in _NO_PICTURES)


@cache
def image_suffixes() -> frozenset[str]:
    """Give the suffixes of pictures, small letters with their dot."""
    kinds = picture_formats()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in kinds}
    return frozenset(suffixes) | _BEYOND_PILLOW


def looks_like_image(name: str) -> bool:
    """Tell by its suffix whether a name is one of an image."""
    return suffix_of(name) in image_suffixes()


def suffix_of(name: str) -> str:
    """Give the suffix of a name, small letters with its dot."""
    return PurePosixPath(name.replace("\\", "/")).suffix.casefold()


class ImageFolder:
    """The files of a folder, by all that a name may leave out or spell in another way.

    Args:
        path: the folder; None where names are of no interest, then nothing is found.

    Attributes:
        files: paths inside the folder.
        exact: the same, each with its file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.files = tuple(sorted(_files(path))) if path else ()
        self.exact = {name: path / name for name in self.files} if path else {}
        self._by_key: dict[str, list[str]] = {}
        for name in self.files:
            for key in _keys_of(name):
                self._by_key.setdefault(key, []).append(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.find(name))

    def find(self, name: str) -> list[tuple[Path, str]]:
        """Find the files that a name may mean.

        Args:
            name: as written in a caption file: a path in or above the folder, absolute, with
                backslashes, or an address; its suffix may be missing or another.

        Returns:
            Path, and how it was found, of each file: none if there is none, several if the name
            could mean several.
        """
        if name in self.exact and ".." not in PurePosixPath(name).parts:
            return [(self.exact[name], AS_WRITTEN)]
        for tail, way in _tails(name):
            for key, how in _lookups(tail, way):
                found = self._by_key.get(key)
                if found:
                    return [(self.exact[each], how) for each in found]
        return []

    def pictures(self) -> list[str]:
        """Name the files that look like images."""
        return [name for name in self.files if looks_like_image(name)]


def _files(path: Path) -> Iterator[str]:
    for folder, below, names in os.walk(path, followlinks=True):
        below[:] = [each for each in below if not each.startswith(".")]
        inside = Path(folder).relative_to(path)
        yield from ((inside / name).as_posix() for name in names if not name.startswith("."))


def _keys_of(name: str) -> Iterator[str]:
    """Give what a file can be found by: its path and its bare name, with and without suffix."""
    path = _key(name)
    bare = path.rpartition("/")[2]
    yield f"path {path}"
    yield f"name {bare}"
    if looks_like_image(name):
        yield f"path stem {_stem(path)}"
        yield f"name stem {_stem(bare)}"
        number = _NUMBERED.search(_stem(bare))
        if number:
            yield f"number {int(number[1])}"


def _lookups(tail: str, way: str) -> Iterator[tuple[str, str]]:
    key = _key(tail)
    stem = _stem(key) if looks_like_image(tail) else key
    yield f"path {key}", way
    yield f"path stem {stem}", _SUFFIX
    if "/" not in key:
        yield f"name {key}", _DEEPER
        yield f"name stem {stem}", _SUFFIX
        if key.isdecimal():
            yield f"number {int(key)}", _NUMBER


def _tails(name: str) -> Iterator[tuple[str, str]]:
    """Give a name as it is, and without its first folders, one after another."""
    plain = name.replace("\\", "/")
    numbered, _, _ = plain.partition("#")  # beach.jpg#en
    spellings = (plain, unquote(plain), *([numbered] if looks_like_image(numbered) else []))
    for spelled in dict.fromkeys(spellings):
        parts = [part for part in spelled.split("/") if part not in {"", "."}]
        for start in range(len(parts)):
            if ".." not in parts[start:]:
                yield "/".join(parts[start:]), _FOLDERS if start else _SPELLING


def _key(name: str) -> str:
    return composed(name).casefold()


def _stem(key: str) -> str:
    return str(PurePosixPath(key).with_suffix("")) if PurePosixPath(key).name else key
