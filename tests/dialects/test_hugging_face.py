"""The dialect of Hugging Face, by hand and with the package that its users have."""

import base64

import pytest

from support.fake import serving

DOG = b"a dog runs"
SAID = [{"generated_text": "a dog runs"}]


@pytest.mark.parametrize("path", ["/hf", "/models/Salesforce/blip", "/hf/models/any"])
async def test_raw_bytes_of_any_type_are_described(path):
    async with serving() as client:
        for kind in ({}, {"content-type": "image/jpeg"}, {"content-type": "text/plain"}):
            assert (await client.post(path, content=DOG, headers=kind)).json() == SAID


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_base64_in_json_is_described(prefix):
    inputs = prefix + base64.b64encode(DOG).decode()
    async with serving() as client:
        answer = await client.post("/hf", json={"inputs": inputs, "parameters": {"a": 1}})
    assert answer.json() == SAID


async def test_errors_are_in_its_shape():
    async with serving() as client:
        answer = await client.post("/hf", content=b"broken")
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "Undecodable image: damaged", "error_type": "undecodable_image"
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/hf", "/models/Salesforce/blip-image-captioning-base"])
def test_its_client_describes(url, path):
    hub = pytest.importorskip("huggingface_hub")
    with hub.InferenceClient(model=f"{url}{path}", token="none") as client:  # noqa: S106
        assert client.image_to_text(DOG).generated_text == "a dog runs"


def test_its_client_raises_its_own_errors(url):
    hub = pytest.importorskip("huggingface_hub")
    client = hub.InferenceClient(model=f"{url}/hf", token="none")  # noqa: S106
    with client, pytest.raises(hub.errors.BadRequestError, match="damaged"):
        client.image_to_text(b"broken")


async def test_what_the_service_withholds_gives_its_place_to_tags():
    async with serving(min_confidence=0.9) as client:
        answer = await client.post("/hf", content=DOG)
    assert answer.json() == [{"generated_text": "may show: dog"}]
