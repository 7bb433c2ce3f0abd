"""Records of a caption file and a folder of images -> a directory in the official layout."""

from collections.abc import Sequence
from pathlib import Path

from trainer.data.records import CaptionRecord
from trainer.errors import DataError
from trainer.importing.items import gather, renamed_splits, unused_files
from trainer.importing.layout_writer import write_layout
from trainer.importing.splitting import DEV_SHARE, split_items


def import_records(
    records: Sequence[CaptionRecord],
    images: Path,
    out: Path,
    *,
    dev_share: float | None = None,
    seed: int | None = None,
) -> list[str]:
    """Write a directory in the official layout.

    Args:
        records: of one caption file.
        images: the folder their names are relative to.
        out: new directory.
        dev_share: part of the images that becomes ``dev``, 0 to 1, where the records have no
            splits; `DEV_SHARE` without it.
        seed: of that choice; 1 without it.

    Returns:
        What was done, a line each, for a person to read.

    Raises:
        DataError: records and images contradict each other, or records with splits come with a
            share or a seed.
    """
    items = gather(records, images)
    by_chance = items[0].split is None
    if not by_chance and (dev_share, seed) != (None, None):
        raise DataError(
            f"{records[0].where}: the file has its own splits: leave out --dev-share and --seed"
        )
    share = DEV_SHARE if dev_share is None else dev_share
    splits = split_items(items, dev_share=share, seed=1 if seed is None else seed)
    write_layout(splits, out)
    how = f"split by chance, dev share {share:g}" if by_chance else "split as in the source"
    counts = (
        f"{name}: {len(of)} images, {sum(len(item.captions) for item in of)} captions"
        for name, of in splits.items()
    )
    return [*unused_files(records, images), *renamed_splits(records), how, *counts]
