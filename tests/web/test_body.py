"""body.py: who leaves cancels the work, and only that."""

import asyncio

import pytest

from app.web.body import BufferedBody, Disconnected, answer_while_connected

OK = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b""}


async def staying():
    await asyncio.get_running_loop().create_future()


async def gone():
    return {"type": "http.disconnect"}


async def ignored(message):
    pass


async def slow(scope, receive, send):
    await asyncio.sleep(60)


async def quick(scope, receive, send):
    await send(OK)
    await send(END)


async def answer(app, receive):
    await answer_while_connected(app, {}, BufferedBody(b""), receive, ignored)


async def test_who_leaves_cancels_the_work_and_not_what_comes_after_it():
    with pytest.raises(Disconnected):
        await answer(slow, gone)
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0.01)  # where a cancellation left over would strike


async def test_who_leaves_with_the_answer_disturbs_nobody():
    async def leaving_at_once(scope, receive, send):
        await quick(scope, receive, send)
        await asyncio.sleep(0.01)  # the watch hears of it here

    await answer(leaving_at_once, gone)
    await answer(quick, gone)
    await asyncio.sleep(0.01)


async def test_a_cancellation_from_outside_stays_one():
    task = asyncio.create_task(answer(slow, staying))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_outside_stays_one_though_the_client_left_first():
    async def tidying(scope, receive, send):
        try:
            await asyncio.sleep(60)
        finally:
            tidies.set()
            await asyncio.sleep(60)

    tidies = asyncio.Event()
    task = asyncio.create_task(answer(tidying, gone))
    await tidies.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_work_is_told_though_the_client_left():
    async def broken(scope, receive, send):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("while it was cancelled") from None

    with pytest.raises(ValueError, match="while it was cancelled"):
        await answer(broken, gone)
    assert asyncio.current_task().cancelling() == 0


async def test_no_watch_is_left_behind():
    before = asyncio.all_tasks()
    await answer(quick, staying)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
