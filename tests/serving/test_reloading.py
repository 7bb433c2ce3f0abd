"""Another checkpoint takes over while captions are made."""

import asyncio
import gc
import shutil
import threading
import weakref
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.captioner.errors import CheckpointError, OutOfMemory
from app.main import create_app
from app.serving.reloading import name_of
from app.settings import Settings
from support.api import RAW, as_json, captions, problem
from support.fake import FakeCaptioner, deadline_s, serving, until
from support.photos import photo

ADMIN = {"authorization": "Bearer admin"}


class Shelf:
    """A store whose directories hold captioners; the newest is the last."""

    def __init__(self, *captioners):
        self.captioners = list(captioners)
        self.changes = 0
        self.loaded = []

    def find(self, version=None):
        if version is None:
            return Path(str(len(self.captioners)))
        if not 0 < int(version) <= len(self.captioners):
            raise CheckpointError(f"no version {version}")
        return Path(version)

    def fingerprint(self, directory):
        return directory, self.changes

    def load(self, directory, *, beside):
        assert beside  # another one is at work
        self.loaded.append(str(directory))
        return self.captioners[int(str(directory)) - 1]


def version(number):
    """Give a captioner that answers for a version."""
    captioner = FakeCaptioner()
    captioner.manifest = captioner.manifest.model_copy(update={"version": number})
    return captioner


def shelf_of(client, *captioners):
    """Let the service of a client find these captioners, the first of which it serves."""
    service = client.app.state.app_state.service
    shelf = Shelf(*captioners)
    place = service.checkpoints.places[0]
    place.store = shelf
    place._found = place._newest = place._look("1")
    return shelf


def served(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["model"]["version"]


def reloads(client, outcome):
    registry = client.app.state.app_state.metrics.registry
    return registry.get_sample_value("caption_reloads_total", {"outcome": outcome})


async def told(client):
    """Give the version that each place tells of."""
    models = (await client.get("/v1/models")).json()
    metrics = (await client.get("/metrics")).text
    info = next(line for line in metrics.splitlines() if line.startswith("caption_checkpoint_info"))
    shown = (await client.get("/v2/models/tiny")).json()
    about = (await client.post("/api/show", json={})).json()["model_info"]
    return {
        models["models"][0]["version"],
        models["data"][0]["id"].partition(":")[2],
        (await client.get("/api/tags")).json()["models"][0]["name"].partition(":")[2],
        about["caption.manifest"]["version"],
        info.partition('version="')[2].partition('"')[0],
        *shown["versions"],
    }


async def test_a_reload_serves_what_is_there_now_and_every_place_says_so():
    first, second = version("1"), version("2")
    async with serving(first, admin_keys=("admin",), max_batch=4) as client:
        shelf_of(client, first, second)
        assert await told(client) == {"1"}
        with capture_logs() as logs:
            answer = await client.post("/v1/admin/reload", headers=ADMIN)
        assert answer.status_code == 200
        assert answer.json()["outcome"] == "served"
        assert answer.json()["model"] == {"name": "tiny", "version": "2"}
        assert served(await client.post("/v1/captions", content=b"a", headers=RAW)) == "2"
        assert await told(client) == {"2"}
        assert reloads(client, "served") == 1
    assert second.warmed == [1, 2, 4]
    assert (first.batches, second.batches) == ([], [[b"a"]])
    (event,) = [log for log in logs if log["event"] == "checkpoint_served"]
    assert (event["by"], event["name"], event["version"]) == ("admin", "tiny", "2")


async def test_what_is_under_way_ends_with_the_old_one_and_says_so():
    first, second = version("1"), version("2")
    async with serving(first, max_batch=2) as client:
        shelf_of(client, first, second)
        service = client.app.state.app_state.service
        first.gate.clear()

        def ask(data):
            return asyncio.create_task(client.post("/v1/captions", json=as_json(data)))

        running = ask(b"1")
        await asyncio.to_thread(first.entered.wait, 10)
        waiting = ask(b"2")
        await until(lambda: service.depth == 1)
        await service.checkpoints.places[0].reload("signal")
        late = ask(b"3")
        await until(lambda: service.depth == 2)
        first.gate.set()
        answers = [await each for each in (running, waiting, late)]
        metrics = (await client.get("/metrics")).text
    for counter in (
        'caption_images_total{{checkpoint="tiny:{}",outcome="ok"}} {}',
        'caption_requests_total{{checkpoint="tiny:{}",outcome="ok",route="/v1/captions"}} {}',
    ):
        assert counter.format(1, 2.0) in metrics
        assert counter.format(2, 1.0) in metrics
    assert [served(answer) for answer in answers] == ["1", "1", "2"]
    assert [captions(answer) for answer in answers] == [["1"], ["2"], ["3"]]
    assert (first.batches, second.batches) == ([[b"1"], [b"2"]], [[b"3"]])


async def test_images_of_two_captioners_share_no_batch():
    first, second = version("1"), version("2")
    async with serving(first, max_batch=4) as client:
        shelf_of(client, first, second)
        service = client.app.state.app_state.service

        def post(data):
            return asyncio.create_task(client.post("/v1/captions", content=data, headers=RAW))

        first.gate.clear()
        running = post(b"0")
        await asyncio.to_thread(first.entered.wait, 10)
        old = [post(b"1"), post(b"2")]
        await until(lambda: service.depth == 2)
        await service.checkpoints.places[0].reload("signal")
        new = [post(b"3"), post(b"4")]
        await until(lambda: service.depth == 4)
        first.gate.set()
        answers = [await each for each in (running, *old, *new)]
    assert [served(answer) for answer in answers] == ["1", "1", "1", "2", "2"]
    batches = [[sorted(batch) for batch in each.batches] for each in (first, second)]
    assert batches == [[[b"0"], [b"1", b"2"]], [[b"3", b"4"]]]


async def test_a_result_of_the_old_one_is_not_told_for_the_new_one():
    first, second = version("1"), version("2")
    async with serving(first, result_cache_entries=9) as client:
        shelf_of(client, first, second)
        for _ in range(2):
            await client.post("/v1/captions", content=b"a", headers=RAW)
        await client.app.state.app_state.service.checkpoints.places[0].reload("signal")
        assert served(await client.post("/v1/captions", content=b"a", headers=RAW)) == "2"
    assert (first.batches, second.batches) == ([[b"a"]], [[b"a"]])


async def test_what_is_served_already_is_not_loaded_again():
    first, second = version("1"), version("2")
    async with serving(first, admin_keys=("admin",)) as client:
        shelf = shelf_of(client, first, second)
        outcomes = [
            (await client.post("/v1/admin/reload", headers=ADMIN)).json()["outcome"]
            for _ in range(3)
        ]
        assert outcomes == ["served", "unchanged", "unchanged"]
        shelf.changes += 1  # the same directory, other files
        answer = await client.post("/v1/admin/reload", headers=ADMIN)
        assert answer.json()["outcome"] == "served"
        assert (reloads(client, "served"), reloads(client, "unchanged")) == (2, 2)
    assert shelf.loaded == ["2", "2"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("the golden caption is another"), "the golden caption is another"),
        (OutOfMemory(), "checkpoint 2: no memory for it beside the one that is served: restart"),
        (MemoryError(), "checkpoint 2: no memory for it beside the one that is served: restart"),
        (RuntimeError("secret at 0x7f00deadbeef"), "checkpoint 2: RuntimeError; the log has more"),
    ],
)
async def test_one_that_cannot_be_trusted_changes_nothing_and_says_why(error, reason):
    first, second = version("1"), version("2")
    second.golden_error = error
    async with serving(first, admin_keys=("admin",)) as client:
        shelf_of(client, first, second)
        with capture_logs() as logs:
            refused = await client.post("/v1/admin/reload", headers=ADMIN)
        assert problem(refused, 409, "checkpoint_refused")["detail"].startswith(reason)
        models = (await client.get("/v1/models")).json()
        assert models["refused"]["reason"].startswith(reason)
        assert models["models"][0]["version"] == "1"
        assert (await client.get("/readyz")).status_code == 200
        assert served(await client.post("/v1/captions", content=b"a", headers=RAW)) == "1"
        assert reloads(client, "refused") == 1
        second.golden_error = None
        assert (await client.post("/v1/admin/reload", headers=ADMIN)).status_code == 200
        assert (await client.get("/v1/models")).json()["refused"] is None
    (event,) = [log for log in logs if log["event"] == "checkpoint_refused"]
    assert event["reason"].startswith(reason)
    assert (event["by"], event["still"]) == ("admin", "tiny:1")


async def test_back_to_another_version_by_the_same_call_until_the_next():
    first, second, third = map(version, "123")
    async with serving(first, admin_keys=("admin",)) as client:
        shelf_of(client, first, second, third)
        said = []
        for asked in ("", "?version=1", "?version=2", "?version=", "?version=4", ""):
            answer = await client.post(f"/v1/admin/reload{asked}", headers=ADMIN)
            said.append(answer.json().get("model", {}).get("version", answer.status_code))
        assert said == ["3", "1", "2", "3", 409, "3"]


async def test_two_who_ask_at_once_take_turns():
    first, second = version("1"), version("2")
    second.warming, second.go = threading.Event(), threading.Event()
    second.warm_up = lambda _: second.warming.set() or second.go.wait(10)
    async with serving(first) as client:
        shelf = shelf_of(client, first, second)
        reloads_ = client.app.state.app_state.service.checkpoints.places[0]
        calls = [asyncio.create_task(reloads_.reload("admin")) for _ in range(2)]
        await asyncio.to_thread(second.warming.wait, 10)
        assert served(await client.post("/v1/captions", content=b"a", headers=RAW)) == "1"
        calls[0].cancel()  # who asked has left; it goes on
        second.go.set()
        assert (await calls[1]).outcome == "unchanged"
    assert shelf.loaded == ["2"]


async def test_what_is_watched_is_served_once_it_has_settled():
    first, second, third = map(version, "123")
    third.golden_error = CheckpointError("wrong")
    async with serving(first, watch=0.02) as client:
        service = client.app.state.app_state.service
        shelf = shelf_of(client, first)
        copying = asyncio.create_task(_change_for(shelf, 0.5))
        await asyncio.sleep(0.3)
        assert shelf.loaded == []
        shelf.captioners.append(second)
        await copying
        await until(lambda: name_of(service.served.captioner) == "tiny:2")
        shelf.captioners.append(third)
        await until(lambda: service.checkpoints.refusal)
        await service.checkpoints.places[0].reload("admin", "1")
        await asyncio.sleep(0.2)  # nothing has changed in the store
        assert name_of(service.served.captioner) == "tiny:1"
        assert shelf.loaded == ["2", "3", "1"]
        third.golden_error = None
        shelf.changes += 1
        await until(lambda: name_of(service.served.captioner) == "tiny:3")


async def _change_for(shelf, seconds):
    ends_s = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < ends_s:
        shelf.changes += 1
        await asyncio.sleep(0.001)


async def test_nothing_is_watched_unless_asked_for():
    first, second = version("1"), version("2")
    async with serving(first) as client:
        shelf = shelf_of(client, first, second)
        await asyncio.sleep(0.1)
        assert shelf.loaded == []


async def test_a_service_that_ends_waits_for_what_is_being_loaded_and_leaves_nothing():
    first, second = version("1"), version("2")
    warming = threading.Event()
    second.warm_up = lambda _: warming.set() or threading.Event().wait(0.3)
    async with serving(first, watch=60) as client:
        shelf_of(client, first, second)
        client.app.state.app_state.service.checkpoints.on_signal()
        await asyncio.to_thread(warming.wait, 10)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("load-checkpoint")]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_old_one_gives_its_memory_back_without_the_collector(checkpoint, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoint, folder / "1")
    app = create_app(Settings(checkpoint=folder, device="cpu", result_cache_entries=9))
    service = app.state.app_state.service
    gc.disable()
    try:
        async with app.router.lifespan_context(app):
            await asyncio.wait({service._starting})
            gone = weakref.ref(service.served.captioner.engine)
            await service.caption(photo(), deadline_s())
            shutil.copytree(checkpoint, folder / "2")
            assert (await service.checkpoints.places[0].reload("signal")).outcome == "served"
            assert gone() is None
            await service.caption(photo(), deadline_s())
    finally:
        gc.enable()


# Who may ask


async def test_without_admin_keys_there_is_no_such_route():
    async with serving() as client:
        for method in ("POST", "GET"):
            problem(await client.request(method, "/v1/admin/reload"), 404, "not_found")


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer api"}, {"x-api-key": "wrong"}, {"x-api-key": ""}]
)
async def test_only_an_admin_key_reloads(headers):
    first, second = version("1"), version("2")
    async with serving(first, admin_keys=("admin",), api_keys=("api",)) as client:
        shelf = shelf_of(client, first, second)
        problem(await client.post("/v1/admin/reload", headers=headers), 401, "unauthorized")
        assert shelf.loaded == []
        path = "/v1/%61dmin/reload"
        problem(await client.post(path, headers=headers), 401, "unauthorized")


async def test_an_admin_key_is_no_api_key():
    async with serving(admin_keys=("admin",), api_keys=("api",)) as client:
        answer = await client.post("/v1/captions", content=b"a", headers={**RAW, **ADMIN})
        problem(answer, 401, "unauthorized")
        assert (await client.get("/v1/admin/reload", headers=ADMIN)).status_code == 405


async def test_a_service_that_is_full_is_reloaded_all_the_same():
    first, second = version("1"), version("2")
    async with serving(first, admin_keys=("admin",), max_inflight_requests=1) as client:
        shelf_of(client, first, second)
        first.gate.clear()
        full = asyncio.create_task(client.post("/v1/captions", content=b"a", headers=RAW))
        await asyncio.to_thread(first.entered.wait, 10)
        refused = await client.post("/v1/captions", content=b"b", headers=RAW)
        assert refused.status_code == 503
        answer = await client.post("/v1/admin/reload", headers=ADMIN)
        assert answer.json()["outcome"] == "served"
        first.gate.set()
        assert served(await full) == "1"


async def test_a_service_that_ends_is_not_reloaded():
    async with serving(admin_keys=("admin",)) as client:
        client.app.state.app_state.health.refuse()
        answer = await client.post("/v1/admin/reload", headers=ADMIN)
        assert problem(answer, 503, "not_ready")["reason"] == "shutting_down"
