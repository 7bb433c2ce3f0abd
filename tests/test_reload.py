"""Another checkpoint is served while the service works: real processes, real checkpoints."""

import asyncio
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256

import httpx
import pytest
from PIL import Image

from app.settings import KEY_FILES
from support.drawn import saved
from support.photos import photo
from support.service_process import Process
from support.tiny import save_other_version

CALLERS = 4
ADMIN = {"authorization": "Bearer admin"}
ASKED = {"n_best": 2, "tags": True}


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """Give a checkpoint of the same name as ``checkpoint`` that is another in every way."""
    return save_other_version(tmp_path_factory.mktemp("other"), "2")


@pytest.fixture
def folder(checkpoint, tmp_path):
    """Give the folder of a name in a store, with its first version."""
    return shutil.copytree(checkpoint.parent, tmp_path / "store" / "tiny")


def publish(other, folder, version="2"):
    """Put a version into the folder as a copying program does: its manifest is not the last."""
    copy = folder / version
    copy.mkdir()
    for path in sorted(other.rglob("*"), key=lambda path: path.name != "manifest.json"):
        if path.is_file():
            (copy / path.relative_to(other)).parent.mkdir(exist_ok=True)
            shutil.copy(path, copy / path.relative_to(other))
    about = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**about, "version": version}))
    return copy


def rewrite(directory, name, content):
    """Change a file and the hash that vouches for it."""
    (directory / name).write_bytes(content)
    about = json.loads((directory / "manifest.json").read_text())
    about["files"][name] = sha256(content).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(about))


def jpeg(seed):
    return saved(Image.new("RGB", (160, 120), (seed * 40 % 255, 90, 200)), "JPEG")


def is_consistent(answer):
    """Say whether one checkpoint gave all of an answer: its words, its tags and its name."""
    (result,) = answer["results"]
    one_word = all(len(each["caption"].split()) <= 1 for each in result["candidates"])
    has_tags = result["tags"] is not None
    return {"1": (False, False), "2": (True, True)}[answer["model"]["version"]] == (
        one_word,
        has_tags,
    )


async def call_until(stop, url, number, answers):
    """Ask one image after another; every other caller opens a connection for each."""
    keep = {"keepalive_expiry": 60 if number % 2 else 0}
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(**keep)) as client:
        while not stop.is_set():
            data = photo(number) if number < 2 else jpeg(number)
            files = {"image": ("a", data)}
            try:
                answer = await client.post(f"{url}/v1/captions", params=ASKED, files=files)
                answers.append((answer.status_code, answer.json()))
            except httpx.HTTPError as error:
                answers.append((repr(error), {}))


async def swap_under_load(service, swap):
    """Give every answer while another checkpoint takes over."""
    stop, answers = asyncio.Event(), []
    callers = [
        asyncio.create_task(call_until(stop, service.url, number, answers))
        for number in range(CALLERS)
    ]
    await until(lambda: len(answers) >= 20)
    await asyncio.to_thread(swap)
    await until(lambda: any(version_of(answer) == "2" for answer in answers))
    more = len(answers) + 20
    await until(lambda: len(answers) >= more)
    stop.set()
    await asyncio.gather(*callers)
    return answers


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.01)


def version_of(answer):
    return answer[1].get("model", {}).get("version")


def told(service):
    return service.client.get("/v1/models").json()


def wait_for_version(service, version):
    ends_s = time.monotonic() + 60
    while told(service)["models"][0]["version"] != version and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert told(service)["models"][0]["version"] == version


def events(service, name):
    return [event for event in service.events() if event["event"] == name]


@pytest.mark.timeout(120)
def test_under_load_another_checkpoint_takes_over_and_no_request_fails(other, folder, tmp_path):
    with Process(folder, tmp_path, RESULT_CACHE_ENTRIES=0) as service:
        service.wait_for("/readyz", 200)

        def swap():
            publish(other, folder)
            service.process.send_signal(signal.SIGHUP)

        answers = asyncio.run(swap_under_load(service, swap))
        assert {status for status, _ in answers} == {200}
        assert [answer for _, answer in answers if not is_consistent(answer)] == []
        versions = [version_of(answer) for answer in answers]
        assert {*versions[:20]} == {"1"}
        assert {*versions[-10:]} == {"2"}
        (event,) = events(service, "checkpoint_served")
        metrics = service.client.get("/metrics").text
        assert 'caption_checkpoint_info{name="tiny"' in metrics
        assert 'caption_reloads_total{outcome="served"} 1.0' in metrics
    assert (event["by"], event["version"]) == ("signal", "2")
    print(len(answers), "requests;", event["seconds"], "s to load")


@pytest.mark.timeout(120)
def test_back_and_forth_by_the_admin_call_under_load(other, folder, tmp_path):
    publish(other, folder)
    with Process(f"{folder}@1", tmp_path, ADMIN_KEYS="admin") as service:
        service.wait_for("/readyz", 200)

        def there_and_back_and_there():
            for version in ("2", "1", "2"):
                url = f"/v1/admin/reload?version={version}"
                answer = service.client.post(url, headers=ADMIN, timeout=60)
                assert answer.json()["model"] == {"name": "tiny", "version": version}
                assert answer.json()["outcome"] == "served"

        answers = asyncio.run(swap_under_load(service, there_and_back_and_there))
        assert {status for status, _ in answers} == {200}
        assert [answer for _, answer in answers if not is_consistent(answer)] == []
        assert service.process.poll() is None


def spoil_weights(directory):
    content = bytearray((directory / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (directory / "weights.safetensors").write_bytes(content)


def say_something_else(directory):
    golden = json.loads((directory / "golden/caption.json").read_text())
    golden["log_prob"] -= 3
    rewrite(directory, "golden/caption.json", json.dumps(golden).encode())


def take_the_words(directory):
    (directory / "vocabulary.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_weights, "weights.safetensors has sha256"),
        (say_something_else, "the golden caption is"),
        (take_the_words, "vocabulary.json is missing"),
    ],
)
def test_a_bad_checkpoint_leaves_the_old_one_in_place_and_says_why(
    spoil, reason, other, folder, tmp_path
):
    with Process(folder, tmp_path, ADMIN_KEYS="admin") as service:
        service.wait_for("/readyz", 200)
        spoil(publish(other, folder))
        refused = service.client.post("/v1/admin/reload", headers=ADMIN, timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_refused")
        assert reason in refused.json()["detail"]
        assert reason in told(service)["refused"]["reason"]
        assert told(service)["models"][0]["version"] == "1"
        assert service.client.get("/readyz").status_code == 200
        answer = service.client.post("/v1/captions", files={"image": ("a.png", photo())})
        assert answer.json()["model"]["version"] == "1"
        metrics = service.client.get("/metrics").text
        assert 'caption_reloads_total{outcome="refused"} 1.0' in metrics
        (event,) = events(service, "checkpoint_refused")
        assert reason in event["reason"]
        shutil.rmtree(folder / "2")
        publish(other, folder)
        again = service.client.post("/v1/admin/reload", headers=ADMIN, timeout=60)
        assert again.json()["model"]["version"] == "2"
        assert told(service)["refused"] is None


def test_a_watched_folder_is_followed_and_half_a_copy_is_not(other, folder, tmp_path):
    with Process(folder, tmp_path, WATCH=0.3) as service:
        service.wait_for("/readyz", 200)
        copy = publish(other, folder)
        weights = (copy / "weights.safetensors").read_bytes()
        for end in range(1, 9):  # what copies it takes a second
            (copy / "weights.safetensors").write_bytes(weights[: len(weights) * end // 8])
            time.sleep(0.15)
        wait_for_version(service, "2")
        assert events(service, "checkpoint_refused") == []
        spoil_weights(publish(other, folder, "3"))
        ends_s = time.monotonic() + 60
        while told(service)["refused"] is None and time.monotonic() < ends_s:
            time.sleep(0.05)
        time.sleep(1)  # it is not tried again and again
        assert len(events(service, "checkpoint_refused")) == 1
        assert told(service)["models"][0]["version"] == "2"


def test_a_reload_of_the_same_is_no_work_and_sigterm_still_drains(folder, tmp_path):
    with Process(folder, tmp_path, DRAIN_DELAY_S=0) as service:
        service.wait_for("/readyz", 200)
        service.process.send_signal(signal.SIGHUP)
        ends_s = time.monotonic() + 60
        while not events(service, "checkpoint_unchanged") and time.monotonic() < ends_s:
            time.sleep(0.05)
        assert len(events(service, "checkpoint_unchanged")) == 1
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0


def test_a_signal_during_the_start_is_heard_after_it(folder, tmp_path):
    with Process(folder, tmp_path) as service:
        service.wait_for("/livez", 200)
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("/readyz", 200)
        assert service.process.poll() is None


IN_A_TERMINAL = """
import os, sys
from app.cli import main
os.setsid()
os.close(os.open(os.ttyname(0), os.O_RDWR))  # it becomes the terminal of this session
sys.exit(main(["serve"]))
"""


def test_a_closed_terminal_ends_it_and_a_signal_in_a_terminal_does_not(folder, tmp_path):
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    settings = {"CHECKPOINT": folder, "PORT": 0, "DEVICE": "cpu", "DRAIN_DELAY_S": 0}
    environment = {f"CAPTION_{name}": str(value) for name, value in settings.items()}
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL],
            env={**os.environ, **environment},
            stdin=theirs,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    os.close(theirs)
    try:
        wait_for_line(log, '"ready"')
        process.send_signal(signal.SIGHUP)
        wait_for_line(log, '"checkpoint_unchanged"')
        os.close(ours)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert '"draining"' in log.read_text()


def wait_for_line(log, text):
    ends_s = time.monotonic() + 60
    while text not in log.read_text() and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert text in log.read_text()


def test_admin_keys_come_from_a_file_and_are_no_api_keys(other, folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("admin\n")
    name = KEY_FILES["admin_keys"].removeprefix("CAPTION_")
    with Process(folder, tmp_path, API_KEYS="api", **{name: keys}) as service:
        service.wait_for("/readyz", 200)
        publish(other, folder)
        refused = service.client.post("/v1/admin/reload", headers={"x-api-key": "api"})
        assert refused.status_code == 401
        answer = service.client.post("/v1/admin/reload", headers=ADMIN, timeout=60)
        assert answer.json()["model"]["version"] == "2"
        assert service.client.get("/v1/models", headers=ADMIN).status_code == 401
        (settings,) = events(service, "settings")
        assert settings["admin_keys"] == ["**********"]


# Several at once


@pytest.mark.timeout(120)
def test_under_load_a_canary_gets_its_share_until_one_call_ends_it(other, folder, tmp_path):
    publish(other, folder)
    settings = {"CHECKPOINTS": f"{folder}@1,{folder}@2", "CANARY": 0.25, "ADMIN_KEYS": "admin"}
    with Process("", tmp_path, RESULT_CACHE_ENTRIES=9, **settings) as service:
        service.wait_for("/readyz", 200)
        before, after = asyncio.run(canary_under_load(service))
        assert {status for status, _ in (*before, *after)} == {200}
        assert [answer for _, answer in (*before, *after) if not is_consistent(answer)] == []
        versions = [version_of(answer) for answer in before]
        assert abs(versions.count("2") - len(before) / 4) <= 2 + CALLERS
        assert {version_of(answer) for answer in after} == {"1"}
        assert [each["share"] for each in told(service)["served"]] == [1, 0]
        publish(other, folder, "3")
        url = "/v1/admin/reload?model=tiny@2&version=3"
        answer = service.client.post(url, headers=ADMIN, timeout=60)
        assert answer.json()["model"] == {"name": "tiny", "version": "3"}
        files = {"image": ("a.png", photo())}
        for model, status in (("tiny@1", 200), ("tiny@2", 404), ("tiny@3", 200)):
            answer = service.client.post("/v1/captions", params={"model": model}, files=files)
            assert answer.status_code == status
        assert len(events(service, "canary")) == 1


async def canary_under_load(service):
    """Give the answers before a call ends the canary, and those of requests after it."""
    stop, before, after = asyncio.Event(), [], []
    callers = [
        asyncio.create_task(call_until(stop, service.url, number, before))
        for number in range(CALLERS)
    ]
    await until(lambda: len(before) >= 80)
    stop.set()
    await asyncio.gather(*callers)
    share = await asyncio.to_thread(
        service.client.post, "/v1/admin/canary?share=0", headers=ADMIN, timeout=60
    )
    assert share.status_code == 200
    stop.clear()
    callers = [
        asyncio.create_task(call_until(stop, service.url, number, after))
        for number in range(CALLERS)
    ]
    await until(lambda: len(after) >= 40)
    stop.set()
    await asyncio.gather(*callers)
    return before, after


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_weights, "weights.safetensors has sha256"),
        (say_something_else, "the golden caption is"),
        (shutil.rmtree, "no version 2"),
    ],
)
def test_a_bad_second_checkpoint_ends_the_start_and_is_told(spoil, reason, other, folder, tmp_path):
    spoil(publish(other, folder))
    with Process("", tmp_path, CHECKPOINTS=f"{folder}/1,{folder}@2") as service:
        assert service.process.wait(60) == 1
        (event,) = events(service, "checkpoint_refused")
    assert event["reason"].startswith("number 2 of CAPTION_CHECKPOINTS: ")
    assert reason in event["reason"]
