"""Clips in place of image files: a directory ``<name>/`` of frames, 000.jpg, 001.jpg and so on."""

import re
from pathlib import Path

from trainer.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_DIGITS = re.compile(r"(\d+)")


def frame_files(clip: Path) -> list[Path]:
    """Give the frames of a clip in the order of their names, numbers by their size.

    Raises:
        DataError: there is none.
    """
    found = [each for each in clip.iterdir() if each.suffix.lower() in SUFFIXES]
    frames = sorted((each for each in found if not each.name.startswith(".")), key=_order)
    if not frames:
        raise DataError(
            f"{clip} holds no frame: put images there, named 000.jpg, 001.jpg and so on "
            f"({', '.join(SUFFIXES)}), or take it off its list"
        )
    return frames


def _order(path: Path) -> list[tuple[int, str]]:
    """Sort 2.jpg before 10.jpg."""
    parts = _DIGITS.split(path.stem)
    return [(int(part) if part.isdigit() else -1, part) for part in parts]
