"""The life of the service: loading, failing, draining, leaving nothing behind."""

import asyncio
import gc
import re
import threading
import time

import pytest
from structlog.testing import capture_logs

from app.captioner.errors import CheckpointError, DeviceFault, OutOfMemory
from app.loading import usable_cores
from app.main import create_app
from app.serving.batching import DeadlineExceeded
from app.settings import Settings
from support.api import RAW, as_json, captions
from support.fake import FakeCaptioner, SteppingCaptioner, deadline_s, pass_time, serving, until
from support.photos import photo


def ours():
    """Name the threads of the service that are alive."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("decode", "inference"))]


async def test_nothing_is_left_after_the_lifespan():
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        assert captions(await client.post("/v1/captions", content=b"a", headers=RAW)) == ["a"]
        assert ours()
        assert gc.get_freeze_count() > 0
    assert ours() == []
    assert gc.get_freeze_count() == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_port_answers_while_the_checkpoint_loads():
    captioner = FakeCaptioner()
    loading = threading.Event()
    captioner.warm_up = lambda _: loading.wait(10)
    async with serving(captioner, wait=False) as client:
        assert (await client.get("/livez")).status_code == 200
        for path in ("/startupz", "/readyz", "/healthz"):
            assert (await client.get(path)).status_code == 503
        loading.set()
        await asyncio.wait({client.app.state.app_state.service._starting})
        assert (await client.get("/readyz")).status_code == 200


async def test_every_batch_size_on_the_way_up_is_warmed():
    captioner = FakeCaptioner()
    async with serving(captioner, max_batch=6):
        assert captioner.warmed == [1, 2, 4, 6]


async def test_a_missing_checkpoint_makes_it_failed_and_says_why(tmp_path):
    app = create_app(Settings(checkpoint=tmp_path / "nowhere"))
    with capture_logs() as logs:
        async with app.router.lifespan_context(app):
            await asyncio.wait({app.state.app_state.service._starting})
            report = app.state.app_state.health.livez()
    assert (report.ok, report.status, report.reason) == (False, "failed", "checkpoint_refused")
    (refused,) = [log for log in logs if log["event"] == "checkpoint_refused"]
    assert "nowhere" in refused["reason"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("the golden caption differs"), "checkpoint_refused"),
        (MemoryError(), "start_failed"),
    ],
)
async def test_a_wrong_golden_caption_is_never_ready(error, reason):
    captioner = FakeCaptioner()
    captioner.golden_error = error
    async with serving(captioner) as client:
        for path in ("/livez", "/startupz", "/readyz"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert answer.json() == {"status": "failed", "reason": reason}
        refused = await client.post("/v1/captions", content=b"a", headers=RAW)
    assert refused.json()["reason"] == reason


async def test_images_of_one_moment_share_batches():
    captioner = FakeCaptioner()
    async with serving(captioner, max_batch=8) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        first = asyncio.create_task(service.caption(b"0", deadline_s()))
        await asyncio.to_thread(captioner.entered.wait)
        callers = [asyncio.create_task(service.caption(b"%d" % n, deadline_s())) for n in range(8)]
        async with asyncio.timeout(5):
            while service.depth < 8:  # noqa: ASYNC110 - they are decoded in threads
                await asyncio.sleep(0.001)
        captioner.gate.set()
        answers = await asyncio.gather(first, *callers)
    assert [len(batch) for batch in captioner.batches] == [1, 8]
    assert [answer[0].text for answer in answers] == ["0", *"01234567"]


async def test_a_caller_who_leaves_shortens_the_batch_and_the_others_get_the_same():
    captioner, photos = SteppingCaptioner(), [photo(seed) for seed in range(3)]
    async with serving(captioner) as client:
        service = client.app.state.app_state.service
        first = asyncio.create_task(service.caption(photos[0], deadline_s()))
        await asyncio.to_thread(captioner.engine.entered.acquire, timeout=10)
        callers = [asyncio.create_task(service.caption(data, deadline_s())) for data in photos]
        async with asyncio.timeout(10):
            while service.depth < 3:  # noqa: ASYNC110 - they are decoded in threads
                await asyncio.sleep(0.001)
        captioner.engine.gate.release()
        await asyncio.to_thread(captioner.engine.entered.acquire, timeout=10)
        callers[1].cancel()
        await asyncio.wait({callers[1]})
        captioner.engine.gate.release(3)
        alone = [await service.caption(photos[n], deadline_s()) for n in (0, 2)]
        together = await asyncio.gather(callers[0], callers[2])
        await first
    assert captioner.engine.images == [1] * 12 + [3] + [2] * 11 + [1] * 24
    for own, shared in zip(alone, together, strict=True):
        assert [each.text for each in own] == [each.text for each in shared]


async def test_what_is_in_flight_is_answered_before_the_service_closes():
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        captioner.gate.clear()
        caller = asyncio.create_task(client.post("/v1/captions", content=b"a", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        closing = asyncio.create_task(client.app.state.app_state.service.close())
        await asyncio.sleep(0)
        late = await client.post("/v1/captions", content=b"b", headers=RAW)
        captioner.gate.set()
        assert captions(await caller) == ["a"]
        await closing
        client.app.state.app_state.service.close = lambda: asyncio.sleep(0)
    assert (late.status_code, late.json()["reason"]) == (503, "shutting_down")


async def test_while_draining_it_is_not_ready_and_still_captions():
    async with serving() as client:
        health = client.app.state.app_state.health
        health.drain()
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        assert captions(await client.post("/v1/captions", content=b"a", headers=RAW)) == ["a"]
        health.refuse()
        late = await client.post("/v1/captions", content=b"b", headers=RAW)
    assert late.status_code == 503
    assert late.headers["connection"] == "close"
    assert int(late.headers["retry-after"]) >= 1


async def test_a_stuck_network_is_not_alive_and_does_not_hold_up_the_end():
    captioner = FakeCaptioner()
    async with serving(captioner, stuck_after_s=0.05, deadline_s=1, body_timeout_s=1) as client:
        captioner.gate.clear()
        captioner.entered.clear()
        asking = asyncio.create_task(client.post("/v1/captions", content=b"a", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait, 10)
        await asyncio.sleep(0.1)
        live = await client.get("/livez")
        answer = await asking
        ending_s = time.monotonic()
    took_s = time.monotonic() - ending_s
    captioner.gate.set()
    assert answer.status_code == 504
    assert (live.status_code, live.json()["reason"]) == (503, "inference_thread_stuck")
    assert took_s < 5


async def test_a_crash_of_the_batcher_is_a_failure_of_the_service():
    async with serving() as client:
        client.app.state.app_state.metrics.dispatched = None  # a bug, for example
        state = client.app.state.app_state
        state.service._batcher._watcher = state.metrics
        answer = await client.post("/v1/captions", content=b"a", headers=RAW)
        live = await client.get("/livez")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert (live.status_code, live.json()["reason"]) == (503, "batcher_crashed")


def test_a_quota_of_the_container_bounds_the_cores(tmp_path):
    quota = tmp_path / "cpu.max"
    everything = usable_cores(quota)
    quota.write_text("max 100000\n")
    assert usable_cores(quota) == everything >= 1
    quota.write_text("100000 100000\n")
    assert usable_cores(quota) == 1
    quota.write_text("50000 100000\n")
    assert usable_cores(quota) == 1
    quota.write_text("99900000 100000\n")
    assert usable_cores(quota) == everything


# The device


@pytest.mark.parametrize(("alike", "begun"), [(False, 2), (True, 1)])
async def test_where_batches_cost_alike_few_images_wait_for_the_one_under_way(alike, begun):
    captioner = FakeCaptioner()
    captioner.engine.max_concurrent_batches, captioner.engine.batches_cost_alike = 2, alike
    captioner.gate.clear()
    async with serving(captioner, max_batch=8) as client:
        service = client.app.state.app_state.service
        callers = [asyncio.create_task(service.caption(b"0", deadline_s()))]
        await asyncio.to_thread(captioner.entered.wait, 10)
        captioner.entered.clear()
        callers += [asyncio.create_task(service.caption(b"%d" % n, deadline_s())) for n in (1, 2)]
        await asyncio.to_thread(captioner.entered.wait, 0.5)
        assert len(captioner.batches) == begun
        captioner.gate.set()
        await asyncio.gather(*callers)


async def test_a_batch_that_does_not_fit_is_split_and_every_image_is_captioned():
    captioner = FakeCaptioner()
    captioner.device_errors = [OutOfMemory()]
    async with serving(captioner, max_batch=4) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        callers = [asyncio.create_task(service.caption(b"%d" % n, deadline_s())) for n in range(3)]
        await asyncio.to_thread(captioner.entered.wait)
        captioner.gate.set()
        answers = await asyncio.gather(*callers)
        assert service.batch_size_limit < 4
        metrics = (await client.get("/metrics")).text
        live = await client.get("/livez")
    assert [answer[0].text for answer in answers] == ["0", "1", "2"]
    assert "caption_out_of_memory_total 1.0" in metrics
    assert live.status_code == 200


async def test_a_device_that_holds_not_even_one_image_is_given_up():
    captioner = FakeCaptioner()
    captioner.device_errors = [OutOfMemory() for _ in range(6)]
    async with serving(captioner) as client:
        answers = [await client.post("/v1/captions", content=b"a", headers=RAW) for _ in range(3)]
        live = await client.get("/livez")
    assert [answer.json()["code"] for answer in answers] == ["overloaded"] * 3
    assert {answer.status_code for answer in answers} == {503}
    assert all("retry-after" in answer.headers for answer in answers)
    assert (live.status_code, live.json()["reason"]) == (503, "out_of_memory")


async def test_a_device_fault_ends_the_life_and_sends_callers_elsewhere():
    captioner = FakeCaptioner()
    captioner.device_errors = [DeviceFault("secret")]
    async with serving(captioner) as client:
        answer = await client.post("/v1/captions", json=as_json(b"1", b"2"))
        probes = [await client.get(path) for path in ("/livez", "/readyz", "/startupz")]
        late = await client.post("/v1/captions", content=b"a", headers=RAW)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) >= 1
    assert [probe.status_code for probe in probes] == [503] * 3
    assert {probe.json()["reason"] for probe in probes} == {"device_fault"}
    assert late.status_code == 503
    assert len(captioner.batches) == 1  # nobody asks a device that is gone again


# The result cache


def stages(answer):
    return re.findall(r"(\w+);dur=", answer.headers["server-timing"])


def results(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def lookups(client):
    """Give how many uploads were a hit, shared and a miss."""
    registry = client.app.state.app_state.metrics.registry
    return [
        int(registry.get_sample_value("caption_result_cache_total", {"outcome": outcome}) or 0)
        for outcome in ("hit", "shared", "miss")
    ]


async def test_the_same_upload_is_captioned_once_when_results_are_kept():
    captioner = FakeCaptioner()
    async with serving(captioner, result_cache_entries=9) as client:
        first = await client.post("/v1/captions", content=b"a dog", headers=RAW)
        again = await client.post("/v1/captions", content=b"a dog", headers=RAW)
        other = await client.post("/v1/captions", content=b"a cat", headers=RAW)
        assert lookups(client) == [1, 0, 2]
    assert captioner.batches == [[b"a dog"], [b"a cat"]]
    assert results(first) == results(again)
    assert captions(other) == ["a cat"]
    assert stages(first) == ["decode", "queue", "encode", "search", "total"]
    assert stages(again) == ["cache", "total"]


async def test_no_result_is_kept_unless_asked_for():
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        for _ in range(2):
            answer = await client.post("/v1/captions", content=b"a dog", headers=RAW)
            assert stages(answer) == ["decode", "queue", "encode", "search", "total"]
        assert lookups(client) == [0, 0, 0]
    assert captioner.batches == [[b"a dog"]] * 2


async def test_the_same_upload_twice_at_once_goes_through_the_network_once():
    captioner = FakeCaptioner()
    async with serving(captioner, result_cache_entries=9) as client:
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", content=b"a dog", headers=RAW))
        await until(lambda: lookups(client) == [0, 0, 1])
        second = asyncio.create_task(client.post("/v1/captions", json=as_json(b"a dog", b"a dog")))
        await until(lambda: lookups(client) == [0, 2, 1])
        captioner.gate.set()
        alone, both = await asyncio.gather(first, second)
    assert captioner.batches == [[b"a dog"]]
    assert captions(alone) + captions(both) == ["a dog"] * 3
    assert sorted(stages(alone) + stages(both)) == sorted(
        ["decode", "queue", "encode", "search", "total", "cache", "total"]
    )


async def test_each_request_gets_its_own_options_from_the_same_result():
    asked = [{"n_best": 2, "words": True}, {"attention": True}, {}, {"n_best": 3}]
    answers = {}
    for entries in (0, 9):
        captioner = FakeCaptioner()
        async with serving(captioner, result_cache_entries=entries) as client:
            answers[entries] = [
                results(await client.post("/v1/captions", json=as_json(b"a dog", **options)))
                for options in asked
            ]
    assert len(captioner.batches) == 1
    assert answers[9] == answers[0]


async def test_a_large_upload_is_recognised_too():
    captioner = FakeCaptioner()
    async with serving(captioner, result_cache_entries=9) as client:
        for last in (b"a", b"a", b"b"):
            await client.post("/v1/captions", content=b" " * 2**18 + last, headers=RAW)
        assert lookups(client) == [1, 0, 2]
    assert len(captioner.batches) == 2


async def test_a_failure_is_not_kept():
    captioner = FakeCaptioner()
    async with serving(captioner, result_cache_entries=9) as client:
        for image, code in [(b"broken", "undecodable_image"), (b"poison", "internal_error")]:
            for _ in range(2):
                answer = await client.post("/v1/captions", content=image, headers=RAW)
                assert answer.json()["code"] == code
        assert lookups(client) == [0, 0, 4]


async def test_the_kept_result_holds_no_more_than_itself():
    captioner = SteppingCaptioner()
    captioner.engine.gate.release()
    async with serving(captioner, result_cache_entries=9) as client:
        service = client.app.state.app_state.service
        candidates = await service.caption(photo(), deadline_s())
        assert await service.caption(photo(), deadline_s()) == candidates
    attention = [word.attention for caption in candidates for word in caption.words]
    assert attention
    assert all(each.base is None for each in attention)  # else the whole batch's is kept with it


async def test_a_shared_search_ends_once_all_its_callers_have_left():
    captioner = SteppingCaptioner()
    async with serving(captioner, result_cache_entries=9) as client:
        service = client.app.state.app_state.service
        for leave, steps in [(1, 12), (2, 1)]:
            captioner.engine.images.clear()
            data = photo(leave)
            callers = [asyncio.create_task(service.caption(data, deadline_s())) for _ in range(2)]
            await asyncio.to_thread(captioner.engine.entered.acquire, timeout=10)
            for caller in callers[:leave]:
                caller.cancel()
            await asyncio.wait(callers[:leave])
            captioner.engine.gate.release()
            await asyncio.wait(callers)
            assert await service._wait_until_idle(10)
            assert captioner.engine.images == [1] * steps
        assert lookups(client) == [0, 2, 2]


async def test_the_shortest_deadline_does_not_end_what_others_wait_for():
    captioner = FakeCaptioner()
    async with serving(captioner, result_cache_entries=9) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        captioner.entered.clear()
        hasty = asyncio.create_task(service.caption(b"a dog", deadline_s()))
        patient = asyncio.create_task(service.caption(b"a dog", deadline_s() + 100))
        await asyncio.to_thread(captioner.entered.wait, 10)
        pass_time(20)
        await asyncio.wait({hasty})
        captioner.gate.set()
        assert (await patient)[0].text == "a dog"
    assert isinstance(hasty.exception(), DeadlineExceeded)
    assert captioner.batches == [[b"a dog"]]


async def test_an_upload_that_nobody_waits_for_any_more_leaves_the_queue():
    captioner = FakeCaptioner()
    async with serving(captioner, result_cache_entries=9) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        first = asyncio.create_task(service.caption(b"1", deadline_s() + 100))
        await asyncio.to_thread(captioner.entered.wait)
        late = asyncio.create_task(service.caption(b"2", deadline_s()))
        await until(lambda: service.depth == 1)
        pass_time(20)
        await asyncio.wait({late})
        await until(lambda: service.depth == 0)
        captioner.gate.set()
        assert (await first)[0].text == "1"
    assert isinstance(late.exception(), DeadlineExceeded)
    assert captioner.batches == [[b"1"]]


@pytest.mark.parametrize(
    ("seconds_per_image", "timeout_s", "status"),
    [(20.0, "30", 503), (0.001, "30", 200), (1.0, "30", 200), (1.0, "4", 503)],
)
async def test_who_would_wait_too_long_is_refused_at_once(seconds_per_image, timeout_s, status):
    captioner = FakeCaptioner()
    headers = {"content-type": "image/png", "x-request-timeout": timeout_s}
    async with serving(captioner, max_batch=2) as client:
        captioner.gate.clear()
        first = [
            asyncio.create_task(client.post("/v1/captions", content=b"1", headers=headers))
            for _ in range(2)
        ]
        service = client.app.state.app_state.service
        await until(lambda: service._held == 2)
        service._batcher._seconds_per_item = seconds_per_image
        late = asyncio.create_task(client.post("/v1/captions", content=b"2", headers=headers))
        await until(lambda: late.done() or service._held == 3)  # turned away, or let in
        captioner.gate.set()
        answer, *others = await asyncio.gather(late, *first)
    assert answer.status_code == status
    if status == 503:
        assert answer.json()["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
    assert [each.status_code for each in others] == [200, 200]
