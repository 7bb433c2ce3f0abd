"""Which thread does what: decoding, a batch, batches side by side."""

import asyncio
import threading

from support.api import RAW, as_json, captions
from support.fake import FakeCaptioner, deadline_s, serving, until


async def test_the_network_runs_in_one_thread_and_decoding_in_others():
    captioner = FakeCaptioner()
    seen = {"read": set(), "caption": set()}
    for name, threads in seen.items():
        real = getattr(captioner, name)

        def noting(*given, threads=threads, real=real, **options):
            threads.add(threading.current_thread().name)
            return real(*given, **options)

        setattr(captioner, name, noting)
    async with serving(captioner, decode_processes=2) as client:
        service = client.app.state.app_state.service
        await asyncio.gather(*(service.caption(b"a", deadline_s()) for _ in range(9)))
    assert seen["caption"] == {"inference_0"}
    assert seen["read"] <= {"decode_0", "decode_1"}


def readers(captioner):
    """Name the threads that decode from now on."""
    names, read = [], captioner.read

    def noting(data, **options):
        names.append(threading.current_thread().name)
        return read(data, **options)

    captioner.read = noting
    return names


async def test_what_a_captioner_reads_itself_is_decoded_where_its_batch_runs():
    captioner = FakeCaptioner()
    captioner.decodes_in_batch = True
    names = readers(captioner)
    async with serving(captioner) as client:
        answers = [
            await client.post("/v1/captions", content=b"one", headers=RAW),
            await client.post("/v1/captions", json=as_json(b"two", b"three")),
        ]
    assert list(map(captions, answers)) == [["one"], ["two", "three"]]
    assert {name.rpartition("_")[0] for name in names} == {"inference"}
    assert "decode;dur=" in answers[0].headers["server-timing"]


async def test_what_is_at_fault_in_a_batch_leaves_the_others_their_captions():
    captioner = FakeCaptioner()
    captioner.decodes_in_batch = True
    async with serving(captioner, max_batch=4) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"first", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait, 10)
        others = [
            asyncio.create_task(client.post("/v1/captions", content=data, headers=RAW))
            for data in (b"one", b"broken", b"gif", b"two")
        ]
        await until(lambda: service.depth == 4)
        captioner.gate.set()
        await asyncio.gather(first, *others)
        one, broken, gif, two = [each.result() for each in others]
    assert [captions(one), captions(two)] == [["one"], ["two"]]
    assert (broken.status_code, broken.json()["code"]) == (422, "undecodable_image")
    assert (gif.status_code, gif.json()["code"]) == (415, "unsupported_image")
    assert list(map(len, captioner.batches)) == [1, 4]


async def test_images_of_one_request_are_decoded_side_by_side():
    captioner = FakeCaptioner()
    names = readers(captioner)
    async with serving(captioner) as client:
        answer = await client.post("/v1/captions", json=as_json(b"one", b"two"))
    assert captions(answer) == ["one", "two"]
    assert {name.rpartition("_")[0] for name in names} == {"decode"}


async def test_an_image_whose_turn_to_be_decoded_comes_too_late_is_given_up():
    captioner = FakeCaptioner()
    hold = threading.Event()
    captioner.read = lambda data, **_: hold.wait(10) and data
    async with serving(captioner, deadline_s=0.05, body_timeout_s=0.05) as client:
        answer = await client.post("/v1/captions", content=b"a", headers=RAW)
        hold.set()
    assert answer.json()["code"] == "deadline_exceeded"
    assert captioner.batches == []


async def test_two_batches_have_two_threads():
    captioner = FakeCaptioner()
    captioner.engine.max_concurrent_batches = 2
    names, both, caption = [], threading.Barrier(2, timeout=10), captioner.caption

    def noting(*given):
        names.append(threading.current_thread().name)
        both.wait()
        return caption(*given)

    captioner.caption = noting
    async with serving(captioner, max_batch=1) as client:
        service = client.app.state.app_state.service
        await asyncio.gather(*(service.caption(b"one", deadline_s()) for _ in range(2)))
    assert set(names) == {"inference_0", "inference_1"}


async def test_photos_decoded_together_leave_together(monkeypatch):
    monkeypatch.setattr("app.serving.expected_arrivals.MIN_BATCH_DELAY_S", 60.0)
    captioner = FakeCaptioner()
    go_on, read = threading.Event(), captioner.read

    def slow_read(data, **options):
        if data == b"slow":
            go_on.wait(10)
        return read(data, **options)

    captioner.read = slow_read
    async with serving(captioner) as client:
        service = client.app.state.app_state.service
        slow = asyncio.create_task(service.caption(b"slow", deadline_s()))
        quick = asyncio.create_task(service.caption(b"quick", deadline_s()))
        await until(lambda: service.depth == 1)
        go_on.set()
        await asyncio.gather(slow, quick)
    assert captioner.batches == [[b"quick", b"slow"]]
