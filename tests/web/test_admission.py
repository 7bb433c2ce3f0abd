"""Admission, through the whole application and, where bytes matter, through a real socket."""

import asyncio
import contextlib

import pytest
from pydantic import SecretStr
from starlette.datastructures import Headers

from app.observability.metrics import Metrics
from app.settings import Settings
from app.web import admission
from app.web.auth import Keys
from app.web.inflight import Entry, Inflight
from app.web.problems import Unauthorized
from support.api import RAW, as_json, ask, captions, piece, problem
from support.fake import FakeCaptioner, SteppingCaptioner, pass_time, serving, until
from support.photos import photo
from support.sockets import listening

KEYS = (SecretStr("old"), SecretStr("new"))


async def body_of(*chunks, then=None):
    for chunk in chunks:
        yield chunk
    if then is not None:
        await then.wait()


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer new"},
        {"authorization": "bearer old"},
        {"x-api-key": "new"},
        {"authorization": "Basic abc", "x-api-key": "old"},
    ],
)
async def test_each_of_several_keys_opens_the_door_in_either_header(headers):
    async with serving(api_keys=KEYS) as client:
        answer = await client.post("/v1/captions", content=b"a", headers={**RAW, **headers})
    assert captions(answer) == ["a"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer newer"},
        {"authorization": "Basic new"},
        {"x-api-key": ""},
        {"x-api-key": "ne"},
    ],
)
async def test_without_the_right_key_nobody_enters(headers):
    async with serving(api_keys=KEYS) as client:
        answer = await client.post("/v1/captions", content=b"a", headers={**RAW, **headers})
        models = await client.get("/v1/models", headers=headers)
        nowhere = await client.get("/nowhere", headers=headers)
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    problem(models, 401, "unauthorized")
    problem(nowhere, 401, "unauthorized")


def test_a_key_with_strange_bytes_is_only_wrong():
    with pytest.raises(Unauthorized):
        Keys(KEYS).check(Headers(raw=[(b"x-api-key", b"\xff\xfe")]))


async def test_probes_metrics_and_the_description_need_no_key():
    async with serving(api_keys=KEYS) as client:
        for path in ("/livez", "/startupz", "/readyz", "/healthz", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


async def test_the_key_is_checked_before_anything_else_and_the_body_is_not_used():
    async with serving(api_keys=KEYS, max_upload_bytes=10) as client:
        status, _ = await ask(client.app, piece(b"x" * 99, more=False))
    assert status == 401


# Bytes


async def test_a_declared_length_over_the_limit_is_refused_before_reading():
    hold = asyncio.Event()
    async with serving(max_upload_bytes=1000) as client:
        headers = {**RAW, "content-length": "1001"}
        answer = await client.post("/v1/captions", content=body_of(then=hold), headers=headers)
    assert problem(answer, 413, "body_too_large")["limit"] == 1000
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("declared", ["-1", "1e3", "+5", "1_0", "٣"])
async def test_a_length_that_is_no_number_is_malformed(declared):
    async with serving() as client:
        given = [(b"content-length", declared.encode())]
        status, _ = await ask(client.app, piece(b"a", more=False), headers=given)
    assert status == 400


async def test_bytes_without_a_declared_length_are_counted_as_they_come():
    async with serving(max_upload_bytes=1000) as client:
        full = await client.post(
            "/v1/captions", content=body_of(b"a" * 400, b"b" * 600), headers=RAW
        )
        over = await client.post("/v1/captions", content=body_of(*[b"x" * 100] * 11), headers=RAW)
    assert captions(full) == ["a" * 400 + "b" * 600]
    assert problem(over, 413, "body_too_large")["limit"] == 1000


async def test_a_body_longer_than_declared_is_counted_too():
    async with serving(max_upload_bytes=1000) as client:
        given = [(b"content-length", b"5")]
        status, _ = await ask(client.app, piece(b"x" * 1001, more=False), headers=given)
    assert status == 413


async def test_a_compressed_body_is_refused():
    async with serving() as client:
        headers = {**RAW, "content-encoding": "gzip"}
        refused = await client.post("/v1/captions", content=b"a", headers=headers)
        headers = {**RAW, "content-encoding": "identity"}
        allowed = await client.post("/v1/captions", content=b"a", headers=headers)
    problem(refused, 415, "unsupported_encoding")
    assert refused.headers["accept-encoding"] == "identity"  # RFC 9110 section 15.5.16
    assert captions(allowed) == ["a"]


async def test_a_slow_body_is_given_up():
    hold = asyncio.Event()
    async with serving(body_timeout_s=0.05) as client:
        status, _ = await ask(client.app, piece(b"x", more=True), hold=hold)
        assert status == 408
        assert client.app.state.app_state.metrics.inflight_bytes._value.get() == 0


async def sending(app, pieces, pause_s, *headers):
    """Send pieces one by one with a pause before each; give the status."""
    left = list(pieces)
    sent = []

    async def receive():
        if not left:
            await asyncio.Event().wait()
        await asyncio.sleep(pause_s)
        return piece(left.pop(0), more=bool(left))

    async def send(message):
        sent.append(message)

    await app(
        {
            "type": "http",
            "method": "POST",
            "path": "/v1/captions",
            "query_string": b"",
            "headers": [(b"content-type", b"image/jpeg"), *headers],
        },
        receive,
        send,
    )
    return sent[0]["status"]


async def test_a_slow_and_steady_body_is_waited_for_beyond_all_time_outs():
    """Its rate is above the least; and the time for the work begins when it is there."""
    slow = {"body_timeout_s": 0.1, "body_idle_s": 0.5, "body_min_bytes_per_s": 100}
    async with serving(**slow, deadline_s=0.3) as client:
        assert await sending(client.app, [b"x" * 20] * 10, 0.05) == 200


async def test_a_body_below_the_least_rate_is_given_up():
    slow = {"body_timeout_s": 0.2, "body_idle_s": 5, "body_min_bytes_per_s": 1000}
    async with serving(**slow) as client, asyncio.timeout(4):
        assert await sending(client.app, [b"x"] * 200, 0.02) == 408


async def test_a_body_that_stops_is_given_up_however_fast_it_was():
    fast = {"body_timeout_s": 99, "body_idle_s": 0.1, "body_min_bytes_per_s": 1}
    async with serving(**fast) as client, asyncio.timeout(5):
        status, _ = await ask(client.app, piece(b"x" * 10_000, more=True), hold=asyncio.Event())
    assert status == 408


async def test_empty_pieces_are_no_progress():
    slow = {"body_timeout_s": 99, "body_idle_s": 0.2, "body_min_bytes_per_s": 1}
    async with serving(**slow) as client, asyncio.timeout(5):
        assert await sending(client.app, [b""] * 1000, 0.02) == 408


async def test_a_client_that_leaves_while_sending_is_no_error():
    async with serving() as client:
        status, _ = await ask(client.app, piece(b"x", more=True), {"type": "http.disconnect"})
        metrics = (await client.get("/metrics")).text
    assert status is None
    assert 'outcome="client_closed",route="/v1/captions"} 1.0' in metrics


# Room


async def test_requests_in_flight_are_bounded_and_the_place_is_given_back():
    captioner = FakeCaptioner()
    async with serving(captioner, max_inflight_requests=1) as client:
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"1", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        refused = await client.post("/v1/captions", content=b"2", headers=RAW)
        assert (await client.get("/readyz")).status_code == 200
        captioner.gate.set()
        assert captions(await first) == ["1"]
        assert captions(await client.post("/v1/captions", content=b"3", headers=RAW)) == ["3"]
    problem(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1


async def test_where_no_image_has_room_a_body_is_not_read(monkeypatch):
    async def read(*_):
        raise AssertionError("a body was read")

    captioner = FakeCaptioner()
    async with serving(captioner, max_queue=1, max_images=1) as client:
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"1", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        monkeypatch.setattr(admission, "counted_body", read)
        refused = await client.post("/v1/captions", content=b"2", headers=RAW)
        monkeypatch.undo()
        about = await client.get("/v1/models")
        captioner.gate.set()
        assert captions(await first) == ["1"]
    problem(refused, 503, "overloaded")
    assert about.status_code == 200


async def test_bytes_in_flight_are_bounded():
    captioner = FakeCaptioner()
    async with serving(captioner, max_inflight_bytes=100, max_upload_bytes=60) as client:
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"x" * 60, headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        declared = await client.post("/v1/captions", content=b"y" * 41, headers=RAW)
        chunked = await client.post("/v1/captions", content=body_of(b"y" * 41), headers=RAW)
        captioner.gate.set()
        assert captions(await first) == ["x" * 60]
        after = await client.post("/v1/captions", content=b"y" * 41, headers=RAW)
    problem(declared, 503, "overloaded")
    problem(chunked, 503, "overloaded")
    assert captions(after) == ["y" * 41]


@contextlib.asynccontextmanager
async def uploads_that_never_come(app, count, *headers):
    """Hold so many uploads that declare much and send two bytes."""
    hold = asyncio.Event()
    begun = [
        asyncio.create_task(ask(app, piece(b"xx", more=True), headers=headers, hold=hold))
        for _ in range(count)
    ]
    metrics = app.state.app_state.metrics
    await until(lambda: metrics.inflight_requests._value.get() == count)
    yield begun
    hold.set()
    await asyncio.gather(*begun)


async def test_bytes_that_never_come_take_no_room():
    mebibyte = 2**20
    limits_ = {"max_inflight_bytes": 4 * mebibyte, "max_upload_bytes": 4 * mebibyte}
    declared = (b"content-length", b"%d" % (3 * mebibyte))
    async with (
        serving(max_pixels=4 * mebibyte, **limits_) as client,
        uploads_that_never_come(client.app, 13, declared),
    ):
        assert client.app.state.app_state.metrics.inflight_bytes._value.get() == 13 * 65536
        answer = await client.post("/v1/captions", content=b"x" * 3 * mebibyte, headers=RAW)
        assert len(captions(answer)[0]) == 3 * mebibyte
    assert client.app.state.app_state.metrics.inflight_bytes._value.get() == 0


async def test_bytes_that_came_and_found_no_room_are_refused_as_they_come():
    captioner = FakeCaptioner()
    room = {"max_inflight_bytes": 260_000, "max_upload_bytes": 100_000}  # for two and a grant
    async with serving(captioner, **room) as client:
        captioner.gate.clear()
        callers = [
            asyncio.create_task(client.post("/v1/captions", content=b"x" * 90_000, headers=RAW))
            for _ in range(2)
        ]
        inflight = client.app.state.app_state.metrics.inflight_bytes
        await until(lambda: inflight._value.get() == 180_000)
        refused, _ = await ask(client.app, piece(b"y" * 80_001, more=True), hold=asyncio.Event())
        captioner.gate.set()
        assert [captions(await caller) for caller in callers] == [["x" * 90_000]] * 2
    assert refused == 503


async def test_one_key_has_its_share_of_the_bytes_and_a_lone_key_all_of_them():
    room = {"max_inflight_bytes": 400_000, "max_upload_bytes": 150_000}
    old, new = ({**RAW, "x-api-key": key} for key in ("old", "new"))
    for keys, second in ((KEYS, 429), (KEYS[:1], 200)):
        captioner = FakeCaptioner()
        async with serving(captioner, api_keys=keys, **room) as client:
            captioner.gate.clear()
            first = asyncio.create_task(
                client.post("/v1/captions", content=b"x" * 150_000, headers=old)
            )
            await asyncio.to_thread(captioner.entered.wait)
            more = asyncio.create_task(
                client.post("/v1/captions", content=b"y" * 60_000, headers=old)
            )
            if second == 429:
                assert problem(await more, 429, "too_many_requests")["limit"] == 200_000
                more = asyncio.create_task(
                    client.post("/v1/captions", content=b"z" * 150_000, headers=new)
                )
            captioner.gate.set()
            assert {(await caller).status_code for caller in (first, more)} == {200}


async def test_where_all_places_are_taken_the_slowest_upload_makes_room():
    async with (
        serving(max_inflight_requests=3) as client,
        uploads_that_never_come(client.app, 3) as begun,
    ):
        early = await client.post("/v1/captions", content=b"a", headers=RAW)
        pass_time(0.3)
        late = await client.post("/v1/captions", content=b"b", headers=RAW)
        (gone,), _ = await asyncio.wait(begun, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert (await gone)[0] == 408
    problem(early, 503, "overloaded")
    assert captions(late) == ["b"]


async def test_who_has_his_share_already_ends_nobody_else():
    key, other = ((b"x-api-key", name) for name in (b"old", b"new"))
    limits_ = {"max_inflight_requests": 3, "max_inflight_per_key": 2}
    async with (
        serving(api_keys=KEYS, **limits_) as client,
        uploads_that_never_come(client.app, 1, other),
    ):
        hold = asyncio.Event()
        own = [
            asyncio.create_task(ask(client.app, piece(b"x", more=True), headers=[key], hold=hold))
            for _ in range(2)
        ]
        inflight = client.app.state.app_state.metrics.inflight_requests
        await until(lambda: inflight._value.get() == 3)
        pass_time(0.3)
        refused = await client.post(
            "/v1/captions", content=b"a", headers={**RAW, "x-api-key": "old"}
        )
        for _ in range(5):  # turns of the loop, no time
            await asyncio.sleep(0)
        assert inflight._value.get() == 3
        hold.set()
        await asyncio.gather(*own)
    problem(refused, 429, "too_many_requests")


async def test_an_upload_whose_time_has_just_passed_makes_room_too():
    inflight = Inflight(
        Settings(max_inflight_requests=1), retry_after_s=lambda: 1, metrics=Metrics()
    )
    late, newcomer = Entry(None, 10, 0.0), Entry(None, 10, 0.0)

    async def upload():
        with inflight.entering(late), inflight.uploading(late) as reading:
            async with reading:
                late.began_s -= 1
                await asyncio.Event().wait()

    uploading = asyncio.create_task(upload())
    while not (late.reading and late.reading.expired()):  # noqa: ASYNC110 - its task is not told yet
        await asyncio.sleep(0)
    assert not uploading.done()
    with inflight.entering(newcomer), pytest.raises(TimeoutError):
        await uploading


async def test_uploads_that_do_not_come_are_not_counted_as_work_that_waits():
    async with serving() as client, uploads_that_never_come(client.app, 40):
        client.app.state.app_state.service._batcher._seconds_per_item = 1.0
        answer = await client.post("/v1/captions", content=b"a", headers=RAW)
    assert captions(answer) == ["a"]


async def test_an_upload_that_comes_fast_is_not_ended_for_another():
    async with serving(max_inflight_requests=1) as client:
        hold = asyncio.Event()
        fast = asyncio.create_task(ask(client.app, piece(b"x" * 10**6, more=True), hold=hold))
        inflight = client.app.state.app_state.metrics.inflight_bytes
        await until(lambda: inflight._value.get() == 10**6)
        pass_time(3)
        refused = await client.post("/v1/captions", content=b"b", headers=RAW)
        assert not fast.done()
        hold.set()
        await fast
    problem(refused, 503, "overloaded")


async def test_a_client_that_leaves_takes_its_image_out_of_the_queue():
    captioner = FakeCaptioner()
    async with serving(captioner, max_batch=1) as client:
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"1", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        leave = asyncio.Event()
        gone = asyncio.create_task(ask(client.app, piece(b"2", more=False), hold=leave))
        service = client.app.state.app_state.service
        async with asyncio.timeout(5):
            while service.depth == 0:  # noqa: ASYNC110 - it decodes in a thread
                await asyncio.sleep(0.001)
        leave.set()
        assert (await gone)[0] is None
        assert service.depth == 0
        captioner.gate.set()
        assert captions(await first) == ["1"]
        metrics = (await client.get("/metrics")).text
    assert captioner.batches == [[b"1"]]
    assert 'caption_cancelled_total{stage="queue"} 1.0' in metrics


async def test_a_client_that_leaves_during_its_batch_ends_the_search():
    captioner = SteppingCaptioner()
    async with serving(captioner) as client:
        leave = asyncio.Event()
        gone = asyncio.create_task(ask(client.app, piece(photo(), more=False), hold=leave))
        await asyncio.to_thread(captioner.engine.entered.acquire, timeout=10)
        leave.set()
        assert (await gone)[0] is None
        captioner.engine.gate.release(2)
        answer = await client.post("/v1/captions", content=photo(), headers=RAW)
        metrics = (await client.get("/metrics")).text
    assert answer.status_code == 200
    assert captioner.engine.images == [1] + [1] * 12
    assert 'caption_cancelled_total{stage="batch"} 1.0' in metrics


async def test_what_is_turned_away_is_counted_by_reason():
    async with serving(max_upload_bytes=10) as client:
        await client.post("/v1/captions", content=b"x" * 11, headers=RAW)
        metrics = (await client.get("/metrics")).text
    assert 'caption_rejected_total{reason="body_too_large"} 1.0' in metrics
    assert 'outcome="body_too_large",route="/v1/captions"} 1.0' in metrics


# A real socket


async def test_a_client_that_goes_on_sending_still_reads_why_it_was_refused():
    head = b"POST /v1/captions HTTP/1.1\r\nhost: a\r\ncontent-type: image/jpeg\r\n"
    async with serving(max_upload_bytes=1000) as client, listening(client.app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + b"content-length: 4000000\r\n\r\n")
        for _ in range(40):
            writer.write(b"x" * 100_000)
            await writer.drain()
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert b"body_too_large" in answer


async def test_a_client_that_asks_first_is_refused_without_being_told_to_continue():
    head = b"POST /v1/captions HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n"
    async with serving(max_upload_bytes=1000) as client, listening(client.app) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + b"content-length: 4000000\r\n\r\n")
        status = await reader.readline()
        writer.close()
    assert status.startswith(b"HTTP/1.1 413 ")


# Callers


async def test_one_key_cannot_take_all_the_room():
    captioner = FakeCaptioner()
    old, new = ({**RAW, "x-api-key": key} for key in ("old", "new"))
    async with serving(captioner, api_keys=KEYS, max_inflight_per_key=1) as client:
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"1", headers=old))
        await asyncio.to_thread(captioner.entered.wait)
        refused = await client.post("/v1/captions", content=b"2", headers=old)
        other = asyncio.create_task(client.post("/v1/captions", content=b"3", headers=new))
        captioner.gate.set()
        assert captions(await first) == ["1"]
        assert captions(await other) == ["3"]
        after = await client.post("/v1/captions", content=b"4", headers=old)
    told = problem(refused, 429, "too_many_requests")
    assert told["limit"] == 1
    assert int(refused.headers["retry-after"]) == told["retry_after"] >= 1
    assert captions(after) == ["4"]


async def test_without_keys_there_is_no_limit_per_key():
    captioner = FakeCaptioner()
    async with serving(captioner, max_inflight_per_key=1) as client:
        captioner.gate.clear()
        callers = [
            asyncio.create_task(client.post("/v1/captions", content=b"1", headers=RAW))
            for _ in range(3)
        ]
        await asyncio.to_thread(captioner.entered.wait)
        captioner.gate.set()
        assert [captions(await caller) for caller in callers] == [["1"]] * 3


async def ask_for(client, captioner, key, *bodies):
    """Ask with a key for each body, all at once, and wait until the images wait in the service."""
    service = client.app.state.app_state.service
    held = service._held
    headers = {**RAW, "x-api-key": key}
    asking = [
        asyncio.create_task(client.post("/v1/captions", content=body, headers=headers))
        for body in bodies
    ]
    await until(lambda: service._held == held + len(bodies))
    return asking


async def test_one_key_may_hold_its_share_of_the_queue_and_the_others_have_the_rest():
    captioner = FakeCaptioner()
    limits = {"max_queue": 4, "max_images": 2, "max_key_share": 0.5}
    async with serving(captioner, api_keys=KEYS, **limits) as client:
        captioner.gate.clear()
        greedy = await ask_for(client, captioner, "old", b"1", b"2")
        headers = {**RAW, "x-api-key": "old"}
        refused = await client.post("/v1/captions", content=b"3", headers=headers)
        others = await ask_for(client, captioner, "new", b"4", b"5")
        headers["x-api-key"] = "new"
        full = await client.post("/v1/captions", content=b"6", headers=headers)
        captioner.gate.set()
        assert [captions(await each) for each in (*greedy, *others)] == [["1"], ["2"], ["4"], ["5"]]
        assert captions(await client.post("/v1/captions", content=b"7", headers=headers)) == ["7"]
    told = problem(refused, 429, "too_many_requests")
    assert told["limit"] == 2
    assert int(refused.headers["retry-after"]) == told["retry_after"] >= 1
    assert refused.headers["connection"] == "close"  # its body was not read
    problem(full, 503, "overloaded")


async def test_a_request_of_many_images_must_fit_into_the_share_of_its_key():
    captioner = FakeCaptioner()
    limits = {"max_queue": 6, "max_images": 3, "max_key_share": 0.5}
    async with serving(captioner, api_keys=KEYS, **limits) as client:
        captioner.gate.clear()
        first = await ask_for(client, captioner, "old", b"1")
        both = {"json": as_json(b"2", b"3", b"4"), "headers": {"x-api-key": "old"}}
        refused = await client.post("/v1/captions", **both)
        captioner.gate.set()
        assert captions(await first[0]) == ["1"]
        assert captions(await client.post("/v1/captions", **both)) == ["2", "3", "4"]
    assert problem(refused, 429, "too_many_requests")["limit"] == 3


@pytest.mark.parametrize("keys", [(), KEYS[:1]])
async def test_who_is_alone_has_the_whole_queue(keys):
    captioner = FakeCaptioner()
    async with serving(captioner, api_keys=keys, max_queue=4, max_images=1) as client:
        captioner.gate.clear()
        asking = await ask_for(client, captioner, "old", b"1", b"2", b"3", b"4")
        captioner.gate.set()
        assert [captions(await each) for each in asking] == [["1"], ["2"], ["3"], ["4"]]


@pytest.mark.parametrize(
    ("settings", "images"),
    [({}, 64), ({"max_key_share": 0.1}, 16), ({"max_queue": 16}, 16), ({"max_key_share": 1}, 128)],
)
def test_the_share_of_a_key_holds_at_least_one_request(settings, images):
    assert Settings(**settings).max_queue_per_key == images


async def test_a_second_key_is_served_between_the_images_of_the_first():
    captioner = FakeCaptioner()
    async with serving(captioner, api_keys=KEYS, max_batch=1) as client:
        captioner.gate.clear()
        asking = await ask_for(client, captioner, "old", b"0")
        await asyncio.to_thread(captioner.entered.wait)
        service = client.app.state.app_state.service
        asking += await ask_for(client, captioner, "old", b"1", b"2", b"3")
        await until(lambda: service.depth == 3)
        asking += await ask_for(client, captioner, "new", b"4")
        await until(lambda: service.depth == 4)
        captioner.gate.set()
        await asyncio.gather(*asking)
    served = [batch[0] for batch in captioner.batches]
    assert served.index(b"4") == 2  # the first was under way, another had its turn


async def test_without_keys_a_photo_is_served_between_the_images_of_a_request():
    captioner = FakeCaptioner()
    async with serving(captioner, max_batch=1) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"0", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        many = asyncio.create_task(client.post("/v1/captions", json=as_json(b"1", b"2", b"3")))
        await until(lambda: service.depth == 3)
        lone = asyncio.create_task(client.post("/v1/captions", content=b"4", headers=RAW))
        await until(lambda: service.depth == 4)
        captioner.gate.set()
        await asyncio.gather(first, many, lone)
    assert [batch[0] for batch in captioner.batches].index(b"4") == 2


async def test_a_key_does_not_wait_for_what_another_has_asked_before():
    captioner = FakeCaptioner()
    async with serving(captioner, api_keys=KEYS, max_batch=2) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        asking = await ask_for(client, captioner, "old", *[b"1"] * 6)
        service._batcher._seconds_per_item = 1.0
        hurried = {**RAW, "x-request-timeout": "8"}  # seven seconds are more than half of it
        refused = await client.post(
            "/v1/captions", content=b"2", headers={**hurried, "x-api-key": "old"}
        )
        other = asyncio.create_task(
            client.post("/v1/captions", content=b"3", headers={**hurried, "x-api-key": "new"})
        )
        await until(lambda: other.done() or service._held == 7)
        captioner.gate.set()
        assert captions(await other) == ["3"]
        await asyncio.gather(*asking)
    problem(refused, 503, "overloaded")


# Timeouts of callers


@pytest.mark.parametrize(("asked", "waits"), [("0.05", True), ("99", False)])
async def test_a_caller_may_wait_for_less_than_the_limit_but_not_for_more(asked, waits):
    captioner = FakeCaptioner()
    limit_s = 20 if waits else 0.05
    async with serving(captioner, deadline_s=limit_s, body_timeout_s=limit_s) as client:
        captioner.gate.clear()
        async with asyncio.timeout(10):
            answer = await client.post(
                "/v1/captions", content=b"1", headers={**RAW, "x-request-timeout": asked}
            )
        captioner.gate.set()
    problem(answer, 504, "deadline_exceeded")


async def test_a_deadline_that_passes_during_the_search_ends_it():
    captioner = SteppingCaptioner()
    async with serving(captioner) as client:
        timeout = {**RAW, "x-request-timeout": "20"}
        caller = asyncio.create_task(client.post("/v1/captions", content=photo(), headers=timeout))
        await asyncio.to_thread(captioner.engine.entered.acquire, timeout=10)
        pass_time(25)
        problem(await caller, 504, "deadline_exceeded")
        captioner.engine.gate.release(2)
        answer = await client.post("/v1/captions", content=photo(), headers=RAW)
    assert answer.status_code == 200
    assert captioner.engine.images == [1] + [1] * 12


@pytest.mark.parametrize("asked", ["soon", "-1", "0", "nan", ""])
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(asked):
    async with serving() as client:
        answer = await client.post(
            "/v1/captions", content=b"1", headers={**RAW, "x-request-timeout": asked}
        )
    assert problem(answer, 422, "invalid_request")["errors"][0]["field"] == "x-request-timeout"


async def test_a_body_that_comes_after_the_callers_own_deadline_is_not_waited_for():
    asked = [(b"x-request-timeout", b"0.05")]
    async with serving() as client:
        status, _ = await ask(
            client.app, piece(b"x", more=True), headers=asked, hold=asyncio.Event()
        )
    assert status == 504
