"""The route of clips: a clip in, its described shots out."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import APIRouter, Request, Response

from app.captioner.presentation import told, warning
from app.clips import kinds
from app.clips.described import DescribedShot
from app.clips.reading import Still
from app.clips.sampling import End
from app.serving.batching import DeadlineExceeded, Flow
from app.serving.clips import ClipRequest, Clips
from app.serving.reloading import name_of
from app.web import clip_answers, clip_forms, problems
from app.web.clip_answers import MEDIA_TYPES, ClipWriter, Streamed
from app.web.clip_forms import ClipUpload
from app.web.problems import InvalidRequest
from app.web.routes import (
    CAPTION_PROBLEMS,
    AppState,
    Direct,
    app_state_of,
    check_n_best,
    choose,
    manifest_of,
    served_of,
)
from app.web.schemas import (
    CLIP_BODY,
    CLIP_PARAMETERS,
    SECURITY,
    CheckpointName,
    ClipFormat,
    ClipResponse,
)

if TYPE_CHECKING:
    from starlette.responses import Response as AnyResponse

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
Parts = AsyncGenerator[DescribedShot | End, None]

_OTHER_CONTENT: dict[str, Any] = {
    media_type: {"schema": {"type": "string"}}
    for name, media_type in MEDIA_TYPES.items()
    if name != "json"
}
router = APIRouter(
    route_class=Direct,
    generate_unique_id_function=lambda route: route.name,
)


@router.post(
    "/v1/clips",
    summary="Describe a clip",
    description="A GIF, a video or a series of images in, a sentence for each of its shots out.",
    response_model=ClipResponse,
    responses={
        200: {
            "content": {
                MEDIA_TYPES[name]: {"schema": {"type": "string"}}
                for name in ("ndjson", "vtt", "srt")
            }
        },
        **problems.openapi_responses(
            *(code for code in CAPTION_PROBLEMS if code != "fetch_failed"), "clip_too_long"
        ),
    },
    openapi_extra={"requestBody": CLIP_BODY, "parameters": CLIP_PARAMETERS, "security": SECURITY},
)
async def describe_clip(request: Request) -> "AnyResponse | Streamed":
    """Answer ``POST /v1/clips``."""
    app_state, clips = app_state_of(request), _clips_of(request)
    clip = await clip_forms.read(request, app_state.settings.max_clip_frames)
    choose(request, clip.options.model)
    _check(clip, request)
    form = clip.options.format or clip_answers.format_of(request.headers.get("accept", ""))
    writer = _writer(clip, request)
    parts = _within(_held(clip, request, app_state, clips), request.state.deadline_s)
    if form == "ndjson":
        return await _streamed(parts, writer, request)
    return await _whole(parts, writer, form)


def _clips_of(request: Request) -> Clips:
    clips = app_state_of(request).clips
    if clips is None:
        raise RuntimeError("clips are switched off, and their route is there")
    return clips


def _check(clip: ClipUpload, request: Request) -> None:
    options, limit = clip.options, app_state_of(request).settings.max_clip_frames
    check_n_best(options.n_best, served_of(request))
    if options.max_frames is not None and options.max_frames > limit:
        message = f"Input should be at most CAPTION_MAX_CLIP_FRAMES, {limit}"
        raise InvalidRequest([{"loc": ["max_frames"], "msg": message}])


def _writer(clip: ClipUpload, request: Request) -> ClipWriter:
    manifest = manifest_of(request)
    model = CheckpointName(name=manifest.name, version=manifest.version)
    return ClipWriter(request.state.request_id, model, clip.options.n_best)


async def _whole(parts: Parts, writer: ClipWriter, form: ClipFormat) -> Response:
    shots: list[DescribedShot] = []
    end = End(0.0)
    async with aclosing(parts):
        async for each in parts:
            if isinstance(each, End):
                end = each
            else:
                shots.append(each)
    media_type = MEDIA_TYPES[form]
    return Response(writer.whole(shots, end, form), media_type=media_type)


async def _streamed(parts: Parts, writer: ClipWriter, request: Request) -> Streamed:
    """Answer in lines, once the first one is there: until then a problem has a status."""
    try:
        first = await anext(parts)
    except BaseException:
        await parts.aclose()
        raise

    async def lines() -> AsyncGenerator[bytes, None]:
        async with aclosing(parts):
            yield writer.line(first)
            async for each in parts:
                yield writer.line(each)

    return Streamed(lines(), partial(_problem_of, request))


def _problem_of(request: Request, error: Exception) -> dict[str, Any]:
    """Describe what went wrong after the status was sent, and leave it as the outcome."""
    problem = problems.describe(error, request.state.request_id)
    request.scope["state"]["outcome"] = problem["code"]
    if problem["code"] == problems.INTERNAL_ERROR.code:
        log.error("internal_error", exc_info=error)
    return problem


async def _within(parts: Parts, deadline_s: float) -> Parts:
    """Give the parts until the deadline.

    Raises:
        DeadlineExceeded: They are not all there by then.
    """
    async with aclosing(parts):
        while True:
            try:
                async with asyncio.timeout_at(deadline_s):
                    each = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise DeadlineExceeded from None
            yield each


async def _held(clip: ClipUpload, request: Request, app_state: AppState, clips: Clips) -> Parts:
    """Give the parts, and count the clip as some images of its caller until its end."""
    with app_state.service.holding(clips.frames_held, request.state.caller):
        async with aclosing(_described(clip, request, app_state, clips)) as parts:
            async for each in parts:
                _count(each, request, app_state)
                yield each


def _count(each: DescribedShot | End, request: Request, app_state: AppState) -> None:
    notes, checkpoint = request.state.notes, name_of(served_of(request).captioner)
    notes["checkpoint"] = checkpoint
    if isinstance(each, End):
        notes["clip_s"] = round(each.duration_s, 3)
        return
    notes["shots"] = notes.get("shots", 0) + 1
    app_state.metrics.captioned("ok", checkpoint)
    app_state.metrics.told(each.told[0].confidence, each.told.withheld, checkpoint)
    if app_state.settings.log_captions:
        notes.setdefault("captions", []).append(each.told.text)


async def _described(
    clip: ClipUpload, request: Request, app_state: AppState, clips: Clips
) -> Parts:
    asked = _asked(clip, request, app_state)
    data = clip.files[0]
    if clip.options.frames:
        frames = clips.frames_of_images(clip.files, clip.options.fps, asked)
        moving = clips.describe(frames, asked)
    else:
        kinds.check(data)
        if not kinds.is_clip(data):
            moving = _still(data, asked, app_state)
        else:
            most = clip.options.max_frames or app_state.settings.max_clip_frames
            how = clips.sampling(clip.options.fps, most, asked.served)
            read = clips.frames_of(data, how, asked.deadline_s, request.state.caller)
            moving = clips.describe(read, asked)
    try:
        async with aclosing(moving):
            async for each in moving:
                yield each
    except Still:
        async with aclosing(_still(data, asked, app_state)) as still:
            async for each in still:
                yield each


def _asked(clip: ClipUpload, request: Request, app_state: AppState) -> ClipRequest:
    return ClipRequest(
        clip.options.scene_threshold,
        clip.options.presentation(app_state.settings.min_confidence),
        request.state.deadline_s,
        Flow(request.state.caller, object()),
        served_of(request),
    )


async def _still(data: bytes, asked: ClipRequest, app_state: AppState) -> Parts:
    """Caption an image as ``/v1/captions`` does: one shot that takes no time."""
    candidates = await app_state.service.caption(
        data, asked.deadline_s, flow=asked.flow, served=asked.served
    )
    found = told(candidates, asked.how)
    yield DescribedShot(0.0, 0.0, 0.0, found)
    yield End(0.0, warning=warning(found, data))
