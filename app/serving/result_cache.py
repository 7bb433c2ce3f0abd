"""Results asked for again: kept for who comes later, shared by those who ask at the same time.

Knows asyncio, not images, torch or HTTP. Single-flight: who asks for a result that is under way
joins its computation. That has no deadline of its own: it goes on for as long as somebody waits, so
a short deadline spoils nothing for the others.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.serving.batching import DeadlineExceeded

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(eq=False)
class _Computation(Generic[Value]):
    task: "asyncio.Task[Value]"
    callers: int = 0


class ResultCache(Generic[Key, Value]):
    """Computes what is neither kept nor being computed.

    Args:
        most: Most results kept; the one that nobody asked for longest leaves first.
        on_lookup: Told about each lookup whether it was a ``hit`` (kept), ``shared`` (on its way)
            or a ``miss``. It is quick and does not raise.
    """

    def __init__(self, most: int, *, on_lookup: Callable[[str], None] = lambda _: None) -> None:
        self._most = most
        self._on_lookup = on_lookup
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._under_way: dict[Key, _Computation[Value]] = {}

    async def get(
        self, key: Key, compute: Callable[[], Coroutine[Any, Any, Value]], deadline_s: float
    ) -> Value:
        """Give the result of a key.

        Args:
            key: Equal keys have equal results.
            compute: Computes it. Cancelled once nobody waits for it any more.
            deadline_s: The moment on the loop's clock after which this caller does not want it.

        Raises:
            DeadlineExceeded: The deadline passed first.
            Exception: Whatever ``compute`` raises, for all who wait then; later callers try anew.
        """
        if key in self._kept:
            self._on_lookup("hit")
            self._kept.move_to_end(key)
            return self._kept[key]
        with self._join(key, compute) as task:
            timeout_s = max(0.0, deadline_s - asyncio.get_running_loop().time())
            await asyncio.wait({task}, timeout=timeout_s)
            if not task.done():
                raise DeadlineExceeded
            return task.result()

    @contextmanager
    def _join(
        self, key: Key, compute: Callable[[], Coroutine[Any, Any, Value]]
    ) -> "Iterator[asyncio.Task[Value]]":
        self._on_lookup("shared" if key in self._under_way else "miss")
        computation = self._under_way.get(key) or self._start(key, compute)
        computation.callers += 1
        try:
            yield computation.task
        finally:
            self._leave(key, computation)

    def _start(
        self, key: Key, compute: Callable[[], Coroutine[Any, Any, Value]]
    ) -> _Computation[Value]:
        computation = _Computation(asyncio.create_task(compute(), name="result"))
        computation.task.add_done_callback(lambda _: self._finish(key, computation))
        self._under_way[key] = computation
        return computation

    def _leave(self, key: Key, computation: _Computation[Value]) -> None:
        computation.callers -= 1
        if not computation.callers:
            # Forgotten before it has ended: who comes meanwhile must not join what is cancelled.
            self._forget(key, computation)
            computation.task.cancel()

    def _finish(self, key: Key, computation: _Computation[Value]) -> None:
        self._forget(key, computation)
        if not computation.task.cancelled() and computation.task.exception() is None:
            self._keep(key, computation.task.result())

    def _forget(self, key: Key, computation: _Computation[Value]) -> None:
        if self._under_way.get(key) is computation:
            del self._under_way[key]

    def _keep(self, key: Key, value: Value) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
