"""What was read of caption files and a folder of images -> a directory in the official layout."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.pixels import PixelHashes
from trainer.errors import DataError, EntryError
from trainer.importing.faults import Parsed, refuse
from trainer.importing.image_folder import ImageFolder
from trainer.importing.images import usable_images
from trainer.importing.items import gather, unused_files
from trainer.importing.layout_writer import write_layout
from trainer.importing.splitting import Chance, split_items
from trainer.importing.staging import Staging

SKIPPED_FILE = "skipped.csv"


@dataclass(frozen=True)
class Imported:
    """What was done.

    Attributes:
        report: a line each, for a person to read.
        hashes: of what the images show, by their new names.
    """

    report: list[str]
    hashes: PixelHashes


def import_records(
    parsed: Parsed,
    images: ImageFolder,
    out: Path,
    staging: Staging,
    *,
    chance: Chance | None = None,
    skip_bad: bool = False,
) -> Imported:
    """Write a directory in the official layout.

    Args:
        parsed: of one or more caption files.
        images: the folder that holds the images.
        out: new directory.
        staging: takes images that have to be converted.
        chance: how images are split where the records have no splits, or no dev.
        skip_bad: leave out entries that cannot be used and list them in `SKIPPED_FILE`.

    Raises:
        DataError: entries cannot be used, records and images contradict each other, or a chance
            is given where the records have all splits.
    """
    if not parsed.records:
        refuse(parsed.faults, 0)
    gathered = gather(parsed.records, images)
    faults = [*parsed.faults, *gathered.faults]
    if not skip_bad:
        refuse(faults, len(parsed.records) - len(gathered.faults))
    usable = usable_images(gathered.items, staging)
    if not skip_bad or not usable.items:
        refuse(usable.faults, len(usable.items))
    faults += usable.faults
    names = {item.split for item in usable.items}
    if chance and {"train", "dev"} <= names:
        raise DataError("the source has its own splits: leave out --dev-share and --seed")
    splits = split_items(usable.items, usable.hashes, chance or Chance())
    write_layout(splits.items, out)
    counts = (
        f"{name}: {len(of)} images, {sum(len(item.captions) for item in of)} captions"
        for name, of in splits.items.items()
    )
    skipped = _write_skipped(out / SKIPPED_FILE, faults)
    unused = unused_files(gathered.items, images)
    notes = [*gathered.notes, *usable.notes, *unused, *skipped]
    return Imported([*notes, splits.how, *counts], usable.hashes)


def _write_skipped(path: Path, faults: Sequence[EntryError]) -> list[str]:
    """List what was left out."""
    if not faults:
        return []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["place", "fault", "got"])
        writer.writerows([fault.where, fault.what, fault.got] for fault in faults)
    return [f"{len(faults)} entries that cannot be used stay out, {path} lists them"]
