"""KServe V2, the Open Inference Protocol, over HTTP: with the extension for binary tensors.

Reference: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
Reference: https://github.com/triton-inference-server/server, protocol/extension_binary_data.md
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from app.dialects import captioning
from app.dialects.dialect import Dialect, Problem, error_text, router
from app.dialects.reading import Lenient, from_json, read, uploads
from app.serving.health import Report
from app.serving.reloading import Served
from app.web.forms import Upload
from app.web.problems import InvalidRequest, MalformedBody, TooManyImages
from app.web.routes import app_state_of, manifest_of

if TYPE_CHECKING:
    from app.captioner.captions import Caption

_JSON_BYTES = "inference-header-content-length"
_INPUT = {"name": "IMAGE", "datatype": "BYTES", "shape": [-1]}
_OUTPUTS = {
    "CAPTION": {"name": "CAPTION", "datatype": "BYTES", "shape": [-1]},
    "LOG_PROB": {"name": "LOG_PROB", "datatype": "FP32", "shape": [-1]},
}

# What is asked


class _Parameters(Lenient):
    binary_data_size: int | None = Field(None, ge=0)
    binary_data: bool | None = None
    binary_data_output: bool | None = None


class _Input(Lenient):
    name: str = ""
    shape: list[Annotated[int, Field(ge=0, le=2**31)]] = Field(min_length=1, max_length=8)
    datatype: str
    parameters: _Parameters = _Parameters()
    data: list[Any] | None = None


class _Output(Lenient):
    name: str
    parameters: _Parameters = _Parameters()


class _Infer(Lenient):
    id: str | None = None
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] | None = None
    parameters: _Parameters = _Parameters()


@dataclass(frozen=True)
class _Asked:
    """A request.

    Attributes:
        id: What the caller calls it.
        uploads: The elements of the tensor.
        shape: Of the tensor, and so of the outputs.
        outputs: The names of the outputs, each with whether it is wanted as bytes.
    """

    id: str | None
    uploads: tuple[Upload, ...]
    shape: list[int]
    outputs: Mapping[str, bool]


def _read(body: bytes, *, json_bytes: int | None, max_images: int) -> _Asked:
    head = body if json_bytes is None else body[:json_bytes]
    asked = from_json(_Infer, head)
    tensor = asked.inputs[0]
    if tensor.datatype != "BYTES":
        message = "Input should be BYTES: each element a whole image file"
        raise InvalidRequest([{"loc": ["inputs", 0, "datatype"], "msg": message}])
    if tensor.parameters.binary_data_size is None:
        images = uploads(list(_elements(tensor.data or ())), max_images)
    else:
        images = _from_binary(body[len(head) :], tensor.parameters.binary_data_size, max_images)
    if not images or math.prod(tensor.shape) != len(images):
        message = f"Input should be the shape of the {len(images)} elements that came, at least 1"
        raise InvalidRequest([{"loc": ["inputs", 0, "shape"], "msg": message}])
    return _Asked(asked.id, images, tensor.shape, _outputs(asked))


def _elements(data: Iterable[Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Walk over the elements of a tensor in JSON, nested by its shape or flat."""
    waiting = list(data)[::-1]
    while waiting:
        element = waiting.pop()
        if isinstance(element, list):
            waiting += element[::-1]
        elif isinstance(element, str):
            yield ("inputs", 0, "data"), element
        else:
            message = "Input should be strings: images in base64"
            raise InvalidRequest([{"loc": ["inputs", 0, "data"], "msg": message}])


def _from_binary(data: bytes, size: int, max_images: int) -> tuple[Upload, ...]:
    """Split a binary tensor of BYTES: four bytes of length before each element, little-endian."""
    if size != len(data):
        raise MalformedBody
    images: list[Upload] = []
    at = 0
    while at < size:
        if len(images) == max_images:
            raise TooManyImages(max_images)
        if size - at < 4:
            raise MalformedBody
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length > size - at:
            raise MalformedBody
        images.append(Upload(None, data[at : at + length]))
        at += length
    return tuple(images)


def _outputs(asked: _Infer) -> dict[str, bool]:
    by_default = bool(asked.parameters.binary_data_output)
    if not asked.outputs:
        return dict.fromkeys(_OUTPUTS, by_default)
    for number, output in enumerate(asked.outputs):
        if output.name not in _OUTPUTS:
            message = f"Input should be one of {', '.join(_OUTPUTS)}"
            raise InvalidRequest([{"loc": ["outputs", number, "name"], "msg": message}])
    return {
        output.name: by_default
        if output.parameters.binary_data is None
        else output.parameters.binary_data
        for output in asked.outputs
    }


def _json_bytes(request: Request) -> int | None:
    """Give how much of the body is JSON, if binary tensors follow."""
    told = request.headers.get(_JSON_BYTES)
    if told is None:
        return None
    if not (told.isascii() and told.isdigit() and len(told) <= 15):
        message = "Input should be a number of bytes"
        raise InvalidRequest([{"loc": [_JSON_BYTES], "msg": message}])
    return int(told)


# What is answered

routes = router()


@routes.get("/v2")
async def tell_server(request: Request) -> Response:  # noqa: ARG001 - as every route
    """Answer ``GET /v2``."""
    about = {"name": "caption-service", "version": version("caption-service")}
    return JSONResponse({**about, "extensions": ["binary_tensor_data"]})


@routes.get("/v2/health/live")
async def live(request: Request) -> Response:
    """Answer ``GET /v2/health/live``."""
    return _probe("live", app_state_of(request).health.livez())


@routes.get("/v2/health/ready")
async def ready(request: Request) -> Response:
    """Answer ``GET /v2/health/ready``."""
    return _probe("ready", app_state_of(request).health.readyz())


def _probe(name: str, report: Report) -> Response:
    return JSONResponse(
        {name: report.ok},
        status_code=200 if report.ok else 503,
        headers={"cache-control": "no-store"},
    )


@routes.get("/v2/models/{name}")
@routes.get("/v2/models/{name}/versions/{version}")
async def tell_model(request: Request) -> Response:
    """Answer ``GET /v2/models/NAME``."""
    asked = request.path_params
    served = app_state_of(request).service.checkpoints.served
    versions = [each.version for each in served if each.name == _named(request).name]
    if "version" in asked:
        versions = [asked["version"]]
    about = {"name": asked["name"], "versions": versions, "platform": "caption-service"}
    return JSONResponse({**about, "inputs": [_INPUT], "outputs": list(_OUTPUTS.values())})


@routes.get("/v2/models/{name}/ready")
@routes.get("/v2/models/{name}/versions/{version}/ready")
async def tell_model_ready(request: Request) -> Response:
    """Answer ``GET /v2/models/NAME/ready``; admission has refused it where it is not."""
    return JSONResponse({"name": _named(request).name, "ready": True})


@routes.post("/v2/models/{name}/infer")
@routes.post("/v2/models/{name}/versions/{version}/infer")
async def infer(request: Request) -> Response:
    """Answer ``POST /v2/models/NAME/infer``."""
    _named(request)
    reader = partial(
        _read, json_bytes=_json_bytes(request), max_images=captioning.max_images(request)
    )
    asked = await read(request, reader)
    captioning.choose(request, _asked_for(request))
    per_image = await captioning.candidates_of(asked.uploads, request)
    about = manifest_of(request)
    head = {"model_name": about.name, "model_version": about.version}
    if asked.id is not None:
        head["id"] = asked.id
    return _answer(head, asked, [candidates[0] for candidates in per_image])


def _asked_for(request: Request) -> str:
    """Give the name of a path, and the version if it has one."""
    path: Mapping[str, str] = request.path_params
    return "@".join(filter(None, (path["name"], path.get("version"))))


def _named(request: Request) -> Served:
    """Find the name and the version of a path among what is served.

    Raises:
        HTTPException: 404, nothing of that name is served.
    """
    served = captioning.named(request, _asked_for(request))
    if served is None or served.name != request.path_params["name"]:
        raise HTTPException(404)
    return served


def _answer(head: Mapping[str, Any], asked: _Asked, captions: "Sequence[Caption]") -> Response:
    told, binary = [], b""
    for name, as_bytes in asked.outputs.items():
        about = {**_OUTPUTS[name], "shape": asked.shape}
        if as_bytes:
            data = _to_binary(name, captions)
            binary += data
            told.append({**about, "parameters": {"binary_data_size": len(data)}})
        else:
            told.append({**about, "data": _to_json(name, captions)})
    body = json.dumps({**head, "outputs": told}).encode()
    if not any(asked.outputs.values()):
        return Response(body, media_type="application/json")
    headers = {_JSON_BYTES: str(len(body))}
    return Response(body + binary, media_type="application/octet-stream", headers=headers)


def _to_json(name: str, captions: "Sequence[Caption]") -> list[Any]:
    return [each.text if name == "CAPTION" else each.log_prob for each in captions]


def _to_binary(name: str, captions: "Sequence[Caption]") -> bytes:
    if name == "LOG_PROB":
        return struct.pack(f"<{len(captions)}f", *(each.log_prob for each in captions))
    texts = [each.text.encode() for each in captions]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _error(problem: Problem) -> dict[str, str]:
    return {"error": error_text(problem)}


KSERVE = Dialect("kserve", routes, ("/v2",), _error)
