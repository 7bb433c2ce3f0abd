"""Expected arrivals are worth a wait: they cost less in this batch than in the next."""

import asyncio
import contextlib

import pytest

from app.serving.expected_arrivals import (
    MAX_BATCH_DELAY_S,
    MIN_BATCH_DELAY_S,
    NONE_EXPECTED,
    Expected,
    ExpectedArrivals,
)
from support.batches import FAR_S, Squares, batching, busy, submit_all
from support.fake import pass_time


def begin(arrivals, now_s, items=1):
    """Prepare and submit items that are not waited for."""
    for _ in range(items):
        with arrivals.preparing(now_s):
            pass


def with_callers_who_return(items=2):
    """Give arrivals that have seen callers come back 5 ms after each answer, until the moment 0."""
    arrivals = ExpectedArrivals()
    for n in range(-30, 0):
        arrivals.answered(items, float(n))
        begin(arrivals, n + 0.005, items)
    return arrivals


def test_nothing_is_expected_of_strangers():
    arrivals = ExpectedArrivals()
    assert arrivals.at(0.0, 0.0) == NONE_EXPECTED
    begin(arrivals, 0.0)
    arrivals.answered(1, 1.0)
    assert arrivals.at(1.0, 1.0) == NONE_EXPECTED


def test_an_item_that_is_prepared_is_expected_for_a_while():
    arrivals = ExpectedArrivals()
    with arrivals.preparing(0.0):
        until_s = 5.0 + MIN_BATCH_DELAY_S  # after the oldest item came
        assert arrivals.at(5.0, 5.0) == Expected(1, until_s)
        with arrivals.preparing(5.0):
            assert arrivals.at(5.0, 5.0) == Expected(2, until_s)
        assert arrivals.at(until_s, 5.0) == NONE_EXPECTED
    assert arrivals.at(5.0, 5.0) == NONE_EXPECTED


def test_callers_who_come_back_are_expected_until_they_have():
    arrivals = with_callers_who_return(items=2)
    arrivals.answered(2, 0.0)
    assert arrivals.at(0.001, 0.0) == Expected(2, MIN_BATCH_DELAY_S)
    begin(arrivals, 0.002)
    assert arrivals.at(0.002, 0.0) == Expected(1, MIN_BATCH_DELAY_S)
    begin(arrivals, 0.003)
    assert arrivals.at(0.003, 0.0) == NONE_EXPECTED


def test_callers_of_two_batches_are_expected_together():
    arrivals = with_callers_who_return(items=1)
    arrivals.answered(1, 0.0)
    arrivals.answered(1, 0.005)
    assert arrivals.at(0.006, 0.0) == Expected(2, 0.005 + MIN_BATCH_DELAY_S)


def test_callers_of_a_batch_long_ago_are_not():
    arrivals = with_callers_who_return(items=2)
    arrivals.answered(2, 0.0)
    arrivals.answered(1, 5.0)
    assert arrivals.at(5.0, 5.0).items == 1


def test_who_stops_coming_back_is_soon_not_expected_any_more():
    arrivals = with_callers_who_return()
    for n in range(2):
        arrivals.answered(1, float(n))
    assert arrivals.at(1.001, 1.0).items == 1
    arrivals.answered(1, 2.0)
    assert arrivals.at(2.001, 2.0) == NONE_EXPECTED


@pytest.mark.parametrize(
    ("seconds_per_item", "delay_s"),
    [(0.001, MIN_BATCH_DELAY_S), (0.03, 0.03), (9.0, MAX_BATCH_DELAY_S)],
)
def test_the_delay_is_what_an_item_takes_within_bounds(seconds_per_item, delay_s):
    arrivals = ExpectedArrivals()
    arrivals.set_pace(seconds_per_item)
    assert arrivals.batch_delay_s == delay_s


# In the batcher


@pytest.fixture
async def _stopped_clock(monkeypatch):
    """Let no time pass but what a test lets jump, however busy the machine is."""
    loop = asyncio.get_running_loop()
    now_s = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now_s)


pytestmark = pytest.mark.usefixtures("_stopped_clock")


async def test_an_item_waits_for_another_that_is_being_prepared():
    run, ready = Squares(), asyncio.Event()

    async def prepare_and_submit(batcher):
        with batcher.expecting():
            await ready.wait()
        return await batcher.submit(3, FAR_S)

    async with batching(run) as batcher:
        late = asyncio.create_task(prepare_and_submit(batcher))
        await asyncio.sleep(0)
        (early,) = await submit_all(batcher, [2])
        await asyncio.sleep(0)
        assert run.batches == []
        ready.set()
        assert await asyncio.gather(early, late) == [4, 9]
    assert run.batches == [[2, 3]]


async def test_an_item_waits_no_longer_for_one_that_never_comes():
    run = Squares()
    async with batching(run) as batcher:
        with contextlib.suppress(ArithmeticError), batcher.expecting():
            callers = await submit_all(batcher, [2])
            raise ArithmeticError
        assert await asyncio.gather(*callers) == [4]


async def test_the_wait_for_a_slow_preparation_ends():
    run = Squares()
    async with batching(run) as batcher:
        with batcher.expecting():
            callers = await submit_all(batcher, [2])
            await asyncio.sleep(0)
            assert run.batches == []
            pass_time(MIN_BATCH_DELAY_S)
            assert await asyncio.gather(*callers) == [4]


async def test_the_wait_is_longer_where_an_item_takes_longer():
    run = Squares()
    async with batching(run) as batcher:
        slow = await busy(batcher, run)
        pass_time(3 * MIN_BATCH_DELAY_S)
        run.gate.set()
        await slow
        pass_time(1)
        run.batches.clear()
        with batcher.expecting():
            (caller,) = await submit_all(batcher, [2])
            for _ in range(2):
                pass_time(MIN_BATCH_DELAY_S)
                with batcher.expecting():  # makes the workers look again, as any other event does
                    pass
                await asyncio.sleep(0)
            assert run.batches == []
            pass_time(1.5 * MIN_BATCH_DELAY_S)
            assert await caller == 4


async def test_a_full_batch_waits_for_nobody():
    run = Squares()
    async with batching(run, max_batch=2) as batcher:
        with batcher.expecting():
            assert await asyncio.gather(*await submit_all(batcher, [2, 3])) == [4, 9]


async def arrive(batcher, number):
    """Prepare and submit, as the service does."""
    with batcher.expecting():
        await asyncio.sleep(0)
    return await batcher.submit(number, FAR_S)


async def keep_coming(batcher, rounds=30):
    """Let two callers come back whenever they are answered, until the batcher has noticed."""
    for n in range(rounds):
        await asyncio.gather(arrive(batcher, 2 * n), arrive(batcher, 2 * n + 1))
        await asyncio.sleep(0)
    pass_time(1.5 * MIN_BATCH_DELAY_S)


async def test_who_used_to_come_back_at_once_is_waited_for():
    run = Squares()
    async with batching(run) as batcher:
        await keep_coming(batcher)
        first = await busy(batcher, run)
        (second,) = await submit_all(batcher, [2])
        run.batches.clear()
        run.gate.set()
        assert await first == 1
        back = asyncio.create_task(arrive(batcher, 3))
        assert await asyncio.gather(second, back) == [4, 9]
    assert run.batches == [[2, 3]]


async def test_a_free_worker_takes_its_share_of_what_is_expected_as_soon_as_it_is_there():
    run = Squares()
    async with batching(run, workers=2) as batcher:
        with batcher.expecting():
            callers = await submit_all(batcher, [2])
            await asyncio.sleep(0)
            assert run.batches == [[2]]  # the expected one is for the other worker
        with batcher.expecting(), batcher.expecting():
            run.gate.clear()
            callers += await submit_all(batcher, [3])
            await asyncio.sleep(0)
            assert run.batches == [[2]]
            callers += await submit_all(batcher, [4])
            await asyncio.sleep(0)
            assert run.batches == [[2], [3, 4]]
            run.gate.set()
        assert await asyncio.gather(*callers) == [4, 9, 16]


async def test_arrivals_that_do_not_come_are_not_waited_for_long():
    run = Squares()
    async with batching(run) as batcher:
        await keep_coming(batcher)
        first = await busy(batcher, run)
        (second,) = await submit_all(batcher, [2])
        run.gate.set()
        assert await first == 1
        await asyncio.sleep(0)
        assert run.batches[-1] == [1]  # the first caller is waited for
        pass_time(MIN_BATCH_DELAY_S)
        assert await second == 4  # he never comes back
        run.batches.clear()
        pass_time(MIN_BATCH_DELAY_S)
        (late,) = await submit_all(batcher, [7])  # long after the last batch: nobody is expected
        await asyncio.sleep(0)
        assert run.batches == [[7]]
        assert await late == 49


async def test_strangers_are_not_waited_for():
    run = Squares()
    async with batching(run) as batcher:
        first = await busy(batcher, run)
        (second,) = await submit_all(batcher, [2])
        run.batches.clear()
        run.gate.set()
        assert await first == 1
        for _ in range(3):  # turns of the loop, no time
            await asyncio.sleep(0)
        assert run.batches == [[2]]
        assert await second == 4
