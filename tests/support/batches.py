"""A batcher of squares of integers: no torch, no sleeping."""

import asyncio
import contextlib

from app.serving.batching import MicroBatcher

FAR_S = 1e9


class Squares:
    """The device: squares integers, one batch at a time, when ``gate`` is open."""

    def __init__(self, poison=()):
        self.batches = []
        self.poison = set(poison)
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def __call__(self, numbers, wanted):
        self.batches.append(numbers)
        self.wanted = wanted
        self.entered.set()
        await self.gate.wait()
        if self.poison & set(numbers):
            raise ArithmeticError(numbers)
        return [number**2 for number in numbers]


@contextlib.asynccontextmanager
async def batching(run, *, max_batch=4, max_queue=100, lanes=1, least_beside=1, **others):
    batcher = MicroBatcher(run, max_batch=max_batch, max_queue=max_queue, **others)
    batcher.start(lanes, least_beside=least_beside)
    yield batcher
    await batcher.close()


async def busy(batcher, run):
    """Occupy the device with the item 1 and give its caller."""
    run.gate.clear()
    run.entered.clear()
    caller = asyncio.create_task(batcher.submit(1, FAR_S))
    await run.entered.wait()
    return caller


async def submit_all(batcher, numbers, deadline_s=FAR_S):
    """Give callers who have all queued."""
    callers = [asyncio.create_task(batcher.submit(number, deadline_s)) for number in numbers]
    await asyncio.sleep(0)
    return callers
