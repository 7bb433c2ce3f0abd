"""The probabilities of the ImageNet classes -> what an image may show, in plain words.

C is 1000. ``imagenet_classes.txt`` has a line per class, in the order of their ids: a short name,
and after a tab the name of the kind it belongs to, where others are easily taken for it.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.captioner.architecture import IMAGENET_CLASSES

MOST_TAGS = 5
LEAST_PROBABILITY = 0.05
_CLEAR = 0.6
"""Of a kind's probability, what one class must have to be named in place of the kind."""
_NAMES = Path(__file__).with_name("imagenet_classes.txt")


class Tag(NamedTuple):
    """What an image may show.

    Attributes:
        label: "pizza", or a kind where the network is torn: "dog".
        probability: 0 to 1, of the class or of all classes of the kind.
    """

    label: str
    probability: float


def tags(probabilities_C: npt.NDArray[np.float32]) -> tuple[Tag, ...]:
    """Give the likeliest labels of an image, at most `MOST_TAGS`, the likeliest first."""
    by_kind: dict[str, dict[str, float]] = {}
    for index in np.flatnonzero(probabilities_C > LEAST_PROBABILITY / 20).tolist():
        name, kind = _names()[index]
        members = by_kind.setdefault(kind, {})
        members[name] = members.get(name, 0.0) + float(probabilities_C[index])
    found = sorted(map(_tag, by_kind.items()), key=lambda tag: -tag.probability)
    return tuple(tag for tag in found[:MOST_TAGS] if tag.probability >= LEAST_PROBABILITY)


def _tag(kind: tuple[str, dict[str, float]]) -> Tag:
    name, members = kind
    total = sum(members.values())
    likeliest = max(members, key=members.__getitem__)
    if members[likeliest] >= _CLEAR * total:
        return Tag(likeliest, round(members[likeliest], 4))
    return Tag(name, round(min(total, 1.0), 4))


@lru_cache(maxsize=1)
def _names() -> tuple[tuple[str, str], ...]:
    """Give name and kind of every class; a class of no kind is one by itself."""
    lines = _NAMES.read_text(encoding="utf-8").splitlines()
    found = tuple(_pair(line.split("\t")) for line in lines)
    if len(found) != IMAGENET_CLASSES:
        raise ValueError(f"{_NAMES.name} names {len(found)} classes")
    return found


def _pair(parts: Iterable[str]) -> tuple[str, str]:
    name, *kind = parts
    return name, kind[0] if kind else name
