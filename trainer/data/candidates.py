"""Captions of any origin, one per image, to be scored."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.data.records import composed
from trainer.data.text_files import numbered_lines, read_json, read_text
from trainer.errors import DataError

FORMS = (
    '{"image": NAME, "caption": TEXT} on each line, or as COCO results have it, a JSON list of '
    '{"image_id": NUMBER, "caption": TEXT}'
)
_Placed = tuple[str, object]


def read_candidates(path: Path) -> dict[str, str]:
    """Read one caption per image; keys other than image, image_id and caption are ignored.

    Args:
        path: JSON lines, COCO results, or a JSON object of name and caption.

    Returns:
        Image -> caption; an image that is named by a number has its digits for a name.

    Raises:
        DataError: the file is missing or empty, an entry is malformed, or an image is repeated.
    """
    candidates: dict[str, str] = {}
    for where, entry in _entries(path):
        image, caption = _candidate(where, entry)
        if image in candidates:
            raise DataError(
                f"{where}: {image} has a caption already, expected one per image: "
                "remove one of the two"
            )
        candidates[image] = caption
    return candidates


def _entries(path: Path) -> Iterator[_Placed]:
    lines = list(numbered_lines(path))
    if _is_object(lines[0][1]) or not read_text(path).lstrip().startswith(("[", "{")):
        yield from ((f"{path} line {number}", _json(line) or line) for number, line in lines)
        return
    content = read_json(path)
    if isinstance(content, dict):
        content = [{"image": name, "caption": text} for name, text in content.items()]
    yield from ((f"{path} [{index}]", entry) for index, entry in enumerate(content))


def _is_object(line: str) -> bool:
    """Tell JSON lines from a document: the first line is an object with a caption."""
    value = _json(line)
    return isinstance(value, dict) and "caption" in value


def _candidate(where: str, entry: object) -> tuple[str, str]:
    match entry:
        case {"image": str(image), "caption": str(caption)}:
            return composed(image), caption
        case {"image_id": int() | str() as image, "caption": str(caption)}:
            return composed(str(image)), caption
    shown = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
    raise DataError(f"{where}: expected {FORMS}, got {shown[:80]!r}: write it so")


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def matched(
    path: Path, names: Iterable[str], captions: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Take the references of some images.

    Raises:
        DataError: an image has none.
    """
    absent = sorted(name for name in names if name not in captions)
    if absent:
        raise DataError(
            f"{path} expects references for every image, has none for {len(absent)}, first "
            f"{absent[0]}: use the file of references that belongs to the captions"
        )
    return {name: captions[name] for name in names}
