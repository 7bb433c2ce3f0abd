"""A JSON body -> a request. Bounded before it is parsed: nothing but images may be long."""

import codecs

from pydantic import ValidationError

from app.web.problems import InvalidRequest, MalformedBody, RequestError, TooManyImages
from app.web.schemas import JsonRequest

_MARKS_PER_IMAGE = 8  # brackets, commas and colons; an image needs four
_MARKS = (b"{", b"[", b",", b":")
_MAX_BYTES = 1024  # of a name or an option, and of white space
_LONG_MEMBERS = frozenset({b"data", b"image", b"images", b"url"})
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def parse(body: bytes, max_images: int) -> JsonRequest:
    """Parse a body, in UTF-8 or with a byte-order mark.

    Raises:
        RequestError: It is not JSON, or not what is expected; or it holds too much.
    """
    text = _utf_8(body)
    if not text.strip():
        raise MalformedBody('The body is empty: expected {"images": [{"data": "<base64>"}]}')
    _check_marks(text, max_images)
    _check_lengths(text, max_images)
    try:
        return JsonRequest.model_validate_json(text)
    except ValidationError as error:
        raise complaint(error) from None


def _utf_8(body: bytes) -> bytes:
    if not body.startswith(_UTF_16):
        return body.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode("utf-16").encode()
    except UnicodeError:
        raise MalformedBody("The body is not UTF-16, as its byte-order mark says") from None


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
        if quotes[at] - quotes[at - 1] > _MAX_BYTES and not _is_image(body, quotes, at):
            message = f"Only images may be longer than {_MAX_BYTES} bytes"
            raise InvalidRequest([{"loc": ["body"], "msg": message}])


def _is_image(body: bytes, quotes: list[int], at: int) -> bool:
    """Say whether an image may stand before the quote: as a member for images, or in a list."""
    if at % 2 or at + 1 >= len(quotes):
        return False
    before = body[quotes[at - 2] + 1 : quotes[at - 1]].strip()
    after = body[quotes[at] + 1 : min(quotes[at + 1], quotes[at] + _MAX_BYTES)].lstrip()
    if before == b":":
        return body[quotes[at - 3] + 1 : quotes[at - 2]] in _LONG_MEMBERS
    return before.endswith((b"[", b",")) and not after.startswith(b":")


def _quotes(body: bytes, most: int) -> list[int]:
    """Find where strings begin and end, between the ends of the body."""
    found = [-1]
    while len(found) <= most and (at := body.find(b'"', found[-1] + 1)) >= 0:
        found.append(at)
    return [*found, len(body)]


def complaint(error: ValidationError) -> RequestError:
    """Say what is wrong with a body of JSON: its syntax, or which values."""
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    for item in errors:
        if item["type"] == "json_invalid":
            return MalformedBody(_syntax(item["msg"]))
    return InvalidRequest(errors)


def _syntax(message: str) -> str:
    r"""Say where it breaks: the parser's texts are fixed but for the place."""
    if "control character" in message:
        message += r"; a line break in a string is written as \n"
    return message
