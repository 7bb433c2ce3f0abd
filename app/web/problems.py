"""Everything that can go wrong with a request, and what the caller hears.

Exception                                 status  code
├── RequestError                                  the request itself is at fault
│   ├── MalformedRequest                     400  malformed_request
│   ├── MalformedBody                        400  malformed_body
│   ├── Unauthorized                         401  unauthorized
│   ├── ModelNotFound                        404  model_not_found
│   ├── SlowBody                             408  slow_body
│   ├── BodyTooLarge                         413  body_too_large
│   ├── EncodedBody                          415  unsupported_encoding
│   ├── UnsupportedMediaType                 415  unsupported_media_type
│   ├── TooManyImages                        422  too_many_images
│   ├── InvalidRequest                       422  invalid_request
│   ├── FetchFailed                          422  fetch_failed
│   ├── TooManyRequests                      429  too_many_requests
│   ├── RateExceeded                         429  rate_exceeded
│   └── HeadTooLarge                         431  head_too_large
├── CheckpointError                          409  checkpoint_refused
├── HTTPException (404)                      404  not_found
├── HTTPException (405)                      405  method_not_allowed
├── ImageError                                    one image is at fault
│   ├── ImageTooLarge                        413  too_many_pixels
│   ├── TooCostly                            422  too_costly
│   ├── UnsupportedImage                     415  unsupported_image
│   └── UndecodableImage                     422  undecodable_image
├── OverShare                                429  too_many_requests
├── Overloaded                               503  overloaded
├── NotReady, Closed                         503  not_ready
├── DeadlineExceeded                         504  deadline_exceeded
└── anything else                            500  internal_error

Bodies are RFC 9457 problem details. Of an exception only its class, its limit and, where its text
is ours and harmless (an ImageError, a RequestError, a CheckpointError), its text are used.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.captioner.errors import (
    FORMATS,
    CheckpointError,
    ClipTooLong,
    ImageError,
    ImageTooLarge,
    TooCostly,
    UndecodableImage,
    UnsupportedImage,
)
from app.observability import echo
from app.serving.batching import Closed, DeadlineExceeded, Overloaded, OverShare
from app.serving.health import NotReady

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_MOST_ERRORS = 16  # an answer must not grow with what was asked


class RequestError(Exception):
    """The request itself is at fault."""


class MalformedRequest(RequestError):
    """What came does not follow the syntax of HTTP/1.1."""


class HeadTooLarge(RequestError):
    """The head of the request has more than ``limit`` bytes, or too many fields."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class MalformedBody(RequestError):
    """The body does not follow the syntax that its media type promises; its text says where."""


class Unauthorized(RequestError):
    """No key, or not one of ours."""


class ModelNotFound(RequestError):
    """No checkpoint that is served is called so; ``served`` names those that are."""

    def __init__(self, asked: str, served: Sequence[str]) -> None:
        names = ", ".join(served[:_MOST_ERRORS])
        super().__init__(f"no checkpoint {echo.field(asked)} is served: choose one of {names}")


class SlowBody(RequestError):
    """The body did not arrive in time."""


class BodyTooLarge(RequestError):
    """The body has, or declares, more than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class EncodedBody(RequestError):
    """The body is compressed."""


class UnsupportedMediaType(RequestError):
    """The body is in none of the three forms; its text may say what to do."""


class TooManyImages(RequestError):
    """The request carries more than ``limit`` images."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class InvalidRequest(RequestError):
    """The syntax is right and a value is not; ``errors`` says which."""

    def __init__(self, errors: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.errors = [_complaint(error) for error in errors[:_MOST_ERRORS]]


class FetchFailed(RequestError):
    """A web address leads to no image that is taken; the text is ours and says why."""

    def __init__(self, message: str, limit: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit


def _complaint(error: Mapping[str, Any]) -> dict[str, str]:
    """Name the field and the fault; of names that the caller chose only a harmless beginning."""
    place = ".".join(echo.field(str(name)) for name in error["loc"])
    message = error["msg"].removeprefix("Value error, ")  # pydantic's word
    return {"field": place, "message": echo.message(message)}


class TooManyRequests(RequestError):
    """One key has ``limit`` requests in flight already."""

    def __init__(self, limit: int, retry_after_s: int) -> None:
        super().__init__(limit)
        self.limit = limit
        self.retry_after_s = retry_after_s


class RateExceeded(RequestError):
    """One key has made ``limit`` requests within a second; ``headers`` tell when there are more."""

    def __init__(self, limit: int, retry_after_s: int, headers: Mapping[str, str]) -> None:
        super().__init__(limit)
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.headers = headers


@dataclass(frozen=True)
class ProblemType:
    """What every problem of one code has in common."""

    status: int
    code: str
    title: str
    detail: str


INTERNAL_ERROR = ProblemType(
    500, "internal_error", "Internal error", "It is our fault; it has been logged."
)
NOT_READY = ProblemType(
    503, "not_ready", "Not ready", "The service is starting or going away; see /readyz."
)
TOO_MANY_REQUESTS = ProblemType(
    429, "too_many_requests", "Too many requests", "This key has too many in flight; wait."
)
PROBLEM_TYPES: dict[type[Exception], ProblemType] = {
    MalformedRequest: ProblemType(
        400, "malformed_request", "Malformed request", "This is not HTTP/1.1 as RFC 9112 has it."
    ),
    HeadTooLarge: ProblemType(
        431, "head_too_large", "Head too large", "Send fewer or shorter header fields."
    ),
    MalformedBody: ProblemType(
        400, "malformed_body", "Malformed body", "The body does not follow its media type's syntax."
    ),
    Unauthorized: ProblemType(
        401, "unauthorized", "Unauthorized", "Send a key as Authorization: Bearer or X-API-Key."
    ),
    ModelNotFound: ProblemType(
        404, "model_not_found", "Model not found", "Choose one that GET /v1/models lists."
    ),
    SlowBody: ProblemType(408, "slow_body", "Slow body", "The body did not arrive in time."),
    BodyTooLarge: ProblemType(
        413, "body_too_large", "Body too large", "The body has too many bytes."
    ),
    EncodedBody: ProblemType(
        415,
        "unsupported_encoding",
        "Unsupported encoding",
        "Send the body without Content-Encoding.",
    ),
    UnsupportedMediaType: ProblemType(
        415,
        "unsupported_media_type",
        "Unsupported media type",
        "Send the bytes of an image, multipart/form-data or application/json.",
    ),
    TooManyImages: ProblemType(
        422, "too_many_images", "Too many images", "Send fewer images per request."
    ),
    InvalidRequest: ProblemType(
        422, "invalid_request", "Invalid request", "A value is missing or wrong."
    ),
    FetchFailed: ProblemType(
        422, "fetch_failed", "Fetch failed", "The web address leads to no image."
    ),
    CheckpointError: ProblemType(
        409,
        "checkpoint_refused",
        "Checkpoint refused",
        "It cannot be served; the one that was served still is.",
    ),
    TooManyRequests: TOO_MANY_REQUESTS,
    OverShare: TOO_MANY_REQUESTS,
    RateExceeded: ProblemType(
        429, "rate_exceeded", "Rate exceeded", "This key asks too often; wait as long as it says."
    ),
    ImageTooLarge: ProblemType(
        413, ImageTooLarge.code, "Too many pixels", "The image has too many pixels."
    ),
    ClipTooLong: ProblemType(
        422, ClipTooLong.code, "Clip too long", "The clip lasts longer than it may."
    ),
    TooCostly: ProblemType(
        422, TooCostly.code, "Too costly", "Decoding the image takes more time than it may."
    ),
    UnsupportedImage: ProblemType(
        415, UnsupportedImage.code, "Unsupported image", f"Send a {FORMATS} image."
    ),
    UndecodableImage: ProblemType(
        422, UndecodableImage.code, "Undecodable image", "The image is damaged or cut short."
    ),
    Overloaded: ProblemType(503, "overloaded", "Overloaded", "There is no room now; retry later."),
    NotReady: NOT_READY,
    Closed: NOT_READY,
    DeadlineExceeded: ProblemType(
        504, "deadline_exceeded", "Deadline exceeded", "It took too long."
    ),
}
HTTP_PROBLEM_TYPES = {
    404: ProblemType(
        404,
        "not_found",
        "Not found",
        "There is nothing at this path; captions are at POST /v1/captions.",
    ),
    405: ProblemType(
        405, "method_not_allowed", "Method not allowed", "This path has another method: see Allow."
    ),
}
ALL_PROBLEM_TYPES = {
    problem_type.code: problem_type
    for problem_type in (*PROBLEM_TYPES.values(), *HTTP_PROBLEM_TYPES.values(), INTERNAL_ERROR)
}


def openapi_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Describe problems for OpenAPI: one response per status, one example per code."""
    statuses = sorted({ALL_PROBLEM_TYPES[code].status for code in codes})
    return {status: _openapi_response(status, codes) for status in statuses}


def _openapi_response(status: int, codes: Sequence[str]) -> dict[str, Any]:
    types = [ALL_PROBLEM_TYPES[code] for code in codes if ALL_PROBLEM_TYPES[code].status == status]
    media = {
        "schema": {"$ref": "#/components/schemas/Problem"},
        "examples": {
            problem_type.code: {"value": _members(problem_type)} for problem_type in types
        },
    }
    description = " or ".join(problem_type.title for problem_type in types)
    return {"description": description, "content": {"application/problem+json": media}}


def _members(problem_type: ProblemType) -> dict[str, Any]:
    return {"type": f"urn:caption-service:problem:{problem_type.code}", **asdict(problem_type)}


def problem_type_of(error: Exception) -> ProblemType:
    """Look up what the caller hears about an exception: its own class first, then its bases."""
    if isinstance(error, HTTPException):
        return HTTP_PROBLEM_TYPES.get(error.status_code, INTERNAL_ERROR)
    return next(
        (PROBLEM_TYPES[base] for base in type(error).__mro__ if base in PROBLEM_TYPES),
        INTERNAL_ERROR,
    )


def describe(error: Exception, request_id: str) -> dict[str, Any]:
    """Give the problem details of an exception, JSON-ready."""
    problem_type = problem_type_of(error)
    members = {
        **_members(problem_type),
        "detail": _detail(error, problem_type),
        "request_id": request_id,
        "limit": getattr(error, "limit", None),
        "retry_after": getattr(error, "retry_after_s", None),
        "reason": error.reason if isinstance(error, NotReady) else None,
        "errors": error.errors if isinstance(error, InvalidRequest) else None,
    }
    return {name: value for name, value in members.items() if value is not None}


_SELF_EXPLAINING = (ImageError, MalformedBody, UnsupportedMediaType, FetchFailed)


def _detail(error: Exception, problem_type: ProblemType) -> str:
    """Say what is wrong with this very request, where that is known."""
    if isinstance(error, InvalidRequest) and error.errors:
        first = error.errors[0]
        return ": ".join(filter(None, (first["field"], first["message"])))
    if isinstance(error, CheckpointError | ModelNotFound):  # one line, cut where it was made
        return str(error)
    if isinstance(error, _SELF_EXPLAINING) and str(error):
        return echo.message(str(error))
    return problem_type.detail


def response(
    error: Exception, scope: Scope, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Give the answer for an exception, and leave its code as the outcome of the request."""
    body = describe(error, scope["state"]["request_id"])
    scope["state"]["outcome"] = body["code"]
    return JSONResponse(
        body,
        status_code=body["status"],
        headers={**_headers(error, body), **(headers or {})},
        media_type="application/problem+json",
    )


def bare_answer(error: Exception, request_id: str) -> bytes:
    """Give a whole HTTP/1.1 answer but for its status line: nothing but a connection is at hand."""
    body = json.dumps(describe(error, request_id)).encode()
    fields = {
        "content-type": "application/problem+json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "connection": "close",
        "x-request-id": request_id,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + body


def _headers(error: Exception, body: Mapping[str, Any]) -> dict[str, str]:
    headers = {"cache-control": "no-store"}
    if "retry_after" in body:
        headers["retry-after"] = str(body["retry_after"])
    if isinstance(error, EncodedBody):
        headers["accept-encoding"] = "identity"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, (HTTPException, RateExceeded)):
        headers.update(error.headers or {})
    return headers


async def answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Handle what the framework raises: 404 and 405."""
    return response(error, request.scope)


class Problems:
    """ASGI layer that turns every exception from below into an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except asyncio.CancelledError:  # by the server, which ends: who leaves is known below
            if started or scope["type"] != "http":
                raise
            await response(Closed(), scope)(scope, receive, send)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            if problem_type_of(error) is INTERNAL_ERROR:
                log.exception("internal_error")
            await response(error, scope)(scope, receive, send)
