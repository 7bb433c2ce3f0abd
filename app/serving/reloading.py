"""A checkpoint that is served, and how another takes its place while captions are made.

The other one is loaded beside it. Once it has said its golden caption, requests that begin are
captioned with it, and what is under way ends with the old one. One that cannot be trusted changes
nothing. Knows asyncio, not images or HTTP.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import structlog

from app.captioner.errors import CheckpointError, OutOfMemory
from app.observability.metrics import Metrics
from app.serving.captioner import Captioner

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

By = Literal["signal", "admin", "watch"]
Outcome = Literal["served", "unchanged"]
_NUMBERS = count()
_NO_MEMORY = "no memory for it beside the one that is served: restart the service with it"


class Store(Protocol):
    """Where checkpoints come from. Each call may block."""

    def find(self, version: str | None = None) -> Path:
        """Give the directory to serve now, or that of another version.

        Raises:
            CheckpointError: There is no such version.
        """

    def fingerprint(self, directory: Path) -> Hashable:
        """Tell what lies there; another value may be another checkpoint."""

    def load(self, directory: Path, *, beside: bool = False) -> Captioner:
        """Load it, and leave most cores to others where one is at work beside it.

        Raises:
            CheckpointError: It cannot be trusted, or the device is not there.
        """


class Found(NamedTuple):
    """A directory of a store, and what lay in it when it was looked at."""

    directory: Path
    fingerprint: Hashable


@dataclass(frozen=True, eq=False)
class Served:
    """A captioner that takes requests, or took those that still go on.

    Attributes:
        captioner: Reads and captions their images.
        number: No other has it.
    """

    captioner: Captioner
    number: int = field(default_factory=_NUMBERS.__next__)

    @property
    def name(self) -> str:
        """Its name without the version."""
        return self.captioner.manifest.name

    @property
    def version(self) -> str:
        """Its version."""
        return self.captioner.manifest.version


class Refusal(NamedTuple):
    """Which checkpoint is not served and why, and when that was found."""

    reason: str
    at: datetime


class Reload(NamedTuple):
    """What came of a look at the store, and what is served after it.

    Attributes:
        outcome: ``served``, or ``unchanged`` where the one that is there is served already.
        served: The one that takes requests now.
        seconds: How long it took.
    """

    outcome: Outcome
    served: Served
    seconds: float


class Reloads:
    """Serves what a store has, one change at a time.

    Args:
        store: Where checkpoints come from.
        prepare: Gives the captioner of a directory of the store, once it was warmed up and has
            said its golden caption.
        metrics: Told of each change.
        admit: Raises CheckpointError for a captioner that must not be served here.
        on_served: Called when another one is.
    """

    def __init__(
        self,
        store: Store,
        prepare: Callable[[Store, Path], Awaitable[Captioner]],
        metrics: Metrics,
        *,
        admit: Callable[["Reloads", Captioner], None],
        on_served: Callable[[], None],
    ) -> None:
        self.store = store
        self._prepare = prepare
        self._metrics = metrics
        self._admit = admit
        self._on_served = on_served
        self._served: Served | None = None
        self._found: Found | None = None
        self._newest: Found | None = None  # what the store had when it was last served or refused
        self._first = asyncio.Event()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.refusal: Refusal | None = None

    @property
    def has_served(self) -> bool:
        """Whether there is one by now."""
        return self._served is not None

    @property
    def served(self) -> Served:
        """What takes requests; there is one whenever the health lets work in."""
        if self._served is None:
            raise RuntimeError("asked for the captioner before it was loaded")
        return self._served

    async def find(self, version: str | None = None) -> Found:
        """Look at the store, in a thread.

        Raises:
            CheckpointError: There is no such version, or none that may be looked at.
        """
        try:
            return await asyncio.to_thread(self._look, version)
        except OSError as error:
            raise CheckpointError(f"the checkpoint cannot be looked at: {error}") from None

    def serve(self, captioner: Captioner, found: Found) -> None:
        """Let requests that begin be captioned with this one.

        Raises:
            CheckpointError: It must not be served here.
        """
        self._admit(self, captioner)
        self._served = Served(captioner)
        self._found = found
        self._newest = self._newest or found
        self.refusal = None
        self._on_served()
        self._first.set()

    async def reload(self, by: By, version: str | None = None) -> Reload:
        """Serve what the store has now, or another version; it goes on if the caller leaves.

        Args:
            by: What asked for it.
            version: In place of the one that the settings name. It stays until the next call, or
                until the store changes while it is watched.

        Raises:
            CheckpointError: It is not served; the old one still is.
        """
        return await asyncio.shield(self._keep(self._reload(by, version)))

    def on_signal(self) -> None:
        """Begin to serve what the store has now; the log tells what came of it."""
        self._keep(self._quietly("signal"))

    def watch(self, every_s: float) -> None:
        """Serve what the store has whenever that has changed, and has settled for a while."""
        self._keep(self._watch(every_s))

    async def close(self) -> None:
        """Begin nothing any more. What is being loaded is left to its thread."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work, name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _look(self, version: str | None) -> Found:
        directory = self.store.find(version)
        return Found(directory, self.store.fingerprint(directory))

    async def _reload(self, by: By, version: str | None) -> Reload:
        await self._first.wait()
        async with self._turn:
            began_s = time.perf_counter()
            try:
                outcome = await self._replace(version)
            except CheckpointError as error:
                self._refuse(str(error), by)
                raise
            done = Reload(outcome, self.served, round(time.perf_counter() - began_s, 2))
            self._tell(done, by)
            return done

    async def _replace(self, version: str | None) -> Outcome:
        found = await self.find(version)
        if version is None:
            self._newest = found
        if found == self._found:
            self.refusal = None
            return "unchanged"
        self.serve(await self._prepared(found.directory), found)
        return "served"

    async def _prepared(self, directory: Path) -> Captioner:
        try:
            return await self._prepare(self.store, directory)
        except CheckpointError:
            raise
        except (OutOfMemory, MemoryError):
            raise CheckpointError(f"checkpoint {directory}: {_NO_MEMORY}") from None
        except Exception as error:
            log.exception("reload_failed")
            told = f"checkpoint {directory}: {type(error).__name__}; the log has more"
            raise CheckpointError(told) from None

    def _tell(self, done: Reload, by: By) -> None:
        self._metrics.reloads.labels(done.outcome).inc()
        event = "checkpoint_served" if done.outcome == "served" else "checkpoint_unchanged"
        log.info(event, by=by, seconds=done.seconds, **identity(done.served.captioner))

    def _refuse(self, reason: str, by: By) -> None:
        self._metrics.reloads.labels("refused").inc()
        self.refusal = Refusal(reason, datetime.now(UTC))
        log.error("checkpoint_refused", by=by, reason=reason, still=name_of(self.served.captioner))

    async def _quietly(self, by: By) -> None:
        with suppress(CheckpointError):  # it was logged
            await self._reload(by, None)

    async def _watch(self, every_s: float) -> None:
        await self._first.wait()
        before = self._newest
        while True:
            await asyncio.sleep(every_s)
            now = await self._glance()
            # a copy that is still on its way changes from look to look
            if now is not None and now == before != self._newest:
                await self._quietly("watch")
            before = now

    async def _glance(self) -> Found | None:
        try:
            return await self.find()
        except CheckpointError:
            return None


def identity(captioner: Captioner) -> dict[str, str]:
    """Tell which checkpoint a captioner has."""
    public = captioner.manifest.public()
    return {key: str(public[key]) for key in ("name", "version", "sha256")}


def name_of(captioner: Captioner) -> str:
    """Name the checkpoint of a captioner as ``name:version``."""
    return f"{captioner.manifest.name}:{captioner.manifest.version}"
