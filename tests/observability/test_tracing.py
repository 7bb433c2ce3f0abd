"""Spans as a collector receives them."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from app.captioner.engines.engine import Stage
from app.observability import tracing
from support.api import RAW, as_files, ask, piece
from support.fake import FakeCaptioner, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
STAGES = ("decode", "queue", "encode", "search")


class TimedCaptioner(FakeCaptioner):
    """Tells the times that its stages really took."""

    def caption(self, *given):
        began_s = time.monotonic()
        result = super().caption(*given)
        ended_s = time.monotonic()
        stages = Stage("encode", began_s, ended_s), Stage("search", ended_s, time.monotonic())
        return result._replace(stages=stages)


class Collector(ThreadingHTTPServer):
    """Keeps what is exported to it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.exports = []

    @property
    def resources(self):
        return [one for export in self.exports for one in export.resource_spans]

    @property
    def spans(self):
        scopes = [scope for resource in self.resources for scope in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def servers(self):
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.exports.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Keep the variables of whoever runs the tests out of them, and wait for slow machines."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(tracing, "_FLUSH_S", 30)


@pytest.fixture
def collector(monkeypatch):
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector
        collector.shutdown()
        thread.join()


def attributes(record):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in record.attributes}


@contextmanager
def logs():
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        yield lines


async def test_a_request_is_one_span_beneath_its_traceparent(collector):
    async with serving(TimedCaptioner()) as client:
        answer = await client.post("/v1/captions", content=b"a", headers={**RAW, **TRACEPARENT})
        assert answer.status_code == 200
    (server,) = collector.servers()
    assert server.name == "POST /v1/captions"
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/v1/captions",
        "url.path": "/v1/captions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "caption.outcome": "ok",
    }
    (resource,) = collector.resources
    assert attributes(resource.resource)["service.name"] == "caption-service"


async def test_the_stages_of_every_image_lie_inside_its_span(collector):
    async with serving(TimedCaptioner()) as client:
        began_ns = time.time_ns()
        files = as_files(b"a", b"b")
        answer = await client.post("/v1/captions", files=files, headers=TRACEPARENT)
        assert answer.status_code == 200
        ended_ns = time.time_ns()
    (server,) = collector.servers()
    stages = [span for span in collector.spans if span.span_id != server.span_id]
    assert sorted((attributes(one)["caption.image"], one.name) for one in stages) == sorted(
        (image, stage) for image in (0, 1) for stage in STAGES
    )
    assert began_ns <= server.start_time_unix_nano <= server.end_time_unix_nano <= ended_ns
    for stage in stages:
        assert (stage.trace_id, stage.parent_span_id) == (server.trace_id, server.span_id)
        assert server.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= server.end_time_unix_nano


async def test_only_a_failure_of_ours_is_an_error(collector):
    async with serving() as client:
        for image in (b"poison", b"broken"):
            await client.post("/v1/captions", content=image, headers=RAW)
    ours, theirs = collector.servers()
    assert ours.status.code == Status.STATUS_CODE_ERROR
    told = attributes(ours)
    assert (told["http.response.status_code"], told["error.type"]) == (500, "internal_error")
    assert theirs.status.code == Status.STATUS_CODE_UNSET
    told = attributes(theirs)
    assert (told["http.response.status_code"], told["caption.outcome"]) == (
        422,
        "undecodable_image",
    )
    assert "error.type" not in told


async def test_a_caller_who_left_is_no_error(collector):
    async with serving() as client:
        await ask(client.app, piece(b"x", more=True), {"type": "http.disconnect"})
    (server,) = collector.spans
    assert server.status.code == Status.STATUS_CODE_UNSET
    assert attributes(server)["caption.outcome"] == "client_closed"
    assert "http.response.status_code" not in attributes(server)


async def test_probes_and_scrapes_leave_no_span(collector):
    async with serving() as client:
        for path in ("/livez", "/startupz", "/readyz", "/healthz", "/metrics", "/v1/models"):
            await client.get(path)
    assert [span.name for span in collector.spans] == ["GET /v1/models"]


async def test_what_the_caller_makes_up_is_not_told(collector):
    async with serving() as client:
        await client.request("BREW", "/v1/captions")
        await client.get("/secret?secret=1")
    brewed, unmatched = collector.servers()
    assert brewed.name == "HTTP /v1/captions"
    assert attributes(brewed)["http.request.method"] == "_OTHER"
    assert unmatched.name == "GET"
    assert "secret" not in str(unmatched)


@pytest.mark.parametrize("headers", [{}, TRACEPARENT])
async def test_the_lines_of_the_log_and_the_span_have_the_same_ids(collector, headers):
    async with serving() as client:
        with logs() as lines:
            await client.post("/v1/captions", content=b"poison", headers={**RAW, **headers})
    (server,) = collector.servers()
    assert {line["event"] for line in lines} == {"internal_error", "request"}
    for line in lines:
        assert line["trace_id"] == server.trace_id.hex()
        assert line["span_id"] == server.span_id.hex()
        assert line.get("parent_span_id", "") == server.parent_span_id.hex()


async def test_the_sdk_follows_its_own_variables(collector, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "photos")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with serving() as client:
        await client.get("/v1/models")
        await client.get("/v1/models", headers=TRACEPARENT)
    (server,) = collector.spans
    assert server.trace_id.hex() == TRACE
    (resource,) = collector.resources
    assert attributes(resource.resource)["service.name"] == "photos"


LONG_STATE = ",".join(f"k{n}={'v' * 200}" for n in range(30))  # as the standard allows


@pytest.mark.parametrize(("state", "kept"), [("a=" + "b" * 250, True), (LONG_STATE, False)])
async def test_the_state_of_a_trace_is_passed_on_unless_it_would_flood_the_collector(
    collector, state, kept
):
    async with serving() as client:
        headers = {**RAW, **TRACEPARENT, "tracestate": state}
        await client.post("/v1/captions", content=b"a", headers=headers)
    assert len(collector.spans) > 1
    for span in collector.spans:
        assert span.trace_id.hex() == TRACE
        assert span.trace_state == (state if kept else "")


async def test_fastapi_adds_no_span_of_its_own(collector, monkeypatch):
    """With a global provider, which another library may set, it would."""
    others = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(others))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    async with serving() as client:
        await client.get("/v1/models")
    assert len(collector.spans) == 1
    assert others.get_finished_spans() == ()


async def test_a_collector_that_never_answers_holds_up_nobody(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")
        monkeypatch.setattr(tracing, "_FLUSH_S", 0.2)
        with logs() as lines:
            async with serving() as client:
                await client.get("/v1/models")
                began_s = time.monotonic()
            assert time.monotonic() - began_s < 5
    assert [line["event"] for line in lines][-1] == "spans_left_behind"


# Off


def test_unasked_nothing_is_imported_and_no_request_has_a_span():
    program = (
        "import asyncio, sys, app.main; from app.observability.tracing import Tracing\n"
        "tracing = Tracing({}); asyncio.run(tracing.start())\n"
        "assert tracing.begin({}, '/') is None\n"
        "assert not [name for name in sys.modules if name.startswith(('opentelemetry.sdk',"
        " 'opentelemetry.exporter', 'app.observability.spans'))]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is zipkin"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "protocol is grpc"),
    ],
)
async def test_what_cannot_be_done_is_said_at_the_start(environment, reason):
    with capture_logs() as lines:
        await tracing.Tracing(environment).start()
    assert [line["event"] for line in lines] == (["tracing_off"] if reason else [])
    assert all(reason in line["reason"] for line in lines)


async def test_without_the_extra_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    monkeypatch.delitem(sys.modules, "app.observability.spans", raising=False)
    with capture_logs() as lines:
        await tracing.Tracing(ENDPOINT).start()
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("tracing_off", "warning")
    assert "pip install '.[otel]'" in line["reason"]


async def test_settings_that_the_sdk_refuses_cost_the_spans_and_not_the_service(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with capture_logs() as lines:
        await tracing.Tracing(ENDPOINT).start()
    assert [line["event"] for line in lines] == ["tracing_off"]
    assert lines[0]["exc_info"]
