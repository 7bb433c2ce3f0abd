"""Captions and what went wrong -> the JSON of an answer."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import Response

from app.captioner.presentation import Told, warning
from app.serving.captioner import Manifest
from app.web import problems
from app.web.forms import CaptionRequest, Upload
from app.web.schemas import (
    Candidate,
    CaptionedImage,
    CaptionResponse,
    CheckpointName,
    Options,
    Problem,
    RefusedImage,
    TagOut,
    WordOut,
)

if TYPE_CHECKING:
    from app.captioner.captions import Caption, Word

    Outcome = Told | Exception

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_LOOP_CAPTIONS = 4  # whose words are written within a millisecond or two


async def as_json(
    asked: CaptionRequest, outcomes: "Sequence[Outcome]", request_id: str, manifest: Manifest
) -> Response:
    """Write the answer without the members that were not asked for.

    What has the words of many captions is written in a thread: with attention, 16 images of 200
    bytes are answered with half a megabyte.
    """
    model = CheckpointName(name=manifest.name, version=manifest.version)
    if _is_large(asked):
        text = await asyncio.to_thread(_written, asked, outcomes, request_id, model)
    else:
        text = _written(asked, outcomes, request_id, model)
    return Response(text, media_type="application/json")


def _is_large(asked: CaptionRequest) -> bool:
    options = asked.options
    in_words = options.words or options.attention
    return in_words and len(asked.uploads) * options.n_best > _LOOP_CAPTIONS


def _written(
    asked: CaptionRequest, outcomes: "Sequence[Outcome]", request_id: str, model: CheckpointName
) -> bytes:
    """Write result by result: one call for all of them would keep the GIL from the loop."""
    empty = CaptionResponse(request_id=request_id, model=model, results=[])
    head, tail = empty.model_dump_json().encode().rsplit(b"]", 1)
    pairs = zip(asked.uploads, outcomes, strict=True)
    results = (_result(*pair, asked.options, request_id) for pair in pairs)
    pieces = [each.model_dump_json(exclude_unset=True).encode() for each in results]
    return b"".join((head, b",".join(pieces), b"]", tail))


def _result(
    upload: Upload, outcome: "Outcome", options: Options, request_id: str
) -> CaptionedImage | RefusedImage:
    """Give the result of one image: its captions, or its own problem."""
    if isinstance(outcome, Told):
        return _captioned(upload, outcome, options)
    return _refused(upload, outcome, request_id)


def _refused(upload: Upload, error: Exception, request_id: str) -> RefusedImage:
    problem = problems.describe(error, request_id)
    if problem["code"] == problems.INTERNAL_ERROR.code:
        log.error("internal_error", exc_info=error)
    return RefusedImage(filename=upload.filename, problem=Problem.model_validate(problem))


def _captioned(upload: Upload, told: "Told", options: Options) -> CaptionedImage:
    members: dict[str, Any] = {"withheld": told.withheld} if told.withheld else {}
    if said := warning(told, upload.data):
        members["warning"] = said
    if options.tags or told.withheld:
        known = told.tags
        members["tags"] = known if known is None else [TagOut(**tag._asdict()) for tag in known]
    return CaptionedImage(
        filename=upload.filename,
        caption=told.text,
        log_prob=told[0].log_prob,
        confidence=told[0].confidence,
        candidates=[_candidate(caption, options) for caption in told[: options.n_best]],
        **members,
    )


def _candidate(caption: "Caption", options: Options) -> Candidate:
    members: dict[str, Any] = {}
    if options.words or options.attention:
        members["words"] = [_word(word, options) for word in caption.words]
    return Candidate(
        caption=caption.text,
        log_prob=caption.log_prob,
        score=caption.score,
        confidence=caption.confidence,
        **members,
    )


def _word(word: "Word", options: Options) -> WordOut:
    members: dict[str, Any] = {}
    if options.attention:
        members = {"attention": _rows(word), "sentinel": word.sentinel}
    return WordOut(text=word.text, log_prob=word.log_prob, **members)


def _rows(word: "Word") -> list[list[float]] | None:
    if word.attention is None:
        return None
    rows: list[list[float]] = word.attention.astype("float64").round(5).tolist()
    return rows
