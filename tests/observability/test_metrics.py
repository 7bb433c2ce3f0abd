"""Metrics and logs as an operator sees them."""

import json
import re
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from app.main import create_app
from app.observability.request_log import _trace_context
from app.settings import Settings
from support.api import RAW
from support.fake import SHA256, FakeCaptioner, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


async def scrape(client):
    text = (await client.get("/metrics")).text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_caption_leaves_its_trace_in_every_metric_of_a_request():
    async with serving() as client:
        await client.post("/v1/captions", content=b"a", headers=RAW)
        samples = await scrape(client)
    assert samples["caption_requests_total", "/v1/captions", "ok", "tiny:1"] == 1
    assert samples["caption_images_total", "ok", "tiny:1"] == 1
    assert samples["caption_request_duration_seconds_count", "/v1/captions", "tiny:1"] == 1
    assert samples["caption_confidence_sum", "tiny:1"] == 0.8
    for name in (
        "caption_decode_duration_seconds_count",
        "caption_queue_wait_seconds_count",
        "caption_batch_size_sum",
        "caption_ready",
    ):
        assert samples[(name,)] == 1, name
    for stage in ("encode", "search"):
        assert samples["caption_inference_duration_seconds_count", stage, "tiny:1"] == 1
    assert samples["caption_batches_total", "free"] == 1
    for name in ("caption_queue_depth", "caption_inflight_requests", "caption_inflight_bytes"):
        assert samples[(name,)] == 0, name
    assert samples["caption_checkpoint_info", "1", SHA256, "tiny"] == 1


async def test_a_bad_image_is_counted_by_its_code():
    async with serving() as client:
        await client.post("/v1/captions", content=b"broken", headers=RAW)
        samples = await scrape(client)
    assert samples["caption_images_total", "tiny:1", "undecodable_image"] == 1
    assert samples["caption_requests_total", "/v1/captions", "tiny:1", "undecodable_image"] == 1


async def test_paths_that_nobody_registered_share_one_label():
    async with serving() as client:
        for path in ("/a", "/b", "/v1/captions/x"):
            await client.get(path)
        samples = await scrape(client)
    assert samples["caption_requests_total", "not_found", "tiny:1", "unmatched"] == 3


async def test_two_apps_do_not_share_metrics():
    first, second = create_app(Settings()), create_app(Settings())
    first.state.app_state.metrics.captioned("ok", "tiny:1")
    assert second.state.app_state.metrics.registry.get_sample_value(
        "caption_images_total", {"outcome": "ok", "checkpoint": "tiny:1"}
    ) in (None, 0.0)
    for app in (first, second):
        await app.state.app_state.service.close()


async def test_names_of_metrics_follow_the_conventions():
    async with serving() as client:
        text = (await client.get("/metrics")).text
    names = re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE)
    own = [(name, kind) for name, kind in names if not name.startswith(("process_", "python_"))]
    assert len(own) >= 15
    for name, kind in own:
        assert name.startswith("caption_")
        assert not re.search(r"_(ms|milliseconds|us)\b", name)
        if kind == "counter":
            assert name.endswith(("_total", "_created"))


async def test_an_answer_tells_how_long_it_took():
    async with serving() as client:
        answer = await client.post("/v1/captions", content=b"a", headers=RAW)
        other = await client.get("/livez")
    stages = dict(re.findall(r"(\w+);dur=(\d+\.\d)(?:, |$)", answer.headers["server-timing"]))
    assert list(stages) == ["decode", "queue", "encode", "search", "total"]
    assert float(stages["encode"]) == float(stages["search"]) == 1000
    assert re.fullmatch(r"total;dur=\d+\.\d", other.headers["server-timing"])


async def test_a_request_is_one_line_of_log():
    async with serving() as client:
        with capture_logs() as logs:
            await client.post("/v1/captions?n_best=0&a=secret", content=b"a", headers=RAW)
    (line,) = logs
    assert line["event"] == "request"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/captions", 422)
    assert (line["outcome"], line["log_level"]) == ("invalid_request", "info")
    assert "secret" not in str(line)


ODD = 'x%0a%1b[31m{}"%e2%80%ae' + "y" * 9000


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "M" * 9000},
        {"method": "post"},
        {"url": f"/{ODD}"},
        {"url": f"/v1/captions?{ODD}=1"},
        {"headers": {"x-request-id": ODD}},
        {"headers": {"host": ODD}},
        {"headers": {"traceparent": f"01-{TRACE}-{SPAN}-01-{ODD}", "tracestate": ODD}},
        {"headers": {"baggage": ODD, "user-agent": ODD, "x-forwarded-for": ODD, "referer": ODD}},
        {"headers": {"content-type": ODD}},
        {"headers": {"content-encoding": ODD}},
        {"headers": {"authorization": ODD, "x-api-key": ODD}},
        {"headers": {"x-request-timeout": ODD}},
        {"headers": {"content-type": "image/jpeg"}, "content": b"poison"},
        {"files": {"image": (ODD, b"poison")}},
    ],
)
async def test_nothing_that_a_caller_sends_floods_or_forges_logs_metrics_or_headers(asked):
    async with serving() as client:
        with capture_logs(processors=[merge_contextvars]) as logs:
            answer = await client.request(
                **{"method": "POST", "url": "/v1/captions", "content": None, **asked}
            )
        samples = await scrape(client)
    (line,) = [line for line in logs if line["event"] == "request"]
    del line["duration_s"]
    assert len(json.dumps(line)) < 600
    path = line.pop("path", "")  # of what is not found, so that a wrong prefix is
    assert len(path) <= 161
    assert path.isprintable()
    assert line["method"] in {"POST", "_OTHER"}
    others = str([{**each, "exc_info": None} for each in logs])
    for text in ("yyy", "MMM"):
        assert text not in others
        assert text not in str(samples)
    assert len(str(answer.headers)) < 700


async def test_probes_whisper():
    async with serving() as client:
        with capture_logs() as logs:
            await client.get("/readyz")
    assert [line["log_level"] for line in logs] == ["debug"]


async def test_the_unexpected_is_logged_with_its_cause_and_not_told():
    async with serving(FakeCaptioner()) as client:
        with capture_logs() as logs:
            answer = await client.post("/v1/captions", content=b"poison", headers=RAW)
    assert answer.status_code == 500
    (line,) = [line for line in logs if line["event"] == "internal_error"]
    assert line["exc_info"]


@pytest.mark.parametrize(
    ("traceparent", "ids"),
    [
        (f"00-{TRACE}-{SPAN}-01", {"trace_id": TRACE, "parent_span_id": SPAN}),
        (f"00-{TRACE}-{SPAN}-01-more", {}),
        (f"01-{TRACE}-{SPAN}-01-more", {"trace_id": TRACE, "parent_span_id": SPAN}),
        (f"ff-{TRACE}-{SPAN}-01", {}),
        (f"00-{'0' * 32}-{SPAN}-01", {}),
        (f"00-{TRACE}-{'0' * 16}-01", {}),
        (f"00-{TRACE.upper()}-{SPAN}-01", {}),
        ("nonsense", {}),
    ],
)
def test_a_trace_context_is_taken_when_valid(traceparent, ids):
    assert _trace_context({"traceparent": traceparent}) == ids


def test_logs_are_json_lines_on_stdout_and_so_are_those_of_libraries():
    program = (
        "import logging, structlog, warnings\n"
        "from app.observability.logs import configure_logging\n"
        "configure_logging('info')\n"
        "with structlog.contextvars.bound_contextvars(request_id='abc'):\n"
        "    structlog.get_logger().info('ours', number=1)\n"
        "    logging.getLogger('library').warning('theirs %s', 2)\n"
        "    structlog.get_logger().debug('hidden')\n"
        "    warnings.warn('a warning')\n"
        "    try: 1 / 0\n"
        "    except ZeroDivisionError: structlog.get_logger().exception('failed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    ours, theirs, warning, failed = [json.loads(line) for line in done.stdout.splitlines()]
    assert (ours["event"], ours["number"], ours["level"]) == ("ours", 1, "info")
    assert (theirs["event"], theirs["level"]) == ("theirs 2", "warning")
    assert "a warning" in warning["event"]
    assert "ZeroDivisionError" in failed["exception"]
    assert {line["request_id"] for line in (ours, theirs, warning, failed)} == {"abc"}
    assert done.stderr == ""
