"""The three forms of a request: multipart, raw body, JSON with base64 -> uploads and options."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError

from app.observability import echo
from app.web import multipart
from app.web.multipart import Part, TooManyParts
from app.web.problems import (
    InvalidRequest,
    MalformedBody,
    RequestError,
    TooManyImages,
    UnsupportedMediaType,
)
from app.web.schemas import JsonRequest, Options

_MAX_FORM_FIELDS = 8
_MAX_QUERY_BYTES = 1024
_MAX_QUERY_PARAMETERS = 16  # more than there are options
_MAX_FORM_FIELD_BYTES = 1024
_LOOP_BYTES = {"multipart/form-data": 2**22, "application/json": 2**18}  # a millisecond's work
_MARKS_PER_IMAGE = 8  # brackets, commas and colons; an image needs four
_MARKS = (b"{", b"[", b",", b":")
_MAX_JSON_BYTES = 1024  # of a name or an option, and of white space


@dataclass(frozen=True)
class Upload:
    """One image as it came."""

    filename: str | None
    data: bytes


@dataclass(frozen=True)
class CaptionRequest:
    """A request in whichever of the three forms."""

    uploads: tuple[Upload, ...]
    options: Options


Reader = Callable[[str, bytes, Options, int], CaptionRequest]
_BY_DEFAULT = Options()


async def read(request: Request, max_images: int) -> CaptionRequest:
    """Read the uploads and the options, whatever the form.

    Raises:
        RequestError: The query or the body is at fault.
    """
    query = _queried(request)
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    reader = _reader(media_type)
    # Not ``request.body()``, which joins the one piece with an empty one: a copy.
    body = b"".join([piece async for piece in request.stream() if piece])
    if len(body) < _LOOP_BYTES.get(media_type, math.inf):
        asked = reader(content_type, body, query, max_images)
    else:  # the loop has probes to answer
        asked = await asyncio.to_thread(reader, content_type, body, query, max_images)
    if len(asked.uploads) > max_images:
        raise TooManyImages(max_images)
    return asked


def _queried(request: Request) -> Options:
    text: bytes = request.scope["query_string"]
    if not text:
        return _BY_DEFAULT
    if len(text) > _MAX_QUERY_BYTES or text.count(b"&") >= _MAX_QUERY_PARAMETERS:
        message = f"Input should be at most {_MAX_QUERY_PARAMETERS} short parameters"
        raise InvalidRequest([{"loc": ["query"], "msg": message}])
    try:
        return Options.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise InvalidRequest(
            [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
        ) from None


def _reader(media_type: str) -> Reader:
    if media_type == "multipart/form-data":
        return _read_multipart
    if media_type == "application/json":
        return _read_json
    if media_type.startswith("image/"):  # selects the form; what the bytes are, the bytes tell
        return _read_raw
    raise UnsupportedMediaType


def _read_raw(content_type: str, body: bytes, query: Options, max_images: int) -> CaptionRequest:  # noqa: ARG001
    return CaptionRequest((Upload(None, body),), query)


def _read_json(content_type: str, body: bytes, query: Options, max_images: int) -> CaptionRequest:  # noqa: ARG001
    _check_marks(body, max_images)
    _check_lengths(body, max_images)
    try:
        request = JsonRequest.model_validate_json(body)
    except ValidationError as error:
        raise complaint(error) from None
    fields = request.model_dump(exclude_unset=True, exclude={"images"})
    uploads = tuple(Upload(None, image.data) for image in request.images)
    return CaptionRequest(uploads, _merged(query, fields))


def _check_marks(body: bytes, max_images: int) -> None:
    """Refuse what has far more members than a request can have, before it is parsed.

    A list of seven million empty lists, 20 MB, took 78 seconds to be called wrong, and the answer
    named each of them.
    """
    if sum(body.count(mark) for mark in _MARKS) > _MARKS_PER_IMAGE * (max_images + 8):
        raise TooManyImages(max_images)


def _check_lengths(body: bytes, max_images: int) -> None:
    """Refuse what is long and no image, before it is parsed: a name, an option, white space.

    A member name of 20 MB took half a second and came back whole.
    """
    quotes = _quotes(body, 2 * _MARKS_PER_IMAGE * (max_images + 8))
    for at in range(1, len(quotes)):
        is_long = quotes[at] - quotes[at - 1] > _MAX_JSON_BYTES
        if is_long and (at < 3 or body[quotes[at - 3] + 1 : quotes[at - 2]] != b"data"):
            message = f"Only data may be longer than {_MAX_JSON_BYTES} bytes"
            raise InvalidRequest([{"loc": ["body"], "msg": message}])


def _quotes(body: bytes, most: int) -> list[int]:
    """Find where strings begin and end, between the ends of the body."""
    found = [-1]
    while len(found) <= most and (at := body.find(b'"', found[-1] + 1)) >= 0:
        found.append(at)
    return [*found, len(body)]


def complaint(error: ValidationError) -> RequestError:
    """Say what is wrong with a body of JSON: its syntax, or which values."""
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    if any(item["type"] == "json_invalid" for item in errors):
        return MalformedBody()
    return InvalidRequest(errors)


def _read_multipart(
    content_type: str, body: bytes, query: Options, max_images: int
) -> CaptionRequest:
    try:
        parts = multipart.parse(content_type, body, max_parts=max_images + _MAX_FORM_FIELDS)
    except TooManyParts:
        raise TooManyImages(max_images) from None
    uploads = tuple(_upload(part) for part in parts if part.name == "image")
    if not uploads:
        raise InvalidRequest([{"loc": ["image"], "msg": "Field required"}])
    return CaptionRequest(uploads, _merged(query, _fields(parts)))


def _upload(part: Part) -> Upload:
    if part.filename is None:
        message = "Input should be a file part, with a filename"
        raise InvalidRequest([{"loc": ["image"], "msg": message}])
    return Upload(echo.filename(part.filename), part.data)


def _fields(parts: list[Part]) -> dict[str, str]:
    fields = [part for part in parts if part.name != "image"]
    if len(fields) > _MAX_FORM_FIELDS or any(
        len(part.data) > _MAX_FORM_FIELD_BYTES for part in fields
    ):
        raise MalformedBody
    return {part.name: part.data.decode("utf-8", errors="replace") for part in fields}


def _merged(query: Options, fields: Mapping[str, object]) -> Options:
    """Let the body have the last word over the query."""
    if not fields:
        return query
    try:
        return Options.model_validate({**query.model_dump(exclude_unset=True), **fields})
    except ValidationError as error:
        raise complaint(error) from None
