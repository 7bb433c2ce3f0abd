"""Text files of captions and image names -> values, with the line number in every refusal."""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from trainer.data.records import composed
from trainer.errors import DataError

_Raw = TypeVar("_Raw")
_Read = TypeVar("_Read")

_CAPTION_LINE = re.compile(r"([^\t#/\\]+)#([0-9]+)\t([^\t]*[^\t\s][^\t]*)")
_LIST_LINE = re.compile(r"[^\t#/\\]+")


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a token file, lines ``image.jpg#n<TAB>caption``, into the captions of each image.

    Raises:
        DataError: the file is missing or empty, a line is malformed, or an ``image#n`` is repeated.
    """
    numbered: dict[str, dict[int, str]] = {}
    for line_number, line in numbered_lines(path):
        image, number, caption = caption_line(path, line_number, line)
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
        name = list_line(path, line_number, line)
        if name in names:
            raise DataError(
                f"{path} line {line_number}: {name} is listed twice, expected once: remove one"
            )
        names[name] = None
    return tuple(names)


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Give the lines that are not blank with their numbers, from 1.

    Raises:
        DataError: the file is missing, not UTF-8, or holds nothing but blank lines.
    """
    lines = list(enumerate(read_text(path, encoding).split("\n"), start=1))
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise DataError(f"{path} expects at least one line and is empty: restore the file")
    yield from filled


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file, with or without a byte order mark.

    Args:
        path: the file.
        encoding: a name that Python knows; a byte order mark of UTF-16 goes before it.

    Raises:
        DataError: the file is missing, no file, or not of this encoding.
    """
    try:
        with path.open("rb") as file:
            content = file.read()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise DataError(f"{path} {reason}: expected a text file, restore it") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = content.decode("utf-8-sig" if _is_utf8(encoding) else encoding)
    except LookupError:
        raise DataError(f"{encoding!r} is no encoding: name one as utf-8 or cp1252") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {error.encoding.upper()} at byte {error.start}: save it again as "
            "UTF-8 text, or import it with its own encoding, for instance --encoding cp1252"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def read_json(path: Path, encoding: str = "utf-8") -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or no JSON; the message has line and column.
    """
    try:
        return json.loads(read_text(path, encoding))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} line {error.lineno} column {error.colno} is no JSON ({error.msg}): repair it"
        ) from None


def parse_each(
    items: Iterable[_Raw], parse: Callable[[_Raw], _Read]
) -> tuple[list[_Read], list[str]]:
    """Parse all items: the values, and what was wrong with the others.

    One fault does not hide the next.
    """
    values: list[_Read] = []
    faults: list[str] = []
    for item in items:
        try:
            values.append(parse(item))
        except DataError as error:
            faults.append(str(error))
    return values, faults


def caption_line(path: Path, line_number: int, line: str) -> tuple[str, int, str]:
    """Take image, number and caption from a line of a token file.

    Raises:
        DataError: the line is malformed.
    """
    match = _CAPTION_LINE.fullmatch(line)
    if match is None:
        raise DataError(
            f"{path} line {line_number}: expected image.jpg#n<TAB>caption with one tab, got "
            f"{line[:80]!r}: repair the line, two may be glued together"
        )
    return composed(match[1]), int(match[2]), composed(match[3].strip())


def list_line(path: Path, line_number: int, line: str) -> str:
    """Take the image name from a line of a list.

    Raises:
        DataError: the line is no file name.
    """
    name = line.strip()
    if not _LIST_LINE.fullmatch(name):
        raise DataError(
            f"{path} line {line_number}: expected one image file name, got {name[:80]!r}: "
            "write one name per line"
        )
    return composed(name)
