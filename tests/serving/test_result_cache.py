"""The result cache, with squares of integers and events: no torch, no sleeping."""

import asyncio
import contextlib
import gc

import pytest

from app.serving.batching import DeadlineExceeded, Overloaded
from app.serving.result_cache import ResultCache
from support.fake import pass_time

FAR_S = 1e9


class Squares:
    """Squares integers when ``gate`` is open; ``given_up`` are those it was not let finish."""

    def __init__(self):
        self.asked, self.given_up = [], []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error = None

    async def __call__(self, number):
        self.asked.append(number)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up.append(number)
            raise
        if self.error:
            raise self.error
        return number**2


class Asking:
    """A cache of squares; ``lookups`` is what it told."""

    def __init__(self, most=9):
        self.squares = Squares()
        self.lookups = []
        self.cache = ResultCache(most, on_lookup=self.lookups.append)

    async def of(self, number, deadline_s=FAR_S):
        return await self.cache.get(number, lambda: self.squares(number), deadline_s)

    async def all_of(self, numbers, deadline_s=FAR_S):
        """Give callers who all wait."""
        callers = [asyncio.create_task(self.of(number, deadline_s)) for number in numbers]
        await turns()
        return callers


async def turns():
    """Let the loop turn, without time."""
    for _ in range(5):
        await asyncio.sleep(0)


def soon_s(seconds):
    return asyncio.get_running_loop().time() + seconds


async def leave(*callers):
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)


# What is kept


async def test_what_was_computed_is_not_computed_again():
    asking = Asking()
    assert [await asking.of(n) for n in (3, 3, 4, 3)] == [9, 9, 16, 9]
    assert asking.squares.asked == [3, 4]
    assert asking.lookups == ["miss", "hit", "miss", "hit"]


async def test_the_one_that_nobody_asked_for_longest_leaves_first():
    asking = Asking(most=2)
    for number in (1, 2, 1, 3):
        await asking.of(number)
    asking.squares.asked.clear()
    assert [await asking.of(n) for n in (1, 3, 2)] == [1, 9, 4]
    assert asking.squares.asked == [2]
    assert len(asking.cache._kept) == 2


async def test_a_result_of_nothing_is_kept_too():
    asking = Asking()
    assert [await asking.of(0), await asking.of(0)] == [0, 0]
    assert asking.squares.asked == [0]


async def test_what_is_kept_is_given_even_after_the_deadline():
    asking = Asking()
    await asking.of(3)
    assert await asking.of(3, soon_s(-1)) == 9


# What is shared


async def test_callers_of_one_moment_share_one_computation():
    asking = Asking()
    asking.squares.gate.clear()
    callers = await asking.all_of([3, 3, 4, 3])
    asking.squares.gate.set()
    assert await asyncio.gather(*callers) == [9, 9, 16, 9]
    assert asking.squares.asked == [3, 4]
    assert asking.lookups == ["miss", "shared", "miss", "shared"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_caller_who_leaves_does_not_hurt_the_others(gone):
    asking = Asking()
    asking.squares.gate.clear()
    callers = await asking.all_of([3, 3, 3])
    await leave(callers.pop(gone))
    asking.squares.gate.set()
    assert await asyncio.gather(*callers) == [9, 9]
    assert (asking.squares.asked, asking.squares.given_up) == ([3], [])


async def test_the_first_caller_s_deadline_does_not_hurt_one_with_a_longer_deadline():
    asking = Asking()
    asking.squares.gate.clear()
    (hasty,) = await asking.all_of([3], soon_s(100))
    (patient,) = await asking.all_of([3], soon_s(300))
    pass_time(200)
    await asyncio.wait({hasty})
    assert isinstance(hasty.exception(), DeadlineExceeded)
    asking.squares.gate.set()
    assert await patient == 9
    assert asking.squares.asked == [3]


async def test_a_later_caller_s_deadline_is_kept_and_does_not_hurt_the_first():
    asking = Asking()
    asking.squares.gate.clear()
    (patient,) = await asking.all_of([3], soon_s(300))
    (hasty,) = await asking.all_of([3], soon_s(100))
    pass_time(200)
    await asyncio.wait({hasty})
    assert isinstance(hasty.exception(), DeadlineExceeded)
    asking.squares.gate.set()
    assert await patient == 9


async def test_a_deadline_that_has_passed_waits_for_nothing():
    asking = Asking()
    asking.squares.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await asking.of(3, soon_s(-1))
    (patient,) = await asking.all_of([3])
    with pytest.raises(DeadlineExceeded):
        await asking.of(3, soon_s(-1))
    asking.squares.gate.set()
    assert await patient == 9


# Once all have left


async def test_once_all_have_left_the_computation_is_given_up():
    asking = Asking()
    asking.squares.gate.clear()
    callers = await asking.all_of([3, 3])
    (late,) = await asking.all_of([3], soon_s(100))
    await leave(callers[0])
    pass_time(200)
    await asyncio.wait({late})
    await turns()
    assert asking.squares.given_up == []
    await leave(callers[1])
    await turns()
    assert asking.squares.given_up == [3]
    assert asking.cache._under_way == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_comes_once_all_have_left_does_not_join_what_was_given_up():
    asking = Asking()
    asking.squares.gate.clear()
    (gone,) = await asking.all_of([3])
    gone.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await gone
    (comes,) = await asking.all_of([3])  # what was given up may not have ended yet
    asking.squares.gate.set()
    assert await comes == 9
    assert (asking.squares.asked, asking.squares.given_up) == ([3, 3], [3])


async def test_what_ends_late_does_not_take_the_place_of_its_successor():
    asking, ending = Asking(), asyncio.Event()

    async def stubborn():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await ending.wait()
            raise

    gone = asyncio.create_task(asking.cache.get(3, stubborn, FAR_S))
    await turns()
    await leave(gone)
    asking.squares.gate.clear()
    (first,) = await asking.all_of([3])
    ending.set()
    await turns()
    (second,) = await asking.all_of([3])
    asking.squares.gate.set()
    assert await asyncio.gather(first, second) == [9, 9]
    assert asking.lookups == ["miss", "miss", "shared"]


# Failures


async def test_a_failure_reaches_all_who_wait_and_is_not_kept():
    asking = Asking()
    asking.squares.gate.clear()
    asking.squares.error = Overloaded(7)
    callers = await asking.all_of([3, 3, 3])
    asking.squares.gate.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [answer.retry_after_s for answer in answers] == [7, 7, 7]
    asking.squares.error = None
    assert await asking.of(3) == 9
    assert asking.squares.asked == [3, 3]


async def test_a_failure_that_all_have_left_is_not_reported():
    reports = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    asking, leaving = Asking(), []

    async def fail():
        leaving[0].cancel()
        raise ArithmeticError

    leaving.append(asyncio.create_task(asking.cache.get(3, fail, FAR_S)))
    await asyncio.wait(leaving)
    await turns()
    assert leaving.pop().cancelled()
    gc.collect()  # asyncio reports a failure that nobody looked at once its task is gone
    assert reports == []


async def test_a_result_that_comes_when_the_last_one_leaves_is_kept():
    asking, leaving = Asking(), []

    async def compute():
        leaving[0].cancel()
        return 9

    leaving.append(asyncio.create_task(asking.cache.get(3, compute, FAR_S)))
    await asyncio.wait(leaving)
    assert leaving[0].cancelled()
    assert await asking.of(3) == 9
    assert asking.lookups == ["miss", "hit"]
