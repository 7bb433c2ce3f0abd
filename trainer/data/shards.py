"""Shards in WebDataset's format: tar files whose images stay where they are until they are needed.

A sample is what lies together under one key, the name up to its first dot: ``000042.jpg`` and
``000042.json`` with ``captions`` or ``caption``, or ``000042.txt`` with one caption per line. The
JSON of `write_shard` also holds ``image``, the name, and ``sha256``, which spares reading all
images to know them.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trainer.data.records import is_text_list, make_record, split_name
from trainer.errors import DataError, EntryError

SUFFIXES = ("jpg", "jpeg", "png", "webp")

_SHARD_NAME = re.compile(r"(.+)-[0-9]+\.tar")


@dataclass(frozen=True)
class Member:
    """An image within a shard.

    Attributes:
        shard: the tar file.
        name: within it.
        offset_bytes: where its bytes begin.
        size_bytes: how many there are.
        sha256: of them, where the shard says it.
    """

    shard: Path
    name: str
    offset_bytes: int
    size_bytes: int
    sha256: str | None = None

    def read_bytes(self) -> bytes:
        """Read the image, and nothing else of the shard."""
        with self.shard.open("rb") as file:
            file.seek(self.offset_bytes)
            return file.read(self.size_bytes)

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


@dataclass(frozen=True)
class Sample:
    """An image of a shard with what people said about it."""

    image: str
    member: Member
    captions: tuple[str, ...]


def shards_of(directory: Path, split: str) -> list[Path]:
    """Give the shards ``<split>-<number>.tar`` of a directory, in order; ``val`` is ``dev``."""
    found = ((path, _SHARD_NAME.fullmatch(path.name)) for path in directory.glob("*.tar"))
    return sorted(
        path for path, match in found if match and split in {match[1], split_name(match[1])}
    )


def refuse_odd_shards(directory: Path, split: str) -> None:
    """Explain why a directory of tar files has no shards of a split.

    Raises:
        DataError: there are tar files, none of which is a shard of the split.
    """
    found = sorted(path.name for path in directory.glob("*.tar*"))
    packed = [name for name in found if not name.endswith(".tar")]
    if packed:
        raise DataError(
            f"{directory / packed[0]} is compressed, shards are read in place and have to be "
            "uncompressed .tar files: gunzip them"
        )
    if found:
        raise DataError(
            f"{directory} has no shard of {split}, which is named {split}-000000.tar, but "
            f"{found[0]}: rename the shards to <split>-<number>.tar, or let "
            f"`prepare --from {directory}` split them by chance"
        )


def read_shard(shard: Path, faults: list[EntryError] | None = None) -> Iterator[Sample]:
    """Read what a shard holds, but for the pixels.

    Args:
        shard: the tar file.
        faults: takes what is wrong with single samples; without it the first ends the reading.

    Raises:
        DataError: the file is no whole, uncompressed tar, or a sample lacks image or captions.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            members = (member for member in tar if member.isfile() and _key(member))
            for key, group in groupby(members, key=_key):
                found = {_suffix(member): member for member in group}
                try:
                    yield _sample(shard, key, found, tar)
                except EntryError as error:
                    if faults is None:
                        raise
                    faults.append(error)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{shard} cannot be read as tar ({error}): copy it again") from None


def write_shard(
    shard: Path, samples: Iterable[tuple[str, bytes, Iterable[str]]], *, first: int = 0
) -> None:
    """Write a shard; the same samples give the same bytes.

    Args:
        shard: the tar file.
        samples: name of the image, the bytes of its file, captions.
        first: number of the first; no two shards of a split should share numbers.

    Raises:
        DataError: a name has a suffix that readers of shards do not know.
    """
    with tarfile.open(shard, "w") as tar:
        for number, (image, content, captions) in enumerate(samples, first):
            suffix = PurePosixPath(image).suffix.removeprefix(".").lower()
            if suffix not in SUFFIXES:
                raise DataError(f"{image} expects a name in {_or(SUFFIXES)}: rename it")
            digest = hashlib.sha256(content).hexdigest()
            about = {"image": image, "captions": [*captions], "sha256": digest}
            _add(tar, f"{number:09}.{suffix}", content)
            _add(tar, f"{number:09}.json", json.dumps(about, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _key(member: tarfile.TarInfo) -> str:
    """Name the sample of a member: empty for hidden files, which are nobody's."""
    path = PurePosixPath(member.name)
    stem = path.name.partition(".")[0]
    return str(path.with_name(stem)) if stem else ""


def _suffix(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).name.partition(".")[2].lower()


def _sample(
    shard: Path, key: str, members: dict[str, tarfile.TarInfo], tar: tarfile.TarFile
) -> Sample:
    where = f"{shard}:{key}"
    images = [members[suffix] for suffix in SUFFIXES if suffix in members]
    about = _about(where, _content(tar, members.get("json")))
    captions = _captions(where, about, _content(tar, members.get("txt")))
    if len(images) != 1 or not is_text_list(captions):
        raise EntryError(
            where,
            f"expected one image in {_or(SUFFIXES)}, and captions in .json or .txt",
            _or(members),
        )
    name = str(about.get("image") or f"{shard.name}/{images[0].name}")
    record = make_record(name, captions, None, where)
    start, size = images[0].offset_data, images[0].size
    member = Member(shard, images[0].name, start, size, about.get("sha256"))
    return Sample(record.image, member, record.captions)


def _captions(where: str, about: dict[str, Any], text: bytes) -> Any:
    captions = about.get("captions") or about.get("caption")
    if captions:
        return [captions] if isinstance(captions, str) else captions
    try:
        return text.decode().splitlines()
    except UnicodeDecodeError as error:
        raise EntryError(f"{where}.txt", f"is not UTF-8 at byte {error.start}") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    file: IO[bytes] | None = tar.extractfile(member) if member else None
    return file.read() if file else b""


def _about(where: str, content: bytes) -> dict[str, Any]:
    try:
        about = json.loads(content or b"{}")
    except ValueError as error:
        raise EntryError(f"{where}.json", "is no JSON", str(error)) from None
    if not isinstance(about, dict):
        raise EntryError(f"{where}.json", "expected an object")
    return about


def _or(suffixes: Iterable[str]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes)
