"""The application on a real Ray Serve, which runs for these tests on this machine."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml

from app.captioner.errors import CheckpointError
from app.main import create_app
from app.settings import Settings
from caption_client import Client
from support.fake import FakeCaptioner, serving
from support.photos import photo
from support.processes import descendants, wants_proc
from support.service_process import Process

ray_serve = pytest.importorskip("app.ray_serve", exc_type=ImportError)
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
CONFIG = Path(__file__).parents[1] / "deploy/ray/captions.yaml"
CALLERS = 6
REPLICA = "ray::ServeReplica:default:captions"
READY = "two replicas serve"
PROGRAM = f"""
READY = {READY!r}
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # the machine may have other work
import ray
from ray import serve

ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options=dict(host="127.0.0.1", port=int(os.environ["CAPTION_PORT"])))
from app.ray_serve import Captions

serve.run(Captions.options(num_replicas=2, autoscaling_config=None).bind())
print(READY, flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


CLUSTER = f"""
READY = {READY!r}
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"
import ray
from ray import serve
from ray.cluster_utils import Cluster

cluster = Cluster(
    initialize_head=True, connect=False, head_node_args=dict(num_cpus=1, include_dashboard=False)
)
other = cluster.add_node(num_cpus=1)
ray.init(cluster.address, log_to_driver=False)
where = dict(host="127.0.0.1", port=int(os.environ["CAPTION_PORT"]))
serve.start(proxy_location="HeadOnly", http_options=where)  # both nodes have this machine's ports
from app.ray_serve import Captions

scaling = dict(
    min_replicas=1,
    max_replicas=2,
    target_ongoing_requests=2,
    upscale_delay_s=1,
    downscale_delay_s=2,
    metrics_interval_s=0.5,
    look_back_period_s=2,
)
serve.run(Captions.options(autoscaling_config=scaling, max_replicas_per_node=1).bind())
print(READY, flush=True)
for line in sys.stdin:
    cluster.remove_node(other, allow_graceful=False)
    print("the node is gone", flush=True)
serve.shutdown()
ray.shutdown()
cluster.shutdown()
"""


@contextlib.contextmanager
def running_program(checkpoint, folder, program):
    with Process(checkpoint, folder, program=program) as running:
        wait_for(running, READY)
        yield running
        running.process.stdin.close()  # Ray's own processes end with it
        running.process.wait(60)


def wait_for(running, text):
    """Wait until the program says so."""
    ends_s = time.monotonic() + 200
    while text not in running.log.read_text():
        assert running.process.poll() is None, running.log.read_text()
        assert time.monotonic() < ends_s, running.log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def deployed(checkpoint, tmp_path_factory):
    """Two replicas behind Serve's proxy."""
    with running_program(checkpoint, tmp_path_factory.mktemp("ray"), PROGRAM) as running:
        yield running


@pytest.fixture
def cluster(checkpoint, tmp_path):
    """A cluster of two nodes with room for a replica each, and one replica until there is work."""
    with running_program(checkpoint, tmp_path, CLUSTER) as running:
        yield running


def replicas(running):
    """Give the replicas that are ready: one that begins has a longer name."""
    return [pid for pid in descendants(running.process.pid) if name_of(pid) == REPLICA]


def name_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")
    return ""


def test_the_application_answers_as_it_does_elsewhere(deployed):
    url = f"{deployed.url}/v1/captions"
    said = httpx.post(url, content=photo(), headers={"content-type": "image/png"}, timeout=60)
    assert said.status_code == 200, said.text
    assert said.json()["model"]["name"] == "tiny"
    assert said.json()["results"][0]["caption"]
    refused = httpx.post(url, content=b"no photo", timeout=60)
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_image")
    assert httpx.get(f"{deployed.url}/readyz", timeout=60).json()["status"] == "ready"


@wants_proc
def test_a_replica_that_is_killed_costs_only_what_it_had_under_way(deployed):
    before = replicas(deployed)
    assert len(before) == 2
    ended, statuses = threading.Event(), Counter()

    def call(seed):
        with httpx.Client(timeout=60) as client:
            while not ended.is_set():
                answer = client.post(f"{deployed.url}/v1/captions", content=photo(seed))
                statuses[answer.status_code] += 1

    def retry(seed):
        said = 0
        with Client(deployed.url, deadline_s=60) as client:
            while not ended.is_set():
                said += bool(client.caption(photo(seed)).text)
        return said

    with ThreadPoolExecutor(2 * CALLERS) as callers:
        calls = [callers.submit(call, seed) for seed in range(CALLERS)]
        retries = [callers.submit(retry, seed) for seed in range(CALLERS)]
        time.sleep(3)
        os.kill(before[0], signal.SIGKILL)
        ends_s = time.monotonic() + 120
        while time.monotonic() < ends_s and len({*replicas(deployed)} - {before[0]}) < 2:
            time.sleep(0.2)
        again = replicas(deployed)
        ended.set()
    assert len(again) == 2
    assert before[1] in again
    for each in calls:
        each.result()
    assert all(each.result() for each in retries)  # who retries notices nothing
    assert statuses[200] > CALLERS
    assert statuses.total() - statuses[200] <= CALLERS  # each caller had one request under way


class Callers:
    """Ask without a pause, each again after its answer."""

    def __init__(self, running, count):
        self.statuses = Counter()
        self._url = f"{running.url}/v1/captions"
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._calls = [self._pool.submit(self._call, seed) for seed in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._pool.shutdown()
        for each in self._calls:
            each.result()

    def _call(self, seed):
        with httpx.Client(timeout=60) as client:
            while not self._ended.is_set():
                self.statuses[client.post(self._url, content=photo(seed)).status_code] += 1


def until(running, count):
    ends_s = time.monotonic() + 120
    while len(replicas(running)) != count:
        assert time.monotonic() < ends_s, f"{len(replicas(running))} replicas instead of {count}"
        time.sleep(0.2)


@wants_proc
def test_replicas_follow_the_load_over_two_nodes_and_none_that_goes_loses_a_request(cluster):
    until(cluster, 1)
    with Callers(cluster, 1) as steady:
        with Callers(cluster, 12) as many:
            until(cluster, 2)  # nodes have room for one each
        until(cluster, 1)
        asked = steady.statuses.total()
        while steady.statuses.total() < asked + 10:
            time.sleep(0.05)
    assert set(many.statuses) == set(steady.statuses) == {200}


@wants_proc
def test_a_node_that_is_lost_costs_only_what_it_had_under_way(cluster):
    with Callers(cluster, 12) as callers:
        until(cluster, 2)
        cluster.process.stdin.write(b"\n")
        cluster.process.stdin.flush()
        wait_for(cluster, "the node is gone")
        until(cluster, 1)
        said = callers.statuses[200]
        while callers.statuses[200] < said + 24:
            time.sleep(0.05)
    failed = callers.statuses.total() - callers.statuses[200]
    assert failed <= 12  # each caller had one request under way


# What a replica is


@pytest.mark.parametrize(
    ("resources", "threads", "device"),
    [({"CPU": 1.0}, 1, "cpu"), ({"CPU": 4.0}, 4, "cpu"), ({"CPU": 0.5, "GPU": 0.25}, 1, "cuda")],
)
def test_a_replica_takes_what_ray_gives_it(resources, threads, device):
    settings = ray_serve.for_replica(Settings(), resources)
    assert (settings.inference_threads, settings.device) == (threads, device)


def test_what_an_operator_says_stays():
    settings = ray_serve.for_replica(Settings(inference_threads=2, device="cpu"), {"GPU": 1.0})
    assert (settings.inference_threads, settings.device) == (2, "cpu")


def test_the_configuration_is_that_of_the_application():
    """What `serve build` writes of the application, with names and a port of ours."""
    (told,) = yaml.safe_load(CONFIG.read_text())["applications"]
    assert told["import_path"] == "app.ray_serve:app"
    (deployment,) = told["deployments"]
    ours = ray_serve.Captions
    assert deployment["name"] == ours.name
    assert deployment["ray_actor_options"] == ours.ray_actor_options
    assert deployment["max_ongoing_requests"] == ours.max_ongoing_requests
    settings = Settings()
    assert deployment["graceful_shutdown_timeout_s"] > settings.drain_timeout_s
    autoscaling = deployment["autoscaling_config"]
    assert autoscaling["target_ongoing_requests"] < ours.max_ongoing_requests


async def test_a_replica_that_is_not_ready_says_why():
    """Serve asks, and puts another in the place of one that fails."""
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        replica = SimpleNamespace(app=client.app)
        check = ray_serve.Captions.func_or_class.check_health
        await check(replica)
        client.app.state.app_state.health.fail("device_fault")
        with pytest.raises(ray_serve.NotWell, match="device_fault"):
            await check(replica)


async def test_a_replica_that_cannot_be_ready_does_not_start():
    captioner = FakeCaptioner()
    captioner.golden_error = CheckpointError("it says something else")
    app = create_app(Settings(), captioners=[captioner])
    with pytest.raises(ray_serve.NotWell):
        async with ray_serve._until_ready(app.router.lifespan_context, app):
            pytest.fail("it was started")
