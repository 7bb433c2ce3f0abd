"""Which thread does what: decoding, lone batches, batches side by side."""

import asyncio
import threading
import time

from app.serving.batching import PATIENCE_S
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
    assert seen["caption"] == {"inference-0_0"}
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
    captioner.reads_batches = True
    names = readers(captioner)
    async with serving(captioner) as client:
        answers = [
            await client.post("/v1/captions", content=b"one", headers=RAW),
            await client.post("/v1/captions", json=as_json(b"two", b"three")),
        ]
    assert list(map(captions, answers)) == [["one"], ["two", "three"]]
    assert {name.rpartition("_")[0] for name in names} == {"inference-0"}
    assert "decode;dur=" in answers[0].headers["server-timing"]


async def test_what_is_at_fault_in_a_batch_leaves_the_others_their_captions():
    captioner = FakeCaptioner()
    captioner.reads_batches = True
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


async def test_a_lone_batch_always_has_the_same_thread_and_two_have_two():
    captioner = FakeCaptioner()
    captioner.lanes = 2
    names = []
    say = captioner.caption

    def caption(images, **options):
        names.append(threading.current_thread().name)
        return say(images, **options)

    captioner.caption = caption
    async with serving(captioner, max_batch=2) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        first = asyncio.create_task(service.caption(b"one", deadline_s()))
        await asyncio.to_thread(captioner.entered.wait, 10)
        captioner.entered.clear()
        pair = [asyncio.create_task(service.caption(b"two", deadline_s())) for _ in range(2)]
        await asyncio.to_thread(captioner.entered.wait, 10)
        captioner.gate.set()
        await asyncio.gather(first, *pair)
        for _ in range(3):
            await service.caption(b"three", deadline_s())
    first_lane, second_lane, *alone = names
    assert first_lane.startswith("inference-0")
    assert second_lane.startswith("inference-1")
    assert set(alone) == {first_lane}


async def test_a_batch_is_told_whether_it_is_all_there_is_to_do():
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        headers = {"content-type": "image/png"}
        await client.post("/v1/captions", content=b"one", headers=headers)
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"1", headers=headers))
        captioner.entered.clear()
        await asyncio.to_thread(captioner.entered.wait, 10)
        others = [
            asyncio.create_task(client.post("/v1/captions", content=b"2", headers=headers))
            for _ in range(9)
        ]
        service = client.app.state.app_state.service
        await until(lambda: service.depth == 9)
        captioner.gate.set()
        await asyncio.gather(first, *others)
    assert captioner.alone[:3] == [True, True, False]  # the third batch is eight of nine


async def test_a_photo_that_is_decoded_keeps_a_batch_from_taking_all_cores():
    captioner = FakeCaptioner()
    headers = {"content-type": "image/png"}
    decoded = threading.Event()
    read = captioner.read

    def slow_read(data, **options):
        if data == b"slow":
            decoded.wait(10)
        return read(data, **options)

    captioner.read = slow_read
    async with serving(captioner) as client:
        service = client.app.state.app_state.service
        late = asyncio.create_task(client.post("/v1/captions", content=b"slow", headers=headers))
        await until(lambda: service._held == 1)
        early = await client.post("/v1/captions", content=b"quick", headers=headers)
        await asyncio.sleep(2 * PATIENCE_S)  # or its caller might be back any moment
        decoded.set()
        assert [each.status_code for each in (early, await late)] == [200, 200]
    assert captioner.alone == [False, True]


async def test_photos_decoded_together_leave_together():
    captioner = FakeCaptioner()
    decoding = threading.Barrier(2)
    read = captioner.read

    def slow_read(data, **options):
        decoding.wait(10)
        if data == b"slow":
            time.sleep(0.005)  # below the patience of the batcher
        return read(data, **options)

    captioner.read = slow_read
    async with serving(captioner) as client:
        service = client.app.state.app_state.service
        await asyncio.gather(
            service.caption(b"quick", deadline_s()), service.caption(b"slow", deadline_s())
        )
    assert captioner.batches == [[b"quick", b"slow"]]
