"""One request and its answer as others see them: request id, log line, metrics, span, timing."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observability import echo
from app.observability.metrics import Metrics
from app.observability.stages import Stages
from app.observability.tracing import Tracing

if TYPE_CHECKING:
    from app.observability.spans import RequestSpan

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_QUIET_ROUTES = frozenset(
    {"/livez", "/startupz", "/readyz", "/healthz", "/metrics", "/page/*", "/docs/*"}
    | {"/v2/health/live", "/v2/health/ready"}
)
_UNMATCHED = "unmatched"


class RequestLog:
    """Outermost ASGI layer: request id, one log line, request metrics, span, ``Server-Timing``.

    The layers below leave their outcome in ``scope["state"]["outcome"]``, what else the line shall
    say in ``scope["state"]["notes"]``, and fields of the answer in ``scope["state"]["headers"]``.
    Probes, scrapes and the files of the page leave no span, and their lines whisper. A path that
    nobody knows is told in the line, so that a wrong prefix can be found.

    Args:
        app: What answers.
        metrics: Told of every answer.
        tracing: Makes the spans.
        routes: The known paths, and what each is called in metrics and logs.
        templates: Patterns of paths that have a name in them, with what to call each.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        tracing: Tracing,
        routes: Mapping[str, str],
        templates: Sequence[tuple[re.Pattern[str], str]] = (),
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._tracing = tracing
        self._routes = routes
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = self._route(scope["path"])
        request = _Request(scope, send)
        span = self._begin_span(scope, route)
        ids = span.ids if span else _trace_context(Headers(scope=scope))
        with structlog.contextvars.bound_contextvars(request_id=request.request_id, **ids):
            try:
                await self.app(scope, receive, request.send)
            finally:
                self._note(request, route)
                if span:
                    span.end(request.status, request.outcome, request.stages.times)

    def _route(self, path: str) -> str:
        if path in self._routes:
            return self._routes[path]
        named = (name for pattern, name in self._templates if pattern.match(path))
        return next(named, _UNMATCHED)

    def _begin_span(self, scope: Scope, route: str) -> "RequestSpan | None":
        if route in _QUIET_ROUTES:
            return None
        return self._tracing.begin(scope, None if route == _UNMATCHED else route)

    def _note(self, request: "_Request", route: str) -> None:
        captioned_by = str(request.notes.get("checkpoint", ""))
        self._metrics.answered(route, request.outcome, captioned_by, request.duration_s())
        level = logging.DEBUG if route in _QUIET_ROUTES else logging.INFO
        more = request.about(path=route == _UNMATCHED)
        structlog.get_logger().log(level, "request", route=route, **more, **request.summary())


def _server_timing(durations_s: Mapping[str, float]) -> str:
    """Write a header value in milliseconds.

    Reference: https://www.w3.org/TR/server-timing/
    """
    return ", ".join(f"{stage};dur={1000 * value:.1f}" for stage, value in durations_s.items())


class _Request:
    """One request and its answer, as the log line tells it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started_s = time.perf_counter()
        self.status: int | None = None
        self.request_id = _request_id(Headers(scope=scope))
        self.stages = Stages()
        self.notes: dict[str, object] = {}
        scope.setdefault("state", {}).update(
            request_id=self.request_id,
            arrived_s=asyncio.get_running_loop().time(),
            stages=self.stages,
            notes=self.notes,
            headers={},
        )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            timing = {**self.stages.durations_s(), "total": self.duration_s()}
            ours = {
                "x-request-id": self.request_id,
                "server-timing": _server_timing(timing),
                **self._scope["state"]["headers"],
            }
            added = [(name.encode(), text.encode()) for name, text in ours.items()]
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)

    @property
    def outcome(self) -> str:
        said: str | None = self._scope["state"].get("outcome")
        return said or ("client_closed" if self.status is None else "ok")

    def duration_s(self) -> float:
        return time.perf_counter() - self._started_s

    def about(self, *, path: bool) -> dict[str, object]:
        """Give who asked, what the layers below noted, and the path where it has no name."""
        told: dict[str, object] = {}
        if path:
            told["path"] = echo.message(self._scope["path"])
        if self._scope.get("client"):
            told["client"] = echo.field(str(self._scope["client"][0]))
        return told | self.notes

    def summary(self) -> dict[str, object]:
        return {
            "method": echo.method(self._scope["method"]),
            "status": self.status or 499,  # nobody was there to answer
            "outcome": self.outcome,
            "duration_s": round(self.duration_s(), 4),
        }


def _request_id(headers: Headers) -> str:
    """Give the caller's request id when it is harmless, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _trace_context(headers: Headers) -> dict[str, str]:
    """Give the ids of a valid W3C ``traceparent``.

    Reference: https://www.w3.org/TR/trace-context/ section 3.2
    """
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if (
        match is None
        or match[0].startswith("ff")
        or (match[0].startswith("00") and match[3])  # only later versions may say more
        or not (match[1].strip("0") and match[2].strip("0"))
    ):
        return {}
    return {"trace_id": match[1], "parent_span_id": match[2]}
