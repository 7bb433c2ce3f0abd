"""Captions of any origin, one per image, and the references to score them against."""

import json
from collections.abc import Iterable
from pathlib import Path

from trainer.data.text_files import numbered_lines, read_captions
from trainer.errors import DataError


def read_candidates(path: Path) -> dict[str, str]:
    """Read one caption per image from JSON lines; keys other than image and caption are ignored.

    Raises:
        DataError: the file is missing or empty, a line is malformed, or an image is repeated.
    """
    candidates: dict[str, str] = {}
    for number, line in numbered_lines(path):
        image, caption = _candidate(path, number, line)
        if image in candidates:
            raise DataError(
                f"{path} line {number}: {image} has a caption already, expected one per image: "
                "remove one of the two lines"
            )
        candidates[image] = caption
    return candidates


def _candidate(path: Path, number: int, line: str) -> tuple[str, str]:
    match _json(line):
        case {"image": str(image), "caption": str(caption)}:
            return image, caption
    raise DataError(
        f'{path} line {number}: expected {{"image": NAME, "caption": TEXT}}, got {line[:80]!r}: '
        "write one such JSON object per line"
    )


def _json(line: str) -> object:
    try:
        value: object = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value


def read_references(path: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read the captions of some images from a token file.

    Raises:
        DataError: the file is missing or malformed, or an image has none.
    """
    captions = read_captions(path)
    absent = sorted(name for name in names if name not in captions)
    if absent:
        raise DataError(
            f"{path} expects references for every image, has none for {len(absent)}, first "
            f"{absent[0]}: use the token file that belongs to the captions"
        )
    return {name: captions[name] for name in names}
