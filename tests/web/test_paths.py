"""Paths as clients and proxies write them, HEAD, and what browsers ask before and after."""

import httpx
import pytest
from structlog.testing import capture_logs

from app.main import create_app
from app.server import _uvicorn_config
from app.settings import Settings
from support.api import RAW, captions, problem
from support.fake import FakeCaptioner, serving

GET_PATHS = ["/livez", "/startupz", "/readyz", "/healthz", "/metrics", "/v1/models",
             "/openapi.json"]  # fmt: skip
ORIGIN = "https://app.example"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@pytest.mark.parametrize("path", GET_PATHS)
async def test_what_has_get_has_head(path):
    async with serving() as client:
        get, head = await client.get(path), await client.head(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # which changes
        assert head.headers["content-length"] == get.headers["content-length"]


async def test_another_method_is_told_which_there_are():
    async with serving() as client:
        for path, allowed in (("/readyz", "GET, HEAD"), ("/v1/captions", "POST")):
            answer = await client.delete(path)
            problem(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == allowed
        assert (await client.head("/v1/captions")).status_code == 405


@pytest.mark.parametrize("path", ["/readyz", "/healthz", "/metrics", "/v1/models"])
async def test_a_slash_at_the_end_means_the_same_path(path):
    async with serving() as client:
        assert (await client.get(f"{path}/")).status_code == 200
        assert (await client.get(f"{path}//")).status_code == 404
        metrics = (await client.get("/metrics")).text
    assert f'outcome="ok",route="{path}"' in metrics


async def test_a_slash_at_the_end_opens_no_door(monkeypatch):
    monkeypatch.setenv("CAPTION_API_KEYS", "secret")
    async with serving(api_keys="secret") as client:
        problem(await client.get("/v1/models/"), 401, "unauthorized")
        problem(await client.post("/v1/captions/", content=b"a", headers=RAW), 401, "unauthorized")
        problem(await client.get("/%6detrics/"), 404, "not_found")


@pytest.mark.parametrize("prefix", ["/prefix", ""])
async def test_a_prefix_may_be_left_in_the_path_or_taken_away(prefix):
    async with serving(root_path="/prefix", api_keys="secret") as client:
        assert (await client.get(f"{prefix}/readyz")).status_code == 200
        key = {**RAW, "x-api-key": "secret"}
        answer = await client.post(f"{prefix}/v1/captions", content=b"a dog", headers=key)
        assert captions(answer) == ["a dog"]
        problem(await client.get(f"{prefix}/v1/models"), 401, "unauthorized")
        page = await client.get(f"{prefix}/docs")
        assert "/prefix/openapi.json" in page.text
        openapi = (await client.get(f"{prefix}/openapi.json")).json()
    assert openapi["servers"] == [{"url": "/prefix"}]


async def test_what_only_begins_like_the_prefix_is_another_path():
    async with serving(root_path="/prefix") as client:
        problem(await client.get("/prefixes/readyz"), 404, "not_found")
        problem(await client.get("/other/readyz"), 404, "not_found")


async def test_a_preflight_needs_no_key_and_is_answered_for_the_origins_that_may_ask():
    async with serving(cors_origins=ORIGIN, api_keys="secret") as client:
        allowed = await client.options("/v1/captions", headers=PREFLIGHT)
        other = await client.options("/v1/captions", headers={**PREFLIGHT, "origin": "https://x"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in allowed.headers["access-control-allow-methods"]
    told = {
        each.strip() for each in allowed.headers["access-control-allow-headers"].lower().split(",")
    }
    assert {"authorization", "content-type", "x-api-key"} <= told
    assert "access-control-allow-origin" not in other.headers


async def test_answers_and_problems_may_be_read_by_the_origins_that_may_ask():
    async with serving(cors_origins=ORIGIN) as client:
        good = await client.post("/v1/captions", content=b"a", headers={**RAW, "origin": ORIGIN})
        bad = await client.post("/v1/captions", content=b"", headers={**RAW, "origin": ORIGIN})
        other = await client.post(
            "/v1/captions", content=b"a", headers={**RAW, "origin": "https://x"}
        )
    for answer in (good, bad):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-origin" not in other.headers


async def test_without_origins_no_page_may_read_anything():
    async with serving() as client:
        answer = await client.post("/v1/captions", content=b"a", headers={**RAW, "origin": ORIGIN})
        preflight = await client.options("/v1/captions", headers=PREFLIGHT)
    assert "access-control-allow-origin" not in answer.headers
    problem(preflight, 405, "method_not_allowed")


async def test_no_answer_is_guessed_at():
    async with serving() as client:
        for answer in (await client.get("/readyz"), await client.get("/none")):
            assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_path_that_nobody_knows_is_in_the_log_escaped_and_cut():
    async with serving() as client:
        with capture_logs() as lines:
            await client.get("/wrong/v1/captions")
            await client.get("/" + "a" * 3000)
            await client.get("/%1b%5b31mred")
            await client.get("/v1/models")
    paths = [line.get("path") for line in lines if line["event"] == "request"]
    assert paths == ["/wrong/v1/captions", "/" + "a" * 159 + "…", "/\ufffd[31mred", None]


@pytest.mark.parametrize(("trusted", "scheme"), [("127.0.0.1", "https"), ("10.0.0.0/8", "http")])
async def test_only_trusted_proxies_say_who_asks(trusted, scheme):
    seen = {}
    settings = Settings(trusted_proxies=trusted)
    config = _uvicorn_config(create_app(settings, captioners=[FakeCaptioner()]), settings, None)

    async def app(scope, receive, send):
        seen.update(scope)

    config.app = app
    config.load()
    transport = httpx.ASGITransport(config.loaded_app, client=("127.0.0.1", 1))
    headers = {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(AssertionError):  # the app says nothing
            await client.get("/", headers=headers)
    assert seen["scheme"] == scheme
    assert seen["client"][0] == ("203.0.113.9" if scheme == "https" else "127.0.0.1")
