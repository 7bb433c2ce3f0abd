"""The client, sync and async, against the service and against what can go wrong."""

import asyncio
import io
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from caption_client import (
    AsyncClient,
    CaptionError,
    Client,
    DeadlinePassed,
    Refused,
    Unreachable,
    exchange,
)
from support.transports import answering

ROOT = Path(__file__).resolve().parents[2]
DOG = b"a dog runs"
ANSWER = {
    "request_id": "7",
    "model": {"name": "tiny", "version": "1"},
    "results": [
        {
            "filename": None,
            "caption": "a dog",
            "log_prob": -1.0,
            "candidates": [{"caption": "a dog", "log_prob": -1.0, "score": -0.5}],
        }
    ],
}
OVERLOADED = {"title": "Overloaded", "detail": "There is no room now.", "code": "overloaded"}


@pytest.fixture
def slept(monkeypatch):
    """Give the delays that a client would have waited; it waits for none."""
    delays = []

    async def sleep(delay_s):
        delays.append(delay_s)

    waiting = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})  # others sleep in real time
    monkeypatch.setattr("caption_client.client.time", SimpleNamespace(sleep=delays.append))
    monkeypatch.setattr("caption_client.async_client.asyncio", waiting)
    return delays


def refused(status, problem=OVERLOADED, **headers):
    return httpx.Response(status, json=problem, headers=headers)


FINE = httpx.Response(200, json=ANSWER)


def sync_caption(transport, **options):
    with Client("http://service", transport=transport, **options) as client:
        return client.caption(DOG)


def async_caption(transport, **options):
    async def ask():
        async with AsyncClient("http://service", transport=transport, **options) as client:
            return await client.caption(DOG)

    return asyncio.run(ask())


both = pytest.mark.parametrize("caption", [sync_caption, async_caption])


# Against the service


def test_a_photo_is_captioned_whatever_it_comes_as(url, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(DOG)
    with Client(url) as client:
        for image in (DOG, path, str(path), io.BytesIO(DOG)):
            assert client.caption(image).text == "a dog runs"


def test_the_answer_is_typed(url):
    with Client(url) as client:
        said = client.caption(DOG, n_best=2, words=True, attention=True)
    assert (said.text, said.log_prob, said.model) == ("a dog runs", -1.0, "tiny/1")
    assert [each.text for each in said.candidates] == ["a dog runs", "a dog runs 1"]
    first = said.candidates[0].words[0]
    assert (first.text, first.log_prob) == ("a", -0.5)
    assert len(first.attention) == 2
    with Client(url) as client:
        assert client.caption(DOG).candidates[0].words == ()


def test_a_folder_is_captioned_in_order_and_a_bad_photo_fails_alone(url, tmp_path):
    for name, image in (("a.jpg", DOG), ("b.png", b"broken"), ("c.webp", b"a cat"), ("d.txt", b"")):
        (tmp_path / name).write_bytes(image)
    with Client(url) as client:
        results = list(client.caption_folder(tmp_path, concurrency=2))
    assert [result.image.name for result in results] == ["a.jpg", "b.png", "c.webp"]
    assert [result.text for result in results] == ["a dog runs", None, "a cat"]
    assert results[1].error.code == "undecodable_image"


async def test_an_async_client_does_the_same(url, tmp_path):
    async with AsyncClient(url) as client:
        assert (await client.caption(DOG, n_best=2)).candidates[1].text == "a dog runs 1"
        images = [DOG, b"broken", tmp_path / "nowhere.jpg", b"a cat"]
        results = [result async for result in client.caption_many(images, concurrency=2)]
    assert [result.text for result in results] == ["a dog runs", None, None, "a cat"]
    assert isinstance(results[2].error, FileNotFoundError)


def test_a_value_that_is_wrong_is_told(url):
    with (
        Client(url) as client,
        pytest.raises(Refused, match="n_best: Input should be at most the beam width") as told,
    ):
        client.caption(DOG, n_best=99)
    assert (told.value.status, told.value.code) == (422, "invalid_request")


# Trying again


@both
def test_it_tries_again_after_the_time_that_it_was_told(caption, slept):
    busy = refused(503, **{"retry-after": "3"})
    transport, asked = answering(busy, refused(429, **{"retry-after": "2"}), FINE)
    assert caption(transport).text == "a dog"
    assert slept == [3.0, 2.0]
    assert len(asked) == 3


@both
def test_without_being_told_it_waits_longer_each_time(caption, slept):
    transport, _ = answering(httpx.ConnectError("refused"), httpx.ReadError(""), FINE)
    assert caption(transport).text == "a dog"
    assert 0.125 <= slept[0] <= 0.25 <= slept[1] <= 0.5


@both
@pytest.mark.parametrize("status", [400, 401, 413, 422, 500, 504])
def test_what_another_try_would_not_help_is_raised_at_once(caption, status, slept):
    transport, asked = answering(refused(status))
    with pytest.raises(Refused, match="no room") as told:
        caption(transport)
    assert told.value.status == status
    assert (len(asked), slept) == (1, [])


@both
def test_a_proxy_that_lost_its_service_is_asked_again(caption, slept):
    transport, asked = answering(httpx.Response(500, text="Internal Server Error"), FINE)
    assert caption(transport).text == "a dog"
    assert len(asked) == 2


@both
def test_it_gives_up_after_its_retries(caption, slept):
    transport, asked = answering(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match="refused"):
        caption(transport, retries=2)
    assert len(asked) == 3


@both
def test_a_time_beyond_the_deadline_is_not_waited_for(caption, slept):
    transport, asked = answering(refused(503, **{"retry-after": "60"}))
    with pytest.raises(Refused) as told:
        caption(transport, deadline_s=5)
    assert told.value.retry_after_s == 60
    assert (len(asked), slept) == (1, [])


@both
def test_no_answer_in_time_is_the_deadline(caption, slept):
    transport, _ = answering(httpx.ReadTimeout("slow"))
    with pytest.raises(DeadlinePassed, match="within 5 s"):
        caption(transport, deadline_s=5)
    assert slept == []


def test_the_service_is_told_the_deadline_and_the_key():
    transport, asked = answering(FINE)
    with Client("http://service/prefix/", key="key", deadline_s=7, transport=transport) as client:
        client.caption(DOG)
    (request,) = asked
    assert str(request.url) == "http://service/prefix/v1/captions"
    assert 6 < float(request.headers["x-request-timeout"]) <= 7
    assert request.headers["authorization"] == "Bearer key"
    assert request.content == DOG


@pytest.mark.parametrize(
    ("told", "delay_s"),
    [
        ("3", 3.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(told, delay_s):
    answer = httpx.Response(503, headers={"retry-after": told})
    assert exchange._retry_after_s(answer) == delay_s


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<p>"), httpx.Response(200, json=[])])
def test_what_is_no_caption_service_is_told(answer):
    with pytest.raises(Unreachable, match="no caption service"):
        sync_caption(answering(answer)[0], retries=0)


def test_an_answer_of_something_in_between_has_no_code():
    with pytest.raises(Refused, match="HTTP 404") as told:
        sync_caption(answering(httpx.Response(404, text="<p>"))[0])
    assert told.value.code == ""
    assert isinstance(told.value, CaptionError)


# Many at once


def test_no_more_are_under_way_than_asked_for():
    inside, most, lock, enough = 0, 0, threading.Lock(), threading.Barrier(3)

    def answer(request):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        enough.wait(10)  # so three are inside at once
        with lock:
            inside -= 1
        return httpx.Response(200, json=ANSWER)

    with Client("http://service", transport=httpx.MockTransport(answer)) as client:
        results = list(client.caption_many([DOG] * 9, concurrency=3))
    assert (len(results), most) == (9, 3)


def test_images_are_taken_as_they_are_needed():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield DOG

    with Client("http://service", transport=answering(FINE)[0]) as client:
        results = client.caption_many(endless(), concurrency=2)
        assert next(results).text == "a dog"
        results.close()
    assert taken == 3


async def test_who_stops_early_cancels_what_is_under_way():
    cancelled, began = 0, asyncio.Event()

    async def answer(request):
        nonlocal cancelled
        if request.content == DOG:
            return httpx.Response(200, json=ANSWER)
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled += 1

    transport = httpx.MockTransport(answer)
    async with AsyncClient("http://service", transport=transport) as client:
        results = client.caption_many([DOG, b"slow", b"slow"], concurrency=2)
        assert (await anext(results)).text == "a dog"
        await began.wait()
        await results.aclose()
    assert cancelled == 1


# The distribution


def test_it_needs_httpx_and_nothing_of_the_service():
    about = tomllib.loads((ROOT / "deploy/client/pyproject.toml").read_text())["project"]
    service = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["dependencies"] == ["httpx>=0.28"]
    assert about["version"] == service["version"]
    program = "import sys, caption_client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "deploy/client", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert not {"app", "torch", "openvino", "fastapi", "numpy", "PIL"} & set(done.stdout.split())


def test_the_client_knows_confidence_tags_and_how_to_be_told(url):
    with Client(url) as client:
        told = client.caption(b"a man runs", neutral=True, style="alt", tags=True)
        withheld = client.caption(b"a man runs", min_confidence=0.9)
    assert (told.text, told.confidence, told.tags) == ("A person runs", 0.8, (("dog", 0.75),))
    assert told.candidates[0].confidence == 0.8
    assert (withheld.text, withheld.withheld) == (None, "low_confidence")
    with pytest.raises(TypeError, match="poem"):
        client.caption(b"", poem=True)
