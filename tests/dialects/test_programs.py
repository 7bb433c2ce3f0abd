"""What photo managers and home automation send, member by member, and what they read of an answer.

The requests follow the sources of each program: PhotoPrism (`internal/ai/vision`), LLM Vision for
Home Assistant (`providers.py`) and Karakeep (`packages/shared/inference`).
"""

import base64
import json
from datetime import datetime

import pytest

from support.fake import serving

DOG = base64.b64encode(b"a dog runs").decode()
URI = f"data:image/jpeg;base64,{DOG}"


# PhotoPrism


async def test_photoprism_has_a_caption_from_ollama():
    asked = {
        "id": "5d2e8f0c-6c0a-4c4e-8c62-9d1f0f4f0c11",
        "model": "llava:latest",
        "prompt": "Create a caption with exactly one sentence in the active voice.",
        "suffix": "",
        "options": {"temperature": 0.1},
        "stream": False,
        "images": [DOG],
    }
    async with serving() as client:
        answer = (await client.post("/api/generate", json=asked)).json()
    assert answer["response"].strip() == "a dog runs"
    assert datetime.fromisoformat(answer["created_at"]).tzinfo
    whole = ("total_duration", "load_duration", "prompt_eval_count", "eval_count")
    assert all(type(answer[name]) is int for name in whole)  # its decoder refuses 1.0


async def test_photoprism_has_labels_from_ollama():
    asked = {
        "model": "gemma3:latest",
        "system": "You are a PhotoPrism vision model. Output concise JSON.",
        "prompt": "Return labels.",
        "suffix": "",
        "format": "json",
        "options": {"temperature": 0.1, "top_p": 0.9, "stop": ["\n\n"]},
        "stream": False,
        "images": [DOG],
    }
    async with serving() as client:
        answer = (await client.post("/api/generate", json=asked)).json()
    labels = json.loads(answer["response"])["labels"]
    assert [label["name"] for label in labels] == ["dog", "runs"]
    assert all(0 < label["confidence"] <= 1 for label in labels)


async def test_photoprism_has_a_caption_from_openai():
    asked = {
        "model": "gpt-5-mini",
        "input": [
            {"role": "system", "type": "message",
             "content": [{"type": "input_text", "text": "You are a vision model."}]},
            {"role": "user", "type": "message",
             "content": [{"type": "input_text", "text": "Describe the scene."},
                         {"type": "input_image", "image_url": URI, "detail": "low"}]},
        ],
        "reasoning": {"effort": "low"},
        "max_output_tokens": 512,
    }  # fmt: skip
    async with serving() as client:
        answer = (await client.post("/v1/responses", json=asked)).json()
    texts = [part["text"] for item in answer["output"] for part in item["content"]]
    assert texts == ["a dog runs"]
    assert answer["error"] is None


async def test_photoprism_has_labels_from_openai():
    label = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "confidence": {"type": "number"},
                       "topicality": {"type": "number"}},
        "required": ["name", "confidence", "topicality"],
        "additionalProperties": False,
    }  # fmt: skip
    schema = {"type": "object", "properties": {"labels": {"type": "array", "items": label}},
              "required": ["labels"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "name": "photoprism_labels_v1", "schema": schema, "strict": True}
    part = {"type": "input_image", "image_url": URI, "detail": "low"}
    asked = {"model": "gpt-5-mini", "input": [{"role": "user", "content": [part]}],
             "text": {"format": form}}  # fmt: skip
    async with serving() as client:
        answer = (await client.post("/v1/responses", json=asked)).json()
    labels = json.loads(answer["output"][0]["content"][0]["text"])["labels"]
    assert [set(each) for each in labels] == [{"name", "confidence", "topicality"}] * 2


# LLM Vision


async def test_llm_vision_is_let_in_before_it_has_an_image():
    """It greets the model, or asks for a list, before it keeps the address."""
    hi = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    headers = {"authorization": "Bearer any"}
    async with serving() as client:
        asked = {"model": "gpt-4o-mini", "messages": [hi]}
        answer = await client.post("/v1/chat/completions", json=asked, headers=headers)
        assert answer.status_code == 200
        assert (await client.get("/api/tags")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200  # as it greets LocalAI


async def test_llm_vision_has_a_sentence_for_each_frame_from_openai():
    frames = [
        part
        for number, image in enumerate((DOG, base64.b64encode(b"a cat").decode()), 1)
        for part in (
            {"type": "text", "text": f"Image {number}:"},
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
        )
    ]
    asked = {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "Your task is to analyze a series of images."},
            {"role": "user", "content": [*frames, {"type": "text", "text": "What happens?"}]},
        ],
        "max_completion_tokens": 3000,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    async with serving() as client:
        answer = (await client.post("/v1/chat/completions", json=asked)).json()
    assert answer["choices"][0]["message"]["content"] == "a dog runs\na cat"


async def test_llm_vision_has_a_sentence_from_ollama():
    asked = {
        "model": "llava-phi3:latest",
        "messages": [
            {"role": "user", "content": "Image 1:", "images": [DOG]},
            {"role": "user", "content": "What happens?"},
        ],
        "stream": False,
        "keep_alive": 5,
        "options": {"num_predict": 3000, "temperature": 0.5, "num_ctx": 2048},
        "system": "Your task is to analyze a series of images.",
    }
    async with serving() as client:
        answer = (await client.post("/api/chat", json=asked)).json()
    assert answer["message"]["content"] == "a dog runs"


async def test_llm_vision_reads_why_it_was_refused():
    bad = base64.b64encode(b"broken").decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{bad}"}}
    async with serving() as client:
        chat = {"model": "a", "messages": [{"role": "user", "content": [part]}]}
        openai = await client.post("/v1/chat/completions", json=chat)
        assert "damaged" in openai.json()["error"]["message"]
        generate = {"model": "a", "images": [bad]}
        ollama = await client.post("/api/generate", json=generate)
        assert "damaged" in ollama.json()["error"]


# Karakeep

TAGS = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["tags"],
    "additionalProperties": False,
    "$schema": "http://json-schema.org/draft-07/schema#",
}


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_schema", "json_schema": {"name": "schema", "strict": True, "schema": TAGS}},
        {"type": "json_object"},
    ],
)
async def test_karakeep_has_tags_from_openai(wanted):
    content = [
        {"type": "text", "text": 'Respond in JSON with the key "tags".'},
        {"type": "image_url", "image_url": {"url": URI, "detail": "low"}},
    ]
    asked = {
        "model": "gpt-4o-mini",
        "max_tokens": 2048,
        "response_format": wanted,
        "messages": [{"role": "user", "content": content}],
    }
    headers = {"X-Title": "Karakeep", "HTTP-Referer": "https://karakeep.app"}
    async with serving() as client:
        answer = await client.post("/v1/chat/completions", json=asked, headers=headers)
    body = answer.json()
    assert json.loads(body["choices"][0]["message"]["content"])["tags"] == ["dog", "runs"]
    assert body["usage"]["total_tokens"] == 3


@pytest.mark.parametrize("wanted", [TAGS, "json"])
async def test_karakeep_has_tags_from_ollama(wanted):
    asked = {
        "model": "llava",
        "format": wanted,
        "stream": True,
        "keep_alive": "5m",
        "options": {"num_ctx": 4096, "num_predict": 2048},
        "messages": [{"role": "user", "content": "Respond in JSON.", "images": [DOG]}],
    }
    async with serving() as client:
        answer = await client.post("/api/chat", json=asked)
    parts = [json.loads(line) for line in answer.text.splitlines()]
    text = "".join(part["message"]["content"] for part in parts)
    assert json.loads(text)["tags"] == ["dog", "runs"]
    assert sum(part.get("eval_count", 0) for part in parts) == 3


async def test_karakeep_has_no_tags_for_text():
    asked = {
        "model": "gpt-4o-mini",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": TAGS}},
        "messages": [{"role": "user", "content": "Content: a page about dogs"}],
    }
    async with serving() as client:
        answer = (await client.post("/v1/chat/completions", json=asked)).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"tags": []}
