"""The Open Inference Protocol, by hand and with Triton's and KServe's clients."""

import base64
import json
import struct

import numpy as np
import pytest
from pydantic import SecretStr

from support.fake import serving

DOG, CAT = b"a dog runs", b"a cat"
INFER = "/v2/models/tiny/infer"


def as_json(*images, shape=None, **members):
    data = [base64.b64encode(image).decode() for image in images]
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": shape or [len(data)], "data": data}
    return {"inputs": [tensor], **members}


def as_bytes(*images, **changes):
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [len(images)],
              "parameters": {"binary_data_size": len(data)}, **changes}  # fmt: skip
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, {"inference-header-content-length": str(len(head))}


async def test_tensors_in_json_are_described():
    async with serving() as client:
        answer = await client.post(INFER, json=as_json(DOG, CAT, id="7"))
    assert answer.json() == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "CAPTION", "datatype": "BYTES", "shape": [2], "data": ["a dog runs", "a cat"]},
            {"name": "LOG_PROB", "datatype": "FP32", "shape": [2], "data": [-1.0, -1.0]},
        ],
    }


async def test_the_outputs_have_the_shape_of_the_input():
    asked = as_json(DOG, CAT, shape=[2, 1], outputs=[{"name": "CAPTION"}])
    asked["inputs"][0]["data"] = [[each] for each in asked["inputs"][0]["data"]]
    async with serving() as client:
        (output,) = (await client.post(INFER, json=asked)).json()["outputs"]
    assert (output["shape"], output["data"]) == ([2, 1], ["a dog runs", "a cat"])


async def test_binary_tensors_are_described():
    content, headers = as_bytes(DOG, CAT)
    async with serving() as client:
        answer = await client.post(INFER, content=content, headers=headers)
    assert answer.json()["outputs"][0]["data"] == ["a dog runs", "a cat"]


async def test_outputs_may_be_asked_for_in_bytes():
    outputs = [{"name": "CAPTION", "parameters": {"binary_data": True}}, {"name": "LOG_PROB"}]
    async with serving() as client:
        answer = await client.post(INFER, json=as_json(DOG, outputs=outputs))
    size = int(answer.headers["inference-header-content-length"])
    caption, log_prob = json.loads(answer.content[:size])["outputs"]
    assert caption["parameters"] == {"binary_data_size": 14}
    assert answer.content[size:] == struct.pack("<I", 10) + b"a dog runs"
    assert log_prob["data"] == [-1.0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"datatype": "UINT8"}, "BYTES"),
        ({"shape": [2]}, "shape"),
        ({"shape": [10**9, 10**9]}, "shape"),
        ({"shape": []}, "shape"),
        ({"data": []}, "shape"),
        ({"data": [7]}, "base64"),
        ({"data": ["!"]}, "base64"),
    ],
)
async def test_a_wrong_tensor_is_told(change, told):
    asked = as_json(DOG)
    asked["inputs"][0].update(change)
    async with serving() as client:
        answer = await client.post(INFER, json=asked)
    assert answer.status_code == 400
    assert told in answer.json()["error"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<I", 99) + DOG,
        struct.pack("<I", 4) + DOG,
        b"\x00\x00",
    ],
)
async def test_a_wrong_binary_tensor_is_malformed(content):
    parameters = {"binary_data_size": len(content) or 5}
    head = as_bytes(DOG, parameters=parameters)[0][: -len(DOG) - 4]
    headers = {"inference-header-content-length": str(len(head))}
    async with serving() as client:
        answer = await client.post(INFER, content=head + content, headers=headers)
    assert answer.status_code == 400
    assert "Malformed body" in answer.json()["error"]


async def test_an_output_that_does_not_exist_is_told():
    async with serving() as client:
        answer = await client.post(INFER, json=as_json(DOG, outputs=[{"name": "CLASS"}]))
        assert answer.status_code == 400
        assert "CAPTION, LOG_PROB" in answer.json()["error"]
        wrong = {"inference-header-content-length": "many"}
        answer = await client.post(INFER, json=as_json(DOG), headers=wrong)
        assert answer.status_code == 400
        assert "number of bytes" in answer.json()["error"]


async def test_only_what_is_served_has_a_name():
    async with serving() as client:
        for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
            about = (await client.get(path)).json()
            assert (about["name"], about["versions"]) == ("tiny", ["1"])
            assert (await client.get(f"{path}/ready")).json() == {"name": "tiny", "ready": True}
        for path in ("/v2/models/other", "/v2/models/tiny/versions/2", "/v2/other"):
            missing = await client.get(path)
            assert (missing.status_code, set(missing.json())) == (404, {"error"})
        assert (await client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]


async def test_its_probes_are_open_and_all_else_needs_a_key():
    async with serving(api_keys=(SecretStr("key"),)) as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        assert (await client.get("/v2")).status_code == 401
        client.app.state.app_state.health.refuse()
        assert (await client.get("/v2/health/ready")).status_code == 503


# With its clients


@pytest.fixture
def triton(url):
    package = pytest.importorskip("tritonclient.http")
    with package.InferenceServerClient(url.removeprefix("http://")) as client:
        yield package, client


def test_tritons_client_knows_the_server(triton):
    _, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert not client.is_model_ready("other")
    assert client.get_model_metadata("tiny")["inputs"][0]["datatype"] == "BYTES"


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_infers(triton, binary):
    package, client = triton
    images = [DOG, CAT] if binary else [base64.b64encode(each) for each in (DOG, CAT)]
    tensor = package.InferInput("IMAGE", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_), binary_data=binary)
    outputs = None if binary else [package.InferRequestedOutput("CAPTION", binary_data=False)]
    found = client.infer("tiny", [tensor], outputs=outputs)
    said = [each.decode() if binary else each for each in found.as_numpy("CAPTION")]
    assert said == ["a dog runs", "a cat"]
    if binary:
        assert found.as_numpy("LOG_PROB").tolist() == [-1.0, -1.0]


def test_tritons_client_raises_its_own_errors(triton):
    package, client = triton
    tensor = package.InferInput("IMAGE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"broken"], dtype=np.object_))
    utils = pytest.importorskip("tritonclient.utils")
    with pytest.raises(utils.InferenceServerException, match="Undecodable image"):
        client.infer("tiny", [tensor])


@pytest.mark.parametrize("binary", [True, False])
async def test_kserves_client_infers(url, binary):
    kserve = pytest.importorskip("kserve")
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "tiny")
    tensor = kserve.InferInput("IMAGE", [2], "BYTES")
    images = [DOG, CAT] if binary else [base64.b64encode(each) for each in (DOG, CAT)]
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_), binary_data=binary)
    request = kserve.InferRequest(model_name="tiny", infer_inputs=[tensor])
    answer = await client.infer(url, request, model_name="tiny")
    captions = next(output for output in answer.outputs if output.name == "CAPTION")
    assert list(captions.data) == ["a dog runs", "a cat"]
    await client.close()
