"""A directory in the official layout, read to the end whatever is wrong with it.

`trainer.data.flickr8k.read_split` stops at the first fault, as a program must that is about to
train. This reader goes on, so that one scan names everything there is to repair.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from app.captioner.tokenisers import Tokeniser, fitting, tokeniser
from trainer.data.clips import frame_files
from trainer.data.flickr8k import (
    TOKEN_FILE,
    image_folder,
    list_path,
    require_directory,
    split_names,
)
from trainer.data.pixels import PixelHashes, hash_images
from trainer.data.text_files import caption_line, list_line, numbered_lines, parse_each
from trainer.errors import DataError


@dataclass(frozen=True)
class DirectoryScan:
    """What lies in a directory.

    Attributes:
        lists: split -> image names, each once.
        captions: image -> captions, in the order of the file.
        files: names in the image folder.
        clips: directories of frames in the image folder, with the number of their frames.
        pixel_hashes: what the listed files show.
        faults: what could not be read: missing files, malformed and repeated lines.
    """

    lists: dict[str, tuple[str, ...]]
    captions: dict[str, tuple[str, ...]]
    files: frozenset[str]
    clips: dict[str, int]
    pixel_hashes: PixelHashes
    faults: tuple[str, ...]

    @cached_property
    def tokeniser(self) -> Tokeniser:
        """Give the tokeniser that suits the captions."""
        return tokeniser(fitting(text for of in self.captions.values() for text in of))

    def captions_of(self, split: str) -> list[tuple[str, str]]:
        """Give image and text of every caption of a split."""
        return [
            (image, text) for image in self.lists[split] for text in self.captions.get(image, ())
        ]


def scan_directory(
    directory: Path, *, images: str | None = None, pixel_hashes: PixelHashes | None = None
) -> DirectoryScan:
    """Read lists, captions and images of a directory; see `trainer.checks.diagnosis.diagnose`.

    Raises:
        DataError: there is no such directory.
    """
    require_directory(directory)
    faults: list[str] = []
    lists = {name: _names(list_path(directory, name), faults) for name in split_names(directory)}
    captions = _captions(directory / TOKEN_FILE, faults)
    folder = _folder(directory, images, faults)
    files = frozenset(file.name for file in folder.iterdir()) if folder else frozenset()
    listed = sorted({name for names in lists.values() for name in names if name in files})
    if pixel_hashes is None:
        pixel_hashes = hash_images((name, folder / name) for name in listed if folder)
    clips = {path.name: _frames(path) for path in _directories(folder)}
    return DirectoryScan(lists, captions, files, clips, pixel_hashes, tuple(faults))


def _directories(folder: Path | None) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder else []


def _frames(clip: Path) -> int:
    try:
        return len(frame_files(clip))
    except DataError:
        return 0  # the hashes tell it


def _names(path: Path, faults: list[str]) -> tuple[str, ...]:
    lines = _lines(path, faults)
    names, found = parse_each(lines, lambda item: list_line(path, *item))
    faults += found
    return tuple(_once(names, path, faults))


def _captions(path: Path, faults: list[str]) -> dict[str, tuple[str, ...]]:
    lines = _lines(path, faults)
    read, found = parse_each(lines, lambda item: caption_line(path, *item))
    faults += found
    _once((f"{image}#{number}" for image, number, _ in read), path, faults)
    captions: dict[str, list[str]] = {}
    for image, _, text in read:
        captions.setdefault(image, []).append(text)
    return {image: tuple(texts) for image, texts in captions.items()}


def _once(keys: Iterable[str], path: Path, faults: list[str]) -> list[str]:
    seen: dict[str, None] = {}
    for key in keys:
        if key in seen:
            faults.append(f"{path}: {key} stands there twice: remove one of the two lines")
        seen[key] = None
    return list(seen)


def _lines(path: Path, faults: list[str]) -> list[tuple[int, str]]:
    try:
        return list(numbered_lines(path))
    except DataError as error:
        faults.append(str(error))
        return []


def _folder(directory: Path, images: str | None, faults: list[str]) -> Path | None:
    try:
        return image_folder(directory, images)
    except DataError as error:
        faults.append(str(error))
        return None
