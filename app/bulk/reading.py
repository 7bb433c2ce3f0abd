"""A part -> its photos, one after another: files, members of tar files, rows of Parquet."""

import lzma
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, cast

from app.bulk import parquet
from app.bulk.parquet import Damaged
from app.bulk.places import absolute, join, place_of, scheme_of
from app.bulk.plan import Part
from app.files.outcome import Source
from caption_client.images import IMAGE_SUFFIXES

_READERS = 16  # photos that are read at once: a store answers late, but many at once
Fetch = Callable[[str], bytes]
"""Gives the bytes at a web address, or raises `Unreadable`."""


class Unreadable(OSError):
    """This photo cannot be read; the message says why."""


@dataclass(frozen=True)
class Item(Source):
    """A photo of a part.

    Attributes:
        part: Its number.
        load: Gives its bytes.
        ends_part: The part cannot be read any further now; ``load`` says why.
    """

    part: int = 0
    load: Callable[[], bytes] = bytes
    ends_part: bool = False

    def read(self) -> bytes:
        """Give its bytes.

        Raises:
            OSError: It cannot be read.
        """
        return self.load()


@dataclass(frozen=True)
class Reader:
    """Reads parts.

    Attributes:
        max_bytes: Of one photo.
        fetch: Gives what web addresses lead to.
    """

    max_bytes: int
    fetch: Fetch

    def items(self, parts: Iterator[Part], begun: deque[Part]) -> Iterator[Item]:
        """Give the photos of parts in order, some of them read ahead.

        Args:
            parts: To read.
            begun: Takes each part when it is begun, for one may have no photo at all.
        """
        waiting: deque[Item] = deque()
        pool = ThreadPoolExecutor(_READERS)
        try:
            for item in self._items(parts, begun):
                waiting.append(replace(item, load=pool.submit(item.load).result))
                if len(waiting) > _READERS:
                    yield waiting.popleft()
            yield from waiting
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown(wait=False)  # the last ones may still be read

    def _items(self, parts: Iterator[Part], begun: deque[Part]) -> Iterator[Item]:
        for part in parts:
            begun.append(part)
            try:
                yield from self._of(part)
            except Damaged as error:  # as bad tomorrow: a row tells of it
                yield _failing(part, f"the file ends here: {error}")
            except OSError as error:
                yield replace(_failing(part, error.strerror or str(error)), ends_part=True)

    def _of(self, part: Part) -> Iterator[Item]:
        if part.kind == "images":
            return self._photos(part)
        return self._members(part) if part.kind == "tar" else self._rows(part)

    def _photos(self, part: Part) -> Iterator[Item]:
        for address in part.addresses:
            yield Item(address, None, part=part.number, load=self._file(address))

    def _members(self, part: Part) -> Iterator[Item]:
        (address,) = part.addresses
        with place_of(address).open(address) as opened:
            try:
                # as a stream: it is read once, and memory holds one member
                with tarfile.open(fileobj=opened, mode="r|*", tarinfo=_Member) as archive:
                    for member in archive:
                        if _is_image(member):
                            load = _given(self._member(archive, member))
                            archive.members = []  # type: ignore[attr-defined] # it keeps them all
                            name = join(address, member.name)
                            yield Item(name, None, part=part.number, load=load)
            except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise Damaged(str(error)) from None

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Unreadable:
        if member.size > self.max_bytes:
            return self._too_large()
        file = archive.extractfile(member)
        return file.read() if file else b""

    def _rows(self, part: Part) -> Iterator[Item]:
        (address,) = part.addresses
        rows = parquet.values(address, part.column, part.groups)
        for row, value in enumerate(rows, part.first_row):
            load = self._value(value, address)
            yield Item(f"{address}#{row}", None, part=part.number, load=load)

    def _value(self, value: Any, table: str) -> Callable[[], bytes]:
        """Take bytes, a web address, an address of ours or a path; a struct may have either."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return _given(value if len(value) <= self.max_bytes else self._too_large())
        if not isinstance(value, str):
            return _given(Unreadable("the row has neither bytes nor an address"))
        if scheme_of(value) in ("http", "https"):
            return lambda: self.fetch(value)
        beside = value if scheme_of(value) or value.startswith("/") else _beside(table, value)
        return self._file(beside)

    def _file(self, address: str) -> Callable[[], bytes]:
        def load() -> bytes:
            try:
                with place_of(absolute(address)).open(address) as file:
                    data = file.read(self.max_bytes + 1)
            except ValueError as error:
                raise Unreadable(str(error)) from None
            if len(data) > self.max_bytes:
                raise self._too_large()
            return data

        return load

    def _too_large(self) -> Unreadable:
        return Unreadable(f"more than the {self.max_bytes} bytes of CAPTION_MAX_UPLOAD_BYTES")


class _Member(tarfile.TarInfo):
    """A header that must not be damaged: the library takes a bad one for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tarfile)
        except _End:
            raise
        except _HeaderError as error:
            raise _ReadError(str(error)) from None


_End = cast("type[Exception]", vars(tarfile)["EOFHeaderError"])
_HeaderError, _ReadError = tarfile.HeaderError, tarfile.ReadError


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.isfile() and PurePosixPath(member.name.lower()).suffix in IMAGE_SUFFIXES


def _given(value: bytes | Unreadable) -> Callable[[], bytes]:
    def load() -> bytes:
        if isinstance(value, Unreadable):
            raise value
        return value

    return load


def _failing(part: Part, why: str) -> Item:
    return Item(part.addresses[0], None, part=part.number, load=_given(Unreadable(why)))


def _beside(table: str, name: str) -> str:
    return join(table.rpartition("/")[0], name)
