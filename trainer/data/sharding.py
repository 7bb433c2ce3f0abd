"""A directory in Flickr8k's layout -> a directory of shards."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from trainer.data.flickr8k import Split, read_split, split_names
from trainer.data.shards import write_shard
from trainer.errors import DataError


def write_shards(directory: Path, out: Path, *, images_per_shard: int) -> Iterator[Split]:
    """Write the shards of all splits, under another name until they are complete.

    Yields:
        Each split when its shards are written; ``out`` is there after the last.

    Raises:
        DataError: ``out`` exists, or `read_split` refuses a split.
    """
    if out.exists():
        raise DataError(f"{out} exists: name a new directory, or remove it first")
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in split_names(directory):
        split = read_split(directory, name)
        if split.of_clips:
            raise DataError(
                f"{name} holds clips, and shards hold images: give fit the directory as it is"
            )
        _write_split(split, unfinished, images_per_shard)
        yield split
    unfinished.rename(out)


def _write_split(split: Split, folder: Path, images_per_shard: int) -> None:
    starts = range(0, len(split.examples), images_per_shard)
    for number, start in enumerate(tqdm(starts, f"shards {split.name}", unit="shard")):
        chosen = split.examples[start : start + images_per_shard]
        samples = ((item.image, item.path.read_bytes(), item.captions) for item in chosen)
        write_shard(folder / f"{split.name}-{number:06}.tar", samples, first=start)
