"""Items -> splits: those of the source, or by chance."""

import hashlib

from trainer.data.pixels import hash_images
from trainer.errors import DataError
from trainer.importing.formats import refuse
from trainer.importing.items import Item

DEV_SHARE = 0.1


def split_items(items: list[Item], *, dev_share: float, seed: int) -> dict[str, list[Item]]:
    """Share out the images: by the source's splits, or by chance where it has none.

    The chance is a hash of seed and pixels: the same images get the same split whatever their
    names and their order, and a picture that lies there twice stays in one split.

    Raises:
        DataError: images cannot be decoded, or there are too few different ones to split.
    """
    if items and items[0].split is not None:
        return _by_source(items)
    groups = _groups_of_equals(items)
    if len(groups) < 2:
        raise DataError(f"expected at least 2 different images to split, got {len(groups)}: add")
    shuffled = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    dev_images = max(1, round(dev_share * len(items)))
    chosen: set[str] = set()
    for key in shuffled[:-1]:
        if sum(len(groups[each]) for each in chosen) >= dev_images:
            break
        chosen.add(key)
    dev = {item.name for key in chosen for item in groups[key]}
    return {
        "train": [item for item in items if item.name not in dev],
        "dev": [item for item in items if item.name in dev],
    }


def _by_source(items: list[Item]) -> dict[str, list[Item]]:
    splits: dict[str, list[Item]] = {}
    for item in items:
        splits.setdefault(str(item.split), []).append(item)
    return splits


def _groups_of_equals(items: list[Item]) -> dict[str, list[Item]]:
    hashes = hash_images((item.name, item.path) for item in items)
    paths = {item.name: item.path for item in items}
    refuse(
        [
            f"{paths[name]}: {why}: replace it or remove its captions"
            for name, why in hashes.broken.items()
        ]
    )
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(hashes.sha256[item.name], []).append(item)
    return groups
