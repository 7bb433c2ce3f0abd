"""Admission: what a request must satisfy before anything below sees it. Pure ASGI.

Order: key, readiness, rate, encoding, declared length, timeout, room; then the body is read,
counted and timed.
FastAPI would read the whole upload before a dependency could look at the key, Starlette bounds no
file part, and uvicorn waits for a body for ever.
"""

import asyncio
import math
from collections.abc import Callable
from functools import partial

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from app.observability.metrics import Metrics
from app.serving.batching import DeadlineExceeded, Overloaded
from app.serving.health import NotReady
from app.settings import Settings
from app.web import problems
from app.web.auth import Keys
from app.web.body import BufferedBody, Disconnected, answer_while_connected, counted_body, lingering
from app.web.inflight import Entry, Inflight
from app.web.page import assets
from app.web.problems import (
    BodyTooLarge,
    EncodedBody,
    InvalidRequest,
    MalformedBody,
    RequestError,
    SlowBody,
    TooManyRequests,
)
from app.web.rates import Rates

# Everything else is guarded: a new route is safe before somebody thinks about it.
OPEN_PATHS = frozenset(
    {"/livez", "/startupz", "/readyz", "/healthz", "/metrics", "/openapi.json", *assets.PATHS}
    | {"/v2/health/live", "/v2/health/ready"}  # the probes of KServe's protocol
)


CLIPS_PATH = "/v1/clips"
"""Clips are larger than photos, and take longer."""
ADMIN_PATHS = frozenset({"/v1/admin/reload", "/v1/admin/canary"})
"""These have keys of their own, and no limits: who heals a service that is full must get in."""


class Admission:
    """ASGI layer in front of every guarded path.

    Args:
        app: What is guarded.
        settings: The limits.
        check_accepting: Raises NotReady while the service takes no work.
        retry_after_s: Estimates when there will be room.
        has_room: Says whether one more image of a key, of anybody for None, would be taken.
        seconds_per_image: What an image takes at present, all workers together.
        metrics: Told about what is in flight and who is turned away.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        check_accepting: Callable[[], None],
        retry_after_s: Callable[[], int],
        has_room: Callable[[int | None], bool],
        seconds_per_image: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self.app = app
        self._settings = settings
        self._keys = Keys(settings.api_keys)
        self._rates = Rates(settings.key_requests_per_s)
        self._admin_keys = Keys(settings.admin_keys) if settings.admin_keys else None
        self._check_accepting = check_accepting
        self._retry_after_s = retry_after_s
        self._has_room = has_room
        self._seconds_per_image = seconds_per_image
        self._metrics = metrics
        self._inflight = Inflight(settings, retry_after_s=retry_after_s, metrics=metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or _is_open(scope):
            await self.app(scope, receive, send)
            return
        if scope["path"] in ADMIN_PATHS:
            await self._administer(scope, receive, send)
            return
        try:
            entry = self._admit(scope)
            scope["state"]["caller"] = entry.key
            scope["state"]["charge"] = partial(self._inflight.charge_more, entry)
            with self._inflight.entering(entry):
                body = BufferedBody(await self._read_body(receive, entry, scope))
                scope["state"]["deadline_s"] = self._deadline_s(entry, scope)
                await answer_while_connected(self.app, scope, body, receive, send)
        except Disconnected:
            scope["state"]["outcome"] = "client_closed"
        except _Refused as refused:
            await self._refuse(refused.reason, scope, receive, send)

    async def _administer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in who has an admin key; the body is not read.

        Raises:
            HTTPException: 404, where there are no such keys.
        """
        if self._admin_keys is None:
            raise HTTPException(404)
        try:
            self._admin_keys.check(Headers(scope=scope))
            self._check_accepting()
        except (RequestError, NotReady) as reason:
            await self._refuse(reason, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> Entry:
        """Check what the headers tell."""
        headers = Headers(scope=scope)
        try:
            key = self._keys.check(headers)
            if key is not None:
                scope["state"]["notes"]["key"] = self._keys.name(key)
            self._check_accepting()
            now_s = asyncio.get_running_loop().time()
            scope["state"]["headers"] = self._rates.take(key, now_s)
            _check_encoding(headers)
            declared_bytes = _declared_bytes(headers, scope["method"], self._limit_bytes(scope))
            asked_s = _asked_timeout_s(headers)
            if scope["method"] == "POST":
                self._check_wait(key, min(self._settings.deadline_s, asked_s))
        except (RequestError, NotReady, Overloaded) as reason:
            raise _Refused(reason) from None
        return Entry(key, declared_bytes, scope["state"]["arrived_s"] + asked_s)

    def _deadline_s(self, entry: Entry, scope: Scope) -> float:
        """Give the end of the work on a body that is there; its way here is not the service's."""
        now_s = asyncio.get_running_loop().time()
        of_clip = self._is_of_clip(scope)
        limit_s = self._settings.clip_deadline_s if of_clip else self._settings.deadline_s
        return min(entry.deadline_s, now_s + limit_s)

    def _limit_bytes(self, scope: Scope) -> int:
        """Give how many bytes a body may have; a clip may be as large as a photo in any case."""
        limit = self._settings.max_upload_bytes
        return max(limit, self._settings.most_clip_bytes) if self._is_of_clip(scope) else limit

    def _is_of_clip(self, scope: Scope) -> bool:
        return self._settings.clips and scope["path"] == CLIPS_PATH

    def _check_wait(self, key: int | None, timeout_s: float) -> None:
        """Refuse who finds no room or would wait too long, before the body is read.

        A body read in vain costs the others. One batch may always enter, or a single slow one would
        close the service for good.
        """
        ahead = self._inflight.ahead_of(key)
        wait_s = (ahead + 1) * self._seconds_per_image()
        late = ahead >= self._settings.max_batch and wait_s > timeout_s / 2
        if late or not self._has_room(None):
            raise Overloaded(self._retry_after_s())
        if not self._has_room(key):
            raise TooManyRequests(self._settings.max_queue_per_key, self._retry_after_s())

    async def _read_body(self, receive: Receive, entry: Entry, scope: Scope) -> bytes:
        limit, arrived = self._limit_bytes(scope), partial(self._inflight.arrived, entry)
        try:
            with self._inflight.uploading(entry) as reading:
                async with reading:
                    return await counted_body(receive, limit, arrived)
        except TimeoutError:
            late = not entry.made_room and entry.is_late(asyncio.get_running_loop().time())
            raise _Refused(DeadlineExceeded() if late else SlowBody()) from None
        except (RequestError, Overloaded) as reason:
            raise _Refused(reason) from None
        finally:
            scope["state"]["notes"]["bytes"] = entry.arrived_bytes

    async def _refuse(self, reason: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.rejected.labels(problems.problem_type_of(reason).code).inc()
        answer = problems.response(reason, scope, headers={"connection": "close"})
        await answer(scope, receive, lingering(receive, send))


def _is_open(scope: Scope) -> bool:
    """Say whether a path needs no key.

    Raises:
        HTTPException: 404, for an open path that is not written plainly: a balancer that hides
            ``/metrics`` may not know ``/%6detrics``.
    """
    path: str = scope["path"]
    if path in OPEN_PATHS and scope.get("raw_path") not in (None, path.encode()):
        raise HTTPException(404)
    return path in OPEN_PATHS


class _Refused(Exception):
    """A request is turned away with its body unread."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


def _check_encoding(headers: Headers) -> None:
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise EncodedBody


def _declared_bytes(headers: Headers, method: str, limit: int) -> int | None:
    """Give the declared length, None where there is none and may be a body."""
    declared = headers.get("content-length")
    if declared is None:
        return 0 if method in {"GET", "HEAD"} else None
    if not (declared.isascii() and declared.isdigit()):
        raise MalformedBody
    if len(declared) > 15 or int(declared) > limit:
        raise BodyTooLarge(limit)
    return int(declared)


def _asked_timeout_s(headers: Headers) -> float:
    """Give the seconds the caller is ready to wait; without the header, any number."""
    asked = headers.get("x-request-timeout", "inf")
    try:
        timeout_s = float(asked)
    except ValueError:
        timeout_s = math.nan
    if not timeout_s > 0:
        message = "Input should be a number of seconds above 0"
        raise InvalidRequest([{"loc": ["x-request-timeout"], "msg": message}])
    return timeout_s
