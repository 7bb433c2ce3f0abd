"""Hugging Face: the task image-to-text of its inference API.

Reference: https://huggingface.co/docs/inference-providers
"""

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from app.dialects import captioning
from app.dialects.dialect import Dialect, Problem, error_text, router
from app.dialects.reading import Lenient, from_json, read, uploads
from app.web.forms import Upload


class _Inputs(Lenient):
    inputs: str


def _read(body: bytes) -> Upload:
    """Take raw bytes, or JSON with base64; no image begins with a brace."""
    if not body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return Upload(None, body)
    asked = from_json(_Inputs, body)
    return uploads([(("inputs",), asked.inputs)], 1)[0]


routes = router()


@routes.post("/hf")
@routes.post("/hf/models/{name:path}")
@routes.post("/models/{name:path}")
async def describe(request: Request) -> Response:
    """Answer ``POST /hf`` and ``POST /models/NAME``, whichever model is named."""
    upload = await read(request, _read)
    captioning.choose(request, request.path_params.get("name"))
    ((caption,),) = await captioning.candidates_of([upload], request)
    headers = captioning.model_header(request)
    return JSONResponse([{"generated_text": caption.text}], headers=headers)


def _error(problem: Problem) -> dict[str, str]:
    return {"error": error_text(problem), "error_type": problem["code"]}


HUGGING_FACE = Dialect("huggingface", routes, ("/hf", "/models/"), _error)
