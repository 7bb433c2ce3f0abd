"""Records of caption files and a folder of images -> one item for each image."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from trainer.data.records import CaptionRecord, composed, split_name
from trainer.errors import DataError, EntryError
from trainer.importing.faults import parse_each
from trainer.importing.image_folder import AS_WRITTEN, ImageFolder

_SPLIT = re.compile(r"[a-z0-9_-]+")
_NO_NAME = re.compile(r"[\x00-\x1f#\\/:]")
_NOT_FOUND = "no such image in the folder"


@dataclass(frozen=True)
class Item:
    """One image of the new directory.

    Attributes:
        name: its file name there; folders of the source are joined by ``_``.
        path: the file it comes from.
        captions: all that the source says of it, in the source's order.
        split: of the source, by our name; None where the source has no splits.
        where: the first place that speaks of it.
    """

    name: str
    path: Path
    captions: tuple[str, ...]
    split: str | None
    where: str


@dataclass
class Gathered:
    """The items, what was wrong with the others, and what a person should know."""

    items: list[Item]
    faults: list[EntryError]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Located:
    record: CaptionRecord
    path: Path
    how: str


def gather(records: Sequence[CaptionRecord], images: ImageFolder) -> Gathered:
    """Bring the records of each image together and find its file; sorted by name.

    Raises:
        DataError: no name at all is one of the folder's.
    """
    names = dict.fromkeys((record.image, record.file) for record in records)
    found = {name: _locate(name[0], name[1], images) for name in names}
    located, faults = parse_each(records, lambda each: _located(each, found))
    if not located:
        raise _nothing_found(records, images)
    by_path: dict[Path, list[_Located]] = {}
    for each in located:
        by_path.setdefault(each.path, []).append(each)
    some_split = any(each.record.split for each in located)
    items, more = parse_each(by_path.values(), lambda of: _item(of, images, some_split=some_split))
    unpacked = {each.path for each in located if each.record.file}
    items, clashes = _without_clashes(items, unpacked)
    notes = [*_told_ways(located), *renamed_splits(each.record for each in located)]
    return Gathered(sorted(items, key=lambda item: item.name), [*faults, *more, *clashes], notes)


def renamed_splits(records: Iterable[CaptionRecord]) -> list[str]:
    """Say which splits of the source get another name here."""
    found = sorted({record.split for record in records if record.split})
    return [
        f"split {name} of the source becomes {split_name(name)}"
        for name in found
        if split_name(name) != name
    ]


def unused_files(items: Iterable[Item], images: ImageFolder) -> list[str]:
    """Say how many images of the folder no record speaks of; they stay out."""
    used = {item.path for item in items}
    unused = [name for name in images.pictures() if images.exact[name] not in used]
    return [f"{len(unused)} files without a caption stay out, first {unused[0]}"] if unused else []


def _locate(name: str, file: Path | None, images: ImageFolder) -> list[tuple[Path, str]]:
    return [(file, AS_WRITTEN)] if file else images.find(name)


def _located(
    record: CaptionRecord,
    found: dict[tuple[str, Path | None], list[tuple[Path, str]]],
) -> _Located:
    candidates = found[record.image, record.file]
    if len(candidates) == 1:
        return _Located(record, *candidates[0])
    if candidates:
        several = " or ".join(str(path) for path, _ in candidates[:2])
        raise EntryError(record.where, "a name may mean several images", several)
    raise EntryError(record.where, _NOT_FOUND, repr(record.image))


def _nothing_found(records: Sequence[CaptionRecord], images: ImageFolder) -> DataError:
    first, there = records[0], images.pictures()
    if first.image.startswith(("http:", "https:")):
        return DataError(
            f"{first.where} names an image by its address, {first.image[:80]!r}, and nothing is "
            "downloaded here: download them first, for instance with img2dataset"
        )
    holds = f"holds {len(there)} images, first {there[0]!r}" if there else "holds no images"
    return DataError(
        f"none of {len({each.image for each in records})} images is in {images.path}, first "
        f"{first.image!r} of {first.where}; the folder {holds}: name the folder of the images with "
        "--images, or the column of their names with --image-key"
    )


def _item(located: list[_Located], images: ImageFolder, *, some_split: bool) -> Item:
    first = located[0].record
    other = next((each.record for each in located if each.record.split != first.split), None)
    if other and split_name(other.split or "") != split_name(first.split or ""):
        raise EntryError(
            other.where,
            "an image is in two splits",
            f"{first.image} in {other.split or 'none'} and in {first.split or 'none'}",
        )
    if some_split and not first.split:
        raise EntryError(first.where, "an image has no split while others have one", first.image)
    split = split_name(first.split) if first.split else None
    if split is not None and not _SPLIT.fullmatch(split):
        raise EntryError(
            first.where, "expected the name of a split, letters and digits", repr(first.split)
        )
    captions = tuple(text for each in located for text in each.record.captions)
    return Item(_flat(located[0], images), located[0].path, captions, split, first.where)


def _without_clashes(
    items: Iterable[Item], unpacked: set[Path]
) -> tuple[list[Item], list[EntryError]]:
    """Let each name stand for one image; those that a source held itself get another where needed.

    Nobody can rename what lies in a Parquet file, and there each split may begin with ``0.jpg``.
    """
    taken: dict[str, Item] = {}
    faults = []
    for each in items:
        item = each
        if item.name in taken and item.path in unpacked:
            item = replace(item, name=f"{item.path.stem}_{item.name}")
        other = taken.setdefault(item.name, item)
        if other is not item:
            faults.append(
                EntryError(
                    item.where,
                    "two images get one name, rename one of them",
                    f"{item.path.name} and {other.path.name}, both {item.name}",
                )
            )
    return list(taken.values()), faults


def _flat(located: _Located, images: ImageFolder) -> str:
    """Join the folders of a name by ``_``; what a list of names cannot hold becomes ``_`` too."""
    record, path = located.record, located.path
    if record.file is not None:
        parts = PurePosixPath(record.image.replace("\\", "/")).parts
    else:
        parts = path.relative_to(images.path or "").parts
    return composed("_".join(_NO_NAME.sub("_", part) for part in parts if part not in {"/", ".."}))


def _told_ways(located: Iterable[_Located]) -> list[str]:
    """Say which names were taken for a file whose name is another."""
    ways: dict[str, dict[str, Path]] = {}
    for each in located:
        if each.how != AS_WRITTEN:
            ways.setdefault(each.how, {})[each.record.image] = each.path
    return [
        f"{len(names)} images were found {how}, first {next(iter(names))!r}: "
        f"{next(iter(names.values())).name}"
        for how, names in ways.items()
    ]
