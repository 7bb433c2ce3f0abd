"""The three forms of a request: multipart, raw body, JSON with base64 -> uploads and options.

What the first bytes decide, the Content-Type does not: an image is an image, and JSON is JSON.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError

from app.captioner.image import formats
from app.observability import echo
from app.web import base64_text, json_body, multipart
from app.web.multipart import Part, TooManyParts
from app.web.problems import (
    InvalidRequest,
    MalformedBody,
    TooManyImages,
    UnsupportedMediaType,
)
from app.web.schemas import NO_URLS, JsonImage, JsonRequest, Options, given

_MAX_FORM_FIELDS = 32  # widgets add a dozen of their own
_MAX_QUERY_BYTES = 1024
_MAX_URL_QUERY_BYTES = 4096  # with a web address in it
_MAX_QUERY_PARAMETERS = 16  # more than there are options
_MAX_FORM_FIELD_BYTES = 1024
_IMAGE_FIELDS = frozenset({
    "image", "images", "img", "file", "files", "photo", "photos", "picture", "pictures",
    "upload", "uploads", "filepond",
})  # fmt: skip
_INDEX = re.compile(r"(\[\w*\]|\d+)\Z")  # image[], image[0], image1
_ANYTHING = frozenset({"", "application/octet-stream", "binary/octet-stream", "*/*"})
_URLENCODED = "application/x-www-form-urlencoded"
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Upload:
    """One image as it came.

    Attributes:
        filename: where the form has one.
        data: its bytes; empty while they are at a web address.
        url: that address.
        fault: what went wrong with the address.
    """

    filename: str | None
    data: bytes
    url: str | None = None
    fault: Exception | None = None


@dataclass(frozen=True)
class CaptionRequest:
    """A request in whichever of the three forms."""

    uploads: tuple[Upload, ...]
    options: Options


Reader = Callable[[str, bytes, Options, int], CaptionRequest]
_BY_DEFAULT = Options()


async def read(request: Request, max_images: int, *, may_fetch: bool = False) -> CaptionRequest:
    """Read the uploads and the options, whatever the form.

    Args:
        request: A request for captions, admitted.
        max_images: So many uploads at most.
        may_fetch: Whether an upload may be a web address.

    Raises:
        RequestError: The query or the body is at fault.
    """
    query, url = _queried(request)
    content_type = request.headers.get("content-type", "")
    # Not ``request.body()``, which joins the one piece with an empty one: a copy.
    body = b"".join([piece async for piece in request.stream() if piece])
    asked = await _read_body(content_type, body, query, max_images, url)
    if len(asked.uploads) > max_images:
        raise TooManyImages(max_images)
    if not may_fetch and any(upload.url for upload in asked.uploads):
        raise InvalidRequest([{"loc": ["url"], "msg": NO_URLS}])
    return asked


async def _read_body(
    content_type: str, body: bytes, query: Options, max_images: int, url: str | None
) -> CaptionRequest:
    if not body and url:
        return CaptionRequest((Upload(None, b"", url),), query)
    reader, loop_bytes = _reader(content_type.partition(";")[0].strip().lower(), body)
    if len(body) < loop_bytes:
        return reader(content_type, body, query, max_images)
    # The loop has probes to answer.
    return await asyncio.to_thread(reader, content_type, body, query, max_images)


def _queried(request: Request) -> tuple[Options, str | None]:
    """Give the options of the query, and its web address; what is unknown there is ignored."""
    text: bytes = request.scope["query_string"]
    if not text:
        return _BY_DEFAULT, None
    most = _MAX_URL_QUERY_BYTES if b"url=" in text[:_MAX_URL_QUERY_BYTES] else _MAX_QUERY_BYTES
    if len(text) > most or text.count(b"&") >= _MAX_QUERY_PARAMETERS:
        message = f"Input should be at most {_MAX_QUERY_PARAMETERS} short parameters"
        raise InvalidRequest([{"loc": ["query"], "msg": message}])
    parameters = dict(request.query_params)
    try:
        return Options.model_validate(_options(parameters)), parameters.get("url")
    except ValidationError as error:
        raise InvalidRequest(
            [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
        ) from None


def _options(fields: Mapping[str, str]) -> dict[str, str]:
    return given({name: text for name, text in fields.items() if name in Options.model_fields})


def _reader(media_type: str, body: bytes) -> tuple[Reader, int]:
    """Choose by the first bytes, else by the media type.

    Returns:
        The reader, and from how many bytes on it takes longer than a millisecond or so.
    """
    if formats.is_image(body):
        return _read_raw, len(body) + 1
    if base64_text.is_data_uri(body):
        return _read_data_uri, 2**18
    if media_type == "multipart/form-data":
        return _read_multipart, 2**22
    if media_type.endswith(("/json", "+json")) or _begins_like_json(body):
        return _read_json, 2**18
    if media_type.startswith("image/") or media_type in _ANYTHING:
        return _read_raw, len(body) + 1
    if media_type == _URLENCODED:
        raise UnsupportedMediaType("A urlencoded form holds no image: send multipart/form-data")
    raise UnsupportedMediaType


def _begins_like_json(body: bytes) -> bool:
    start = body[:64]
    for mark in _BYTE_ORDER_MARKS:
        start = start.removeprefix(mark)
    return start.lstrip(b" \t\r\n\0")[:1] == b"{"


def _read_raw(content_type: str, body: bytes, query: Options, max_images: int) -> CaptionRequest:  # noqa: ARG001
    if not body:
        message = "The body is empty: send the bytes of an image"
        raise InvalidRequest([{"loc": ["body"], "msg": message}])
    return CaptionRequest((Upload(None, body),), query)


def _read_data_uri(
    content_type: str,  # noqa: ARG001
    body: bytes,
    query: Options,
    max_images: int,  # noqa: ARG001
) -> CaptionRequest:
    return CaptionRequest((Upload(None, _from_base64(body, "body")),), query)


def _from_base64(text: bytes, place: str) -> bytes:
    try:
        return base64_text.decoded(text)
    except ValueError as error:
        raise InvalidRequest([{"loc": [place], "msg": str(error)}]) from None


def _read_json(content_type: str, body: bytes, query: Options, max_images: int) -> CaptionRequest:  # noqa: ARG001
    request = json_body.parse(body, max_images)
    fields = request.model_dump(exclude_unset=True, exclude=_NO_OPTIONS)
    return CaptionRequest(tuple(map(_json_upload, request.images)), _merged(query, fields))


_NO_OPTIONS = set(JsonRequest.model_fields) - set(Options.model_fields)


def _json_upload(image: JsonImage) -> Upload:
    return Upload(None, image.data or b"", image.url)


def _read_multipart(
    content_type: str, body: bytes, query: Options, max_images: int
) -> CaptionRequest:
    try:
        parts = multipart.parse(content_type, body, max_parts=max_images + _MAX_FORM_FIELDS)
    except TooManyParts:
        raise TooManyImages(max_images) from None
    uploads = tuple(map(_upload, _image_parts(parts)))
    return CaptionRequest(uploads, _merged(query, _fields(parts)))


def _image_parts(parts: Sequence[Part]) -> list[Part]:
    """Give the parts that are images: those in a field for images, else all files there are.

    Raises:
        InvalidRequest: There is none; it says what came instead.
    """
    named = [part for part in parts if _is_image_field(part.name) and not _is_note(part)]
    found = named or [part for part in parts if part.filename is not None]
    images = [part for part in found if part.data or part.filename != ""]
    if images:
        return images
    if found:  # a browser sends an empty part for a field without a file
        message = "No file was chosen: the part has neither a name nor bytes"
        raise InvalidRequest([{"loc": [found[0].name], "msg": message}])
    raise InvalidRequest([{"loc": ["image"], "msg": _nothing_but([part.name for part in parts])}])


def _nothing_but(names: Sequence[str]) -> str:
    came = f"the form has only {', '.join(map(echo.field, names[:3]))}" if names else "it is empty"
    return f"Field required, with the bytes of an image; {came}"


def _is_image_field(name: str) -> bool:
    return _INDEX.sub("", name).strip().lower() in _IMAGE_FIELDS


def _is_note(part: Part) -> bool:
    """Say whether it is what widgets send beside the file under the same name: a bit of JSON."""
    return part.filename is None and part.data[:64].lstrip()[:1] in {b"{", b"["}


def _upload(part: Part) -> Upload:
    data = part.data
    if part.is_base64 or base64_text.is_data_uri(data):
        data = _from_base64(data, part.name)
    filename = None if part.filename is None else echo.filename(part.filename)
    return Upload(filename, data)


def _fields(parts: Sequence[Part]) -> dict[str, str]:
    """Give the options; what else a form holds is its own."""
    fields = [part for part in parts if part.name in Options.model_fields]
    for part in fields:
        if len(part.data) > _MAX_FORM_FIELD_BYTES:
            raise MalformedBody(f"The field {part.name} is longer than {_MAX_FORM_FIELD_BYTES} B")
    return _options({part.name: part.data.decode("utf-8", errors="replace") for part in fields})


def _merged(query: Options, fields: Mapping[str, object]) -> Options:
    """Let the body have the last word over the query."""
    if not fields:
        return query
    try:
        return Options.model_validate({**query.model_dump(exclude_unset=True), **fields})
    except ValidationError as error:
        raise InvalidRequest(error.errors(include_input=False, include_context=False)) from None
