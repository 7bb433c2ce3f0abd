"""The dialect of OpenAI, by hand and with the package that its users have."""

import base64
import json

import pytest
from pydantic import SecretStr

from support.fake import serving

DOG = b"a dog runs"
NOTE = "x-caption-note"


def data_uri(image, kind="image/jpeg"):
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def image_part(image):
    return {"type": "image_url", "image_url": {"url": data_uri(image)}}


def user(*images, text="Describe this."):
    return {"role": "user", "content": [{"type": "text", "text": text}, *map(image_part, images)]}


def ask(client, *messages, headers=None, **members):
    body = {"model": "any", "messages": list(messages), **members}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def contents(answer):
    assert answer.status_code == 200, answer.text
    return [choice["message"]["content"] for choice in answer.json()["choices"]]


async def test_an_image_is_described_and_the_text_is_said_to_be_ignored():
    async with serving() as client:
        answer = await ask(client, user(DOG))
        assert contents(answer) == ["a dog runs"]
        assert "ignored" in answer.json()["usage"]["note"]
        assert "ignored" in answer.headers[NOTE]
        silent = await ask(client, {"role": "user", "content": [image_part(DOG)]})
        assert contents(silent) == ["a dog runs"]
        assert "note" not in silent.json()["usage"]
        assert NOTE not in silent.headers


async def test_several_images_are_described_line_by_line():
    async with serving() as client:
        assert contents(await ask(client, user(b"a dog", b"a cat"))) == ["a dog\na cat"]


async def test_n_gives_candidates_up_to_the_beam_width():
    async with serving() as client:
        assert contents(await ask(client, user(DOG), n=2)) == ["a dog runs", "a dog runs 1"]
        refused = await ask(client, user(DOG), n=4)
        assert refused.status_code == 400
        assert "beam width" in refused.json()["error"]["message"]


async def test_the_images_of_the_last_turn_count():
    said = {"role": "assistant", "content": "a dog"}
    async with serving() as client:
        later = await ask(client, user(b"a dog"), said, user(b"a cat"))
        assert contents(later) == ["a cat"]
        without = await ask(client, user(b"a dog"), said, user(text="What else?"))
        assert contents(without) == ["a dog"]


async def test_without_an_image_it_says_what_it_does():
    async with serving() as client:
        answer = await ask(client, {"role": "user", "content": "Hi"})
        (text,) = contents(answer)
    assert text.startswith("Send an image")


@pytest.mark.parametrize("address", ["http://a.example/dog.jpg", "https://a.example/dog.jpg"])
async def test_a_remote_url_is_an_error_in_openais_shape(address):
    part = {"type": "image_url", "image_url": {"url": address}}
    async with serving() as client:
        answer = await ask(client, {"role": "user", "content": [part]})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"
    assert error["param"] == "url"
    assert "data: URI" in error["message"]


async def test_a_bad_image_fails_the_request():
    async with serving() as client:
        answer = await ask(client, user(DOG, b"broken"))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "undecodable_image"


async def test_keys_and_limits_hold():
    async with serving(api_keys=(SecretStr("key"),), max_images=1) as client:
        refused = await ask(client, user(DOG))
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        key = {"authorization": "Bearer key"}
        assert contents(await ask(client, user(DOG), headers=key)) == ["a dog runs"]
        many = await ask(client, user(DOG, DOG), headers=key)
        assert many.json()["error"]["code"] == "too_many_images"


async def test_it_is_counted_as_a_route_of_its_own():
    async with serving() as client:
        await ask(client, user(DOG))
        await client.get("/v1/models/nobody")
        told = (await client.get("/metrics")).text
    assert 'outcome="ok",route="/v1/chat/completions"} 1.0' in told
    assert 'outcome="not_found",route="/v1/models/{name}"} 1.0' in told
    assert 'caption_images_total{checkpoint="tiny:1",outcome="ok"} 1.0' in told


async def test_a_stream_ends_with_the_reason_and_the_usage():
    async with serving() as client:
        answer = await ask(client, user(DOG), stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [line[6:] for line in answer.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "a dog runs"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 3


async def test_a_schema_is_filled():
    schema = {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"type": "string"}}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with serving() as client:
        (text,) = contents(await ask(client, user(DOG), response_format=wanted))
        assert json.loads(text) == {"tags": ["dog", "runs"]}
        (text,) = contents(await ask(client, user(DOG), response_format={"type": "json_object"}))
        assert json.loads(text)["caption"] == "a dog runs"


async def test_responses_takes_the_same_images():
    part = {"type": "input_image", "image_url": data_uri(DOG), "detail": "low"}
    async with serving() as client:
        asked = {"model": "a", "input": [{"role": "user", "content": [part]}]}
        answer = await client.post("/v1/responses", json=asked)
        assert answer.json()["output"][0]["content"][0]["text"] == "a dog runs"
        refused = await client.post("/v1/responses", json={**asked, "stream": True})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "stream"


async def test_one_list_of_models_serves_both():
    async with serving() as client:
        listed = (await client.get("/v1/models")).json()
        assert listed["models"][0]["name"] == "tiny"
        assert listed["object"] == "list"
        (one,) = listed["data"]
        assert one["id"] == "tiny:1"
        assert (await client.get("/v1/models/tiny:1")).json() == one
        missing = await client.get("/v1/models/gpt-4o")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not_found"


# With its client


@pytest.fixture
def openai(url):
    package = pytest.importorskip("openai")
    with package.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield package, client


def test_openais_client_completes(openai):
    _, client = openai
    answer = client.chat.completions.create(model="any", messages=[user(DOG)], max_tokens=50)
    assert answer.choices[0].message.content == "a dog runs"
    assert answer.usage.completion_tokens == 3


def test_openais_client_streams(openai):
    _, client = openai
    chunks = client.chat.completions.create(model="any", messages=[user(DOG)], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a dog runs"


def test_openais_client_parses_a_schema(openai):
    from pydantic import BaseModel  # noqa: PLC0415

    class Photo(BaseModel):
        caption: str
        tags: list[str]
        mood: str | None

    _, client = openai
    answer = client.chat.completions.parse(model="any", messages=[user(DOG)], response_format=Photo)
    photo = answer.choices[0].message.parsed
    assert (photo.caption, photo.tags) == ("a dog runs", ["dog", "runs"])


def test_openais_client_responds(openai):
    _, client = openai
    part = {"type": "input_image", "image_url": data_uri(DOG), "detail": "auto"}
    answer = client.responses.create(model="any", input=[{"role": "user", "content": [part]}])
    assert answer.output_text == "a dog runs"
    assert answer.usage.output_tokens == 3


def test_openais_client_lists_models(openai):
    _, client = openai
    assert [model.id for model in client.models.list()] == ["tiny:1"]
    assert client.models.retrieve("tiny:1").owned_by == "caption-service"


def test_openais_client_raises_its_own_errors(openai):
    package, client = openai
    with pytest.raises(package.BadRequestError, match="Undecodable image") as told:
        client.chat.completions.create(model="any", messages=[user(b"broken")])
    assert told.value.code == "undecodable_image"
    with pytest.raises(package.NotFoundError):
        client.models.retrieve("gpt-4o")
