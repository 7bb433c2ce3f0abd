"""Company: items that are worth a wait, because they cost less in this batch than in the next."""

import asyncio
import contextlib

from app.serving.batching import PATIENCE_S
from support.batches import FAR_S, Squares, batching, busy, submit_all
from support.fake import pass_time


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


async def test_patience_with_a_slow_preparation_ends():
    run = Squares()
    async with batching(run) as batcher:
        with batcher.expecting():
            callers = await submit_all(batcher, [2])
            await asyncio.sleep(0)
            assert run.batches == []
            pass_time(PATIENCE_S)
            assert await asyncio.gather(*callers) == [4]


async def test_patience_is_longer_where_an_item_takes_longer():
    run = Squares()
    async with batching(run) as batcher:
        slow = await busy(batcher, run)
        pass_time(3 * PATIENCE_S)
        run.gate.set()
        await slow
        pass_time(1)
        run.batches.clear()
        with batcher.expecting():
            (caller,) = await submit_all(batcher, [2])
            for _ in range(2):
                pass_time(PATIENCE_S)
                with batcher.expecting():  # makes the lanes look again, as any other event does
                    pass
                await asyncio.sleep(0)
            assert run.batches == []
            pass_time(1.5 * PATIENCE_S)
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
    await asyncio.sleep(PATIENCE_S * 1.5)


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


async def test_a_free_lane_takes_its_share_of_those_who_are_due_as_soon_as_it_is_there():
    run = Squares()
    async with batching(run, lanes=2) as batcher:
        with batcher.expecting():
            callers = await submit_all(batcher, [2])
            await asyncio.sleep(0)
            assert run.batches == [[2]]  # the one that is due is for the other lane
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


async def test_callers_of_two_batches_may_be_back_any_moment():
    run = Squares()
    async with batching(run, max_batch=1) as batcher:
        await asyncio.gather(*await submit_all(batcher, [1, 2]))
        await asyncio.sleep(0)
        with batcher.expecting():
            pass
        assert batcher.expects_company  # the other one
        with batcher.expecting():
            pass
        assert not batcher.expects_company


async def test_company_that_does_not_come_is_not_waited_for_long():
    run = Squares()
    async with batching(run) as batcher:
        await keep_coming(batcher)
        first = await busy(batcher, run)
        (second,) = await submit_all(batcher, [2])
        run.gate.set()
        assert [await first, await second] == [1, 4]  # the first caller never comes back
        run.batches.clear()
        pass_time(PATIENCE_S)
        (late,) = await submit_all(batcher, [7])  # long after the last batch: nobody is due
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


async def test_it_knows_when_more_may_begin_any_moment():
    run = Squares()
    async with batching(run) as batcher:
        assert not batcher.expects_company
        with batcher.expecting():
            assert batcher.expects_company
        await asyncio.gather(*await submit_all(batcher, [1, 2]))
        await asyncio.sleep(0)
        assert batcher.expects_company  # two were answered and may have a next item
        for _ in range(2):
            await batcher.submit(3, FAR_S)
            with batcher.expecting():
                pass
        pass_time(PATIENCE_S)
        assert not batcher.expects_company
