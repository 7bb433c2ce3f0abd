"""Where several checkpoints are served, a dialect's name for a model chooses one of them."""

import base64

import pytest

from support.fake import FakeCaptioner, serving

IMAGE = base64.b64encode(b"a dog").decode()
PART = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{IMAGE}"}}
MESSAGES = [{"role": "user", "content": [PART]}]
TENSOR = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}


def versions(*numbers):
    for number in numbers:
        captioner = FakeCaptioner()
        captioner.manifest = captioner.manifest.model_copy(update={"version": number})
        yield captioner


async def chat(client, model):
    body = {"model": model, "messages": MESSAGES}
    return (await client.post("/v1/chat/completions", json=body)).json()["model"]


async def respond(client, model):
    body = {"model": model, "input": MESSAGES}
    return (await client.post("/v1/responses", json=body)).json()["model"]


async def generate(client, model):
    body = {"model": model, "images": [IMAGE], "stream": False}
    return (await client.post("/api/generate", json=body)).json()["model"]


async def chat_with_ollama(client, model):
    body = {"model": model, "messages": [{"images": [IMAGE]}], "stream": False}
    return (await client.post("/api/chat", json=body)).json()["model"]


async def describe(client, model):
    path = "/hf" if model is None else f"/hf/models/{model}"
    answer = await client.post(path, content=b"a dog")
    assert answer.json() == [{"generated_text": "a dog"}]
    return answer.headers["x-caption-model"]


async def predict(client, model):
    params = {} if model is None else {"model": model}
    files = {"image": ("a.jpg", b"a dog")}
    answer = await client.post("/model/predict", params=params, files=files)
    assert answer.json()["status"] == "ok"
    return answer.headers["x-caption-model"]


DIALECTS = [chat, respond, generate, chat_with_ollama, describe, predict]


@pytest.mark.parametrize("ask", DIALECTS)
async def test_a_name_that_is_served_chooses_and_any_other_gets_the_first(ask):
    async with serving(*versions("1", "9", "10")) as client:
        assert await ask(client, "tiny:9") == "tiny:9"
        assert await ask(client, "tiny@9") == "tiny:9"
        assert await ask(client, "tiny") == "tiny:10"
        for foreign in ("gpt-5", "llava:7b", "tiny:3", "openai/tiny:9", None):
            assert await ask(client, foreign) == "tiny:1"


@pytest.mark.parametrize("ask", DIALECTS)
async def test_who_names_another_services_model_meets_the_canary(ask):
    served = versions("1", "2")
    async with serving(*served, checkpoints="a,b", canary=0.5) as client:
        by = [await ask(client, "llava:7b") for _ in range(20)]
        assert abs(by.count("tiny:2") - 10) <= 2
        assert {await ask(client, "tiny:1") for _ in range(6)} == {"tiny:1"}


@pytest.mark.parametrize("model", [7, ["tiny:2"], {}, True])
@pytest.mark.parametrize("ask", [chat, respond, generate])
async def test_a_model_that_is_no_name_is_ignored(ask, model):
    async with serving(*versions("1", "2")) as client:
        assert await ask(client, model) == "tiny:1"


async def test_ollamas_tag_for_the_newest_is_the_newest():
    async with serving(*versions("1", "2")) as client:
        assert await generate(client, "tiny:latest") == "tiny:2"


async def test_lists_of_models_have_all_that_are_served():
    async with serving(*versions("1", "2")) as client:
        for path in ("/api/tags", "/api/ps"):
            models = (await client.get(path)).json()["models"]
            assert [each["name"] for each in models] == ["tiny:1", "tiny:2"]
        for model, version in (("tiny:2", "2"), ("llava", "1"), (["?"], "1")):
            shown = (await client.post("/api/show", json={"model": model})).json()
            assert shown["modelfile"] == f"FROM tiny:{version}"
            assert shown["model_info"]["caption.manifest"]["version"] == version
        assert (await client.post("/api/show", content=b"no json")).status_code == 200
        for name in ("tiny:1", "tiny:2"):
            assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
        assert (await client.get("/v1/models/tiny:3")).status_code == 404


async def test_kserve_finds_each_by_name_and_version():
    async with serving(*versions("1", "2")) as client:
        for path, version in (
            ("/v2/models/tiny", "2"),
            ("/v2/models/tiny/versions/1", "1"),
            ("/v2/models/tiny/versions/2", "2"),
        ):
            answer = (await client.post(f"{path}/infer", json={"inputs": [TENSOR]})).json()
            assert (answer["model_name"], answer["model_version"]) == ("tiny", version)
            assert (await client.get(f"{path}/ready")).json() == {"name": "tiny", "ready": True}
        assert (await client.get("/v2/models/tiny")).json()["versions"] == ["1", "2"]
        assert (await client.get("/v2/models/tiny/versions/2")).json()["versions"] == ["2"]
        for path in ("/v2/models/tiny/versions/3", "/v2/models/any", "/v2/models/tiny:2"):
            assert (await client.get(path)).status_code == 404
            answer = await client.post(f"{path}/infer", json={"inputs": [TENSOR]})
            assert answer.status_code == 404


async def test_kserve_without_a_version_meets_the_canary():
    async with serving(*versions("1", "2"), checkpoints="a,b", canary=0.25) as client:
        by = []
        for _ in range(40):
            answer = await client.post("/v2/models/tiny/infer", json={"inputs": [TENSOR]})
            by.append(answer.json()["model_version"])
    assert abs(by.count("2") - 10) <= 2
