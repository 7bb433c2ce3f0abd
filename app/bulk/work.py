"""Parts -> files of captions: what each worker does, here or on a cluster."""

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import cast

from app.bulk.plan import Part, Plan, PlannedPart
from app.bulk.reading import Item, Reader, Unreadable
from app.bulk.shards import Format, Shard, Shards
from app.captioner.presentation import Presentation
from app.files.outcome import CaptionAll
from app.settings import Settings


@dataclass(frozen=True)
class Done:
    """What became of a part.

    Attributes:
        part: Its number.
        rows: How many it has, of which so many tell an error.
        errors: Those.
        failure: Why the part is left to a later run, or empty.
    """

    part: int
    rows: int = 0
    errors: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; it may be on another machine.

    Attributes:
        settings: Of the captioner, and the limits of a photo.
        output: Address of the folder.
        form: Of its files.
        n_best: Candidates of each row.
        tags: Whether rows have tags.
        how: Captions are told.
    """

    settings: Settings
    output: str
    form: Format
    n_best: int
    tags: bool
    how: Presentation

    def plan(self) -> Plan:
        """Give the plan of the output."""
        return Plan(self.output)

    def shards(self) -> Shards:
        """Give the files of the output."""
        return Shards(self.output, self.form, n_best=self.n_best, tags=self.tags)

    def captioner(self) -> CaptionAll:
        """Load the network.

        Raises:
            CheckpointError: It cannot be trusted, or the device is not there.
        """
        from app.files.local import LocalCaptioner  # noqa: PLC0415
        from app.loading import load_captioner  # noqa: PLC0415 - brings the network

        return LocalCaptioner(
            load_captioner(self.settings),
            max_batch=self.settings.max_batch,
            max_pixels=self.settings.max_pixels,
            n_best=self.n_best,
            how=self.how,
        )

    def caption(
        self, planned: Iterator[PlannedPart], caption_all: CaptionAll
    ) -> Generator[Done, None, None]:
        """Caption parts in order, and tell of each as soon as its file is there.

        Raises:
            OSError: The output cannot be read or written.
        """
        plan = self.plan()
        reader = Reader(self.settings.max_upload_bytes, _Fetcher(self.settings))
        begun: deque[Part] = deque()
        items = reader.items((plan.read(each) for each in planned), begun)
        return _written(items, begun, caption_all, self.shards())


def _written(
    items: Iterator[Item], begun: deque[Part], caption_all: CaptionAll, shards: Shards
) -> Generator[Done, None, None]:
    """Write what comes, part by part; the network never waits for the end of one."""
    writing: _Writing | None = None
    try:
        for outcome in caption_all(items):
            item = cast("Item", outcome.source)
            while writing is None or writing.part != item.part:
                if writing is not None:
                    yield writing.done()
                writing = _Writing(begun.popleft().number, shards)
            if item.ends_part:
                writing.failure = f"{item.name}: {outcome.error}"
            else:
                writing.shard.add(outcome)
        if writing is not None:
            yield writing.done()
        writing = None
        for part in begun:  # without a photo
            yield _Writing(part.number, shards).done()
    finally:
        if writing is not None and not writing.is_done:
            writing.shard.discard()


class _Writing:
    def __init__(self, part: int, shards: Shards) -> None:
        self.part = part
        self.shard: Shard = shards.begin(part)
        self.failure = ""
        self.is_done = False

    def done(self) -> Done:
        if self.failure:
            self.shard.discard()
        else:
            self.shard.keep()
        self.is_done = True
        if self.failure:
            return Done(self.part, failure=self.failure)
        return Done(self.part, self.shard.rows, self.shard.errors)


class _Fetcher:
    """Fetches web addresses as the service does, from the hosts of ``CAPTION_FETCH_URLS``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, url: str) -> bytes:
        from app.web.fetching import fetch  # noqa: PLC0415 - brings the web
        from app.web.problems import FetchFailed  # noqa: PLC0415

        try:
            return fetch(url, self._settings)
        except FetchFailed as error:
            raise Unreadable(str(error)) from None
