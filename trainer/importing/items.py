"""Records of a caption file and a folder of images -> one item for each image."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.data.records import CaptionRecord
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


def gather(records: Iterable[CaptionRecord], folder: Path) -> list[Item]:
    """Bring the records of each image together and find its file; sorted by name.

    Raises:
        DataError: names that lead out of the folder or to no file, two images that would have one
            name, or splits that contradict each other; all of them are named.
    """
    by_image: dict[str, list[CaptionRecord]] = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record)
    faults = [fault for of in by_image.values() for fault in _record_faults(of, folder)]
    faults += _clashes(by_image)
    faults += _half_split([of[0] for of in by_image.values()])
    refuse(faults)
    items = (_item(of, folder) for of in by_image.values())
    return sorted(items, key=lambda item: item.name)


def renamed_splits(records: Iterable[CaptionRecord]) -> list[str]:
    """Say which splits of the source get another name here."""
    found = sorted(
        {record.split for record in records if record.split in SPLIT_NAMES} - {None}, key=str
    )
    return [f"split {name} of the source becomes {SPLIT_NAMES[str(name)]}" for name in found]


def unused_files(records: Iterable[CaptionRecord], folder: Path) -> list[str]:
    """Say how many files of the folder no record speaks of; they stay out."""
    used = {folder / record.image for record in records}
    unused = sorted(path for path in folder.rglob("*") if path.is_file() and path not in used)
    return [f"{len(unused)} files without a caption stay out, first {unused[0]}"] if unused else []


def _record_faults(records: list[CaptionRecord], folder: Path) -> list[str]:
    first, faults = records[0], []
    path = PurePosixPath(first.image)
    if path.is_absolute() or ".." in path.parts or _NO_NAME.search(first.image):
        return [f"{first.where}: {first.image!r} is no name inside {folder}: rename it"]
    if not (folder / path).is_file():
        faults.append(f"{first.where}: {folder / path} is no file: restore it or remove the entry")
    other = next((record for record in records if record.split != first.split), None)
    if other:
        faults.append(
            f"{other.where}: {first.image} is in split {other.split or 'none'}, but in "
            f"{first.split or 'none'} at {first.where}: choose one"
        )
    if first.split is not None and not _SPLIT.fullmatch(first.split):
        faults.append(f"{first.where}: {first.split!r} is no name of a split: use letters, digits")
    return faults


def _clashes(by_image: Mapping[str, list[CaptionRecord]]) -> list[str]:
    taken: dict[str, str] = {}
    faults = []
    for image, records in by_image.items():
        other = taken.setdefault(_flat(image), image)
        if other != image:
            faults.append(
                f"{records[0].where}: {image} and {other} get one name: rename one of them"
            )
    return faults


def _half_split(records: list[CaptionRecord]) -> list[str]:
    bare = [record for record in records if record.split is None]
    if not bare or len(bare) == len(records):
        return []
    return [f"{bare[0].where}: {len(bare)} images have no split while others have one: fill it in"]


def _flat(image: str) -> str:
    return "_".join(PurePosixPath(image).parts)


def _item(records: list[CaptionRecord], folder: Path) -> Item:
    image, split = records[0].image, records[0].split
    captions = tuple(text for record in records for text in record.captions)
    ours = None if split is None else SPLIT_NAMES.get(split, split)
    return Item(_flat(image), folder / image, captions, ours)
