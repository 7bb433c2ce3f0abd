"""The dialect of Ollama, by hand and with the package that its users have."""

import base64
import json
import re

import pytest
from pydantic import SecretStr

from support.fake import serving

DOG = base64.b64encode(b"a dog runs").decode()
CAT = base64.b64encode(b"a cat").decode()


def lines(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_generate_streams_by_default():
    async with serving() as client:
        answer = await client.post("/api/generate", json={"model": "llava", "images": [DOG]})
        *pieces, end = lines(answer)
    assert "".join(piece["response"] for piece in pieces) == "a dog runs"
    assert not any(piece["done"] for piece in pieces)
    assert (end["done"], end["done_reason"], end["eval_count"]) == (True, "stop", 3)
    assert end["model"] == "tiny:1"


async def test_chat_answers_at_once_where_it_is_told_to():
    message = {"role": "user", "content": "What is this?", "images": [DOG, CAT]}
    async with serving() as client:
        answer = await client.post(
            "/api/chat", json={"model": "llava", "messages": [message], "stream": False}
        )
    assert answer.json()["message"] == {"role": "assistant", "content": "a dog runs\na cat"}
    assert "ignored" in answer.headers["x-caption-note"]


async def test_a_body_without_a_media_type_is_read_as_ollama_reads_it():
    """As the curl of its documentation sends it."""
    body = json.dumps({"model": "llava", "images": [DOG], "stream": False})
    headers = {"content-type": "application/x-www-form-urlencoded"}
    async with serving() as client:
        answer = await client.post("/api/generate", content=body, headers=headers)
    assert answer.json()["response"] == "a dog runs"


async def test_who_asks_nothing_has_the_model_loaded():
    async with serving() as client:
        answer = await client.post("/api/generate", json={"model": "llava", "stream": False})
        assert (answer.json()["response"], answer.json()["done_reason"]) == ("", "load")
        answer = await client.post("/api/generate", json={"model": "a", "prompt": "Hi"})
        assert "".join(each["response"] for each in lines(answer)).startswith("Send an image")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("json", {"caption": "a cat", "tags": ["cat"],
                  "labels": [{"name": "cat", "confidence": 0.6065}]}),
        ({"type": "object", "properties": {"what": {"type": "string"}}}, {"what": "a cat"}),
    ],
)  # fmt: skip
async def test_json_is_given_to_who_asks_for_it(wanted, said):
    asked = {"model": "a", "images": [CAT], "format": wanted, "stream": False}
    async with serving() as client:
        answer = await client.post("/api/generate", json=asked)
    assert json.loads(answer.json()["response"]) == said


async def test_what_is_served_is_listed():
    async with serving() as client:
        (listed,) = (await client.get("/api/tags")).json()["models"]
        assert (listed["name"], listed["model"]) == ("tiny:1", "tiny:1")
        assert re.fullmatch("[0-9a-f]{64}", listed["digest"])
        (loaded,) = (await client.get("/api/ps")).json()["models"]
        assert loaded["name"] == "tiny:1"
        shown = (await client.post("/api/show", json={"model": "tiny:1"})).json()
        assert "vision" in shown["capabilities"]
        assert (await client.get("/api/version")).json()["version"]


async def test_errors_are_in_ollamas_shape():
    async with serving(api_keys=(SecretStr("key"),)) as client:
        asked = {"model": "a", "images": ["not base64!"]}
        refused = await client.post("/api/generate", json=asked)
        assert refused.status_code == 401
        assert set(refused.json()) == {"error"}
        key = {"authorization": "Bearer key"}
        wrong = await client.post("/api/generate", json=asked, headers=key)
        assert wrong.status_code == 400
        assert "images.0" in wrong.json()["error"]
        missing = await client.post("/api/pull", json={"model": "a"}, headers=key)
        assert (missing.status_code, set(missing.json())) == (404, {"error"})


# With its client


@pytest.fixture
def ollama(url):
    package = pytest.importorskip("ollama")
    with package.Client(host=url) as client:
        yield package, client


def test_ollamas_client_generates_and_chats(ollama):
    _, client = ollama
    assert client.generate("llava", images=[b"a dog runs"])["response"] == "a dog runs"
    message = {"role": "user", "content": "What is this?", "images": [b"a dog runs"]}
    assert client.chat("llava", [message])["message"]["content"] == "a dog runs"


def test_ollamas_client_streams(ollama):
    _, client = ollama
    message = {"role": "user", "content": "What is this?", "images": [b"a dog runs"]}
    parts = list(client.chat("llava", [message], stream=True))
    assert "".join(part["message"]["content"] for part in parts) == "a dog runs"
    assert parts[-1]["done"]


def test_ollamas_client_lists_and_shows(ollama):
    _, client = ollama
    assert [model.model for model in client.list().models] == ["tiny:1"]
    assert client.show("tiny:1").capabilities == ["completion", "vision"]
    assert [model.name for model in client.ps().models] == ["tiny:1"]


def test_ollamas_client_raises_its_own_errors(ollama):
    package, client = ollama
    with pytest.raises(package.ResponseError, match="Undecodable image") as told:
        client.generate("llava", images=[b"broken"])
    assert told.value.status_code == 400
