"""Whether requests leave spans for an OpenTelemetry collector, and for how long.

The standard ``OTEL_*`` variables decide. While they name no endpoint, neither the SDK nor its
exporter is imported and no request pays.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from starlette.types import Scope

if TYPE_CHECKING:
    from app.observability.spans import RequestSpan, Spans

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_FLUSH_S = 3.0
_POLL_S = 0.02


class Tracing:
    """Gives the spans of requests between ``start`` and ``close``, when the environment asks.

    Clusters put these variables into every container, so whatever hinders tracing is a warning:
    captions do not need it.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._spans: Spans | None = None

    async def start(self) -> None:
        """Start the export, or say why not."""
        if not self._is_asked_for():
            return
        reason = self._hindrance()
        if reason:
            log.warning("tracing_off", reason=reason)
            return
        try:
            self._spans = await asyncio.to_thread(_spans)  # its import takes a while
        except ImportError:
            log.warning("tracing_off", reason="the extra is not installed: pip install '.[otel]'")
        except Exception:
            log.exception("tracing_off", reason="OpenTelemetry refused its settings")
        else:
            log.info("tracing_on")

    def begin(self, scope: Scope, route: str | None) -> "RequestSpan | None":
        """Begin the span of a request; there is none while tracing is off."""
        return None if self._spans is None else self._spans.begin(scope, route)

    async def close(self) -> None:
        """Send what is left, within a few seconds."""
        if self._spans is None:
            return
        # A daemon: Python would wait for a thread of an executor, and so for the collector.
        flush = threading.Thread(target=self._spans.shutdown, name="flush-spans", daemon=True)
        self._spans = None
        flush.start()
        ends_s = time.monotonic() + _FLUSH_S
        while flush.is_alive() and time.monotonic() < ends_s:  # noqa: ASYNC110 - it is a thread
            await asyncio.sleep(_POLL_S)
        if flush.is_alive():
            log.warning("spans_left_behind")

    def _is_asked_for(self) -> bool:
        say = self._said
        endpoint = say(_TRACES_ENDPOINT) or say(_ENDPOINT)
        off = say("OTEL_SDK_DISABLED") == "true" or say("OTEL_TRACES_EXPORTER") == "none"
        return bool(endpoint) and not off

    def _hindrance(self) -> str:
        exporter = self._said("OTEL_TRACES_EXPORTER") or "otlp"
        if exporter != "otlp":
            return f"OTEL_TRACES_EXPORTER is {exporter}: only otlp and none are known"
        protocol = (
            self._said("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or self._said("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        if protocol != "http/protobuf":
            return f"the OTLP protocol is {protocol}: only http/protobuf is known"
        return ""

    def _said(self, name: str) -> str:
        return self._environment.get(name, "").strip().lower()


def _spans() -> "Spans":
    from app.observability.spans import Spans  # noqa: PLC0415 - brings the SDK

    return Spans()
