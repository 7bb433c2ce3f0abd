"""Folders of images and captions -> records: pairs, Hugging Face's ImageFolder, shards.

Names of records are paths inside the folder.
"""

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath

from trainer.data.flickr8k import TOKEN_FILE
from trainer.data.records import CaptionRecord, make_record, split_name
from trainer.data.shards import Sample, read_shard
from trainer.data.text_files import read_text
from trainer.errors import DataError, EntryError
from trainer.importing.faults import Parsed, parse_each
from trainer.importing.image_folder import ImageFolder
from trainer.importing.json_formats import SPLITS
from trainer.importing.line_formats import read_csv, read_jsonl
from trainer.importing.tables import Source

METADATA = ("metadata.csv", "metadata.jsonl")
_SIDECARS = (".txt", ".caption", ".cap", ".json")
_TELLING = ("caption", "token", "annotation")  # of several files the likeliest
_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".token", ".parquet", ".txt")


def kind_of_folder(path: Path) -> str:
    """Tell what a folder holds.

    Raises:
        DataError: nothing that can be told; the message names the caption files in it.
    """
    if any(path.rglob("*.arrow")):
        return "arrow"
    if any(path.rglob("*.parquet")):
        return "parquet"
    if any(path.rglob("metadata.csv")) or any(path.rglob("metadata.jsonl")):
        return "imagefolder"
    if any(path.glob("*.tar")):
        return "shards"
    folder = ImageFolder(path)
    if any(_sidecar(folder, name) for name in folder.pictures()):
        return "folder"
    if (path / TOKEN_FILE).is_file() and any(path.glob("Flickr_8k.*Images.txt")):
        raise DataError(
            f"{path} is in Flickr8k's layout already: give it to `fit --data`, or import "
            f"{path / TOKEN_FILE} alone to split the images anew"
        )
    tables = [name for name in folder.files if PurePosixPath(name).suffix in _TABLES]
    tables.sort(key=lambda name: not any(word in name.casefold() for word in _TELLING))
    hint = (
        f"name the file, for instance {path / tables[0]}"
        if tables
        else "lay a text file beside each image, beach.txt beside beach.jpg, or write a CSV file"
    )
    raise DataError(f"{path} is a folder without captions beside its images: {hint}")


def split_of(path: Path) -> str | None:
    """Tell a split by the name of a file or folder, ``captions_val2014.json`` for one."""
    letters = "".join(each if each.isalpha() else " " for each in path.stem.casefold())
    found = {split_name(word) for word in letters.split()} & SPLITS
    return found.pop() if len(found) == 1 else None


def read_folder(source: Source) -> Parsed:
    """Read images with a text file of the same name beside each, a caption per line."""
    folder = ImageFolder(source.path)
    pairs = [(name, _sidecar(folder, name)) for name in folder.pictures()]
    described = [(name, text) for name, text in pairs if text is not None]
    if not described:
        raise DataError(
            f"{source.path} has no text file beside an image: lay beach.txt beside beach.jpg"
        )
    return Parsed(*parse_each(described, lambda pair: _pair(source, *pair)))


def _sidecar(folder: ImageFolder, name: str) -> str | None:
    """Find the text of an image: ``beach.txt`` or ``beach.jpg.txt``."""
    stem = PurePosixPath(name).with_suffix("")
    for candidate in (f"{base}{suffix}" for suffix in _SIDECARS for base in (stem, name)):
        if candidate in folder.exact:
            return candidate
    return None


def _pair(source: Source, name: str, sidecar: str) -> CaptionRecord:
    path = source.path / sidecar
    try:
        text = read_text(path, source.encoding)
    except DataError as error:
        raise EntryError(str(path), str(error).removeprefix(f"{path} ")) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if path.suffix == ".json":
        lines = _captions_of(path, text)
    first = PurePosixPath(name).parts[0]
    split = split_name(first) if split_name(first) in SPLITS and first != name else None
    return make_record(name, lines, split, str(path))


def _captions_of(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except ValueError:
        raise EntryError(str(path), "no JSON") from None
    value = content.get("captions") or content.get("caption") if isinstance(content, dict) else None
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def read_imagefolder(source: Source) -> Parsed:
    """Read Hugging Face's ImageFolder: tables named metadata beside the images they speak of."""
    parsed = Parsed()
    for path in sorted(path for name in METADATA for path in source.path.rglob(name)):
        inside = path.parent.relative_to(source.path)
        table = replace(source, path=path, images=ImageFolder(path.parent))
        found = (read_csv if path.suffix == ".csv" else read_jsonl)(table)
        split = split_of(inside) if inside.parts else None
        parsed.add(replace(found, records=[_below(each, inside, split) for each in found.records]))
    return parsed


def _below(record: CaptionRecord, inside: Path, split: str | None) -> CaptionRecord:
    image = (PurePosixPath(inside) / record.image).as_posix()
    return replace(record, image=image, split=record.split or split)


def read_shards(source: Source) -> Parsed:
    """Read tar files of WebDataset's kind, as img2dataset writes them; a name may tell a split."""
    parsed = Parsed()
    paths = sorted(source.path.glob("*.tar")) if source.path.is_dir() else [source.path]
    for path in paths:
        faults: list[EntryError] = []
        samples = list(read_shard(path, faults))
        split = split_of(path)
        records = [_staged(source, sample, split) for sample in samples]
        parsed.add(Parsed(records, faults))
    return parsed


def _staged(source: Source, sample: Sample, split: str | None) -> CaptionRecord:
    member = sample.member
    file = source.staging.add(member.read_bytes(), member.name)
    return replace(make_record(sample.image, sample.captions, split, str(member)), file=file)
