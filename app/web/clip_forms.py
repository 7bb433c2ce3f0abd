"""The two forms of a clip: a raw body, or files of a form -> uploads and options."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request
from pydantic import ValidationError

from app.captioner.image import formats
from app.clips import kinds
from app.observability import echo
from app.web import multipart
from app.web.multipart import Part, TooManyParts
from app.web.problems import InvalidRequest, MalformedBody, TooManyImages, UnsupportedMediaType
from app.web.schemas import ClipOptions, given

_MOST_FIELDS = 32
_MOST_FIELD_BYTES = 1024
_MOST_QUERY_BYTES = 1024
_MOST_QUERY_PARAMETERS = 16
_LOOP_BYTES = 2**22  # a form of more is split in a thread
_ONE_CLIP = "Expected one clip: for several images that are its frames, add frames=true"
_NO_CLIP = "Neither JSON nor a urlencoded form holds a clip: send its bytes, or multipart/form-data"


@dataclass(frozen=True)
class ClipUpload:
    """A clip as it came.

    Attributes:
        filename: where the form has one.
        files: its bytes; of a clip of images, those of each, in their order.
        options: what was chosen.
    """

    filename: str | None
    files: tuple[bytes, ...]
    options: ClipOptions


async def read(request: Request, max_frames: int) -> ClipUpload:
    """Read a clip and its options, in either form.

    Args:
        request: A request for a clip, admitted.
        max_frames: So many files at most.

    Raises:
        RequestError: The query or the body is at fault.
    """
    query = _queried(request)
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    # Not ``request.body()``, which joins the one piece with an empty one: a copy.
    body = b"".join([piece async for piece in request.stream() if piece])
    known = kinds.container_of(body) is not None or formats.is_image(body)
    if not known and media_type.endswith(("/json", "+json", "/x-www-form-urlencoded")):
        raise UnsupportedMediaType(_NO_CLIP)
    if known or media_type != "multipart/form-data":  # curl says urlencoded of any bytes
        return _checked(ClipUpload(None, (body,) if body else (), query), max_frames)
    if len(body) < _LOOP_BYTES:
        return _read_form(content_type, body, query, max_frames)
    # The loop has probes to answer.
    return await asyncio.to_thread(_read_form, content_type, body, query, max_frames)


def _queried(request: Request) -> ClipOptions:
    text: bytes = request.scope["query_string"]
    if len(text) > _MOST_QUERY_BYTES or text.count(b"&") >= _MOST_QUERY_PARAMETERS:
        message = f"Input should be at most {_MOST_QUERY_PARAMETERS} short parameters"
        raise InvalidRequest([{"loc": ["query"], "msg": message}])
    return _options(dict(request.query_params), ("query",))


def _options(fields: Mapping[str, object], place: tuple[str, ...] = ()) -> ClipOptions:
    known = {name: each for name, each in fields.items() if name in ClipOptions.model_fields}
    try:
        return ClipOptions.model_validate(given(known))
    except ValidationError as error:
        errors = error.errors(include_input=False, include_context=False)
        raise InvalidRequest([{**each, "loc": (*place, *each["loc"])} for each in errors]) from None


def _read_form(content_type: str, body: bytes, query: ClipOptions, max_frames: int) -> ClipUpload:
    try:
        parts = multipart.parse(content_type, body, max_parts=max_frames + _MOST_FIELDS)
    except TooManyParts:
        raise TooManyImages(max_frames) from None
    files = _files(parts)
    fields = {each.name: _text(each) for each in parts if each.filename is None}
    options = _options({**query.model_dump(exclude_unset=True), **given(fields)})
    name = files[0].filename if files else None
    told = None if name is None else echo.filename(name)
    return _checked(ClipUpload(told, tuple(each.data for each in files), options), max_frames)


def _files(parts: Sequence[Part]) -> list[Part]:
    """Give the parts that are files: those with a name, else what is no option."""
    named = [part for part in parts if part.filename is not None]
    found = named or [part for part in parts if part.name not in ClipOptions.model_fields]
    return [part for part in found if part.data or part.filename]


def _text(part: Part) -> str | None:
    """Give the value of an option; of what is none, nothing."""
    if part.name not in ClipOptions.model_fields:
        return None
    if len(part.data) > _MOST_FIELD_BYTES:
        raise MalformedBody(f"The field {part.name} is longer than {_MOST_FIELD_BYTES} B")
    return part.data.decode("utf-8", errors="replace")


def _checked(clip: ClipUpload, max_frames: int) -> ClipUpload:
    if not clip.files:
        message = "Field required, with the bytes of a clip"
        raise InvalidRequest([{"loc": ["file"], "msg": message}])
    if len(clip.files) > 1 and not clip.options.frames:
        raise InvalidRequest([{"loc": ["frames"], "msg": _ONE_CLIP}])
    if len(clip.files) > max_frames:
        raise TooManyImages(max_frames)
    return clip
