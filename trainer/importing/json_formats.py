"""Caption files that are one JSON document -> records: COCO, Karpathy."""

from collections import Counter
from pathlib import Path
from typing import Any

from trainer.data.records import CaptionRecord, FieldNames, ParsedRecords, is_text_list, make_record
from trainer.data.text_files import parse_each, read_json
from trainer.errors import DataError


def read_coco(path: Path, keys: FieldNames) -> ParsedRecords:  # noqa: ARG001 - COCO's keys are fixed
    """Read COCO: images and annotations, joined by their ids; no splits."""
    content = read_json(path)
    images, annotations = _lists(path, content, "images", "annotations")
    named, faults = parse_each(enumerate(images), lambda item: _coco_image(path, *item))
    names = dict(named)

    def parse(numbered: tuple[int, Any]) -> CaptionRecord:
        where = f"{path} annotations[{numbered[0]}]"
        match numbered[1]:
            case {"image_id": int() | str() as key, "caption": str(caption)} if key in names:
                return make_record(names[key], [caption], None, where)
            case {"image_id": key, "caption": str()}:
                raise DataError(f"{where}: image_id {key!r} is in no entry of images: add it")
        raise DataError(f"{where}: expected image_id and caption: repair it")

    records, more = parse_each(enumerate(annotations), parse)
    return records, [*faults, *more, *_repeated_ids(path, [key for key, _ in named])]


def _coco_image(path: Path, index: int, image: Any) -> tuple[int | str, str]:
    match image:
        case {"id": int() | str() as key, "file_name": str(name)}:
            return key, name
    raise DataError(f"{path} images[{index}]: expected id and file_name: repair it")


def _repeated_ids(path: Path, ids: list[int | str]) -> list[str]:
    repeated = (key for key, count in Counter(ids).items() if count > 1)
    return [f"{path}: id {key!r} stands for two images: make it unique" for key in repeated]


def read_karpathy(path: Path, keys: FieldNames) -> ParsedRecords:  # noqa: ARG001 - Karpathy's keys are fixed
    """Read Karpathy: images with sentences and split."""
    (images,) = _lists(path, read_json(path), "images")

    def parse(numbered: tuple[int, Any]) -> CaptionRecord:
        where = f"{path} images[{numbered[0]}]"
        match numbered[1]:
            case {"filename": str(name), "split": str(split), "sentences": [*sentences]} as image:
                folder = image.get("filepath", "")
                name = f"{folder}/{name}" if folder else name
                return make_record(name, [_raw(each, where) for each in sentences], split, where)
        raise DataError(f"{where}: expected filename, split and sentences: repair it")

    return parse_each(enumerate(images), parse)


def _raw(sentence: Any, where: str) -> str:
    match sentence:
        case {"raw": str(text)}:
            return text
        case {"tokens": [*tokens]} if is_text_list(tokens):
            return " ".join(tokens)
    raise DataError(f"{where}: expected raw or tokens in each of sentences: repair it")


def _lists(path: Path, content: Any, *names: str) -> list[list[Any]]:
    lists = [content.get(name) if isinstance(content, dict) else None for name in names]
    found = [each for each in lists if isinstance(each, list) and each]
    if len(found) != len(names):
        raise DataError(f"{path}: expected filled lists under {' and '.join(names)}: restore them")
    return found
