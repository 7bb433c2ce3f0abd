"""Rows of a caption file and a folder of images -> one item for each image."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.data.records import Row
from trainer.importing.formats import refuse

SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev", "restval": "train"}
"""What splits are called elsewhere -> here."""

_SPLIT = re.compile(r"[A-Za-z0-9_-]+")
_NO_NAME = re.compile(r"[\t\n\r#\\]")


@dataclass(frozen=True)
class Item:
    """One image of the new directory.

    Attributes:
        name: its file name there; folders of the source are joined by ``_``.
        path: the file it comes from.
        captions: all that the source says of it, in the source's order.
        split: of the source, by our name; None where the source has no splits.
    """

    name: str
    path: Path
    captions: tuple[str, ...]
    split: str | None


def gather(rows: Iterable[Row], folder: Path) -> list[Item]:
    """Bring the rows of each image together and find its file; sorted by name.

    Raises:
        DataError: names that lead out of the folder or to no file, two images that would have one
            name, or splits that contradict each other; all of them are named.
    """
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    faults = [fault for of in by_image.values() for fault in _row_faults(of, folder)]
    faults += _clashes(by_image)
    faults += _half_split([of[0] for of in by_image.values()])
    refuse(faults)
    items = (_item(of, folder) for of in by_image.values())
    return sorted(items, key=lambda item: item.name)


def renamed_splits(rows: Iterable[Row]) -> list[str]:
    """Say which splits of the source get another name here."""
    found = sorted({row.split for row in rows if row.split in SPLIT_NAMES} - {None}, key=str)
    return [f"split {name} of the source becomes {SPLIT_NAMES[str(name)]}" for name in found]


def unused_files(rows: Iterable[Row], folder: Path) -> list[str]:
    """Say how many files of the folder no row speaks of; they stay out."""
    used = {folder / row.image for row in rows}
    unused = sorted(path for path in folder.rglob("*") if path.is_file() and path not in used)
    return [f"{len(unused)} files without a caption stay out, first {unused[0]}"] if unused else []


def _row_faults(rows: list[Row], folder: Path) -> list[str]:
    first, faults = rows[0], []
    path = PurePosixPath(first.image)
    if path.is_absolute() or ".." in path.parts or _NO_NAME.search(first.image):
        return [f"{first.where}: {first.image!r} is no name inside {folder}: rename it"]
    if not (folder / path).is_file():
        faults.append(f"{first.where}: {folder / path} is no file: restore it or remove the entry")
    other = next((row for row in rows if row.split != first.split), None)
    if other:
        faults.append(
            f"{other.where}: {first.image} is in split {other.split or 'none'}, but in "
            f"{first.split or 'none'} at {first.where}: choose one"
        )
    if first.split is not None and not _SPLIT.fullmatch(first.split):
        faults.append(f"{first.where}: {first.split!r} is no name of a split: use letters, digits")
    return faults


def _clashes(by_image: Mapping[str, list[Row]]) -> list[str]:
    taken: dict[str, str] = {}
    faults = []
    for image, rows in by_image.items():
        other = taken.setdefault(_flat(image), image)
        if other != image:
            faults.append(f"{rows[0].where}: {image} and {other} get one name: rename one of them")
    return faults


def _half_split(rows: list[Row]) -> list[str]:
    bare = [row for row in rows if row.split is None]
    if not bare or len(bare) == len(rows):
        return []
    return [f"{bare[0].where}: {len(bare)} images have no split while others have one: fill it in"]


def _flat(image: str) -> str:
    return "_".join(PurePosixPath(image).parts)


def _item(rows: list[Row], folder: Path) -> Item:
    image, split = rows[0].image, rows[0].split
    captions = tuple(text for row in rows for text in row.captions)
    ours = None if split is None else SPLIT_NAMES.get(split, split)
    return Item(_flat(image), folder / image, captions, ours)
