"""Ollama: generate and chat with images, and what is served.

Reference: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from app.dialects import captioning, structured
from app.dialects.captioning import NO_IMAGE
from app.dialects.dialect import Dialect, Problem, error_text, router
from app.dialects.reading import Lenient, Place, from_json, last_images, read, uploads
from app.serving.reloading import name_of
from app.web.forms import Upload
from app.web.problems import RequestError
from app.web.routes import app_state_of, served_of

if TYPE_CHECKING:
    from app.captioner.captions import Caption
    from app.serving.captioner import Captioner

_NEVER = "1970-01-01T00:00:00Z"  # a checkpoint does not say when it was made

Format = dict[str, Any] | Literal["json", ""] | None


class _Generate(Lenient):
    model: Any = None
    prompt: str | None = None
    images: list[str] | None = None
    format: Format = None
    stream: bool | None = None


class _Message(Lenient):
    role: str | None = None
    content: str | None = None
    images: list[str] | None = None


class _Chat(Lenient):
    model: Any = None
    messages: list[_Message] = Field(default=[])
    format: Format = None
    stream: bool | None = None


class _Show(Lenient):
    model: Any = None
    name: Any = None


@dataclass(frozen=True)
class _Asked:
    """A request of either route.

    Attributes:
        model: What is asked; anything.
        uploads: The images of the last turn that has any.
        has_text: Whether there was text too.
        format: A schema, or ``json``, or nothing for text.
        stream: Whether the answer comes in pieces, as it does unless told otherwise.
    """

    model: str
    uploads: tuple[Upload, ...]
    has_text: bool
    format: Format
    stream: bool


def _read_generate(body: bytes, *, max_images: int) -> _Asked:
    asked = from_json(_Generate, body)
    images: list[tuple[Place, str]] = [
        (("images", number), image) for number, image in enumerate(asked.images or ())
    ]
    return _asked(asked, images, max_images, has_text=bool(asked.prompt))


def _read_chat(body: bytes, *, max_images: int) -> _Asked:
    asked = from_json(_Chat, body)
    has_text = any(message.content for message in asked.messages)
    return _asked(asked, _last_images(asked.messages), max_images, has_text=has_text)


def _asked(
    asked: _Generate | _Chat,
    images: Sequence[tuple[Place, str]],
    max_images: int,
    *,
    has_text: bool,
) -> _Asked:
    return _Asked(
        _untagged(asked.model),
        uploads(images, max_images),
        has_text,
        asked.format,
        asked.stream is not False,
    )


def _untagged(model: object) -> str:
    """Take away the tag that Ollama's programs give a name without one."""
    return str(model or "").removesuffix(":latest")


def _last_images(messages: Sequence[_Message]) -> list[tuple[Place, str]]:
    return last_images(
        (
            message.role,
            [(("messages", n, "images", k), image) for k, image in enumerate(message.images or ())],
        )
        for n, message in enumerate(messages)
    )


routes = router()


@routes.post("/api/generate")
async def generate(request: Request) -> Response:
    """Answer ``POST /api/generate``."""
    return await _answer(request, _read_generate, lambda text: {"response": text})


@routes.post("/api/chat")
async def chat(request: Request) -> Response:
    """Answer ``POST /api/chat``."""
    return await _answer(request, _read_chat, lambda text: {"message": _message(text)})


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


async def _answer(
    request: Request,
    reader: Callable[..., _Asked],
    said: Callable[[str], Mapping[str, Any]],
) -> Response:
    began_ns = time.perf_counter_ns()
    asked = await read(request, partial(reader, max_images=captioning.max_images(request)))
    captioning.choose(request, asked.model)
    per_image = await captioning.candidates_of(asked.uploads, request)
    captions = [candidates[0] for candidates in per_image]
    head = {
        "model": captioning.checkpoint_name(request),
        "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    end = _end(asked, captions, time.perf_counter_ns() - began_ns)
    text = _text(asked, captions)
    headers = captioning.note(ignored_text=asked.has_text)
    if not asked.stream:
        return JSONResponse({**head, **said(text), **end}, headers=headers)
    pieces = [{**head, **said(piece), "done": False} for piece in captioning.pieces(text)]
    lines = [json.dumps(each) + "\n" for each in (*pieces, {**head, **said(""), **end})]
    return Response("".join(lines), media_type="application/x-ndjson", headers=headers)


def _text(asked: _Asked, captions: "Sequence[Caption]") -> str:
    if not (captions or asked.has_text):  # how clients have a model loaded
        return ""
    subject = structured.subject_of(captions)
    if not asked.format:
        return subject.text or NO_IMAGE
    if isinstance(asked.format, str):
        return json.dumps(structured.without_schema(subject))
    return json.dumps(structured.fill(asked.format, subject))


def _end(asked: _Asked, captions: "Sequence[Caption]", duration_ns: int) -> dict[str, Any]:
    reason = "stop" if captions or asked.has_text else "load"
    return {
        "done": True,
        "done_reason": reason,
        "total_duration": duration_ns,
        "load_duration": 0,
        "prompt_eval_count": 0,
        "prompt_eval_duration": 0,
        "eval_count": sum(len(caption.words) for caption in captions),
        "eval_duration": duration_ns,
    }


@routes.get("/api/tags")
async def list_models(request: Request) -> Response:
    """Answer ``GET /api/tags``."""
    return JSONResponse({"models": _models(request)})


@routes.get("/api/ps")
async def list_loaded(request: Request) -> Response:
    """Answer ``GET /api/ps``: what is served is loaded."""
    return JSONResponse({"models": [{**each, "size_vram": 0} for each in _models(request)]})


@routes.post("/api/show")
async def show(request: Request) -> Response:
    """Answer ``POST /api/show``: of the model that is named, else of the first."""
    asked = await read(request, _read_show)
    served = captioning.named(request, asked) or served_of(request)
    name = name_of(served.captioner)
    about = served.captioner.manifest.public()
    return JSONResponse(
        {
            "modelfile": f"FROM {name}",
            "parameters": "",
            "template": "",
            "modified_at": _NEVER,
            "details": _DETAILS,
            "model_info": {"general.architecture": "caption", "caption.manifest": about},
            "capabilities": ["completion", "vision"],
        }
    )


@routes.get("/api/version")
async def tell_version(request: Request) -> Response:  # noqa: ARG001 - as every route
    """Answer ``GET /api/version``."""
    return JSONResponse({"version": version("caption-service")})


_DETAILS = {
    "parent_model": "",
    "format": "safetensors",
    "family": "caption",
    "families": ["caption"],
    "parameter_size": "",
    "quantization_level": "",
}


def _read_show(body: bytes) -> str:
    """Give the model that is named; nothing where the body is not as it should be."""
    with suppress(RequestError):
        asked = from_json(_Show, body)
        return _untagged(asked.model or asked.name)
    return ""


def _models(request: Request) -> list[dict[str, Any]]:
    return [_model(each.captioner) for each in app_state_of(request).service.checkpoints.served]


def _model(captioner: "Captioner") -> dict[str, Any]:
    name = name_of(captioner)
    return {
        "name": name,
        "model": name,
        "modified_at": _NEVER,
        "size": 0,
        "digest": captioner.manifest.public()["sha256"],
        "details": _DETAILS,
    }


def _error(problem: Problem) -> dict[str, Any]:
    return {"error": error_text(problem)}


OLLAMA = Dialect("ollama", routes, ("/api/",), _error)
