"""Text files of captions and image names -> values, with the line number in every refusal."""

import re
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import DataError

_CAPTION_LINE = re.compile(r"([^\t#/\\]+)#([0-9]+)\t([^\t]*[^\t\s][^\t]*)")
_LIST_LINE = re.compile(r"[^\t#/\\]+")


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a token file, lines ``image.jpg#n<TAB>caption``, into the captions of each image.

    Raises:
        DataError: the file is missing or empty, a line is malformed, or an ``image#n`` is repeated.
    """
    numbered: dict[str, dict[int, str]] = {}
    for line_number, line in numbered_lines(path):
        image, number, caption = _caption_line(path, line_number, line)
        if number in numbered.setdefault(image, {}):
            raise DataError(
                f"{path} line {line_number}: {image}#{number} came before, expected each key once: "
                "remove one of the two lines"
            )
        numbered[image][number] = caption
    return {image: tuple(text for _, text in sorted(of.items())) for image, of in numbered.items()}


def read_list(path: Path) -> tuple[str, ...]:
    """Read a list of image names, one a line, in its order.

    Raises:
        DataError: the file is missing or empty, a line is no file name, or a name is repeated.
    """
    names: dict[str, None] = {}
    for line_number, line in numbered_lines(path):
        name = line.strip()
        if not _LIST_LINE.fullmatch(name):
            raise DataError(
                f"{path} line {line_number}: expected one image file name, got {name[:80]!r}: "
                "write one name per line"
            )
        if name in names:
            raise DataError(
                f"{path} line {line_number}: {name} is listed twice, expected once: remove one"
            )
        names[name] = None
    return tuple(names)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines that are not blank with their numbers, from 1.

    Raises:
        DataError: the file is missing, not UTF-8, or holds nothing but blank lines.
    """
    lines = list(enumerate(_text(path).split("\n"), start=1))
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise DataError(f"{path} expects at least one line and is empty: restore the file")
    yield from filled


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected a text file, restore it") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}: save it again as UTF-8 text"
        ) from error


def _caption_line(path: Path, line_number: int, line: str) -> tuple[str, int, str]:
    match = _CAPTION_LINE.fullmatch(line)
    if match is None:
        raise DataError(
            f"{path} line {line_number}: expected image.jpg#n<TAB>caption with one tab, got "
            f"{line[:80]!r}: repair the line, two may be glued together"
        )
    return match[1], int(match[2]), match[3].strip()
