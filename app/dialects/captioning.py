"""Uploads -> captions, all of them or an error, and what is said where there is no image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import Request

from app.dialects.reading import NO_DATA
from app.serving.reloading import Served, name_of
from app.web import routes
from app.web.forms import CaptionRequest, Upload
from app.web.problems import InvalidRequest
from app.web.routes import app_state_of, caption_uploads, served_of
from app.web.schemas import Options

if TYPE_CHECKING:
    from app.captioner.captions import Caption
    from app.captioner.presentation import Told

NOTE_HEADER = "x-caption-note"
MODEL_HEADER = "x-caption-model"
TEXT_IGNORED = "Text is ignored: this service describes images and answers no questions."
UNSURE = "not sure what this shows"
NO_IMAGE = "Send an image: this service describes images and answers no questions."


def choose(request: Request, asked: str | None) -> None:
    """Choose who captions the images of a request: what is served as this, else as for nobody."""
    found = named(request, asked)
    routes.choose(request, asked if found else None)


def named(request: Request, asked: str | None) -> Served | None:
    """Give what is served as this; None where it is the name of another service's model."""
    return app_state_of(request).service.checkpoints.find(asked) if asked else None


async def candidates_of(
    uploads: Sequence[Upload], request: Request, *, n_best: int = 1
) -> "list[tuple[Caption, ...]]":
    """Caption the uploads of a request, each with as many candidates as asked for, best first.

    A caption that the service withholds gives its place to what the image may show.

    Raises:
        Exception: The first thing that is wrong with the request or one of its images.
    """
    if not uploads:
        return []
    if not app_state_of(request).fetcher.is_on and any(upload.url for upload in uploads):
        raise InvalidRequest([{"loc": ["url"], "msg": NO_DATA}])
    asked = CaptionRequest(tuple(uploads), Options(n_best=n_best))
    candidates = []
    _, outcomes = await caption_uploads(asked, request)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        candidates.append((_instead(outcome),) if outcome.withheld else outcome[:n_best])
    return candidates


def _instead(told: "Told") -> "Caption":
    labels = ", ".join(tag.label for tag in told.tags or ())
    text = f"may show: {labels}" if labels else UNSURE
    return replace(told[0], text=text, words=())


def checkpoint_name(request: Request) -> str:
    """Name what answers, as ``name:version``."""
    return name_of(served_of(request).captioner)


def model_header(request: Request) -> dict[str, str]:
    """Give the header that names what answered, for a dialect that has no place for it."""
    return {MODEL_HEADER: checkpoint_name(request)}


def max_images(request: Request) -> int:
    """Give how many images a request may have."""
    return app_state_of(request).settings.max_images


def note(*, ignored_text: bool) -> dict[str, str]:
    """Give the header that says what was not used."""
    return {NOTE_HEADER: TEXT_IGNORED} if ignored_text else {}


def pieces(text: str) -> Iterator[str]:
    """Split an answer for who wants it streamed; the search ends with all words at once."""
    first, *others = text.split(" ")
    yield from (piece for piece in (first, *(f" {word}" for word in others)) if piece)
