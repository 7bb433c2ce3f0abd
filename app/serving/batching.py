"""Micro-batching: many callers hand in one item each, and the device sees batches.

Knows asyncio, not images, torch or HTTP. A free device takes what waits at once, unless company is
due before another item would be done, and so costs less in this batch than in the next: an item
that is being prepared, or the next items of callers who were just answered, where they have been
coming back at once. A lone item waits for nothing. A device that runs several batches side by side
has a lane for each. Where callers contend they take turns, and leave each other room.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, NamedTuple, Protocol, TypeVar

from app.serving.batch_limit import BatchSizeLimit
from app.serving.fair_queue import FairQueue, Path, Presence, Rounds

In = TypeVar("In")
Out = TypeVar("Out")
Wanted = Callable[[int], bool]

PATIENCE_S = 0.01
"""How long a free device waits for company; longer, up to ``_MOST_PATIENCE_S``, where an item takes
longer."""
_MOST_PATIENCE_S = 0.05
_OFTEN = 0.7  # share of callers who come back so soon, from which on they are waited for
_LONGEST_RETRY_S = 60
_FEW = 2  # of a flow in the batch that takes the last free lane, while others contend
_MEMORY = 0.8  # weight of the past in what is measured


class Flow(NamedTuple):
    """Who an item is for: callers take turns, and so do the requests of each."""

    caller: Hashable = None
    request: Hashable = None


NOBODY = Flow()


class Overloaded(Exception):
    """There is no room; ``retry_after_s`` is when there should be some."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"no room, retry in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class OverShare(Exception):
    """There is room, but not for this caller, who holds ``limit`` items already or would."""

    def __init__(self, limit: int, retry_after_s: int) -> None:
        super().__init__(f"no room in a share of {limit}, retry in {retry_after_s} s")
        self.limit = limit
        self.retry_after_s = retry_after_s


class DeadlineExceeded(Exception):
    """The answer would come after nobody wants it any more."""


class Closed(Exception):
    """The batcher takes no more items."""

    retry_after_s = 1


class DoesNotFit(Exception):
    """``run`` could not hold so many items at once; fewer may fit."""


class Watcher(Protocol):
    """Who wants to know what the batcher does. Each call is quick and does not raise."""

    def dispatched(self, waits_s: Sequence[float], reason: str) -> None:
        """Take note of a batch that leaves the queue: the wait of each of its items, and why now.

        It is ``full``, or the device is ``free``.
        """

    def cancelled(self, stage: str) -> None:
        """Take note of a caller who left while its item was in ``queue`` or ``batch``."""


@dataclass(frozen=True, eq=False)
class _Item(Generic[In, Out]):
    value: In
    deadline_s: float
    arrived_s: float
    flow: Flow
    answer: "asyncio.Future[Out]" = field(repr=False)


class _Company:
    """Whether callers who were answered come back at once, as those do who have a next image.

    Attributes:
        left_s: when the last batch was answered; its callers, and those of batches before who may
            still be back, are the last ones below.
        patience_s: how long they are worth waiting for.
    """

    def __init__(self) -> None:
        self.left_s = -math.inf
        self.patience_s = PATIENCE_S
        self._awaited = 0
        self._came = 0
        self._share = 0.0

    @property
    def due_s(self) -> float:
        """Until when the last callers are worth waiting for."""
        return self.left_s + self.patience_s if self.due else -math.inf

    @property
    def due(self) -> int:
        """How many of the last callers are worth waiting for."""
        return max(0, self._awaited - self._came) if self._share >= _OFTEN else 0

    @property
    def away(self) -> bool:
        """Whether some of the last callers may be back any moment, worth a wait or not."""
        now_s = asyncio.get_running_loop().time()
        return self._came < self._awaited and now_s < self.left_s + self.patience_s

    def came(self) -> None:
        """Count an item that begins."""
        self._came += 1

    def left(self, items: int) -> None:
        """Note that so many were answered, and later how many came meanwhile."""
        loop, before = asyncio.get_running_loop(), self._came
        still = self._awaited - before if self.away else 0
        self.left_s, self._awaited = loop.time(), before + still + items
        loop.call_later(self.patience_s, lambda: self._learn((self._came - before) / items))

    def _learn(self, share: float) -> None:
        self._share = _MEMORY * self._share + (1 - _MEMORY) * min(1.0, share)


class MicroBatcher(Generic[In, Out]):
    """Batching nobody notices: ``await submit(item, deadline_s)`` answers for that item alone.

    Args:
        run: Answers a list of items with a list of the same length and order; an answer that is an
            exception is raised to its caller. It raises DoesNotFit where fewer might do, Closed
            where nothing will do any more, and anything else where some item is at fault. It may
            ask at any time, from any thread, whether somebody still waits for item n of the list;
            once nobody does, nobody ever will, and its answer is not read.
        max_batch: Most items in one call of ``run``.
        max_queue: Most items that wait.
        max_queue_bytes: Most bytes that wait, as ``weigh`` tells.
        weigh: Gives the bytes of an item.
        watcher: Told about dispatches and callers who left.
        on_crash: Called when a lane itself dies, which is a bug; everything that waited has
            failed by then.
    """

    def __init__(
        self,
        run: Callable[[list[In], Wanted], Awaitable[Sequence[Out | Exception]]],
        *,
        max_batch: int,
        max_queue: int,
        max_queue_bytes: float = math.inf,
        weigh: Callable[[In], int] = lambda _: 0,
        watcher: Watcher | None = None,
        on_crash: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._size_limit = BatchSizeLimit(max_batch)
        self._max_queue = max_queue
        self._least_beside = 1
        self._max_queue_bytes = max_queue_bytes
        self._weigh = weigh
        self._watcher = watcher
        self._on_crash = on_crash
        self._queue: FairQueue[_Item[In, Out]] = FairQueue()
        self._queue_bytes = 0
        self._presence = Presence(crowd=max_batch)
        self._batches: list[list[_Item[In, Out]]] = []
        self._coming = 0
        self._company = _Company()
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._seconds_per_item = 0.0
        self._lanes: list[asyncio.Task[None]] = []

    @property
    def depth(self) -> int:
        """How many items wait."""
        return len(self._queue)

    @property
    def batch_size_limit(self) -> int:
        """How many items a batch may have now."""
        return self._size_limit.now

    @property
    def seconds_per_item(self) -> float:
        """What an item took lately, all lanes together; 0 before the first batch."""
        return self._seconds_per_item

    @property
    def expects_company(self) -> bool:
        """Whether more items than those that wait or are under way may begin any moment."""
        return self._coming > 0 or self._company.away

    def start(self, lanes: int = 1, *, least_beside: int = 1) -> None:
        """Begin to run batches, so many side by side. Items submitted earlier have waited for it.

        Args:
            lanes: Calls of ``run`` under way at the same time, at most.
            least_beside: Fewest items worth a batch beside another; fewer wait for its end.
        """
        self._least_beside = least_beside
        for number in range(lanes):
            lane = asyncio.create_task(self._work(), name=f"micro-batcher-{number}")
            lane.add_done_callback(self._supervise)
            self._lanes.append(lane)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Say that an item is being prepared, which will be submitted right afterwards or never."""
        self._coming += 1
        self._company.came()
        try:
            yield
        finally:
            self._coming -= 1
            self._wake.set()

    async def submit(self, value: In, deadline_s: float, flow: Flow = NOBODY) -> Out:
        """Answer one item.

        Args:
            value: The item.
            deadline_s: The moment on the loop's clock after which nobody wants the answer.
            flow: Who it is for.

        Raises:
            Overloaded: The queue is full.
            DeadlineExceeded: The deadline passed first.
            Closed: The batcher is closing or has crashed.
            Exception: Whatever ``run`` raises for this very item.
        """
        item = self._enqueue(value, deadline_s, flow)
        try:
            async with asyncio.timeout_at(deadline_s) as waiting:
                return await item.answer
        except TimeoutError:
            if waiting.expired():
                raise DeadlineExceeded from None
            raise
        except asyncio.CancelledError:
            self._note_cancelled("queue" if self._forget(item) else "batch")
            raise
        finally:
            self._forget(item)
            self._presence.left(flow, asyncio.get_running_loop().time())

    def retry_after_s(self, waiting: int | None = None) -> int:
        """Estimate from the measured rate when ``waiting`` items, or the queue, will be done."""
        ahead = self.depth if waiting is None else waiting
        return min(max(1, math.ceil(ahead * self._seconds_per_item)), _LONGEST_RETRY_S)

    async def close(self, timeout_s: float | None = None) -> None:
        """Refuse new items, answer those that wait, stop the lanes.

        Whatever is not answered within ``timeout_s`` fails with Closed.
        """
        self._closed = True
        self._wake.set()
        if self._lanes:
            await asyncio.wait(self._lanes, timeout=timeout_s)
            for lane in self._lanes:
                lane.cancel()
            await asyncio.wait(self._lanes)
        self._fail_all()

    def _enqueue(self, value: In, deadline_s: float, flow: Flow) -> _Item[In, Out]:
        if self._closed:
            raise Closed
        if self.depth >= self._max_queue or not self._bytes_fit(value):
            raise Overloaded(self.retry_after_s())
        loop = asyncio.get_running_loop()
        item = _Item[In, Out](value, deadline_s, loop.time(), flow, loop.create_future())
        self._queue.push(item, flow)
        self._queue_bytes += self._weigh(value)
        self._presence.came(flow)
        self._wake.set()
        return item

    def _bytes_fit(self, value: In) -> bool:
        return self._queue_bytes + self._weigh(value) <= self._max_queue_bytes

    def _forget(self, item: _Item[In, Out]) -> bool:
        """Give a caller's place free at once, and say whether it had one still.

        Dead callers must not fill the queue.
        """
        waited = self._queue.remove(item, item.flow)
        if waited:
            self._queue_bytes -= self._weigh(item.value)
        return waited

    def _note_cancelled(self, stage: str) -> None:
        if self._watcher is not None:
            self._watcher.cancelled(stage)

    async def _work(self) -> None:
        while self._queue or not self._closed:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._take():
                flows = [item.flow for item in batch]
                self._batches.append(batch)
                self._presence.began(flows)
                self._tell(batch)
                await self._answer(batch)
                self._batches.remove(batch)
                self._presence.ended(flows)
                self._company.left(len(batch))

    def _take(self) -> list[_Item[In, Out]]:
        """Take live items from the queue: this lane's share of them, where others are free too."""
        held_back = self._held_back()
        waiting = len(self._queue) - sum(len(self._queue.of(flow)) for flow in held_back)
        worth = self._least_beside
        if self._batches and waiting < worth:
            return []
        expected = waiting
        # Who may take a lane now need not wait for the company of who may not.
        if not held_back and 0 < waiting < self._size_limit.now and self._is_patient():
            expected += self._coming + self._company.due
        total = expected + sum(map(len, self._batches))
        lanes = max(1, min(len(self._lanes), total // worth))
        most = min(self._size_limit.now, math.ceil(total / lanes))
        if waiting < min(most, expected):
            return []
        return self._in_turn(most, held_back)

    def _in_turn(self, most: int, held_back: Collection[Path]) -> list[_Item[In, Out]]:
        takes_last = len(self._batches) + 1 >= len(self._lanes)
        most_of_flow = _FEW if takes_last else math.inf  # somebody else may come any moment
        rounds = Rounds(self._queue, held_back, self._contended, most_of_flow)
        batch: list[_Item[In, Out]] = []
        while len(batch) < most and (item := self._queue.pop(rounds.may)):
            rounds.took(item.flow)
            self._queue_bytes -= self._weigh(item.value)
            batch += _live([item])
        return batch

    def _held_back(self) -> set[Path]:
        """Give the flows that wait and have to leave the next lane to others."""
        if not self._queue or self._batches_cost_alike:
            return set()
        now_s = asyncio.get_running_loop().time()
        held_back = self._presence.held_back(self._queue, len(self._lanes), now_s)
        return {flow for flow in held_back if flow[:-1] not in held_back and self._queue.of(flow)}

    def _contended(self, parent: Path) -> bool:
        now_s = asyncio.get_running_loop().time()
        return not self._batches_cost_alike and self._presence.contended(parent, now_s)

    @property
    def _batches_cost_alike(self) -> bool:
        """Whether a small batch would be over no sooner: then there is nothing to leave room by."""
        return self._least_beside > 1

    def _is_patient(self) -> bool:
        """Say whether company is due, and look again when it should have come."""
        loop, until_s = asyncio.get_running_loop(), self._company.due_s
        if self._coming:
            until_s = self._company.patience_s + max(self._company.left_s, self._oldest_s())
        if self._alarm is not None:
            self._alarm.cancel()
        if loop.time() >= until_s:
            return False
        self._alarm = loop.call_at(until_s, self._wake.set)
        return True

    def _oldest_s(self) -> float:
        return min(item.arrived_s for item in self._queue)

    def _tell(self, batch: list[_Item[In, Out]]) -> None:
        if self._watcher is not None:
            now_s = asyncio.get_running_loop().time()
            reason = "full" if len(batch) == self._size_limit.now else "free"
            self._watcher.dispatched([now_s - item.arrived_s for item in batch], reason)

    async def _answer(self, batch: list[_Item[In, Out]], *, again: bool = False) -> None:
        try:
            answers = await self._timed_run(batch)
        except Closed:
            self._closed = True
            self._fail_all()
        except DoesNotFit:
            await self._try_smaller(batch, again=again)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the item that caused it
            await self._bisect(batch, error)
        else:
            for item, answer in zip(batch, answers, strict=True):
                _resolve(item, answer)

    async def _try_smaller(self, batch: list[_Item[In, Out]], *, again: bool) -> None:
        """Halve a batch that did not fit; an item that did not fit alone gets one more try."""
        self._size_limit.halve(len(batch))
        if len(batch) > 1 or again:
            await self._bisect(batch, Overloaded(self.retry_after_s()))
        else:
            await self._answer(batch, again=True)

    async def _timed_run(self, batch: list[_Item[In, Out]]) -> Sequence[Out | Exception]:
        loop = asyncio.get_running_loop()
        started_s, lanes = loop.time(), len(self._batches)
        answers = await self._run([item.value for item in batch], lambda n: _waited_for(batch[n]))
        if len(answers) != len(batch):
            raise RuntimeError(f"run was given {len(batch)} items and answered {len(answers)}")
        lanes = max(lanes, len(self._batches))  # what others did meanwhile counts as well
        seconds_per_item = (loop.time() - started_s) / len(batch) / lanes
        # A batch that callers left was cut short: it can show that the device is slow, not fast.
        if all(map(_waited_for, batch)) or seconds_per_item > self._seconds_per_item:
            self._measure(seconds_per_item)
        self._size_limit.held()
        return answers

    def _measure(self, seconds_per_item: float) -> None:
        past = self._seconds_per_item or seconds_per_item
        self._seconds_per_item = _MEMORY * past + (1 - _MEMORY) * seconds_per_item
        self._company.patience_s = max(PATIENCE_S, min(self._seconds_per_item, _MOST_PATIENCE_S))

    async def _bisect(self, batch: list[_Item[In, Out]], error: Exception) -> None:
        """Halve a batch that failed until only the item at fault fails."""
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            if live := _live(half):
                await self._answer(live)

    def _supervise(self, lane: "asyncio.Task[None]") -> None:
        error = None if lane.cancelled() else lane.exception()
        if error is not None:
            self._closed = True
            self._fail_all()
            self._on_crash(error)

    def _fail_all(self) -> None:
        for item in [*chain(*self._batches), *self._queue]:
            _fail(item, Closed())
        self._queue, self._queue_bytes = FairQueue(), 0


def _live(items: list[_Item[In, Out]]) -> list[_Item[In, Out]]:
    """Keep the items that somebody still waits for; tell the late ones so."""
    now_s = asyncio.get_running_loop().time()
    for item in items:
        if item.deadline_s <= now_s:
            _fail(item, DeadlineExceeded())
    return [item for item in items if _waited_for(item)]


def _waited_for(item: _Item[In, Out]) -> bool:
    """Say whether a caller waits: one who leaves, or whose deadline passes, cancels the answer."""
    return not item.answer.done()


def _resolve(item: _Item[In, Out], answer: Out | Exception) -> None:
    if isinstance(answer, Exception):
        _fail(item, answer)
    elif _waited_for(item):  # a cancelled future takes no result
        item.answer.set_result(answer)


def _fail(item: _Item[In, Out], error: Exception) -> None:
    if _waited_for(item):
        item.answer.set_exception(error)
