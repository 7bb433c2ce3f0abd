"""Spans as OpenTelemetry wants them. Needs the extra ``otel``; only ``tracing`` imports it.

Reference: https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

import time
from collections.abc import Iterable
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import Scope

from app.observability import echo
from app.observability.stages import StageTime

_NAME = "caption-service"
_MAX_TRACESTATE_CHARACTERS = 512  # what everybody must pass on; it goes into every span


class Spans:
    """Makes the spans of one app; a thread of the SDK sends them in batches."""

    def __init__(self) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(_NAME, version(_NAME))

    def begin(self, scope: Scope, route: str | None) -> "RequestSpan":
        """Begin the span of a request beneath its ``traceparent``; no route when none matches."""
        return RequestSpan(self._tracer, scope, route)

    def shutdown(self) -> None:
        """Send what is left. Blocks for as long as the collector makes it."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request, and the ids that its log lines share with it."""

    def __init__(self, tracer: Tracer, scope: Scope, route: str | None) -> None:
        self._tracer = tracer
        self._monotonic_to_epoch_ns = time.time_ns() - time.monotonic_ns()
        parent = TraceContextTextMapPropagator().extract(_carrier(scope), Context())
        self._span = tracer.start_span(
            _name(scope, route),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_attributes(scope, route),
            start_time=self._epoch_ns(time.monotonic()),
        )
        self.ids = _ids(self._span, parent)

    def end(self, status: int | None, outcome: str, stages: Iterable[StageTime]) -> None:
        """End it and hang its stages beneath it.

        Args:
            status: What was answered; nothing when the caller had left, which is no error.
            outcome: ``ok`` or a code.
            stages: Those that the images of the request went through.
        """
        self._span.set_attribute("caption.outcome", outcome)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
            if status >= 500:
                self._span.set_attribute("error.type", outcome)
                self._span.set_status(StatusCode.ERROR)
        if self._span.is_recording():
            for stage in stages:
                self._hang(stage)
        self._span.end(self._epoch_ns(time.monotonic()))

    def _hang(self, stage: StageTime) -> None:
        self._tracer.start_span(
            stage.stage,
            context=set_span_in_context(self._span),
            attributes={"caption.image": stage.image},
            start_time=self._epoch_ns(stage.began_s),
        ).end(self._epoch_ns(stage.ended_s))

    def _epoch_ns(self, monotonic_s: float) -> int:
        return self._monotonic_to_epoch_ns + round(monotonic_s * 1e9)


def _carrier(scope: Scope) -> dict[str, str]:
    """Give what the caller says of his trace, without a state of a great length."""
    headers = Headers(scope=scope)
    names = ("traceparent", "tracestate")
    said = {name: headers[name] for name in names if name in headers}
    if len(said.get("tracestate", "")) > _MAX_TRACESTATE_CHARACTERS:
        del said["tracestate"]
    return said


def _name(scope: Scope, route: str | None) -> str:
    method = echo.method(scope["method"])
    method = "HTTP" if method == echo.OTHER_METHOD else method
    return f"{method} {route}" if route else method


def _attributes(scope: Scope, route: str | None) -> dict[str, str]:
    """Give what is known at once. A path that no route matches is the caller's text: left out."""
    known = {
        "http.request.method": echo.method(scope["method"]),
        "url.scheme": scope.get("scheme", "http"),
    }
    return {**known, "http.route": route, "url.path": route} if route else known


def _resource() -> Resource:
    """Give the standard resource; whatever the environment says wins over our name."""
    ours = {"service.name": _NAME, "service.version": version(_NAME)}
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _ids(span: Span, parent: Context) -> dict[str, str]:
    own, above = span.get_span_context(), get_current_span(parent).get_span_context()
    ids = {"trace_id": format_trace_id(own.trace_id), "span_id": format_span_id(own.span_id)}
    return {**ids, "parent_span_id": format_span_id(above.span_id)} if above.is_valid else ids
