"""Results asked for again: kept for who comes later, shared by those who ask at the same time.

Knows asyncio, not images, torch or HTTP. A flight is one computation under way, for all who ask for
its result meanwhile. It has no deadline of its own: it goes on for as long as somebody waits, so
nobody suffers from the shorter patience of another.
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
class _Flight(Generic[Value]):
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
        self._flights: dict[Key, _Flight[Value]] = {}

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
        with self._aboard(key, compute) as task:
            patience_s = max(0.0, deadline_s - asyncio.get_running_loop().time())
            await asyncio.wait({task}, timeout=patience_s)
            if not task.done():
                raise DeadlineExceeded
            return task.result()

    @contextmanager
    def _aboard(
        self, key: Key, compute: Callable[[], Coroutine[Any, Any, Value]]
    ) -> "Iterator[asyncio.Task[Value]]":
        self._on_lookup("shared" if key in self._flights else "miss")
        flight = self._flights.get(key) or self._take_off(key, compute)
        flight.callers += 1
        try:
            yield flight.task
        finally:
            self._leave(key, flight)

    def _take_off(
        self, key: Key, compute: Callable[[], Coroutine[Any, Any, Value]]
    ) -> _Flight[Value]:
        flight = _Flight(asyncio.create_task(compute(), name="result"))
        flight.task.add_done_callback(lambda _: self._land(key, flight))
        self._flights[key] = flight
        return flight

    def _leave(self, key: Key, flight: _Flight[Value]) -> None:
        flight.callers -= 1
        if not flight.callers:
            # Forgotten before it has ended: who comes meanwhile must not board a cancelled flight.
            self._forget(key, flight)
            flight.task.cancel()

    def _land(self, key: Key, flight: _Flight[Value]) -> None:
        self._forget(key, flight)
        if not flight.task.cancelled() and flight.task.exception() is None:
            self._keep(key, flight.task.result())

    def _forget(self, key: Key, flight: _Flight[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _keep(self, key: Key, value: Value) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
