"""Which dialects are there, what they cost the others, and odd requests to all of them."""

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.dialects.registry import DIALECTS, chosen
from app.settings import Settings
from support.api import RAW, captions, problem
from support.fake import serving

ROUTES = {
    "openai": "/v1/chat/completions",
    "ollama": "/api/generate",
    "huggingface": "/hf",
    "kserve": "/v2/models/tiny/infer",
    "max": "/model/predict",
}
POSTS = [*ROUTES.values(), "/v1/responses", "/api/chat", "/api/show", "/models/any"]


def test_every_dialect_has_a_name_in_the_settings():
    assert set(DIALECTS) == set(Settings().dialects) == set(ROUTES)


@pytest.mark.parametrize(
    ("text", "names"),
    [("openai,kserve", ["openai", "kserve"]), ("max max", ["max"]), ("none", [])],
)
def test_dialects_are_chosen_by_name(monkeypatch, text, names):
    monkeypatch.setenv("CAPTION_DIALECTS", text)
    assert [each.name for each in chosen(Settings().dialects)] == names


@pytest.mark.parametrize("name", ROUTES)
async def test_each_can_be_switched_off(name):
    others = tuple(each for each in DIALECTS if each != name)
    async with serving(dialects=others) as client:
        problem(await client.post(ROUTES[name], content=b"a"), 404, "not_found")
    async with serving(dialects=(name,)) as client:
        answer = await client.post(ROUTES[name], content=b"{}", headers=RAW)
        assert answer.status_code != 404
        for other in others:
            problem(await client.post(ROUTES[other], content=b"a"), 404, "not_found")


async def test_our_own_routes_keep_their_problems():
    async with serving() as client:
        answer = await client.post("/v1/captions", content=b"broken", headers=RAW)
        problem(answer, 422, "undecodable_image")
        assert captions(await client.post("/v1/captions", content=b"a", headers=RAW)) == ["a"]
        problem(await client.get("/nowhere"), 404, "not_found")


@pytest.mark.parametrize("path", POSTS)
async def test_a_method_that_a_route_has_not_is_told_in_its_shape(path):
    async with serving() as client:
        answer = await client.delete(path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.headers["content-type"] == "application/json"
    assert "another method" in json.dumps(answer.json())


async def test_who_is_refused_before_the_body_hears_it_in_the_shape_too():
    async with serving(max_upload_bytes=10) as client:
        for path in POSTS:
            answer = await client.post(path, content=b"x" * 11)
            assert answer.status_code == 413
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["connection"] == "close"
            assert "too many bytes" in json.dumps(answer.json())


async def test_a_fault_of_ours_is_told_without_its_cause():
    async with serving() as client:
        answer = await client.post("/hf", content=b"poison")
        assert answer.status_code == 500
        assert answer.json()["error_type"] == "internal_error"
        assert "secret" not in answer.text


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
LIKELY = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", "YQ==", "data:,a", "http://a", "json"]),
    lambda inner: st.lists(inner)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "content", "image_url", "url", "images", "inputs", "shape", "data", "n",
             "datatype", "parameters", "outputs", "format", "schema", "stream", "role", "input",
             "response_format", "type", "json_schema", "properties", "text"]
        ),
        inner,
    ),
    max_leaves=20,
)  # fmt: skip


ODD = [
    [], "", 7, None, {"messages": []}, {"messages": [{}]}, {"messages": [{"content": [{}]}]},
    {"messages": [{"content": [{"image_url": {}}]}]}, {"images": [""], "format": {"$ref": "#"}},
    {"images": ["YQ=="], "format": {"type": "integer"}}, {"input": []}, {"input": [7]},
    {"inputs": []}, {"inputs": [{"datatype": "BYTES"}]}, {"inputs": ""}, {"inputs": "%"},
    {"images": "YQ=="}, {"messages": [{"role": 7}]}, {"n": 0, "messages": [{}]},
    {"inputs": [{"datatype": "BYTES", "shape": [1], "data": [7]}]},
    {"images": ["YQ=="], "format": {"properties": []}},
]  # fmt: skip


def answer_to(client, path, value):
    answer = client.post(path, content=json.dumps(value).encode())
    assert answer.status_code in {200, 400}, (path, value, answer.text)
    assert answer.headers["content-type"] in {"application/json", "application/x-ndjson"}


@pytest.mark.parametrize("path", POSTS)
def test_no_odd_json_is_a_fault_of_ours(url, path):
    with httpx.Client(base_url=url) as client:
        for value in ODD:
            answer_to(client, path, value)


def test_no_json_is_a_fault_of_ours(url):
    with httpx.Client(base_url=url) as client:

        @given(st.sampled_from(POSTS), ANY_JSON | LIKELY)
        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        def ask(path, value):
            answer_to(client, path, value)

        ask()


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff", b'{"a": "\\ud800"}', b"{},"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", ROUTES["kserve"]])
def test_what_is_no_json_is_told(url, path, content):
    answer = httpx.post(f"{url}{path}", content=content)
    assert answer.status_code == 400


def test_a_body_of_very_many_members_is_refused_before_it_is_parsed(url):
    body = b'{"messages": [' + b"[]," * 1_000_000 + b"[]]}"
    answer = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert "brackets" in answer.json()["error"]["message"]
