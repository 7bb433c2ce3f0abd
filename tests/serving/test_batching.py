"""The batcher, with squares of integers and events: no torch, no sleeping."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.serving.batch_limit import BatchSizeLimit
from app.serving.batching import (
    Closed,
    DeadlineExceeded,
    DoesNotFit,
    Flow,
    MicroBatcher,
    Overloaded,
    batch_size,
)
from app.serving.fair_queue import CONTENTION_S
from support.batches import FAR_S, Squares, batching, busy, submit_all
from support.fake import pass_time


class Watched:
    def __init__(self):
        self.sizes, self.reasons, self.left = [], [], []

    def dispatched(self, waits_s, reason):
        self.sizes.append(len(waits_s))
        self.reasons.append(reason)

    def cancelled(self, stage):
        self.left.append(stage)


async def test_a_lone_item_is_dispatched_at_once():
    run = Squares()
    async with batching(run) as batcher:
        assert await batcher.submit(7, FAR_S) == 49
    assert run.batches == [[7]]


async def test_the_next_batch_forms_while_the_device_is_busy():
    run = Squares()
    async with batching(run) as batcher:
        first = await busy(batcher, run)
        others = await submit_all(batcher, [2, 3, 4, 5, 6])
        run.gate.set()
        assert await asyncio.gather(first, *others) == [1, 4, 9, 16, 25, 36]
    assert run.batches == [[1], [2, 3, 4, 5], [6]]


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000), max_size=40), st.integers(1, 7))
def test_everybody_gets_the_answer_to_his_own_item(numbers, max_batch):
    async def scenario():
        run = Squares()
        async with batching(run, max_batch=max_batch) as batcher:
            callers = await submit_all(batcher, numbers)
            assert await asyncio.gather(*callers) == [number**2 for number in numbers]
        assert max(map(len, run.batches), default=0) <= max_batch

    asyncio.run(scenario())


async def test_a_full_queue_refuses_and_says_when_to_come_back():
    run = Squares()
    async with batching(run, max_queue=2) as batcher:
        first = await busy(batcher, run)
        waiting = await submit_all(batcher, [2, 3])
        with pytest.raises(Overloaded) as refusal:
            await batcher.submit(4, FAR_S)
        assert 1 <= refusal.value.retry_after_s <= 60
        run.gate.set()
        assert await asyncio.gather(first, *waiting) == [1, 4, 9]


async def test_retry_after_follows_the_measured_rate():
    batcher = MicroBatcher(Squares(), max_batch=4, max_queue=9)
    batcher._measure(0.5)
    assert batcher.retry_after_s(20) == 10
    batcher._measure(5.5)  # the device slows down
    assert batcher.retry_after_s(20) == 30
    assert batcher.retry_after_s(0) == 1
    assert batcher.retry_after_s(10_000) == 60


async def test_a_late_first_item_never_reaches_the_device():
    run = Squares()
    async with batching(run) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(1, asyncio.get_running_loop().time() - 1)
    assert run.batches == []


async def test_an_item_that_became_late_in_the_queue_is_dropped_and_its_caller_told():
    run = Squares()
    async with batching(run) as batcher:
        first = await busy(batcher, run)
        late, good = await submit_all(batcher, [2, 3])
        item = next(item for item in batcher._queue if item.value == 2)
        object.__setattr__(item, "deadline_s", 0.0)  # the clock has moved on
        run.gate.set()
        assert await asyncio.gather(first, good) == [1, 9]
        with pytest.raises(DeadlineExceeded):
            await late
    assert run.batches == [[1], [3]]


async def test_a_deadline_passes_while_the_device_works():
    run = Squares()
    async with batching(run) as batcher:
        run.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(1, asyncio.get_running_loop().time() + 0.01)
        run.gate.set()
        assert await batcher.submit(2, FAR_S) == 4


async def test_a_caller_who_leaves_the_queue_frees_his_place_at_once():
    run, watched = Squares(), Watched()
    async with batching(run, max_queue=2, watcher=watched) as batcher:
        first = await busy(batcher, run)
        gone, stays = await submit_all(batcher, [2, 3])
        gone.cancel()
        await asyncio.wait({gone})
        assert batcher.depth == 1
        (comes,) = await submit_all(batcher, [4])
        run.gate.set()
        assert await asyncio.gather(first, stays, comes) == [1, 9, 16]
    assert run.batches == [[1], [3, 4]]
    assert watched.left == ["queue"]
    assert watched.sizes == [1, 2]


async def test_a_caller_who_leaves_during_the_batch_does_not_stop_the_worker():
    run, watched = Squares(), Watched()
    async with batching(run, watcher=watched) as batcher:
        first = await busy(batcher, run)
        first.cancel()
        await asyncio.wait({first})
        run.gate.set()
        assert await batcher.submit(3, FAR_S) == 9
    assert watched.left == ["batch"]


async def test_the_device_is_told_who_left_and_whose_deadline_passed():
    run = Squares()
    async with batching(run) as batcher:
        first = await busy(batcher, run)
        gone, stays = await submit_all(batcher, [2, 3])
        (late,) = await submit_all(batcher, [4], asyncio.get_running_loop().time() + 100)
        run.entered.clear()
        run.gate.set()
        run.gate.clear()  # for the batch that waits there alone
        await run.entered.wait()
        assert await first == 1
        assert [run.still_waiting(n) for n in range(3)] == [True, True, True]
        gone.cancel()
        pass_time(200)
        await asyncio.wait({gone, late})
        assert [run.still_waiting(n) for n in range(3)] == [False, True, False]
        run.gate.set()
        assert await stays == 9
    assert run.batches == [[1], [2, 3, 4]]
    assert isinstance(late.exception(), DeadlineExceeded)


async def test_a_batch_cut_short_does_not_make_the_device_seem_fast():
    run = Squares()
    async with batching(run) as batcher:
        batcher._measure(5)
        first = await busy(batcher, run)
        first.cancel()
        await asyncio.wait({first})
        run.gate.set()
    assert batcher.retry_after_s(10) == 50


async def test_a_batch_that_everybody_left_still_shows_that_the_device_is_slow():
    run = Squares()
    async with batching(run) as batcher:
        first = await busy(batcher, run)
        pass_time(100)
        first.cancel()
        await asyncio.wait({first})
        run.gate.set()
    assert batcher.retry_after_s(1) == 60


async def test_only_the_poison_item_of_a_batch_fails():
    run = Squares(poison={3})
    async with batching(run, max_batch=8) as batcher:
        first = await busy(batcher, run)
        callers = await submit_all(batcher, [2, 3, 4, 5, 6])
        run.gate.set()
        answers = await asyncio.gather(first, *callers, return_exceptions=True)
        assert [answers[0], answers[1], *answers[3:]] == [1, 4, 16, 25, 36]
        assert isinstance(answers[2], ArithmeticError)
        assert answers[2].args == ([3],)
        assert await batcher.submit(9, FAR_S) == 81


async def test_an_answer_that_is_an_exception_is_raised_to_its_caller():
    async def run(numbers, still_waiting):
        return [ArithmeticError(number) if number % 2 else number for number in numbers]

    async with batching(run) as batcher:
        callers = await submit_all(batcher, [2, 3, 4])
        two, three, four = await asyncio.gather(*callers, return_exceptions=True)
    assert (two, four) == (2, 4)
    assert isinstance(three, ArithmeticError)


async def test_callers_who_left_are_not_computed_again_when_a_batch_is_split():
    batches, callers = [], []

    async def run(numbers, still_waiting):
        batches.append(numbers)
        if len(numbers) > 1:
            callers[1].cancel()
            raise ArithmeticError
        return numbers

    async with batching(run) as batcher:
        callers += await submit_all(batcher, [2, 3])
        await asyncio.wait(callers)
    assert batches == [[2, 3], [2]]
    assert callers[0].result() == 2


async def test_a_device_that_loses_an_answer_fails_the_items_and_not_the_loop():
    async def forgetful(numbers, still_waiting):
        return numbers[1:]

    async with batching(forgetful) as batcher:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="given 1 items and answered 0"):
                await batcher.submit(1, FAR_S)


async def test_close_answers_what_waits_and_refuses_what_comes():
    run = Squares()
    batcher = MicroBatcher(run, max_batch=2, max_queue=9)
    batcher.start()
    first = await busy(batcher, run)
    waiting = await submit_all(batcher, [2, 3, 4])
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(Closed):
        await batcher.submit(5, FAR_S)
    run.gate.set()
    await closing
    assert await asyncio.gather(first, *waiting) == [1, 4, 9, 16]


async def test_close_does_not_wait_for_ever():
    run = Squares()
    batcher = MicroBatcher(run, max_batch=1, max_queue=9)
    batcher.start()
    callers = [await busy(batcher, run), *await submit_all(batcher, [2])]
    await batcher.close(timeout_s=0)
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Closed, Closed]


async def test_a_batcher_that_never_started_fails_what_waits():
    batcher = MicroBatcher(Squares(), max_batch=1, max_queue=9)
    (caller,) = await submit_all(batcher, [1])
    await batcher.close()
    with pytest.raises(Closed):
        await caller


async def test_a_crash_of_the_worker_fails_everybody_and_is_reported():
    class Clumsy(Watched):
        def dispatched(self, waits_s, reason):
            raise KeyError(waits_s, reason)

    crashes = []
    batcher = MicroBatcher(
        Squares(), max_batch=1, max_queue=9, watcher=Clumsy(), on_crash=crashes.append
    )
    batcher.start()
    callers = await submit_all(batcher, [1, 2])
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Closed, Closed]
    with pytest.raises(Closed):
        await batcher.submit(3, FAR_S)
    assert [type(error) for error in crashes] == [KeyError]


# Bytes


async def test_the_bytes_that_wait_are_bounded_too():
    run = Squares()
    async with batching(run, max_queue_bytes=10, weigh=lambda number: number) as batcher:
        first = await busy(batcher, run)
        waiting = await submit_all(batcher, [6, 4])
        with pytest.raises(Overloaded):
            await batcher.submit(1, FAR_S)
        waiting[1].cancel()
        await asyncio.wait({waiting[1]})
        (comes,) = await submit_all(batcher, [3])
        run.gate.set()
        assert await asyncio.gather(first, waiting[0], comes) == [1, 36, 9]


# Memory of the device


class Small(Squares):
    """A device that holds ``room`` items at once."""

    room = 2

    async def __call__(self, numbers, still_waiting):
        answers = await super().__call__(numbers, still_waiting)
        if len(numbers) > self.room:
            raise DoesNotFit
        return answers


async def test_a_batch_that_does_not_fit_is_halved_and_nobody_notices():
    run = Small()
    async with batching(run, max_batch=8) as batcher:
        first = await busy(batcher, run)
        callers = await submit_all(batcher, range(2, 12))
        run.gate.set()
        assert await asyncio.gather(first, *callers) == [n**2 for n in range(1, 12)]
        assert batcher.batch_size_limit == 2
    assert [len(batch) for batch in run.batches] == [1, 8, 4, 2, 2, 4, 2, 2, 2]


async def test_a_lone_item_that_does_not_fit_gets_one_more_try():
    run = Small()
    run.room = 0
    async with batching(run) as batcher:
        with pytest.raises(Overloaded) as refusal:
            await batcher.submit(3, FAR_S)
        assert refusal.value.retry_after_s >= 1
        assert run.batches == [[3], [3]]
        run.room = 1
        assert await batcher.submit(4, FAR_S) == 16


def test_the_batch_size_limit_halves_at_once_and_comes_back_slowly():
    limit = BatchSizeLimit(8)
    limit.halve(8)
    assert limit.now == 4
    for _ in range(99):
        limit.held()
    assert limit.now == 4
    limit.held()
    assert limit.now == 5
    for _ in range(1000):
        limit.held()
    assert limit.now == 8
    limit.halve(3)
    assert limit.now == 1
    limit.halve(1)
    assert limit.now == 1


async def test_a_device_that_is_gone_is_not_asked_again():
    batches = []

    async def gone(numbers, still_waiting):
        batches.append(numbers)
        raise Closed

    async with batching(gone, max_batch=2) as batcher:
        callers = await submit_all(batcher, [1, 2, 3])
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Closed}
        with pytest.raises(Closed):
            await batcher.submit(4, FAR_S)
    assert batches == [[1, 2]]


async def test_a_batch_leaves_because_it_is_full_or_the_device_is_free():
    run, watched = Squares(), Watched()
    async with batching(run, max_batch=2, watcher=watched) as batcher:
        first = await busy(batcher, run)
        callers = await submit_all(batcher, [2, 3, 4])
        run.gate.set()
        await asyncio.gather(first, *callers)
    assert watched.reasons == ["free", "full", "free"]


class Runs:
    """Runs that end one by one, when told to: ``under_way`` are the batches begun and not ended."""

    def __init__(self):
        self.under_way, self.begun, self.most = [], [], 0
        self.ends, self.news = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def __call__(self, items, still_waiting):  # noqa: ARG002
        self.begun.append(list(items))
        self.news.release()
        self.under_way.append(items)
        self.most = max(self.most, len(self.under_way))
        await self.ends.acquire()
        self.under_way.remove(items)
        return [item * item for item in items]

    async def until(self, count):
        while len(self.begun) < count:
            await self.news.acquire()


async def test_two_workers_run_two_batches_side_by_side_and_a_third_waits():
    run = Runs()
    async with batching(run, workers=2) as batcher:
        callers = await submit_all(batcher, [1])
        await run.until(1)
        callers += await submit_all(batcher, [2])
        await run.until(2)
        callers += await submit_all(batcher, [3, 4])
        assert run.begun == [[1], [2]]
        assert batcher.depth == 2
        for _ in range(4):
            run.ends.release()
        assert await asyncio.gather(*callers) == [1, 4, 9, 16]
    assert run.begun[2] == [3, 4]
    assert run.most == 2


async def test_free_workers_share_what_waits():
    run = Runs()
    async with batching(run, workers=2) as batcher:
        callers = await submit_all(batcher, [1, 2, 3, 4, 5])
        await run.until(2)
        assert [len(batch) for batch in run.begun] == [3, 2]
        run.ends.release()
        run.ends.release()
        assert await asyncio.gather(*callers) == [1, 4, 9, 16, 25]


async def test_a_worker_leaves_the_other_its_share_of_what_is_under_way_and_waits():
    run = Squares()
    async with batching(run, max_batch=8, workers=2) as batcher:
        callers = [await busy(batcher, run)]
        callers += await submit_all(batcher, range(2, 9))
        await asyncio.sleep(0)
        assert run.batches == [[1], [2, 3, 4, 5]]  # four of eight
        run.gate.set()
        assert await asyncio.gather(*callers) == [n**2 for n in range(1, 9)]
    assert run.batches[2:] == [[6, 7, 8]]


async def test_a_batch_that_fails_leaves_the_one_of_another_worker_alone():
    first, second = asyncio.Event(), asyncio.Event()

    async def run(items, still_waiting):
        first.set()
        if items == [0]:
            await second.wait()
            raise ZeroDivisionError
        second.set()
        return items

    async with batching(run, workers=2) as batcher:
        bad = (await submit_all(batcher, [0]))[0]
        await first.wait()
        assert await batcher.submit(5, FAR_S) == 5
        with pytest.raises(ZeroDivisionError):
            await bad


async def test_closing_answers_what_every_worker_works_on():
    run = Runs()
    batcher = MicroBatcher(run, max_batch=1, max_queue=9)
    batcher.start(2)
    callers = await submit_all(batcher, [1, 2, 3])
    await run.until(2)
    closing = asyncio.create_task(batcher.close())
    for _ in range(3):
        run.ends.release()
    await closing
    assert await asyncio.gather(*callers) == [1, 4, 9]


async def test_workers_count_in_the_estimate_of_when_to_come_back(monkeypatch):
    loop, run = asyncio.get_running_loop(), Runs()
    async with batching(run, max_batch=1, workers=2) as batcher:
        callers = await submit_all(batcher, [1, 2])
        await run.until(2)
        monkeypatch.setattr(loop, "time", lambda now=loop.time: now() + 7.9)
        run.ends.release()
        run.ends.release()
        await asyncio.gather(*callers)
        assert batcher.retry_after_s(3) == 12  # 7.9 s for two


async def test_a_few_items_wait_for_the_batch_under_way_and_many_get_another_worker():
    run = Runs()
    async with batching(run, workers=2, min_concurrent_batch=2) as batcher:
        callers = await submit_all(batcher, [1])
        await run.until(1)
        callers += await submit_all(batcher, [2])
        await asyncio.sleep(0)
        assert run.begun == [[1]]
        callers += await submit_all(batcher, [3])
        await run.until(2)
        assert run.begun == [[1], [2, 3]]
        callers += await submit_all(batcher, [4])
        for _ in range(3):
            run.ends.release()
        assert await asyncio.gather(*callers) == [1, 4, 9, 16]


# How many leave together


@pytest.mark.parametrize(
    ("waiting", "expected", "under_way", "workers", "size"),
    [
        (0, 0, 0, 1, 0),  # nothing to do
        (0, 3, 0, 1, 0),
        (1, 0, 0, 1, 1),  # a lone item leaves at once
        (5, 0, 0, 1, 5),
        (9, 0, 0, 1, 8),  # the size limit
        (1, 1, 0, 1, 0),  # the expected item goes into the same batch
        (7, 1, 0, 1, 0),
        (7, 9, 0, 1, 0),
        (8, 9, 0, 1, 8),  # a full batch waits for none
        (1, 1, 0, 2, 1),  # the expected item is the other worker's
        (2, 2, 0, 2, 2),
        (1, 2, 0, 2, 0),
        (8, 0, 0, 2, 4),  # each takes its share
        (7, 0, 0, 2, 4),
        (3, 0, 4, 2, 3),  # the other has its share already
        (7, 0, 1, 2, 4),
        (1, 0, 8, 2, 1),
        (16, 0, 0, 2, 8),
        (99, 0, 0, 4, 8),
        (3, 0, 0, 4, 1),  # more workers than items
    ],
)
def test_a_worker_takes_its_share(waiting, expected, under_way, workers, size):
    assert size == batch_size(
        waiting=waiting,
        expected=expected,
        under_way=under_way,
        workers=workers,
        size_limit=8,
        min_concurrent_batch=1,
    )


@pytest.mark.parametrize(
    ("waiting", "expected", "under_way", "size"),
    [
        (3, 0, 0, 3),  # nothing is under way: any batch is worth a worker
        (3, 0, 1, 0),  # too few: they wait for the batch under way
        (4, 0, 1, 4),
        (7, 0, 0, 7),  # not worth two workers
        (8, 0, 0, 4),
        (8, 0, 1, 5),
        (4, 4, 0, 4),
        (3, 4, 0, 0),
    ],
)
def test_few_items_are_not_worth_another_worker(waiting, expected, under_way, size):
    assert size == batch_size(
        waiting=waiting,
        expected=expected,
        under_way=under_way,
        workers=2,
        size_limit=8,
        min_concurrent_batch=4,
    )


# Turns


async def submit_of(batcher, *flows):
    """Submit an item for each flow, whose answer is the square of its place."""
    callers = [
        asyncio.create_task(batcher.submit(number, FAR_S, flow))
        for number, flow in enumerate(flows)
    ]
    await asyncio.sleep(0)
    return callers


async def test_a_caller_with_many_items_waits_for_one_of_another_between_two_of_his_own():
    run = Squares()
    async with batching(run, max_batch=2) as batcher:
        first = await busy(batcher, run)
        others = await submit_of(batcher, *[Flow("a", n) for n in range(4)], Flow("b", 9))
        run.gate.set()
        await asyncio.gather(first, *others)
    assert run.batches == [[1], [0, 4], [1, 2], [3]]


async def test_a_request_with_many_items_waits_for_one_of_another_between_two_of_its_own():
    run = Squares()
    async with batching(run, max_batch=2) as batcher:
        first = await busy(batcher, run)
        others = await submit_of(batcher, *[Flow("a", 1)] * 4, Flow("a", 2))
        run.gate.set()
        await asyncio.gather(first, *others)
    assert run.batches == [[1], [0, 4], [1, 2], [3]]


async def while_there_is_a_crowd(batcher, run, crowd, items):
    """Let another caller be answered while a crowd has so many items; give all callers."""
    callers = await submit_of(batcher, *[crowd] * items, Flow("single", 0))
    await run.until(len(run.begun) + 1)
    while not callers[-1].done():
        run.ends.release()
        await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
    return callers


async def settled(run):
    """Let the workers take whatever they want to."""
    for _ in range(5):
        await asyncio.sleep(0)
    return run.under_way


async def finish(run, callers):
    run.ends.release()
    for _ in range(100):
        run.ends.release()
    return await asyncio.gather(*callers)


@pytest.mark.parametrize("crowd", [Flow("crowd", 1), Flow("single", 1)])
async def test_a_crowd_leaves_a_worker_to_who_was_just_there_too(crowd):
    run = Runs()
    async with batching(run, max_batch=4, workers=2) as batcher:
        callers = await while_there_is_a_crowd(batcher, run, crowd, 40)
        while len(await settled(run)) > 1:
            run.ends.release()
        assert len(run.under_way) == 1
        assert batcher.depth > 4
        callers += await submit_of(batcher, Flow("single", 2))
        assert len(await settled(run)) == 2
        assert run.begun[-1] == [0]  # he goes alone, and at once
        await finish(run, callers)


async def test_a_lone_crowd_takes_every_worker():
    run = Runs()
    async with batching(run, max_batch=4, workers=2) as batcher:
        callers = await submit_of(batcher, *[Flow("crowd", n) for n in range(40)])
        assert [len(batch) for batch in await settled(run)] == [4, 4]
        await finish(run, callers)


async def test_a_crowd_takes_every_worker_again_once_nobody_has_come_for_a_while():
    run = Runs()
    async with batching(run, max_batch=4, workers=2) as batcher:
        callers = await while_there_is_a_crowd(batcher, run, Flow("crowd", 1), 40)
        pass_time(CONTENTION_S)
        while len(await settled(run)) < 2 or [len(batch) for batch in run.under_way] != [4, 4]:
            run.ends.release()
        await finish(run, callers)


async def test_where_there_is_one_worker_a_crowd_takes_it_for_a_few_items_at_a_time():
    run = Runs()
    async with batching(run, max_batch=4) as batcher:
        callers = await while_there_is_a_crowd(batcher, run, Flow("crowd", 1), 40)
        run.ends.release()
        await settled(run)
        run.ends.release()
        assert [len(batch) for batch in await settled(run)] == [2]
        await finish(run, callers)


async def test_where_batches_cost_alike_they_are_filled_whoever_is_there():
    run = Runs()
    async with batching(run, max_batch=4, workers=2, min_concurrent_batch=2) as batcher:
        callers = await while_there_is_a_crowd(batcher, run, Flow("crowd", 1), 40)
        before = len(run.begun)
        for _ in range(4):
            run.ends.release()
            await settled(run)
        assert [len(batch) for batch in run.begun[before:]] == [4] * 4
        assert len(run.under_way) == 2
        await finish(run, callers)


async def test_who_may_take_a_worker_does_not_wait_for_arrivals_of_who_may_not():
    run = Runs()
    async with batching(run, max_batch=4, workers=2) as batcher:
        callers = await while_there_is_a_crowd(batcher, run, Flow("crowd", 1), 12)
        while batcher.depth > 2 or len(await settled(run)) > 1:
            run.ends.release()
            await settled(run)
        with batcher.expecting():
            callers += await submit_of(batcher, Flow("single", 2))
            await settled(run)
            assert run.begun[-1] == [0]
        await finish(run, callers)
