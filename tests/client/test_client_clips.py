"""Clips by the client, sync and async, against the service and against what can go wrong."""

import asyncio
import io
import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import httpx
import pytest

from app.web.schemas import ClipOptions as ServiceOptions
from caption_client import (
    AsyncClient,
    Client,
    Clip,
    ClipOptions,
    DeadlinePassed,
    Refused,
    Shot,
    Unreachable,
)
from support.clips import BLUE, GREEN, RED, animation, plain
from support.colours import COLOURS
from support.transports import answering

CAR, FIELD, DOGS, _ = COLOURS
GIF = animation([plain(RED), plain(BLUE), plain(GREEN)], duration_ms=[2000, 2000, 1500])
TIMES = [(0.0, 2.0, CAR), (2.0, 4.0, DOGS), (4.0, 5.5, FIELD)]

FIRST = {"start_s": 0.0, "end_s": 2.0, "keyframe_s": 1.0, "caption": "a dog", "log_prob": -1.0}
FIRST |= {"confidence": 0.5, "candidates": []}
MODEL = {"request_id": "7", "model": {"name": "tiny", "version": "1"}}
LAST = {**MODEL, "duration_s": 2.0, "summary": "a dog"}
OVERLOADED = {"title": "Overloaded", "status": 503, "code": "overloaded", "retry_after": 3}


class Sync:
    """The sync client, whose iterators are read to their end."""

    def __init__(self, url, **options):
        self._make = lambda: Client(url, **options)

    def __getattr__(self, name):
        def ask(*arguments, **options):
            with self._make() as client:
                given = getattr(client, name)(*arguments, **options)
                return list(given) if name == "shots" else given

        return ask


class Async:
    """The same of the async one."""

    def __init__(self, url, **options):
        self._make = lambda: AsyncClient(url, **options)

    def __getattr__(self, name):
        async def ask(*arguments, **options):
            async with self._make() as client:
                given = getattr(client, name)(*arguments, **options)
                return [each async for each in given] if name == "shots" else await given

        return lambda *arguments, **options: asyncio.run(ask(*arguments, **options))


both = pytest.mark.parametrize("client_of", [Sync, Async])
each_way = pytest.mark.parametrize("way", ["describe", "shots", "track"])


def times(shots):
    return [(shot.start_s, shot.end_s, shot.caption) for shot in shots]


# Against the service


@both
def test_a_clip_is_described_whatever_it_comes_as(colours_url, client_of, tmp_path):
    path = tmp_path / "party.gif"
    path.write_bytes(GIF)
    client = client_of(colours_url)
    for clip in (GIF, path, str(path), io.BytesIO(GIF)):
        told = client.describe(clip)
        assert isinstance(told, Clip)
        assert times(told.shots) == TIMES


@both
def test_the_answer_to_a_clip_is_typed(colours_url, client_of):
    told = client_of(colours_url).describe(GIF, n_best=2)
    assert (told.duration_s, told.model, told.warning) == (5.5, "tiny/1", None)
    assert told.summary in {CAR, DOGS}
    assert told.request_id
    assert [shot.keyframe_s for shot in told.shots] == [0.0, 2.0, 4.0]
    first = told.shots[0]
    assert (first.confidence, first.withheld) == (0.8, None)
    best = first.candidates[0]
    assert (best.text, best.log_prob, best.confidence) == (CAR, -1.0, 0.8)
    assert len(first.candidates) == 2


@both
def test_the_shots_of_a_clip_come_in_order(colours_url, client_of):
    client = client_of(colours_url)
    shots = client.shots(GIF, n_best=2)
    assert times(shots) == TIMES
    assert tuple(shots) == client.describe(GIF, n_best=2).shots


@both
def test_a_track_is_one_for_players(colours_url, client_of):
    client = client_of(colours_url)
    assert client.track(GIF).startswith(f"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n{CAR}\n")
    assert client.track(GIF, "srt").startswith(f"1\n00:00:00,000 --> 00:00:02,000\n{CAR}\n")
    with pytest.raises(ValueError, match="expected one of vtt, srt as format, got 'avi'"):
        client.track(GIF, format="avi")


@both
def test_options_of_a_clip_are_those_of_the_service(colours_url, client_of):
    client = client_of(colours_url)
    told = client.describe(GIF, min_confidence=0.9, fps=1, max_frames=100, style="alt")
    assert (told.summary, {shot.withheld for shot in told.shots}) == (None, {"low_confidence"})
    assert len(client.describe(GIF, scene_threshold=1).shots) == 1
    with pytest.raises(Refused, match="fps: Input should be less than or equal to 30"):
        client.describe(GIF, fps=31)
    for way in (client.describe, client.shots, client.track):
        with pytest.raises(TypeError, match="words"):
            way(GIF, words=True)


def test_what_the_client_leaves_out_is_what_the_service_takes():
    ours = asdict(ClipOptions())
    assert ours == ServiceOptions().model_dump(include=ours.keys())
    assert set(ServiceOptions.model_fields) - set(ours) == {"frames", "format"}


@both
@each_way
def test_what_is_no_clip_is_refused_with_its_code(colours_url, client_of, way):
    with pytest.raises(Refused, match="neither a clip nor an image") as told:
        getattr(client_of(colours_url), way)(b"a letter")
    assert (told.value.status, told.value.code) == (415, "unsupported_image")


def test_shots_of_which_nothing_is_read_ask_nothing(tmp_path):
    with Client("http://127.0.0.1:1") as client:
        shots = client.shots(tmp_path / "nowhere.gif")
        with pytest.raises(FileNotFoundError):
            next(shots)


# Against what can go wrong


class Lines(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body of lines; an exception breaks it, a float takes a while, a function is called."""

    def __init__(self, *lines):
        self._lines = lines

    def __iter__(self):
        for line in self._lines:
            if isinstance(line, Exception):
                raise line
            if isinstance(line, float):
                time.sleep(line)
            elif callable(line):
                line()
            else:
                yield line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"

    async def __aiter__(self):
        for line in iter(self):
            yield line


def lines(*given):
    kind = {"content-type": "application/x-ndjson"}
    return lambda: httpx.Response(200, headers=kind, stream=Lines(*given))


def refused(status, problem=OVERLOADED, **headers):
    return lambda: httpx.Response(status, json=problem, headers=headers)


@pytest.fixture
def slept(monkeypatch):
    """Give the delays that a client would have waited; it waits for none."""
    delays = []

    async def sleep(delay_s):
        delays.append(delay_s)

    waiting = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    monkeypatch.setattr("caption_client.client.time", SimpleNamespace(sleep=delays.append))
    monkeypatch.setattr("caption_client.async_client.asyncio", waiting)
    return delays


@both
@each_way
def test_the_service_is_told_what_is_wanted_and_how_long_it_has(client_of, way):
    transport, asked = answering(refused(422))
    ask = getattr(client_of("http://service/prefix/", key="key", transport=transport), way)
    for deadline, most_s in (({}, 330), ({"deadline_s": 400}, 400)):
        with pytest.raises(Refused):
            ask(GIF, fps=1, model="Tiny@1", **deadline)
        request = asked.pop()
        assert str(request.url) == "http://service/prefix/v1/clips?fps=1&model=Tiny%401"
        assert most_s - 5 < float(request.headers["x-request-timeout"]) <= most_s
        assert request.extensions["timeout"]["read"] > most_s - 5
        assert request.extensions["timeout"]["connect"] == 30
    wanted = {"describe": "application/json", "shots": "application/x-ndjson", "track": "text/vtt"}
    assert request.headers["accept"] == wanted[way]
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["authorization"] == "Bearer key"
    assert request.content == GIF


@both
@each_way
def test_a_clip_is_tried_again_as_a_photo_is(client_of, way, slept):
    fine = {
        "describe": lambda: httpx.Response(200, json={**LAST, "shots": [FIRST]}),
        "shots": lines(FIRST, LAST),
        "track": lambda: httpx.Response(200, text="WEBVTT\n", headers={"content-type": "text/vtt"}),
    }[way]
    late = httpx.ConnectTimeout("timed out")
    busy = refused(503, **{"retry-after": "3"})
    transport, asked = answering(busy, httpx.ConnectError("refused"), late, fine)
    told = getattr(client_of("http://service", transport=transport), way)(GIF)
    shot = Shot(0.0, 2.0, 1.0, "a dog", 0.5, ())
    clip = Clip(2.0, "a dog", (shot,), "tiny/1", "7")
    assert told == {"describe": clip, "shots": [shot], "track": "WEBVTT\n"}[way]
    assert (len(asked), slept[0]) == (4, 3.0)


@both
@each_way
def test_what_is_no_service_of_clips_is_told(client_of, way, slept):
    transport, asked = answering(lambda: httpx.Response(200, text="<p>"))
    client = client_of("http://service", transport=transport, retries=1)
    with pytest.raises(Unreachable, match="no caption service"):
        getattr(client, way)(GIF)
    assert len(asked) == 2


def take(client_of, given, transport, **options):
    """Put shots into a list as they come."""
    if client_of is Sync:
        with Client("http://service", transport=transport) as client:
            given.extend(client.shots(GIF, **options))
        return

    async def ask():
        async with AsyncClient("http://service", transport=transport) as client:
            async for shot in client.shots(GIF, **options):
                given.append(shot)

    asyncio.run(ask())


def given_before(client_of, expected, transport, **options):
    """Give what shots a client gave before its error, and the error."""
    given = []
    with pytest.raises(expected) as error:
        take(client_of, given, transport, **options)
    return given, error.value


@both
def test_a_shot_is_given_before_the_next_one_is_known(client_of):
    given, known = [], []
    transport, _ = answering(lines(FIRST, lambda: known.append(len(given)), FIRST, LAST))
    take(client_of, given, transport)
    assert (known, len(given)) == ([1], 2)


@both
def test_what_goes_wrong_after_the_first_shot_is_refused(client_of, slept):
    transport, asked = answering(lines(FIRST, {"problem": OVERLOADED}))
    shots, error = given_before(client_of, Refused, transport)
    assert [shot.caption for shot in shots] == ["a dog"]
    assert (error.status, error.code, error.retry_after_s) == (503, "overloaded", 3)
    assert (len(asked), slept) == (1, [])


@both
@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ([], "before its last line"),
        ([b'{"start_s": 2.0, "end'], "a line that was cut"),
        ([b"[]\n"], "a line that was cut"),
        ([httpx.RemoteProtocolError("peer closed connection")], "peer closed"),
    ],
)
def test_a_stream_that_breaks_off_is_told_and_not_tried_again(client_of, rest, says, slept):
    transport, asked = answering(lines(FIRST, *rest))
    shots, error = given_before(client_of, Unreachable, transport)
    assert [shot.caption for shot in shots] == ["a dog"]
    assert says in str(error)
    assert (len(asked), slept) == (1, [])


@both
def test_a_stream_that_breaks_before_its_first_line_is_tried_again(client_of, slept):
    broken = lines(httpx.ReadError("reset"))
    transport, asked = answering(broken, lines(), lines(FIRST, LAST))
    shots = client_of("http://service", transport=transport).shots(GIF)
    assert [shot.caption for shot in shots] == ["a dog"]
    assert (len(asked), len(slept)) == (3, 2)


@both
def test_lines_that_come_too_late_pass_the_deadline(client_of):
    transport, _ = answering(lines(FIRST, 0.6, FIRST, LAST))
    shots, error = given_before(client_of, DeadlinePassed, transport, deadline_s=0.5)
    assert len(shots) == 1
    assert str(error) == "no answer within 0.5 s"


def test_what_is_done_with_a_shot_does_not_count():
    transport, _ = answering(lines(FIRST, FIRST, LAST))
    with Client("http://service", transport=transport) as client:
        for _ in client.shots(GIF, deadline_s=0.5):
            time.sleep(0.6)
