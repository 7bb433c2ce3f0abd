"""Several services behind HAProxy, with the configuration that Compose mounts."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import yaml

from app.settings import PROJECT_ROOT, Settings
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
    assert {path.name for path in FOLDER.iterdir()} == {"haproxy.cfg", "compose.cfg"}


@needs_haproxy
def test_haproxy_takes_the_files_of_compose():
    files = [argument for name in ("haproxy", "compose") for argument in ("-f", f"{name}.cfg")]
    checked = subprocess.run(
        [HAPROXY, "-c", *files], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@contextmanager
def balanced(ports, tmp_path):
    """HAProxy in front of these ports; gives its own address."""
    (tmp_path / "services.cfg").write_text(haproxy_server.backend(ports))
    address = f"{load.HOST}:{load.free_port()}"
    command = [HAPROXY, "-db", "-f", FOLDER / "haproxy.cfg", "-f", tmp_path / "services.cfg"]
    environment = {**os.environ, "BALANCER_ADDRESS": address}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"http://{address}"
        finally:
            process.kill()


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
    class Told(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((load.HOST, 0), Told)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with balanced([server.server_port], tmp_path) as url, httpx.Client(base_url=url) as client:
        until(lambda: is_up(client))
        address = (load.HOST, client.base_url.port)
        for target in METRICS:
            assert say(address, target)[0] == 404, target
        for target in ("/v1/captions?a=/metrics", "/metrical", "/readyz", "/v1/models"):
            assert say(address, target) == (200, target.encode())
    server.shutdown()
    server.server_close()


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
        url = stack.enter_context(balanced([service.port for service in services], tmp_path))
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
