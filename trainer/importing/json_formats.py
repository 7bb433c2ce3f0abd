"""Caption files that are one JSON document -> records: COCO, Karpathy, and tables as JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.data.records import CaptionRecord, FieldNames, make_record, split_name
from trainer.data.text_files import read_json
from trainer.errors import DataError, EntryError
from trainer.importing.columns import IMAGE_NAMES, Row, is_header, is_left_out
from trainer.importing.faults import Parsed, parse_each
from trainer.importing.tables import Source, left_out, read_rows, texts_of

_COCO_NAMES = ("file_name", "filename", "image", "path", "name", "coco_url", "url")
SPLITS = frozenset({"train", "dev", "test"})
_OTHER_ANNOTATIONS = {
    "boxes of objects": {"bbox", "segmentation", "segments_info", "category_id"},
    "keypoints": {"keypoints"},
    "answers to questions": {"answers", "question_id"},
}


def kind_of_document(path: Path, content: Any) -> str:
    """Tell the kind of a JSON document by its keys.

    Raises:
        DataError: it holds no captions; the message says what it holds.
    """
    if not isinstance(content, dict):
        return "json"
    images, annotations = content.get("images"), content.get("annotations")
    if isinstance(annotations, list) and isinstance(images, list):
        return "coco"
    if _is_numbered(annotations):
        raise DataError(
            f"{path} has annotations and no images, so that no image has a name: take the file "
            'that has both, "images" with id and file_name, and "annotations"'
        )
    if _is_row(images, "sentences"):
        return "karpathy"
    if isinstance(content.get("questions"), list):
        raise DataError(f"{path} holds questions, no captions: take the file with the captions")
    return "json"


def _is_numbered(annotations: Any) -> bool:
    """Tell annotations that name images by a number of another list."""
    return _is_row(annotations, "image_id") and isinstance(annotations[0]["image_id"], int)


def read_coco(source: Source) -> Parsed:
    """Read COCO: images and annotations, joined by their ids; no splits.

    Ids are compared as text: what wrote the file may have put one side in quotes.
    """
    path, content = source.path, read_json(source.path, source.encoding)
    images, annotations = _lists(path, content, "images", "annotations")
    _refuse_other_annotations(path, annotations)
    named, faults = parse_each(enumerate(images), lambda item: _coco_image(path, *item))
    count = Counter(key for key, _ in named)
    names = {key: name for key, name in named if count[key] == 1}
    kept = [item for item in enumerate(annotations) if not _is_left_out(item[1])]

    def parse(numbered: tuple[int, Any]) -> CaptionRecord:
        where = f"{path} annotations[{numbered[0]}]"
        match numbered[1]:
            case {"image_id": int() | str() as key, "caption": str(caption)}:
                if str(key) not in names:
                    raise EntryError(
                        where, "its image_id is not that of one entry of images", repr(key)
                    )
                record = make_record(names[str(key)], [caption], None, where)
                return replace(record, image_id=str(key))
        raise EntryError(where, "expected image_id and caption")

    records, more = parse_each(kept, parse)
    return Parsed(
        records,
        [*faults, *_repeated_ids(path, count), *more],
        left_out(annotations, kept),
    )


def _is_left_out(annotation: Any) -> bool:
    return isinstance(annotation, dict) and is_left_out(annotation)


def _refuse_other_annotations(path: Path, annotations: list[Any]) -> None:
    keys = {key for each in annotations if isinstance(each, dict) for key in each}
    if "caption" in keys:
        return
    for content, names in _OTHER_ANNOTATIONS.items():
        if not keys.isdisjoint(names):
            raise DataError(
                f"{path} holds {content}, no captions: take the file with the captions, of COCO "
                "captions_train2014.json and captions_val2014.json"
            )


def _coco_image(path: Path, index: int, image: Any) -> tuple[str, str]:
    match image:
        case {"id": int() | str() as key}:
            named = (image.get(name) for name in _COCO_NAMES)
            name = next((each for each in named if isinstance(each, str) and each), None)
            if name is not None:
                return str(key), PurePosixPath(name).name if "://" in name else name
    raise EntryError(f"{path} images[{index}]", "expected id and file_name")


def _repeated_ids(path: Path, count: Counter[str]) -> list[EntryError]:
    repeated = [key for key, times in count.items() if times > 1]
    return [EntryError(f"{path} id {key}", "one id stands for two images") for key in repeated]


def read_karpathy(source: Source) -> Parsed:
    """Read Karpathy: images with sentences and split."""
    path = source.path
    (images,) = _lists(path, read_json(path, source.encoding), "images")

    def parse(numbered: tuple[int, Any]) -> CaptionRecord:
        where = f"{path} images[{numbered[0]}]"
        match numbered[1]:
            case {"filename": str(name), "split": str(split), "sentences": [*sentences]} as image:
                folder = image.get("filepath", "")
                name = f"{folder}/{name}" if folder else name
                return make_record(name, texts_of(sentences, where), split, where)
        raise EntryError(where, "expected filename, split and sentences")

    return Parsed(*parse_each(enumerate(images), parse))


def read_json_table(source: Source) -> Parsed:
    """Read a table as JSON: a list of objects, lists by split, columns, or captions by name."""
    content = read_json(source.path, source.encoding)
    parsed = Parsed()
    for split, rows in _tables(source, content):
        _refuse_results(source, rows)
        parsed.add(read_rows(source, rows, split=split))
    return parsed


def _tables(source: Source, content: Any) -> Iterator[tuple[str | None, list[Row]]]:
    """Give the tables of a document, each with the split that its name tells."""
    if isinstance(content, list):
        yield None, _rows(source, "", content)
        return
    if not isinstance(content, dict) or not any(map(_may_caption, content.values())):
        raise DataError(
            f"{source.path} holds no captions: write a JSON list of objects with image and "
            "caption, COCO, or an object with a list of captions for each image"
        )
    if _is_columns(content, source.keys):
        yield None, _from_columns(source, content)
        return
    (first, *others) = content.values()
    if not others and isinstance(first, dict) and any(map(_is_row, first.values())):
        yield from _tables(source, first)
        return
    lists = {key: each for key, each in content.items() if _is_row(each)}
    for key, each in lists.items():
        split = split_name(key)
        yield (split if split in SPLITS else None), _rows(source, key, each)
    if not lists:
        yield None, _by_name(source, content)


def _may_caption(value: Any) -> bool:
    return isinstance(value, str | dict) or (isinstance(value, list) and bool(value))


def _is_row(value: Any, key: str = "") -> bool:
    """Tell whether a value is a list of objects, that have a key if one is named."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return not key or key in value[0]


def _rows(source: Source, name: str, values: list[Any]) -> list[Row]:
    rows: list[Row] = [
        (f"{source.path} {name}[{index}]", value)
        for index, value in enumerate(values)
        if isinstance(value, dict)
    ]
    if len(rows) < len(values):
        raise DataError(
            f"{source.path} is a list in which {len(values) - len(rows)} of {len(values)} values "
            "are no objects: write an object with image and caption for each"
        )
    return rows


def _is_columns(content: Mapping[str, Any], keys: FieldNames) -> bool:
    """Tell whether each key is a column: what pandas writes by default."""
    values = list(content.values())
    same_type = all(isinstance(each, dict) for each in values) or all(
        isinstance(each, list) for each in values
    )
    return same_type and is_header(content, keys) and len({len(each) for each in values}) == 1


def _from_columns(source: Source, content: Mapping[str, Any]) -> list[Row]:
    columns = {
        name: list(each.values() if isinstance(each, dict) else each)
        for name, each in content.items()
    }
    count = len(next(iter(columns.values())))
    return [
        (f"{source.path} row {index}", {name: each[index] for name, each in columns.items()})
        for index in range(count)
    ]


def _by_name(source: Source, content: Mapping[str, Any]) -> list[Row]:
    """Take an object with the captions of each image under its name."""
    return [
        (
            f"{source.path} {name!r}",
            {**value, "image": name} if isinstance(value, dict) else _named(name, value),
        )
        for name, value in content.items()
    ]


def _named(name: str, value: Any) -> dict[str, Any]:
    return {"image": name, "caption": value}


def _refuse_results(source: Source, rows: list[Row]) -> None:
    """Results of a captioner name images by number only: nobody can tell the files."""
    fields = rows[0][1] if rows else {}
    named = [name for name in fields if name in IMAGE_NAMES and isinstance(fields[name], str)]
    if isinstance(fields.get("image_id"), int) and not named and not source.keys.image:
        raise DataError(
            f"{source.path} is a list of results, which name images by number: score them with "
            "`python -m trainer score`, or import the file of annotations that they belong to"
        )


def _lists(path: Path, content: Any, *names: str) -> list[list[Any]]:
    lists = [content.get(name) if isinstance(content, dict) else None for name in names]
    found = [each for each in lists if isinstance(each, list) and each]
    if len(found) != len(names):
        raise DataError(f"{path}: expected filled lists under {' and '.join(names)}: restore them")
    return found
