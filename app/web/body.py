"""Bodies in, answers out: what an ASGI server and its clients do that a layer must know.

Pure ASGI: a body is counted as it comes and given on whole, a client that leaves cancels its
work, and a client that is refused still gets to read why.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.problems import BodyTooLarge

_LINGER_S = 2.0


class Disconnected(Exception):
    """The client has left."""


async def counted_body(receive: Receive, limit: int, arrived: Callable[[int], None]) -> bytes:
    """Read a body and count it as it comes.

    Args:
        receive: Of ASGI.
        limit: The most bytes it may have.
        arrived: Told how many have come; what it raises ends the reading.

    Raises:
        BodyTooLarge: It has more than ``limit`` bytes.
        Disconnected: The client left before its end.
    """
    # One growing buffer, which is given away without a copy. A list of one-byte chunks would cost
    # forty times the bytes counted.
    body = BytesIO()
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body.write(message.get("body", b""))
        more_body = message.get("more_body", False)
        if body.tell() > limit:
            raise BodyTooLarge(limit)
        arrived(body.tell())
    return body.getvalue()


async def answer_while_connected(
    app: ASGIApp, scope: Scope, body: "BufferedBody", receive: Receive, send: Send
) -> None:
    """Run the app, and cancel it when the client leaves: its images leave the queue with it.

    Raises:
        Disconnected: The client has left.
    """
    answer, work = _Answer(send), asyncio.current_task()
    watch = asyncio.create_task(_until_disconnected(receive))
    leaving = _Leaving(answer, work)
    watch.add_done_callback(leaving)
    try:
        await app(scope, body, answer)
    except asyncio.CancelledError:
        if leaving.is_the_reason:
            raise Disconnected from None
        raise
    finally:
        leaving.end()
        watch.cancel()


class _Leaving:
    """Cancels the work of a client who leaves before the answer is complete.

    The work is the task of the request itself: a task of its own would be one more to make, to
    switch to and to wait for.
    """

    def __init__(self, answer: "_Answer", work: "asyncio.Task[Any] | None") -> None:
        self._answer = answer
        self._work = work
        self._cancelled_work = False

    @property
    def is_the_reason(self) -> bool:
        """Whether the work was cancelled for this, and by nobody else."""
        return self._cancelled_work and self._work is not None and self._work.cancelling() == 1

    def __call__(self, watch: "asyncio.Task[None]") -> None:
        """Take note that the watch has ended."""
        if self._work is not None and not (watch.cancelled() or self._answer.complete):
            self._cancelled_work = self._work.cancel()

    def end(self) -> None:
        """Cancel nothing any more; if the work was cancelled, the task goes on to tell why."""
        if self._work is not None and self._cancelled_work:
            self._work.uncancel()
        self._work = None


class _Answer:
    """Passes the answer on and knows when it is complete: a client may leave then."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.complete = False

    async def __call__(self, message: Message) -> None:
        """Pass a message on."""
        body_ends = message["type"] == "http.response.body" and not message.get("more_body", False)
        self.complete = self.complete or body_ends
        await self._send(message)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class BufferedBody:
    """Gives the body that was read, in one piece: the framework joins several, which is a copy."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        """Give the body once."""
        if self._body is None:  # only the watcher knows when the client leaves, and it cancels us
            await asyncio.get_running_loop().create_future()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def lingering(receive: Receive, send: Send) -> Send:
    """Give the client the answer at once, and time to stop sending before the connection closes.

    Closing with unread bytes resets the connection, and the client may never see why.
    """

    async def lingering_send(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return lingering_send


async def _discard(receive: Receive) -> None:
    more_body = True
    while more_body:
        message = await receive()
        more_body = message["type"] == "http.request" and message.get("more_body", False)
