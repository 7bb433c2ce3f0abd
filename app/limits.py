"""Admission: what a request must satisfy before anything below sees it. Pure ASGI.

Order: key, readiness, encoding, declared length, room; then the body is read, counted and timed.
FastAPI would read the whole upload before a dependency could look at the key, Starlette bounds no
file part, and uvicorn waits for a body for ever.
"""

import asyncio
import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import problems
from app.batching import Overloaded
from app.health import NotReady
from app.problems import BodyTooLarge, EncodedBody, MalformedBody, Refusal, SlowBody, Unauthorised
from app.settings import Settings
from app.telemetry import Telemetry

# Everything else is guarded: a new route is safe before somebody thinks about it.
OPEN_PATHS = frozenset(
    {"/livez", "/startupz", "/readyz", "/healthz", "/metrics", "/docs", "/openapi.json"}
)
_CHUNK_BYTES = 64 * 1024
_LINGER_S = 2.0


class Keys:
    """The API keys. Without any, everybody may enter."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    def check(self, headers: Headers) -> None:
        """Compare in constant time, whatever the length and whichever key fits.

        Raises:
            Unauthorised: No key was given, or not one of ours.
        """
        given = _digest(_given_key(headers).encode("latin-1"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if self._digests and not any(matches):
            raise Unauthorised


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


class Admission:
    """ASGI layer in front of every guarded path.

    Args:
        app: What is guarded.
        settings: The limits.
        check_accepting: Raises NotReady while the service takes no work.
        retry_after_s: Estimates when there will be room.
        telemetry: Told about what is in flight and who is turned away.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        check_accepting: Callable[[], None],
        retry_after_s: Callable[[], int],
        telemetry: Telemetry,
    ) -> None:
        self.app = app
        self._settings = settings
        self._keys = Keys(settings.api_keys)
        self._check_accepting = check_accepting
        self._retry_after_s = retry_after_s
        self._telemetry = telemetry
        self._inflight_requests = 0
        self._inflight_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        try:
            with self._inflight(self._admit(scope)):
                body = _Replay(await self._read_body(receive))
                await _answer_while_connected(self.app, scope, body, receive, send)
        except _Disconnected:
            scope["state"]["outcome"] = "client_closed"
        except _Refused as refused:
            await self._refuse(refused.reason, scope, receive, send)

    def _admit(self, scope: Scope) -> int:
        """Check what the headers tell; give the bytes to reserve for the body."""
        headers = Headers(scope=scope)
        try:
            self._keys.check(headers)
            self._check_accepting()
            _check_encoding(headers)
            declared_bytes = _declared_bytes(
                headers, scope["method"], self._settings.max_upload_bytes
            )
            self._check_room(declared_bytes)
        except (Refusal, NotReady, Overloaded) as reason:
            raise _Refused(reason) from None
        return declared_bytes

    def _check_room(self, declared_bytes: int) -> None:
        full = self._inflight_requests >= self._settings.max_inflight_requests
        if full or self._inflight_bytes + declared_bytes > self._settings.max_inflight_bytes:
            raise Overloaded(self._retry_after_s())

    @contextmanager
    def _inflight(self, reserved_bytes: int) -> Iterator[None]:
        self._count(1, reserved_bytes)
        try:
            yield
        finally:
            self._count(-1, -reserved_bytes)

    def _count(self, requests: int, reserved_bytes: int) -> None:
        self._inflight_requests += requests
        self._inflight_bytes += reserved_bytes
        self._telemetry.inflight_requests.set(self._inflight_requests)
        self._telemetry.inflight_bytes.set(self._inflight_bytes)

    async def _read_body(self, receive: Receive) -> bytearray:
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                return await _counted_body(receive, self._settings.max_upload_bytes)
        except TimeoutError:
            raise _Refused(SlowBody()) from None
        except BodyTooLarge as reason:
            raise _Refused(reason) from None

    async def _refuse(self, reason: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        self._telemetry.rejected.labels(problems.kind_of(reason).code).inc()
        answer = problems.response(reason, scope, headers={"connection": "close"})
        await answer(scope, receive, _lingering(receive, send))


class _Refused(Exception):
    """A request is turned away with its body unread."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


class _Disconnected(Exception):
    """The client has left."""


def _check_encoding(headers: Headers) -> None:
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise EncodedBody


def _declared_bytes(headers: Headers, method: str, limit: int) -> int:
    """Give the declared length; without one, a body is taken for as long as it may be."""
    declared = headers.get("content-length")
    if declared is None:
        return 0 if method in {"GET", "HEAD"} else limit
    if not (declared.isascii() and declared.isdigit()):
        raise MalformedBody
    if len(declared) > 15 or int(declared) > limit:
        raise BodyTooLarge(limit)
    return int(declared)


async def _counted_body(receive: Receive, limit: int) -> bytearray:
    # One growing buffer: a list of one-byte chunks would cost forty times the bytes counted.
    body = bytearray()
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        body += message.get("body", b"")
        more_body = message.get("more_body", False)
        if len(body) > limit:
            raise BodyTooLarge(limit)
    return body


async def _answer_while_connected(
    app: ASGIApp, scope: Scope, body: "_Replay", receive: Receive, send: Send
) -> None:
    """Run the app, and cancel it when the client leaves: its images leave the queue with it."""
    answer = _Answer(send)
    work = asyncio.ensure_future(app(scope, body, answer))
    watch = asyncio.create_task(_until_disconnected(receive))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not (work.done() or answer.complete):
            raise _Disconnected
        await work
    finally:
        await _cancel(work, watch)


class _Answer:
    """Passes the answer on and knows when it is complete: a client may leave then."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.complete = False

    async def __call__(self, message: Message) -> None:
        body_ends = message["type"] == "http.response.body" and not message.get("more_body", False)
        self.complete = self.complete or body_ends
        await self._send(message)


async def _cancel(*tasks: "asyncio.Future[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Replay:
    """Gives the body that was read, in pieces that leave the event loop time to breathe."""

    def __init__(self, body: bytearray) -> None:
        view = memoryview(body)
        starts = range(0, len(body), _CHUNK_BYTES) or range(1)
        self._chunks = deque(bytes(view[start : start + _CHUNK_BYTES]) for start in starts)

    async def __call__(self) -> Message:
        await asyncio.sleep(0)
        if not self._chunks:  # only the watcher knows when the client leaves, and it cancels us
            await asyncio.get_running_loop().create_future()
        chunk = self._chunks.popleft()
        return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks)}


def _lingering(receive: Receive, send: Send) -> Send:
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
