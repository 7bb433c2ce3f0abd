"""Metric objects, structured logs, request ids and trace context.

Metrics carry the words of the glossary, base units, and labels from fixed sets: a route, never a
path.
"""

import asyncio
import logging
import re
import sys
import time
import uuid
from collections.abc import Sequence

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_QUIET_ROUTES = frozenset({"/livez", "/startupz", "/readyz", "/healthz", "/metrics"})


class Telemetry:
    """The metrics of one app, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count_requests()
        self._time_the_journey()
        self._gauge_the_service()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _count_requests(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "caption_requests", "Answers by route and outcome: ok or a code.",
            ["route", "outcome"], registry=registry,
        )  # fmt: skip
        self.rejected = Counter(
            "caption_rejected", "Requests turned away before their body was used.",
            ["reason"], registry=registry,
        )  # fmt: skip
        self.images = Counter(
            "caption_images", "Images by outcome: ok or a code.", ["outcome"], registry=registry
        )
        self.cancellations = Counter(
            "caption_cancelled", "Images nobody waited for any more, by stage.",
            ["stage"], registry=registry,
        )  # fmt: skip

    def _time_the_journey(self) -> None:
        registry = self.registry
        self.request_duration = Histogram(
            "caption_request_duration_seconds", "From the headers to the end of the answer.",
            ["route"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.decode_duration = Histogram(
            "caption_decode_duration_seconds", "Bytes to a fitted image, thread wait included.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.queue_wait = Histogram(
            "caption_queue_wait_seconds", "Wait of an image for its batch.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.inference_duration = Histogram(
            "caption_inference_duration_seconds", "A batch through the network and the search.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "caption_batch_size", "Images in a batch.", buckets=_IMAGES, registry=registry
        )

    def _gauge_the_service(self) -> None:
        registry = self.registry
        self.queue_depth = Gauge(
            "caption_queue_depth", "Images that wait for a batch.", registry=registry
        )
        self.inflight_requests = Gauge(
            "caption_inflight_requests", "Requests between admission and answer.", registry=registry
        )
        self.inflight_bytes = Gauge(
            "caption_inflight_bytes", "Bytes of body reserved by them.", registry=registry
        )
        self.ready = Gauge("caption_ready", "1 when /readyz says 200.", registry=registry)
        self.checkpoint = Info("caption_checkpoint", "The checkpoint served.", registry=registry)

    def dispatched(self, waits_s: Sequence[float]) -> None:
        """Take note of a batch that leaves the queue."""
        self.batch_size.observe(len(waits_s))
        for wait_s in waits_s:
            self.queue_wait.observe(wait_s)

    def cancelled(self, stage: str) -> None:
        """Take note of a caller who left during ``decode``, ``queue`` or ``batch``."""
        self.cancellations.labels(stage).inc()


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


class _Exchange:
    """One request and its answer, as the log line tells it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._started_s = time.perf_counter()
        self._status: int | None = None
        headers = Headers(scope=scope)
        self._request_id = _request_id(headers)
        self.identity = {"request_id": self._request_id, **_trace_context(headers)}
        scope.setdefault("state", {}).update(
            request_id=self._request_id, arrived_s=asyncio.get_running_loop().time()
        )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["server-timing"] = f"total;dur={1000 * self.duration_s():.1f}"
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


def configure_logging(level: str) -> None:
    """Send our events and the libraries' log records to stdout, one JSON object a line."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    _configure_library_logging(level, shared, final)


def _configure_library_logging(
    level: str,
    shared: list[structlog.typing.Processor],
    final: list[structlog.typing.Processor],
) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
