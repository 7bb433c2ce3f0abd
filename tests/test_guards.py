"""Guards of admission and of the queue that their own files see only from one side."""

import asyncio
import contextlib
import hmac

import pytest
from pydantic import SecretStr
from starlette.datastructures import Headers

from app.web.admission import OPEN_PATHS
from app.web.auth import Keys
from app.web.problems import Unauthorized
from support.api import RAW, ask, captions, piece, problem
from support.batches import FAR_S, Squares, batching, submit_all
from support.fake import FakeCaptioner, serving

KEYS = (SecretStr("old"), SecretStr("new"))


async def test_no_other_header_is_looked_at_before_the_key():
    wrong = {
        "content-encoding": "gzip",
        "content-length": "9999",
        "x-request-timeout": "soon",
    }
    async with serving(api_keys=KEYS, max_upload_bytes=10) as client:
        client.app.state.app_state.health.refuse()
        refused = await client.post("/v1/captions", content=b"a", headers={**RAW, **wrong})
    problem(refused, 401, "unauthorized")


def nothing_there(answer):
    """Check a 404 in our shape, or in that of the dialect that has the path."""
    if answer.url.path.startswith("/v2"):
        assert (answer.status_code, set(answer.json())) == (404, {"error"})
    else:
        problem(answer, 404, "not_found")


@pytest.mark.parametrize("path", sorted(OPEN_PATHS - {"/"}))  # that one has one spelling
async def test_an_open_path_is_open_only_as_it_is_written(path):
    encoded = f"/%{ord(path[1]):x}{path[2:]}"
    async with serving(api_keys=KEYS) as client:
        plain = await client.get(f"{path}?a=%2f")
        assert (plain.status_code, plain.is_redirect) == (200, False)
        doubled = f"http://test/{path}"  # "//livez" alone would be a host
        for other in (encoded, f"{path}%00", doubled, path.upper(), f"{path}//"):
            nothing_there(await client.get(other, headers={"x-api-key": "old"}))
        nothing_there(await client.get(encoded))


async def test_a_guarded_path_is_guarded_however_it_is_written():
    async with serving(api_keys=KEYS) as client:
        for path in ("/v1/captions", "/v1/%63aptions", "/%76%31/captions"):
            problem(await client.post(path, content=b"a", headers=RAW), 401, "unauthorized")
            answer = await client.post(path, content=b"a", headers={**RAW, "x-api-key": "old"})
            assert captions(answer) == ["a"]


def test_every_key_is_compared_in_constant_time_whichever_fits(monkeypatch):
    compared, real = [], hmac.compare_digest

    def noting(left, right):
        compared.append((len(left), len(right)))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    for given in ("old", "new", "o", "a longer key than ours"):
        with contextlib.suppress(Unauthorized):
            Keys(KEYS).check(Headers({"x-api-key": given}))
    assert compared == [(32, 32)] * 8


@pytest.mark.parametrize("encoding", ["br", "deflate", "x-ours", "identity, gzip"])
async def test_an_encoding_that_nobody_knows_is_refused_too(encoding):
    async with serving() as client:
        headers = {**RAW, "content-encoding": encoding}
        refused = await client.post("/v1/captions", content=b"a", headers=headers)
    problem(refused, 415, "unsupported_encoding")


async def test_a_lone_image_is_not_kept_waiting():
    run = Squares()
    async with batching(run) as batcher:
        (lone,) = await submit_all(batcher, [7], FAR_S)
        for _ in range(3):  # turns of the loop, no time
            await asyncio.sleep(0)
        assert run.batches == [[7]]
        assert await lone == 49


async def test_closing_waits_for_the_batch_that_runs():
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        service = client.app.state.app_state.service
        captioner.gate.clear()
        caller = asyncio.create_task(client.post("/v1/captions", content=b"a", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        closing = asyncio.create_task(service.close())
        for _ in range(50):  # turns of the loop, no time
            await asyncio.sleep(0)
        assert not caller.done()
        captioner.gate.set()
        assert captions(await caller) == ["a"]
        await closing
        service.close = lambda: asyncio.sleep(0)


async def test_no_probe_waits_for_the_device():
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        captioner.gate.clear()
        caller = asyncio.create_task(client.post("/v1/captions", content=b"a", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        for path in ("/livez", "/startupz", "/readyz", "/healthz", "/metrics"):
            assert (await client.get(path)).status_code == 200
        assert not caller.done()  # a probe that waited would have waited for the batch
        captioner.gate.set()
        assert captions(await caller) == ["a"]


async def test_a_slow_body_is_not_waited_for_until_the_deadline():
    async with serving(body_timeout_s=0.05, deadline_s=500) as client:
        async with asyncio.timeout(20):
            status, _ = await ask(client.app, piece(b"x", more=True), hold=asyncio.Event())
    assert status == 408
