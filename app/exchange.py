"""One request and its answer as others see them: request id, log line, metrics, Server-Timing."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry import Telemetry

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_QUIET_ROUTES = frozenset({"/livez", "/startupz", "/readyz", "/healthz", "/metrics"})


class RequestTelemetry:
    """Outermost ASGI layer: request id, one log line, request metrics, ``Server-Timing``.

    The layers below leave their outcome in ``scope["state"]["outcome"]``.
    """

    def __init__(self, app: ASGIApp, *, telemetry: Telemetry, routes: frozenset[str]) -> None:
        self.app = app
        self._telemetry = telemetry
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        with structlog.contextvars.bound_contextvars(**exchange.identity):
            try:
                await self.app(scope, receive, exchange.send)
            finally:
                self._note(exchange, self._route(scope))

    def _route(self, scope: Scope) -> str:
        path: str = scope["path"]
        return path if path in self._routes else "unmatched"

    def _note(self, exchange: "_Exchange", route: str) -> None:
        self._telemetry.requests.labels(route, exchange.outcome).inc()
        self._telemetry.request_duration.labels(route).observe(exchange.duration_s())
        level = logging.DEBUG if route in _QUIET_ROUTES else logging.INFO
        structlog.get_logger().log(level, "request", route=route, **exchange.summary())


class Stages:
    """When each stage of a request began and ended, on the monotonic clock."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []

    def note(self, stage: str, began_s: float, ended_s: float) -> None:
        """Take note of one stage of one image."""
        self.spans.append((stage, began_s, ended_s))

    def durations_s(self) -> dict[str, float]:
        """Give each stage's seconds; of several images, the slowest."""
        durations_s: dict[str, float] = {}
        for stage, began_s, ended_s in self.spans:
            durations_s[stage] = max(durations_s.get(stage, 0.0), ended_s - began_s)
        return durations_s


def _server_timing(durations_s: Mapping[str, float]) -> str:
    """Write a header value in milliseconds.

    Reference: https://www.w3.org/TR/server-timing/
    """
    return ", ".join(f"{stage};dur={1000 * value:.1f}" for stage, value in durations_s.items())


class _Exchange:
    """One request and its answer, as the log line tells it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started_s = time.perf_counter()
        self._status: int | None = None
        headers = Headers(scope=scope)
        self._request_id = _request_id(headers)
        self._stages = Stages()
        self.identity = {"request_id": self._request_id, **_trace_context(headers)}
        scope.setdefault("state", {}).update(
            request_id=self._request_id,
            arrived_s=asyncio.get_running_loop().time(),
            stages=self._stages,
        )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["server-timing"] = _server_timing(
                {**self._stages.durations_s(), "total": self.duration_s()}
            )
        await self._send(message)

    @property
    def outcome(self) -> str:
        said: str | None = self._scope["state"].get("outcome")
        return said or ("client_closed" if self._status is None else "ok")

    def duration_s(self) -> float:
        return time.perf_counter() - self._started_s

    def summary(self) -> dict[str, object]:
        return {
            "method": self._scope["method"],
            "status": self._status or 499,  # nobody was there to answer
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
        or not (match[1].strip("0") and match[2].strip("0"))
    ):
        return {}
    return {"trace_id": match[1], "parent_span_id": match[2]}
