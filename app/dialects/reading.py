"""Bodies of other services' requests -> uploads. Lenient where those services are."""

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from app.web import base64_text, json_body
from app.web.forms import Upload
from app.web.problems import InvalidRequest, TooManyImages

_LOOP_BYTES = 2**18  # a millisecond's work
_MOST_MARKS = 2**16  # of a long prompt and a schema; the images, in base64, have none
_MARKS = (b"{", b"[", b",", b":")
_A_REMOTE_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_NO_BASE64 = "Input should be an image in base64"
_WEB_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
NO_DATA = "Input should be a data: URI, such as data:image/jpeg;base64,...; no URL is fetched"

Place = tuple[str | int, ...]
Read = TypeVar("Read")
Model = TypeVar("Model", bound="Lenient")


class Lenient(BaseModel):
    """A schema that ignores what it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


async def read(request: Request, reader: Callable[[bytes], Read]) -> Read:
    """Read a body with a function that takes it whole, in a thread where it is large."""
    # Not ``request.body()``, which joins the one piece with an empty one: a copy.
    body = b"".join([piece async for piece in request.stream() if piece])
    if len(body) < _LOOP_BYTES:
        return reader(body)
    return await asyncio.to_thread(reader, body)


def from_json(model: type[Model], body: bytes) -> Model:
    """Read JSON, whatever its media type said.

    Raises:
        RequestError: It is no JSON, a value is wrong, or there are far more than a request needs.
    """
    if sum(body.count(mark) for mark in _MARKS) > _MOST_MARKS:  # would take seconds and gigabytes
        message = f"Input should have at most {_MOST_MARKS} brackets, commas and colons"
        raise InvalidRequest([{"loc": ["body"], "msg": message}])
    try:
        return model.model_validate_json(body.removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        raise json_body.complaint(error) from None


def last_images(
    messages: Iterable[tuple[str | None, Sequence[tuple[Place, str]]]],
) -> list[tuple[Place, str]]:
    """Find the images of the last turn that has any; an answer of the assistant ends a turn.

    Args:
        messages: Of a conversation: who said each, and its images with their places.
    """
    found: list[tuple[Place, str]] = []
    turn_ended = False
    for role, images in messages:
        turn_ended = turn_ended or role == "assistant"
        if images and turn_ended:
            found, turn_ended = [], False
        found += images
    return found


def uploads(images: Sequence[tuple[Place, str]], max_images: int) -> tuple[Upload, ...]:
    """Read images that came as text: base64 or ``data:`` URIs.

    Raises:
        TooManyImages: There are more than ``max_images``.
        InvalidRequest: One is neither.
    """
    if len(images) > max_images:
        raise TooManyImages(max_images)
    return tuple(_upload(place, text) for place, text in images)


def _upload(place: Place, text: str) -> Upload:
    """Take an address as it is: whether it may be fetched is not known here."""
    if _WEB_ADDRESS.match(text):
        return Upload(None, b"", text)
    if _A_REMOTE_URL.match(text):
        raise InvalidRequest([{"loc": place, "msg": NO_DATA}])
    return Upload(None, from_base64(place, text))


def from_base64(place: Place, text: str) -> bytes:
    """Decode base64 as people send it, with or without the head of a ``data:`` URI.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        return base64_text.decoded(text.encode("ascii", "replace"))
    except ValueError:
        raise InvalidRequest([{"loc": place, "msg": _NO_BASE64}]) from None
