"""A batcher of squares of integers: no torch, no sleeping."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from app.captioner.search import StillWaiting
from app.serving.batching import MicroBatcher

FAR_S = 1e9


class Squares:
    """The device: squares integers, one batch at a time, when ``gate`` is open."""

    def __init__(self, poison: Iterable[int] = ()) -> None:
        self.batches: list[list[int]] = []
        self.poison = set(poison)
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def __call__(self, numbers: list[int], still_waiting: StillWaiting) -> list[int]:
        self.batches.append(numbers)
        self.still_waiting = still_waiting
        self.entered.set()
        await self.gate.wait()
        if self.poison & set(numbers):
            raise ArithmeticError(numbers)
        return [number**2 for number in numbers]


@contextlib.asynccontextmanager
async def batching(
    run: Callable[..., Any],
    *,
    max_batch: int = 4,
    max_queue: int = 100,
    workers: int = 1,
    min_concurrent_batch: int = 1,
    **others: Any,
) -> AsyncIterator[MicroBatcher[int, int]]:
    batcher = MicroBatcher(run, max_batch=max_batch, max_queue=max_queue, **others)
    batcher.start(workers, min_concurrent_batch=min_concurrent_batch)
    yield batcher
    await batcher.close()


async def busy(batcher: MicroBatcher[int, int], run: Squares) -> asyncio.Task[int]:
    """Occupy the device with the item 1 and give its caller."""
    run.gate.clear()
    run.entered.clear()
    caller = asyncio.create_task(batcher.submit(1, FAR_S))
    await run.entered.wait()
    return caller


async def submit_all(
    batcher: MicroBatcher[int, int], numbers: Iterable[int], deadline_s: float = FAR_S
) -> list[asyncio.Task[int]]:
    """Give callers who have all queued."""
    callers = [asyncio.create_task(batcher.submit(number, deadline_s)) for number in numbers]
    await asyncio.sleep(0)
    return callers
