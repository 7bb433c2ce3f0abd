"""Who is decoded next. No image is: jobs end when the test says so."""

import asyncio

import pytest

from app.serving.batching import Overloaded
from app.serving.decode_turns import COSTLY_S, Turns
from support.fake import pass_time

CHEAP_S, LONG_S = COSTLY_S / 10, 100.0


def queue(places, most_costly=100):
    return Turns(places, most_costly=most_costly)


async def started(turns, *costs_s, timeout_s=LONG_S):
    """Ask for turns, one after the other; give the tasks."""
    tasks = []
    for cost_s in costs_s:
        tasks.append(asyncio.create_task(turns.take(cost_s, timeout_s)))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def ended(turns, task):
    turns.leave(await task)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_the_cheapest_comes_first_and_the_first_of_equals():
    turns = queue(1)
    first, *others = await started(turns, CHEAP_S, 0.06, 0.03, 0.03)
    order = []
    for _ in others:
        await ended(turns, first)
        (first,) = [each for each in others if each.done() and each not in order]
        order.append(first)
    assert order == [others[1], others[2], others[0]]


async def served(turns, under_way, waiting):
    """End jobs one by one; give the names of those that wait in the order of their turns."""
    order = []
    while len(order) < len(waiting):
        await ended(turns, under_way)
        (name,) = [each for each, task in waiting.items() if task.done() and each not in order]
        order.append(name)
        under_way = waiting[name]
    return order


@pytest.mark.parametrize("cost_s", [CHEAP_S, COSTLY_S])
async def test_callers_who_are_told_apart_take_turns_whatever_one_has_asked_for(cost_s):
    turns = queue(1)
    (first,) = await started(turns, cost_s)
    waiting = {
        name: asyncio.create_task(turns.take(cost_s, LONG_S, name[0]))
        for name in ("a1", "a2", "a3", "b1", "b2")
    }
    await asyncio.sleep(0)
    assert await served(turns, first, waiting) == ["a1", "b1", "a2", "b2", "a3"]


async def test_a_turn_costs_what_the_job_costs():
    turns = queue(1)
    (first,) = await started(turns, COSTLY_S)
    costs_s = {"a1": 3 * COSTLY_S, "a2": 3 * COSTLY_S, "b1": COSTLY_S, "b2": COSTLY_S, "b3": 0.2}
    waiting = {
        name: asyncio.create_task(turns.take(cost_s, LONG_S, name[0]))
        for name, cost_s in costs_s.items()
    }
    await asyncio.sleep(0)
    assert await served(turns, first, waiting) == ["b1", "a1", "b2", "b3", "a2"]


async def test_one_caller_may_have_half_of_the_costly_ones_that_wait():
    turns = queue(1, most_costly=4)
    first, *_ = await started(turns, COSTLY_S)
    waiting = {
        name: asyncio.create_task(turns.take(COSTLY_S, LONG_S, "a")) for name in ("a1", "a2")
    }
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await turns.take(COSTLY_S, LONG_S, "a")
    waiting["b1"] = asyncio.create_task(turns.take(COSTLY_S, LONG_S, "b"))
    await asyncio.sleep(0)
    assert await served(turns, first, waiting) == ["a1", "b1", "a2"]


async def test_who_has_left_and_not_withdrawn_yet_is_passed_over():
    turns = queue(1)
    first, leaving, next_one = await started(turns, CHEAP_S, 0.03, 0.06)
    leaving.cancel()  # it withdraws when the loop comes to it, which is after the next line
    turns.leave(await first)
    await asyncio.wait({leaving, next_one}, timeout=10)
    assert leaving.cancelled()
    assert (await next_one).cost_s == 0.06


@pytest.mark.parametrize("places", [2, 4])
async def test_costly_jobs_leave_a_place_to_the_others(places):
    turns = queue(places)
    costly = await started(turns, *[1.0] * places)
    assert [each.done() for each in costly] == [True] * (places - 1) + [False]
    (cheap,) = await started(turns, CHEAP_S)
    assert cheap.done()
    await ended(turns, cheap)
    assert not costly[-1].done()
    await ended(turns, costly[0])
    assert costly[-1].done()
    turns.leave(await costly[-1])


async def test_with_one_place_a_costly_job_goes_when_nobody_else_waits():
    turns = queue(1)
    first, costly, cheap = await started(turns, CHEAP_S, 1.0, CHEAP_S)
    await ended(turns, first)
    assert (cheap.done(), costly.done()) == (True, False)
    await ended(turns, cheap)
    assert costly.done()


async def test_a_costly_job_that_would_wait_too_long_is_refused_at_once():
    turns = queue(2)
    _, waits = await started(turns, 3.0, 3.0, timeout_s=10.0)
    (late,) = await started(turns, 3.0, timeout_s=10.0)  # 6 s
    with pytest.raises(Overloaded) as refused:
        await late
    assert refused.value.retry_after_s == 6
    (cheaper,) = await started(turns, 1.0, timeout_s=10.0)  # it would be next, in 3 s
    (patient,) = await started(turns, 3.0, timeout_s=20.0)
    (cheap,) = await started(turns, CHEAP_S, timeout_s=0.01)  # it waits for none of them
    assert [each.done() for each in (waits, cheaper, patient, cheap)] == [False] * 3 + [True]
    for each in (waits, cheaper, patient):
        each.cancel()


async def test_those_that_cost_less_do_not_fill_the_queue_either():
    turns = queue(2)
    *_, fits = await started(turns, *[0.08] * 26, timeout_s=2.0)  # 1 s of them, in two places
    (late,) = await started(turns, 0.08, timeout_s=2.0)
    with pytest.raises(Overloaded):
        await late
    (cheaper,) = await started(turns, 0.01, timeout_s=2.0)
    assert (fits.done(), cheaper.done()) == (False, False)
    cheaper.cancel()


async def test_costly_jobs_that_wait_are_few():
    turns = queue(2, most_costly=3)
    *waiting, late = await started(turns, *[0.5] * 5)
    with pytest.raises(Overloaded):
        await late
    (cheap,) = await started(turns, CHEAP_S)
    assert cheap.done()
    for each in waiting:
        each.cancel()


async def test_how_long_costly_jobs_wait_is_learned_from_how_long_they_took():
    turns = queue(2)
    for _ in range(20):
        (slow,) = await started(turns, 0.5)
        pass_time(5.0)  # ten times as long
        await ended(turns, slow)
    await started(turns, 0.5)
    (late,) = await started(turns, 0.5, timeout_s=8.0)
    with pytest.raises(Overloaded):
        await late


async def test_a_job_that_takes_longer_tells_so_before_its_end():
    turns = queue(2)
    await started(turns, 0.5)
    pass_time(5.0)
    (late,) = await started(turns, 0.5, timeout_s=8.0)
    assert not late.done()  # it may be next any moment
    (later,) = await started(turns, 0.5, timeout_s=8.0)
    with pytest.raises(Overloaded):
        await later
    late.cancel()


async def test_what_was_given_up_tells_nothing_about_how_long_a_job_takes():
    turns = queue(2)
    for _ in range(20):
        (given_up,) = await started(turns, 3.0)
        turns.leave(await given_up, done=False)
    await started(turns, 3.0)
    (late,) = await started(turns, 3.0, timeout_s=5.0)
    with pytest.raises(Overloaded):
        await late


async def test_who_leaves_takes_his_job_out_of_the_queue():
    turns = queue(1)
    first, second, third = await started(turns, 0.05, 0.05, 0.05)
    second.cancel()
    await asyncio.wait({second})
    await ended(turns, first)
    assert third.done()
    await ended(turns, third)
    assert (await started(turns, 1.0))[0].done()


async def test_who_leaves_at_the_moment_of_his_turn_gives_his_place_back():
    turns = queue(1)
    first, second, third = await started(turns, 0.05, 0.05, 0.05)
    turns.leave(await first)  # it is the second's turn now, who does not know yet
    second.cancel()
    await asyncio.wait({second})
    await asyncio.sleep(0)
    assert third.done()
