"""Micro-batching: many callers hand in one item each, and the device sees batches.

Knows asyncio, not images, torch or HTTP. Each batch that may run at the same time has a worker, a
task. A free worker takes its share of what waits at once, unless more items are expected any
moment: see `batch_size` and `expected_arrivals`. Where callers contend they take turns, and leave
each other room. A batch has items of one kind alone.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, NamedTuple, Protocol, TypeVar

from app.serving.batch_limit import BatchSizeLimit
from app.serving.expected_arrivals import NONE_EXPECTED, Expected, ExpectedArrivals
from app.serving.fair_queue import FairQueue, Path, Presence, Rounds

In = TypeVar("In")
Out = TypeVar("Out")
StillWaiting = Callable[[int], bool]

_LONGEST_RETRY_S = 60
_FEW = 2  # of a flow in the batch that takes the last free worker, while others contend
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


def batch_size(
    *,
    waiting: int,
    expected: int,
    under_way: int,
    workers: int,
    size_limit: int,
    min_concurrent_batch: int,
) -> int:
    """Decide how many of the items that wait a free worker takes now; 0 is to wait.

    A worker takes its share, not all there is. All items, in batches under way, waiting and
    expected, are divided evenly among the workers: two batches of four end sooner than one of
    seven and one of one. Where a small batch is not worth a worker, fewer workers share.

    A share that is not complete waits for the items that are expected: they cost less in this batch
    than in the next. A queue that fills a whole batch waits for none.

    Args:
        waiting: items in the queue that may leave now.
        expected: items that may come any moment and are worth waiting for.
        under_way: items in the batches of other workers.
        workers: how many there are, this one and the busy ones included.
        size_limit: most items in a batch.
        min_concurrent_batch: fewest items worth a batch while another is under way.
    """
    if not waiting or (under_way and waiting < min_concurrent_batch):
        return 0
    if waiting >= size_limit:
        expected = 0
    all_items = under_way + waiting + expected
    sharing = max(1, min(workers, all_items // min_concurrent_batch))
    share = min(size_limit, math.ceil(all_items / sharing))
    return 0 if expected and waiting < share else min(waiting, share)


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
        kind: Gives the kind of an item; a batch has items of one kind alone.
        watcher: Told about dispatches and callers who left.
        on_crash: Called when a worker itself dies, which is a bug; everything that waited has
            failed by then.
    """

    def __init__(
        self,
        run: Callable[[list[In], StillWaiting], Awaitable[Sequence[Out | Exception]]],
        *,
        max_batch: int,
        max_queue: int,
        max_queue_bytes: float = math.inf,
        weigh: Callable[[In], int] = lambda _: 0,
        kind: Callable[[In], Hashable] = lambda _: None,
        watcher: Watcher | None = None,
        on_crash: Callable[[BaseException], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._size_limit = BatchSizeLimit(max_batch)
        self._max_queue = max_queue
        self._min_concurrent_batch = 1
        self._max_queue_bytes = max_queue_bytes
        self._weigh = weigh
        self._kind = kind
        self._watcher = watcher
        self._on_crash = on_crash
        self._queue: FairQueue[_Item[In, Out]] = FairQueue()
        self._queue_bytes = 0
        self._presence = Presence(crowd=max_batch)
        self._batches: list[list[_Item[In, Out]]] = []
        self._expected_arrivals = ExpectedArrivals()
        self._wake = asyncio.Event()
        self._next_look: asyncio.TimerHandle | None = None
        self._closed = False
        self._seconds_per_item = 0.0
        self._workers: list[asyncio.Task[None]] = []

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
        """What an item took lately, all workers together; 0 before the first batch."""
        return self._seconds_per_item

    def start(self, workers: int = 1, *, min_concurrent_batch: int = 1) -> None:
        """Begin to run batches. Items submitted earlier have waited for it.

        Args:
            workers: Calls of ``run`` under way at the same time, at most.
            min_concurrent_batch: Fewest items worth a batch while another is under way; fewer wait
                for its end. More than 1 says that a small batch takes as long as a large one.
        """
        self._min_concurrent_batch = min_concurrent_batch
        for number in range(workers):
            worker = asyncio.create_task(self._work(), name=f"micro-batcher-{number}")
            worker.add_done_callback(self._supervise)
            self._workers.append(worker)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Say that an item is being prepared, which will be submitted right afterwards or never."""
        try:
            with self._expected_arrivals.preparing(asyncio.get_running_loop().time()):
                yield
        finally:
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
        """Refuse new items, answer those that wait, stop the workers.

        Whatever is not answered within ``timeout_s`` fails with Closed.
        """
        self._closed = True
        self._wake.set()
        if self._workers:
            await asyncio.wait(self._workers, timeout=timeout_s)
            for worker in self._workers:
                worker.cancel()
            await asyncio.wait(self._workers)
        self._cancel_next_look()
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
                self._expected_arrivals.answered(len(batch), asyncio.get_running_loop().time())

    def _take(self) -> list[_Item[In, Out]]:
        """Take from the queue what leaves now; nothing where it had better wait."""
        held_back = self._held_back()
        waiting = len(self._queue) - sum(len(self._queue.of(flow)) for flow in held_back)
        # Who may take a worker now need not wait for the arrivals of who may not.
        expected = self._expected() if waiting and not held_back else NONE_EXPECTED
        size = batch_size(
            waiting=waiting,
            expected=expected.items,
            under_way=sum(map(len, self._batches)),
            workers=len(self._workers),
            size_limit=self._size_limit.now,
            min_concurrent_batch=self._min_concurrent_batch,
        )
        if size:
            return self._in_turn(size, held_back)
        if expected.items:
            self._look_again_at(expected.until_s)
        return []

    def _expected(self) -> Expected:
        oldest_s = min(item.arrived_s for item in self._queue)
        return self._expected_arrivals.at(asyncio.get_running_loop().time(), oldest_s)

    def _look_again_at(self, when_s: float) -> None:
        """Let free workers look at the queue then, whatever happens until then."""
        self._cancel_next_look()
        self._next_look = asyncio.get_running_loop().call_at(when_s, self._wake.set)

    def _cancel_next_look(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()

    def _in_turn(self, most: int, held_back: Collection[Path]) -> list[_Item[In, Out]]:
        takes_last = len(self._batches) + 1 >= len(self._workers)
        most_of_flow = _FEW if takes_last else math.inf  # somebody else may come any moment
        rounds = Rounds(self._queue, held_back, self._contended, most_of_flow)
        batch: list[_Item[In, Out]] = []

        def may(path: Path) -> bool:
            return rounds.may(path) and (not batch or self._goes_with(batch[0], path))

        while len(batch) < most and (item := self._queue.pop(may)):
            rounds.took(item.flow)
            self._queue_bytes -= self._weigh(item.value)
            batch += _live([item])
        return batch

    def _goes_with(self, item: _Item[In, Out], path: Path) -> bool:
        """Say whether what a flow would give is of the same kind; of flows inside it, any."""
        if len(path) < len(item.flow):
            return True
        first = next(iter(self._queue.of(path)))
        return self._kind(first.value) == self._kind(item.value)

    def _held_back(self) -> set[Path]:
        """Give the flows that wait and have to leave the next worker to others."""
        if not self._queue or self._batches_cost_alike:
            return set()
        now_s = asyncio.get_running_loop().time()
        held_back = self._presence.held_back(self._queue, len(self._workers), now_s)
        return {flow for flow in held_back if flow[:-1] not in held_back and self._queue.of(flow)}

    def _contended(self, parent: Path) -> bool:
        now_s = asyncio.get_running_loop().time()
        return not self._batches_cost_alike and self._presence.contended(parent, now_s)

    @property
    def _batches_cost_alike(self) -> bool:
        """Whether a small batch would be over no sooner: then there is nothing to leave room by."""
        return self._min_concurrent_batch > 1

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
        started_s, concurrent = loop.time(), len(self._batches)
        answers = await self._run([item.value for item in batch], lambda n: _waited_for(batch[n]))
        if len(answers) != len(batch):
            raise RuntimeError(f"run was given {len(batch)} items and answered {len(answers)}")
        concurrent = max(concurrent, len(self._batches))  # what others did meanwhile counts as well
        seconds_per_item = (loop.time() - started_s) / len(batch) / concurrent
        # A batch that callers left was cut short: it can show that the device is slow, not fast.
        if all(map(_waited_for, batch)) or seconds_per_item > self._seconds_per_item:
            self._measure(seconds_per_item)
        self._size_limit.held()
        return answers

    def _measure(self, seconds_per_item: float) -> None:
        past = self._seconds_per_item or seconds_per_item
        self._seconds_per_item = _MEMORY * past + (1 - _MEMORY) * seconds_per_item
        self._expected_arrivals.set_pace(self._seconds_per_item)

    async def _bisect(self, batch: list[_Item[In, Out]], error: Exception) -> None:
        """Halve a batch that failed until only the item at fault fails."""
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            if live := _live(half):
                await self._answer(live)

    def _supervise(self, worker: "asyncio.Task[None]") -> None:
        error = None if worker.cancelled() else worker.exception()
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
