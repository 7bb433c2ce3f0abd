"""IBM's Model Asset eXchange: the API of its Image Caption Generator.

Reference: https://github.com/IBM/MAX-Image-Caption-Generator
"""

import math

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from app.dialects import captioning
from app.dialects.dialect import Dialect, Problem, error_text, router
from app.web import forms
from app.web.routes import manifest_of

_PREDICTIONS = 3  # of its beam

routes = router()


@routes.post("/model/predict")
async def predict(request: Request) -> Response:
    """Answer ``POST /model/predict``, a form with one image."""
    asked = await forms.read(request, max_images=1)
    captioning.choose(request, asked.options.model)
    beam_width = manifest_of(request).search.beam_width
    (candidates,) = await captioning.candidates_of(
        asked.uploads, request, n_best=min(_PREDICTIONS, beam_width)
    )
    predictions = [
        {"index": str(k), "caption": each.text, "probability": math.exp(each.log_prob)}
        for k, each in enumerate(candidates)
    ]
    headers = captioning.model_header(request)
    return JSONResponse({"status": "ok", "predictions": predictions}, headers=headers)


@routes.get("/model/metadata")
async def tell_metadata(request: Request) -> Response:
    """Answer ``GET /model/metadata``."""
    manifest = manifest_of(request)
    return JSONResponse(
        {
            "id": manifest.name,
            "name": f"{manifest.name} {manifest.version}",
            "description": "Describes photos in a sentence.",
            "type": "Image-To-Text Translation",
            "source": "caption-service",
            "license": "Apache-2.0",
        }
    )


def _error(problem: Problem) -> dict[str, str]:
    return {"status": "error", "message": error_text(problem)}


MAX = Dialect("max", routes, ("/model/",), _error)
