"""OpenAI: chat completions and responses with images, and models by name.

Reference: https://platform.openai.com/docs/api-reference
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException

from app.dialects import captioning, structured
from app.dialects.captioning import NO_IMAGE, TEXT_IGNORED
from app.dialects.dialect import Dialect, Problem, error_text, router
from app.dialects.reading import Lenient, Place, from_json, last_images, read, uploads
from app.serving.reloading import name_of
from app.web.forms import Upload
from app.web.problems import InvalidRequest
from app.web.schemas import ListedCheckpoint

if TYPE_CHECKING:
    from app.captioner.captions import Caption

_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}

# What is asked


class _ImageUrl(Lenient):
    url: str


class _Part(Lenient):
    type: str = ""
    text: str | None = None
    image_url: str | _ImageUrl | None = None


class _Message(Lenient):
    role: str | None = None
    content: str | list[_Part] | None = None


class _Schema(Lenient):
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class _ChatFormat(Lenient):
    type: str = "text"
    json_schema: _Schema | None = None


class _ResponseFormat(Lenient):
    type: str = "text"
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class _StreamOptions(Lenient):
    include_usage: bool | None = None


class _Chat(Lenient):
    model: Any = None
    messages: list[_Message] = Field(min_length=1)
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ChatFormat | None = None


class _Text(Lenient):
    format: _ResponseFormat | None = None


class _Respond(Lenient):
    model: Any = None
    input: str | list[_Message]
    text: _Text | None = None
    stream: bool | None = None


@dataclass(frozen=True)
class _Asked:
    """A request of either route.

    Attributes:
        model: What is asked; anything.
        uploads: The images of the last turn that has any.
        has_text: Whether there was text too.
        n: How many answers.
        format: Of the answers: ``text``, or else JSON.
        schema: Of the JSON, if it was said.
        stream: Whether the answer comes in pieces.
        stream_usage: Whether the usage comes in a piece of its own.
    """

    model: str
    uploads: tuple[Upload, ...]
    has_text: bool
    n: int = 1
    format: str = "text"
    schema: structured.Schema | None = None
    stream: bool = False
    stream_usage: bool = False


def _read_chat(body: bytes, *, max_images: int) -> _Asked:
    chat = from_json(_Chat, body)
    about = chat.response_format or _ChatFormat()
    return _Asked(
        str(chat.model or ""),
        uploads(_last_images(chat.messages, "messages"), max_images),
        has_text=_has_text(chat.messages),
        n=chat.n or 1,
        format=about.type,
        schema=about.json_schema.json_schema if about.json_schema else None,
        stream=bool(chat.stream),
        stream_usage=bool(chat.stream_options and chat.stream_options.include_usage),
    )


def _read_respond(body: bytes, *, max_images: int) -> _Asked:
    asked = from_json(_Respond, body)
    if asked.stream:
        message = "Input should be false here; /v1/chat/completions streams"
        raise InvalidRequest([{"loc": ["stream"], "msg": message}])
    messages = asked.input if isinstance(asked.input, list) else [_Message(content=asked.input)]
    about = (asked.text.format if asked.text else None) or _ResponseFormat()
    return _Asked(
        str(asked.model or ""),
        uploads(_last_images(messages, "input"), max_images),
        has_text=_has_text(messages),
        format=about.type,
        schema=about.json_schema,
    )


def _last_images(messages: Sequence[_Message], name: str) -> list[tuple[Place, str]]:
    return last_images(
        (message.role, list(_images(message, (name, number, "content"))))
        for number, message in enumerate(messages)
    )


def _images(message: _Message, place: Place) -> Iterator[tuple[Place, str]]:
    for number, part in enumerate(_parts(message)):
        if part.image_url is not None:
            image = part.image_url
            url = image.url if isinstance(image, _ImageUrl) else image
            yield (*place, number, "image_url"), url


def _parts(message: _Message) -> Sequence[_Part]:
    return message.content if isinstance(message.content, list) else ()


def _has_text(messages: Iterable[_Message]) -> bool:
    return any(
        isinstance(each.content, str) or any(part.text for part in _parts(each))
        for each in messages
    )


# What is answered


@dataclass(frozen=True)
class _Answer:
    """Texts, and how many words they have; none where there was no image."""

    texts: list[str]
    words: int


async def _answered(asked: _Asked, request: Request) -> _Answer:
    captioning.choose(request, asked.model)
    per_image = await captioning.candidates_of(asked.uploads, request, n_best=asked.n)
    if not per_image:
        return _Answer([_said((), asked)] * asked.n, 0)
    choices = list(zip(*per_image, strict=False))
    words = sum(len(caption.words) for choice in choices for caption in choice)
    return _Answer([_said(choice, asked) for choice in choices], words)


def _said(captions: "Sequence[Caption]", asked: _Asked) -> str:
    subject = structured.subject_of(captions)
    if asked.format == "text":
        return subject.text or NO_IMAGE
    if asked.schema is None:
        return json.dumps(structured.without_schema(subject))
    return json.dumps(structured.fill(asked.schema, subject))


def _usage(answer: _Answer, asked: _Asked, took: str, gave: str) -> dict[str, Any]:
    counts = {took: 0, gave: answer.words, "total_tokens": answer.words}
    return {**counts, "note": TEXT_IGNORED} if asked.has_text else counts


routes = router()


@routes.post("/v1/chat/completions")
async def complete(request: Request) -> Response:
    """Answer ``POST /v1/chat/completions``."""
    asked = await read(request, partial(_read_chat, max_images=captioning.max_images(request)))
    answer = await _answered(asked, request)
    head = {
        "id": f"chatcmpl-{request.state.request_id}",
        "created": int(time.time()),
        "model": captioning.checkpoint_name(request),
    }
    usage = _usage(answer, asked, "prompt_tokens", "completion_tokens")
    headers = captioning.note(ignored_text=asked.has_text)
    if asked.stream:
        chunks = _chunks(head, answer, usage if asked.stream_usage else None)
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        return Response(
            events + "data: [DONE]\n\n", media_type="text/event-stream", headers=headers
        )
    choices = [_choice(number, text) for number, text in enumerate(answer.texts)]
    body = {**head, "object": "chat.completion", "choices": choices, "usage": usage}
    return JSONResponse(body, headers=headers)


def _choice(number: int, text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": number, "message": message, "logprobs": None, "finish_reason": "stop"}


def _chunks(
    head: Mapping[str, Any], answer: _Answer, usage: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Give the answer word by word: the search ends with all words at once."""
    head = {**head, "object": "chat.completion.chunk"}
    for number, text in enumerate(answer.texts):
        deltas = [{"content": piece} for piece in captioning.pieces(text)]
        for delta in ({"role": "assistant", "content": ""}, *deltas):
            yield {**head, "choices": [_delta(number, delta, None)]}
        yield {**head, "choices": [_delta(number, {}, "stop")]}
    if usage is not None:
        yield {**head, "choices": [], "usage": usage}


def _delta(number: int, delta: Mapping[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}


@routes.post("/v1/responses")
async def respond(request: Request) -> Response:
    """Answer ``POST /v1/responses``, which PhotoPrism asks."""
    asked = await read(request, partial(_read_respond, max_images=captioning.max_images(request)))
    answer = await _answered(asked, request)
    content = {"type": "output_text", "text": answer.texts[0], "annotations": []}
    message = {
        "id": f"msg_{request.state.request_id}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }
    usage = _usage(answer, asked, "input_tokens", "output_tokens")
    details = {"input_tokens_details": {"cached_tokens": 0},
               "output_tokens_details": {"reasoning_tokens": 0}}  # fmt: skip
    body = {
        "id": f"resp_{request.state.request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": captioning.checkpoint_name(request),
        "output": [message],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "usage": {**usage, **details},
    }
    return JSONResponse(body, headers=captioning.note(ignored_text=asked.has_text))


@routes.get("/v1/models/{name}")
async def show_model(request: Request) -> Response:
    """Answer ``GET /v1/models/NAME``; the list is a route of our own."""
    served = captioning.named(request, request.path_params["name"])
    if served is None:
        raise HTTPException(404)
    return JSONResponse(ListedCheckpoint(id=name_of(served.captioner)).model_dump())


def _error(problem: Problem) -> dict[str, Any]:
    status, wrong = problem["status"], problem.get("errors")
    of_status = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error_text(problem),
            "type": _ERROR_TYPES.get(status, of_status),
            "param": wrong[0]["field"] if wrong else None,
            "code": problem["code"],
        }
    }


OPENAI = Dialect("openai", routes, ("/v1/chat/", "/v1/responses", "/v1/models/"), _error)
