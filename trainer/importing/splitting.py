"""Items -> splits: those of the source, or by chance; a source without dev gets one of train."""

import hashlib
from dataclasses import dataclass

from trainer.data.pixels import PixelHashes
from trainer.errors import DataError
from trainer.importing.items import Item

DEV_SHARE = 0.1


@dataclass(frozen=True)
class Chance:
    """How a split by chance is drawn.

    Attributes:
        dev_share: part of the images that becomes ``dev``, 0 to 1.
        seed: of the choice.
    """

    dev_share: float = DEV_SHARE
    seed: int = 1


@dataclass(frozen=True)
class Splits:
    """The items of each split, and how they were shared out, for a person to read."""

    items: dict[str, list[Item]]
    how: str


def split_items(items: list[Item], hashes: PixelHashes, chance: Chance) -> Splits:
    """Share out the images: by the source's splits, or by chance where it has none.

    A source with splits but without ``dev`` gives a part of its ``train`` to it. The chance is a
    hash of seed and pixels: the same images get the same split whatever their names and their
    order, and a picture that lies there twice stays in one split.

    Raises:
        DataError: there are too few different images to split, or the source has no ``train``.
    """
    if not any(item.split for item in items):
        return Splits(_by_chance(items, hashes, chance), f"split by chance, {_share(chance)}")
    splits = _by_source(items)
    if "train" not in splits:
        raise DataError(
            f"the source has the splits {', '.join(splits)} and none to train with: name one of "
            "them train, or leave out the column and let chance split"
        )
    if "dev" in splits:
        return Splits(splits, "split as in the source")
    drawn = _by_chance(splits["train"], hashes, chance)
    return Splits(
        {**splits, **drawn},
        f"split as in the source, which has no dev: dev by chance from train, {_share(chance)} "
        "(--dev-share)",
    )


def _share(chance: Chance) -> str:
    return f"dev share {chance.dev_share:g}"


def _by_chance(items: list[Item], hashes: PixelHashes, chance: Chance) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(hashes.sha256[item.name], []).append(item)
    if len(groups) < 2:
        raise DataError(f"expected at least 2 different images to split, got {len(groups)}: add")
    dev_images = max(1, round(chance.dev_share * len(items)))
    chosen: set[str] = set()
    for key in sorted(groups, key=lambda key: _draw(chance.seed, key))[:-1]:
        if sum(len(groups[each]) for each in chosen) >= dev_images:
            break
        chosen.add(key)
    dev = {item.name for key in chosen for item in groups[key]}
    return {
        "train": [item for item in items if item.name not in dev],
        "dev": [item for item in items if item.name in dev],
    }


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()


def _by_source(items: list[Item]) -> dict[str, list[Item]]:
    splits: dict[str, list[Item]] = {}
    for item in items:
        splits.setdefault(str(item.split), []).append(item)
    return splits
