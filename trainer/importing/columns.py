"""Which columns of a table hold image, captions and split: by their names and by what they hold."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trainer.data.records import FieldNames
from trainer.errors import DataError
from trainer.importing.image_folder import ImageFolder, looks_like_image

COLUMN = "column"
"""What the columns of a table are called that does not name them, with their number."""
Row = tuple[str, Mapping[str, Any]]
"""The place of an entry, and its fields."""

IMAGE_NAMES = (
    *("image", "file_name", "filename", "image_name", "image_file", "image_path", "img"),
    *("img_name", "img_path", "image_filename", "imagename", "file", "file_path", "filepath"),
    *("path", "photo", "picture", "name", "images", "image_id", "img_id", "id", "key"),
)
CAPTION_NAMES = (
    *("caption", "captions", "caption_str", "caption_text", "comment", "text", "sentence"),
    *("sentences", "description", "descriptions", "report", "alt_text", "alt", "raw", "txt"),
    *("title", "prompt"),
)
SPLIT_COLUMNS = ("split", "set", "subset", "set_name", "partition", "phase")

_FLAGS = ("is_rejected", "is_precanned")  # VizWiz's: captions that say only that one cannot be said
_NUMBER = re.compile(r"[_ ]?\d+$")
_SAMPLE = 200
_OTHER_CONTENT = {
    "boxes or outlines of objects": {"bbox", "segmentation", "keypoints", "segments_info", "boxes"},
    "questions and answers": {"question", "answer", "answers", "multiple_choice_answer"},
    "classes": {"label", "labels", "class", "category", "category_id"},
}


@dataclass(frozen=True)
class Columns:
    """Where a table holds what."""

    image: str
    captions: tuple[str, ...]
    split: str | None

    def __str__(self) -> str:
        split = f", the split in {self.split}" if self.split else ""
        return f"images in {self.image}, captions in {' and '.join(self.captions)}{split}"

    def are_usual(self) -> bool:
        """Tell whether nobody needs to be told."""
        return self.image == "image" and self.captions in {("caption",), ("captions",)}


def choose_columns(
    where: Path | str, rows: Sequence[Row], keys: FieldNames, images: ImageFolder
) -> Columns:
    """Say which columns hold what.

    Args:
        where: the table, for messages.
        rows: its entries.
        keys: what the person said about it.
        images: the folder: a column that names its files holds the images.

    Raises:
        DataError: a column is not there or cannot be told; the message names columns and option.
    """
    sample = [fields for _, fields in rows[:_SAMPLE]]
    names = list(dict.fromkeys(name for fields in sample for name in fields))
    image = _image_column(where, names, sample, keys.image, images)
    captions = _caption_columns(where, names, sample, keys.captions, image)
    split = _named(where, names, keys.split, "--split-key") if keys.split else None
    return Columns(image, captions, split or _first(names, SPLIT_COLUMNS))


def is_left_out(fields: Mapping[str, Any]) -> bool:
    """Tell whether the table itself says that a caption is of no use."""
    return any(str(fields.get(flag)).casefold() in {"true", "1"} for flag in _FLAGS)


def is_header(names: Iterable[str], keys: FieldNames) -> bool:
    """Tell whether the first line of a table names columns that are known or were asked for."""
    known = set(map(_plain, names))
    image = [_plain(keys.image)] if keys.image else IMAGE_NAMES
    asked = any(_matches(name, pattern) for name in names for pattern in _patterns(keys.captions))
    captions = asked or any(_NUMBER.sub("", name) in CAPTION_NAMES for name in known)
    return captions and not known.isdisjoint(image)


def _image_column(
    where: Path | str,
    names: list[str],
    sample: list[Mapping[str, Any]],
    asked: str | None,
    images: ImageFolder,
) -> str:
    if asked is not None:
        return _named(where, names, asked, "--image-key")
    known = sorted(
        (name for name in names if _plain(name) in IMAGE_NAMES),
        key=lambda name: IMAGE_NAMES.index(_plain(name)),
    )
    for name in (*known, *names):
        if any(_is_image(fields.get(name), images) for fields in sample):
            return name
    if known:
        return known[0]
    if any(_plain(name) == "url" for name in names):
        raise DataError(
            f"{where} names images by address only: download them first, for instance with "
            "img2dataset, and import what it writes"
        )
    raise DataError(
        f"{where} has the columns {', '.join(names) or 'of nothing'}, none of which is known to "
        f"name images: give --image-key NAME{_and_caption_key(names)}"
    )


def _and_caption_key(names: list[str]) -> str:
    known = any(_NUMBER.sub("", _plain(name)) in CAPTION_NAMES for name in names)
    return "" if known else " and --caption-key NAME"


def _caption_columns(
    where: Path | str,
    names: list[str],
    sample: list[Mapping[str, Any]],
    asked: tuple[str, ...],
    image: str,
) -> tuple[str, ...]:
    if asked:
        found = [_asked_captions(where, names, pattern) for pattern in _patterns(asked)]
        return tuple(dict.fromkeys(name for each in found for name in each))
    others = [name for name in names if name != image]
    for known in CAPTION_NAMES:
        same = [name for name in others if _plain(name) == known]
        numbered = [name for name in others if _NUMBER.sub("", _plain(name)) == known]
        if same or numbered:
            return tuple(same or numbered)
    _refuse_other_content(where, names)
    texts = [name for name in others if any(_is_sentence(fields.get(name)) for fields in sample)]
    if len(texts) == 1 or all(name.startswith(COLUMN) for name in names):
        return tuple(texts or others[:1])
    keys = shlex.join(["--image-key", image, "--caption-key", texts[0] if texts else "NAME"])
    raise DataError(
        f"{where} has the columns {', '.join(names)}, and which of them holds captions cannot be "
        f"told: give {keys}"
    )


def _refuse_other_content(where: Path | str, names: Iterable[str]) -> None:
    there = set(map(_plain, names))
    for content, columns in _OTHER_CONTENT.items():
        if not there.isdisjoint(columns):
            raise DataError(
                f"{where} holds {content}, no captions: take the file with the captions, of COCO "
                "captions_train2014.json and captions_val2014.json"
            )


def _asked_captions(where: Path | str, names: list[str], pattern: str) -> list[str]:
    return [name for name in names if _matches(name, pattern)] or [
        _named(where, names, pattern, "--caption-key")
    ]


def _named(where: Path | str, names: list[str], asked: str, option: str) -> str:
    """Find a column that was asked for; capitals and spaces around it do not matter."""
    same = [name for name in names if name == asked] or [
        name for name in names if _plain(name) == _plain(asked)
    ]
    if not same:
        raise DataError(f"{where} has no column {asked!r}: give {option} one of {', '.join(names)}")
    return same[0]


def _patterns(asked: Iterable[str]) -> list[str]:
    return [each.strip() for given in asked for each in given.split(",") if each.strip()]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(_plain(name), _plain(pattern))


def _first(names: list[str], known: Iterable[str]) -> str | None:
    plain = {_plain(name): name for name in reversed(names)}
    return next((plain[each] for each in known if each in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def _is_image(value: Any, images: ImageFolder) -> bool:
    if isinstance(value, dict):
        return "bytes" in value or "path" in value
    names = value if isinstance(value, list) else [value]
    texts = [name for name in names if isinstance(name, str)]
    return any(name in images or looks_like_image(name) for name in texts)


def _is_sentence(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_sentence(value[0])
    return isinstance(value, str) and " " in value.strip()
