"""The service with decode processes, real ones and a tiny network."""

import asyncio
import sys
from contextlib import asynccontextmanager

import httpx
from structlog.testing import capture_logs

from app.captioner.errors import NoDecoder
from app.captioner.image.decode_processes import DecodeProcesses
from app.main import create_app
from app.settings import Settings
from support.fake import until
from support.photos import photo, slow_png

PNG = {"content-type": "image/png"}


@asynccontextmanager
async def serving(checkpoint, **settings):
    app = create_app(Settings(checkpoint=checkpoint, device="cpu", inference_threads=1, **settings))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        client.app = app
        await asyncio.wait({app.state.app_state.service._starting})
        yield client


def post(client, data=None):
    data = photo() if data is None else data
    return client.post("/v1/captions", content=data, headers=PNG)


async def is_ready(client):
    return (await client.get("/readyz")).status_code == 200


async def test_an_image_is_decoded_in_a_process(checkpoint, monkeypatch):
    async with serving(checkpoint) as client:
        monkeypatch.setattr("app.captioner.image.decode._upright_rgb", None)  # nobody decodes here
        assert (await post(client)).status_code == 200
        assert (await post(client, b"\x89PNG\r\n\x1a\n")).json()["code"] == "undecodable_image"


async def test_it_is_not_ready_before_a_process_has_decoded_the_golden_image(
    checkpoint, monkeypatch
):
    def broken(*_, **__):
        raise NoDecoder

    monkeypatch.setattr(DecodeProcesses, "decode", broken)
    async with serving(checkpoint) as client:
        assert not await is_ready(client)
        assert client.app.state.app_state.health.livez().reason == "start_failed"


async def test_where_the_system_gives_no_process_threads_decode_and_the_log_says_so(
    checkpoint, monkeypatch
):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with capture_logs() as logs:
        async with serving(checkpoint) as client:
            assert (await post(client)).status_code == 200
    assert "no_decode_processes" in [each["event"] for each in logs]


async def test_an_image_over_its_budget_is_refused_and_counted_and_the_next_is_captioned(
    checkpoint,
):
    async with serving(checkpoint, decode_processes=1, decode_cpu_s=0.15) as client:
        refused = await post(client, slow_png())
        following = await post(client)
        metrics = (await client.get("/metrics")).text
        assert await is_ready(client)
    assert (refused.status_code, refused.json()["code"]) == (422, "too_costly")
    assert following.status_code == 200
    assert 'caption_decoders_ended_total{reason="over_budget"} 1.0' in metrics


async def test_without_a_process_images_get_503_and_the_service_stays_ready(
    checkpoint, monkeypatch
):
    def gone(*_, **__):
        raise NoDecoder

    async with serving(checkpoint) as client:
        monkeypatch.setattr(DecodeProcesses, "decode", gone)
        answer = await post(client)
        assert await is_ready(client)
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"


async def test_small_images_do_not_wait_for_costly_ones(checkpoint):
    costly = slow_png()
    async with serving(checkpoint, decode_cpu_s=30) as client:
        many = [asyncio.create_task(post(client, costly)) for _ in range(4)]
        service = client.app.state.app_state.service
        await until(lambda: service._held == 4)
        answer = await post(client)
        assert answer.status_code == 200
        assert sum(each.done() for each in many) < 2
        for each in many:
            each.cancel()
        await asyncio.wait(many)


async def test_a_costly_image_whose_caller_leaves_gives_its_process_back(checkpoint):
    costly = slow_png()
    async with serving(checkpoint, decode_cpu_s=30) as client:
        service = client.app.state.app_state.service
        asked = asyncio.create_task(service.caption(costly, asyncio.get_running_loop().time() + 99))
        await until(lambda: service._decoders._busy)
        asked.cancel()
        await asyncio.wait({asked})
        await until(lambda: not service._turns._under_way)
        metrics = (await client.get("/metrics")).text
    assert 'caption_decoders_ended_total{reason="abandoned"} 1.0' in metrics
    assert 'caption_cancelled_total{stage="decode"} 1.0' in metrics


async def test_all_processes_have_ended_when_the_service_has(checkpoint):
    async with serving(checkpoint) as client:
        decoders = client.app.state.app_state.service._decoders
        await until(lambda: len(decoders._idle) == 2)
        children = [each._child for each in decoders._idle]
    assert all(child.poll() is not None for child in children)
    assert not decoders._nurse.is_alive()
