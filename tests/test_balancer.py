"""Several services behind HAProxy, with the configuration that Compose mounts."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import yaml

from app.settings import PROJECT_ROOT, Settings
from caption_client import Client
from support.photos import photo
from support.service_process import Process

sys.path += [str(PROJECT_ROOT / "benchmarks"), str(PROJECT_ROOT / "benchmarks" / "peers")]

import haproxy_server

import load

FOLDER = PROJECT_ROOT / "deploy" / "balancer"
POLICY = (FOLDER / "haproxy.cfg").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((PROJECT_ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
HAPROXY = shutil.which("haproxy")
METRICS = (
    "/metrics", "/metrics?x=1", "/%6detrics", "/%6Detri%63s", "/%4d%45TRICS", "/Metrics",
    "//metrics", "/./metrics", "/x/../metrics", "/%2e/metrics", "/%2fmetrics", "/metrics/",
    "/metrics%2f", "http://x/metrics", "http://x/%6detrics?a",
)  # fmt: skip
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="no haproxy on the PATH")


def seconds(name):
    return int(re.search(rf"timeout {name} (\d+)s", POLICY)[1])


def test_the_service_answers_before_the_balancer_gives_up():
    assert seconds("client") > DEFAULTS["body_timeout_s"]
    assert seconds("server") > DEFAULTS["deadline_s"]


def test_a_draining_service_is_seen_in_time():
    every_s, fall = map(int, re.search(r"check inter (\d+)s fall (\d+)", POLICY).groups())
    assert every_s * (fall + 1) < DEFAULTS["drain_delay_s"]


def test_compose_starts_what_the_balancer_looks_for():
    services = COMPOSE["services"]
    name, port = re.search(
        r"server-template service \d+ (.+):(\d+) ", (FOLDER / "compose.cfg").read_text()
    ).groups()
    assert int(port) == DEFAULTS["port"]
    assert services[name]["profiles"] == services["balancer"]["profiles"] == ["replicas"]
    assert services[name]["ports"] == []  # several would want the same one
    (volume,) = services["balancer"]["volumes"]
    mounted = volume.split(":")[1]
    files = [argument for argument in services["balancer"]["command"] if mounted in argument]
    # the policy first: it holds for what follows
    assert files == [f"{mounted}/{name}" for name in ("haproxy.cfg", "compose.cfg")]
    assert {path.name for path in FOLDER.iterdir()} == {"haproxy.cfg", "compose.cfg", "public.cfg"}


@needs_haproxy
def test_haproxy_takes_the_files_of_compose():
    files = [argument for name in ("haproxy", "compose") for argument in ("-f", f"{name}.cfg")]
    checked = subprocess.run(
        [HAPROXY, "-c", *files], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@contextmanager
def balanced(ports, tmp_path, *more, **variables):
    """HAProxy in front of these ports; gives its own address. Its log is ``tmp_path / "log"``."""
    (tmp_path / "services.cfg").write_text(haproxy_server.backend(ports))
    address, metrics = (f"{load.HOST}:{load.free_port()}" for _ in range(2))
    files = [FOLDER / "haproxy.cfg", *(FOLDER / name for name in more), tmp_path / "services.cfg"]
    command = [HAPROXY, "-db", *(part for file in files for part in ("-f", file))]
    ours = {"BALANCER_ADDRESS": address, "BALANCER_METRICS_ADDRESS": metrics}
    environment = {**os.environ, **ours, **variables}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log) as process,
    ):
        try:
            yield Balanced(f"http://{address}", f"http://{metrics}/metrics", tmp_path / "log")
        finally:
            process.kill()


class Balanced(NamedTuple):
    """A balancer: where it is asked, where it tells its metrics, and its log."""

    url: str
    metrics: str
    log: Path

    def lines(self):
        """Give the lines of the access log."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


class Told(BaseHTTPRequestHandler):
    """Says what it was asked; /dies is never answered, /waits until the caller has left."""

    protocol_version = "HTTP/1.1"
    left = threading.Event()

    def do_GET(self):
        told = json.dumps({"path": self.path, "headers": dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(told)))
        self.send_header("x-request-id", 'a"b')
        self.end_headers()
        self.wfile.write(told)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.close_connection = self.path in {"/dies", "/waits"}
        if self.path == "/waits":
            with contextlib.suppress(OSError):
                self.rfile.read(1)
            self.left.set()
        elif not self.close_connection:
            self.do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def telling():
    """A service that is none; gives its port."""
    server = ThreadingHTTPServer((load.HOST, 0), Told)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def ask(client, path="/v1/captions"):
    return client.post(path, content=photo(), headers={"content-type": "image/png"})


def until(condition):
    ends_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.1)


def is_up(client):
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def captions(services):
    """How many requests for captions each has answered."""
    pattern = r'caption_requests_total{[^}]*outcome="ok",route="/v1/captions"} (\d+)'
    metrics = [service.client.get("/metrics").text for service in services]
    return [int(float(found[1])) if (found := re.search(pattern, each)) else 0 for each in metrics]


def test_services_share_the_machine_out(monkeypatch):
    monkeypatch.setenv("CAPTION_INFERENCE_THREADS", "8")
    monkeypatch.setenv("CAPTION_DECODE_PROCESSES", "2")
    assert haproxy_server.part(1234, services=4) == {
        "CAPTION_PORT": "1234",
        "CAPTION_INFERENCE_THREADS": "2",
        "CAPTION_DECODE_PROCESSES": "1",
    }


def say(address, target):
    """Send a target as it is, where clients would tidy it up; give the status and the body."""
    with socket.create_connection(address, timeout=10) as connection:
        head = f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


@needs_haproxy
def test_metrics_are_hidden_however_they_are_asked_for(tmp_path):
    with asking(tmp_path) as (client, _):
        address = (load.HOST, client.base_url.port)
        for target in METRICS:
            assert say(address, target)[0] == 404, target
        for target in ("/v1/captions?a=/metrics", "/metrical", "/readyz", "/v1/models"):
            status, body = say(address, target)
            assert (status, json.loads(body)["path"]) == (200, target)


@contextmanager
def asking(tmp_path, *more, **variables):
    """Give a client of a balancer in front of a service that tells what it was asked."""
    with (
        telling() as port,
        balanced([port], tmp_path, *more, **variables) as balancer,
        httpx.Client(base_url=balancer.url) as client,
    ):
        until(lambda: is_up(client))
        yield client, balancer


@needs_haproxy
def test_each_request_leaves_a_line_that_is_json_whatever_was_asked(tmp_path):
    with asking(tmp_path) as (client, balancer):
        client.get("/a'b%22?secret=1", headers={"x-request-id": "c"})
        say((load.HOST, client.base_url.port), '/d"e\\f')
        client.get("/metrics")
        until(lambda: len(balancer.lines()) >= 4)
        *_, first, odd, hidden = balancer.lines()
    assert first["client"] == load.HOST
    assert first["path"] == "/a'b%22"  # a query is nobody's business
    assert first["request_id"] == 'a"b'
    assert first["status"] == 200
    assert first["service"].startswith("service-")
    assert odd["status"] in {200, 400}
    assert hidden["status"] == 404
    assert hidden["path"] == "/metrics"


@needs_haproxy
def test_a_service_is_told_who_asks_and_nobody_can_claim_another(tmp_path):
    with asking(tmp_path) as (client, _):
        told = client.get("/a", headers={"x-forwarded-for": "203.0.113.9"}).json()["headers"]
    assert told["x-forwarded-for"] == load.HOST
    assert told["x-forwarded-proto"] == "http"


@needs_haproxy
def test_the_balancer_tells_what_alerts_and_dashboard_ask_of_it(tmp_path):
    with asking(tmp_path) as (_, balancer):
        told = httpx.get(balancer.metrics).text
        assert httpx.get(balancer.metrics.removesuffix("metrics")).status_code == 404
    asked = set()
    for name in ("prometheus/alerts.yml", "grafana/dashboard.json"):
        text = (FOLDER.parent / name).read_text(encoding="utf-8")
        asked |= set(re.findall(r"\bhaproxy_\w+", text))
    assert asked
    assert [name for name in asked if not re.search(rf"^{name}{{", told, re.MULTILINE)] == []
    assert 'haproxy_backend_active_servers{proxy="services"} 1' in told


@needs_haproxy
def test_a_service_that_ends_before_it_answers_is_502_on_every_connection(tmp_path):
    with asking(tmp_path) as (_, balancer), httpx.Client(base_url=balancer.url) as kept:
        for _ in range(
            2
        ):  # by itself HAProxy would end a connection that is not new, and say nothing
            answer = kept.post("/dies", content=b"a")
            assert answer.status_code == 502
            assert answer.json()["code"] == "bad_gateway"
            assert kept.post("/lives", content=b"a").status_code == 200
        until(lambda: len(balancer.lines()) >= 5)
        dead = [line["status"] for line in balancer.lines() if line["path"] == "/dies"]
        told = httpx.get(balancer.metrics).text
    assert dead == [502, 502]  # each was sent once, and is in the log
    errors = re.search(
        r'^haproxy_backend_response_errors_total{proxy="services"} (\d+)', told, re.MULTILINE
    )
    assert int(errors[1]) == 2


@needs_haproxy
def test_a_service_is_told_that_a_caller_has_left(tmp_path):
    Told.left.clear()
    with asking(tmp_path) as (client, _):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/waits", content=b"a", timeout=0.5)
        assert Told.left.wait(5)


@needs_haproxy
def test_callers_from_outside_come_by_https_and_an_address_has_a_rate(tmp_path):
    certificate = tmp_path / "certificate.pem"
    key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run(
        [*key, "-keyout", certificate, "-out", tmp_path / "public.pem"],
        check=True,
        capture_output=True,
    )
    certificate.write_text(certificate.read_text() + (tmp_path / "public.pem").read_text())
    http, https = (f"{load.HOST}:{load.free_port()}" for _ in range(2))
    variables = {
        "PUBLIC_HTTP_ADDRESS": http,
        "PUBLIC_HTTPS_ADDRESS": https,
        "PUBLIC_CERTIFICATE": str(certificate),
    }
    with asking(tmp_path, "public.cfg", **variables):
        redirect = httpx.get(f"http://{http}/v1/models?a=1")
        assert redirect.status_code == 308
        assert redirect.headers["location"] == f"https://{http}/v1/models?a=1"
        with httpx.Client(base_url=f"https://{https}", verify=False) as outside:  # noqa: S501
            told = outside.get("/v1/models").json()["headers"]
            assert told["x-forwarded-proto"] == "https"
            for path in ("/metrics", "/docs", "/docs/docs.js", "/openapi.json", "/%6detrics"):
                assert outside.get(path).status_code == 404, path
            answers = [outside.get("/v1/models") for _ in range(120)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert answers[-1].json()["code"] == "rate_exceeded"
    assert answers[-1].headers["retry-after"] == "10"


@pytest.mark.long
@needs_haproxy
def test_a_service_that_is_killed_under_load_loses_nothing_of_who_asks_again(checkpoint, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    with ExitStack() as stack:
        services = []
        for folder in folders:
            folder.mkdir()
            services.append(stack.enter_context(Process(checkpoint, folder)))
        for service in services:
            service.wait_for("/readyz", 200)
        balancer = stack.enter_context(balanced([each.port for each in services], tmp_path))
        client = stack.enter_context(httpx.Client(base_url=balancer.url))
        until(lambda: is_up(client))
        photos = [photo(seed) for seed in range(20)]

        def call(number):
            with Client(balancer.url) as caller:
                return [caller.caption(photos[n % 20]).text for n in range(number, number + 40)]

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(call, number) for number in range(4)]
            until(lambda: len(balancer.lines()) > 40)
            services[0].process.kill()
            said = [job.result(60) for job in jobs]
        statuses = Counter(
            line["status"] for line in balancer.lines() if "captions" in line["path"]
        )
    assert all(len(each) == 40 and all(each) for each in said)
    print(statuses)
    assert statuses.keys() <= {200, 502}
    assert statuses[200] == 160


@pytest.mark.long
@needs_haproxy
def test_requests_are_shared_out_and_a_restart_loses_none(checkpoint, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    with ExitStack() as stack:
        services = []
        for folder in folders:
            folder.mkdir()
            service = Process(checkpoint, folder, DRAIN_DELAY_S=4)
            services.append(stack.enter_context(service))
        for service in services:
            service.wait_for("/readyz", 200)
        ports = [service.port for service in services]
        url = stack.enter_context(balanced(ports, tmp_path)).url
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        until(lambda: is_up(client))
        assert [ask(client).status_code for _ in range(6)] == [200] * 6
        assert all(captions(services))
        assert client.get("/metrics").status_code == 404
        assert ask(client, "/v1/nothing").json()["code"] == "not_found"

        statuses = asyncio.run(call_while_one_drains(url, services[0]))
        assert set(statuses) == {200}
        assert len(statuses) > 10

        services[1].process.kill()
        services[1].process.wait()
        until(lambda: not is_up(client))
        refused = ask(client)
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "not_ready"
    assert int(refused.headers["retry-after"]) == refused.json()["retry_after"]


async def call_while_one_drains(url, service):
    statuses = []
    ended = asyncio.create_task(asyncio.to_thread(service.process.wait, 60))

    async def call():
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            while not ended.done():
                statuses.append((await ask(client)).status_code)

    callers = [asyncio.create_task(call()) for _ in range(3)]
    await asyncio.sleep(0.5)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.gather(ended, *callers)
    return statuses
