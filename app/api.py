"""The routes: three forms of request in, captions or a problem out."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app import problems
from app.batching import Closed, DeadlineExceeded, Overloaded
from app.health import Health, NotReady, Report
from app.problems import InvalidRequest, MalformedBody, TooManyImages, UnsupportedMediaType
from app.schemas import (
    REQUEST_BODY,
    Candidate,
    CaptionedImage,
    CaptionResponse,
    CheckpointList,
    CheckpointName,
    HealthReport,
    JsonRequest,
    Options,
    Problem,
    RefusedImage,
    WordOut,
)
from app.service import CaptionService
from app.settings import Settings
from app.telemetry import Telemetry

if TYPE_CHECKING:
    from app.captioner.pipeline import Caption, Word

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
router = APIRouter()

_WHOLE_REQUEST = (Overloaded, NotReady, Closed, DeadlineExceeded)  # not the fault of one image
_MAX_FORM_FIELDS = 8
_MAX_FORM_FIELD_BYTES = 1024
_CAPTION_PROBLEMS = (
    "malformed_body", "unauthorised", "slow_body", "body_too_large", "too_many_pixels",
    "unsupported_encoding", "unsupported_media_type", "unsupported_image", "undecodable_image",
    "too_many_images", "invalid_request", "internal_error", "overloaded", "not_ready",
    "deadline_exceeded",
)  # fmt: skip


@dataclass(frozen=True)
class Door:
    """What the routes need; ``main`` makes one and keeps it in ``app.state.door``."""

    settings: Settings
    service: CaptionService
    health: Health
    telemetry: Telemetry


def _door(request: Request) -> Door:
    door: Door = request.app.state.door
    return door


TheDoor = Annotated[Door, Depends(_door)]


# Captions


@dataclass(frozen=True)
class Upload:
    """One image as it came."""

    filename: str | None
    data: bytes


@dataclass(frozen=True)
class Wanted:
    """A request in whichever of the three forms."""

    uploads: tuple[Upload, ...]
    options: Options


@router.post(
    "/v1/captions",
    summary="Caption images",
    description="One to many images in, for each a sentence out, in the same order.",
    response_model=CaptionResponse,
    responses=problems.openapi_responses(*_CAPTION_PROBLEMS),
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def caption_images(
    request: Request, door: TheDoor, query: Annotated[Options, Query()]
) -> Response:
    """Answer ``POST /v1/captions``."""
    deadline_s = request.state.arrived_s + door.settings.deadline_s
    wanted = await _read(request, query, door.settings)
    _check_n_best(wanted.options, door.service)
    with door.service.holding(len(wanted.uploads)):
        results = await _results(wanted, deadline_s, request.state.request_id, door)
    return _json(
        CaptionResponse(
            request_id=request.state.request_id,
            model=_checkpoint_name(door.service),
            results=results,
        )
    )


def _json(answer: CaptionResponse) -> Response:
    """Write the answer without the members that were not asked for."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def _checkpoint_name(service: CaptionService) -> CheckpointName:
    manifest = service.captioner.manifest
    return CheckpointName(name=manifest.name, version=manifest.version)


def _check_n_best(options: Options, service: CaptionService) -> None:
    beam_width = service.captioner.manifest.search.beam_width
    if options.n_best > beam_width:
        message = f"Input should be at most the beam width, {beam_width}"
        raise InvalidRequest([{"loc": ["n_best"], "msg": message}])


async def _results(
    wanted: Wanted, deadline_s: float, request_id: str, door: Door
) -> list[CaptionedImage | RefusedImage]:
    journeys = [_outcome(door.service, upload, deadline_s) for upload in wanted.uploads]
    outcomes = await asyncio.gather(*journeys)
    _count(outcomes, door.telemetry)
    _raise_what_concerns_all(outcomes)
    return [
        _result(upload, outcome, wanted.options, request_id)
        for upload, outcome in zip(wanted.uploads, outcomes, strict=True)
    ]


async def _outcome(
    service: CaptionService, upload: Upload, deadline_s: float
) -> "tuple[Caption, ...] | Exception":
    """Give the captions of one upload, or what went wrong with it: the others go on."""
    try:
        return await service.caption(upload.data, deadline_s)
    except Exception as error:  # noqa: BLE001 - becomes this image's problem or the request's
        return error


def _count(outcomes: "list[tuple[Caption, ...] | Exception]", telemetry: Telemetry) -> None:
    for outcome in outcomes:
        code = problems.kind_of(outcome).code if isinstance(outcome, Exception) else "ok"
        telemetry.images.labels(code).inc()


def _raise_what_concerns_all(outcomes: "list[tuple[Caption, ...] | Exception]") -> None:
    """A lone image's problem is the request's; so is one that is no image's fault."""
    for outcome in outcomes:
        if isinstance(outcome, Exception) and (
            len(outcomes) == 1 or isinstance(outcome, _WHOLE_REQUEST)
        ):
            raise outcome


def _result(
    upload: Upload,
    outcome: "tuple[Caption, ...] | Exception",
    options: Options,
    request_id: str,
) -> CaptionedImage | RefusedImage:
    if isinstance(outcome, tuple):
        return _captioned(upload, outcome, options)
    return _refused(upload, outcome, request_id)


def _refused(upload: Upload, error: Exception, request_id: str) -> RefusedImage:
    problem = problems.describe(error, request_id)
    if problem["code"] == problems.INTERNAL_ERROR.code:
        log.error("internal_error", exc_info=error)
    return RefusedImage(filename=upload.filename, problem=Problem.model_validate(problem))


def _captioned(
    upload: Upload, candidates: "tuple[Caption, ...]", options: Options
) -> CaptionedImage:
    best = candidates[0]
    return CaptionedImage(
        filename=upload.filename,
        caption=best.text,
        log_prob=best.log_prob,
        candidates=[_candidate(caption, options) for caption in candidates[: options.n_best]],
    )


def _candidate(caption: "Caption", options: Options) -> Candidate:
    members: dict[str, Any] = {}
    if options.words or options.attention:
        members["words"] = [_word(word, options) for word in caption.words]
    return Candidate(
        caption=caption.text, log_prob=caption.log_prob, score=caption.score, **members
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


# The three forms


async def _read(request: Request, query: Options, settings: Settings) -> Wanted:
    """Read the uploads and the options, whatever the form."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = await _reader(media_type)(request, query, settings)
    if len(wanted.uploads) > settings.max_images:
        raise TooManyImages(settings.max_images)
    return wanted


def _reader(media_type: str) -> Callable[[Request, Options, Settings], Awaitable[Wanted]]:
    if media_type == "multipart/form-data":
        return _read_multipart
    if media_type == "application/json":
        return _read_json
    if media_type.startswith("image/"):  # selects the form; what the bytes are, the bytes tell
        return _read_raw
    raise UnsupportedMediaType


async def _read_raw(request: Request, query: Options, settings: Settings) -> Wanted:  # noqa: ARG001
    return Wanted((Upload(None, await request.body()),), query)


async def _read_json(request: Request, query: Options, settings: Settings) -> Wanted:  # noqa: ARG001
    try:
        body = JsonRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise _complaint(error) from None
    fields = body.model_dump(exclude_unset=True, exclude={"images"})
    uploads = tuple(Upload(None, image.data) for image in body.images)
    return Wanted(uploads, _merged(query, fields))


def _complaint(error: ValidationError) -> problems.Refusal:
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    if any(item["type"] == "json_invalid" for item in errors):
        return MalformedBody()
    return InvalidRequest(errors)


async def _read_multipart(request: Request, query: Options, settings: Settings) -> Wanted:
    form = await _parse(request, settings)
    try:
        return await _read_form(form, query)
    finally:
        await form.close()


async def _parse(request: Request, settings: Settings) -> FormData:
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=settings.max_images,
        max_fields=_MAX_FORM_FIELDS,
        max_part_size=_MAX_FORM_FIELD_BYTES,
    )
    parser.spool_max_size = settings.max_upload_bytes + 1  # stays in memory: the body is bounded
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise _form_refusal(error, settings) from None


async def _read_form(form: FormData, query: Options) -> Wanted:
    uploads = tuple([await _upload(part) for part in form.getlist("image")])
    if not uploads:
        raise InvalidRequest([{"loc": ["image"], "msg": "Field required"}])
    fields = {name: value for name, value in form.multi_items() if name != "image"}
    return Wanted(uploads, _merged(query, fields))


def _form_refusal(error: MultiPartException, settings: Settings) -> problems.Refusal:
    if error.message.startswith("Too many files"):
        return TooManyImages(settings.max_images)
    return MalformedBody()


async def _upload(part: UploadFile | str) -> Upload:
    if isinstance(part, str):
        message = "Input should be a file part, with a filename"
        raise InvalidRequest([{"loc": ["image"], "msg": message}])
    return Upload(part.filename, await part.read())


def _merged(query: Options, fields: Mapping[str, object]) -> Options:
    """Let the body have the last word over the query."""
    try:
        return Options.model_validate({**query.model_dump(exclude_unset=True), **fields})
    except ValidationError as error:
        raise _complaint(error) from None


# What is served, and how it is


@router.get(
    "/v1/models",
    summary="List the checkpoints served",
    responses=problems.openapi_responses("unauthorised", "not_ready"),
)
async def list_checkpoints(door: TheDoor) -> CheckpointList:
    """Answer ``GET /v1/models``."""
    return CheckpointList(models=[door.service.captioner.manifest.public()])


def _probe(report: Report) -> JSONResponse:
    return JSONResponse(
        {"status": report.status, "reason": report.reason},
        status_code=200 if report.ok else 503,
        headers={"cache-control": "no-store"},
    )


_PROBE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": HealthReport, "description": "Yes."},
    503: {"model": HealthReport, "description": "No; the reason says why."},
}


@router.get("/livez", summary="Is it alive?", responses=_PROBE_RESPONSES)
async def livez(door: TheDoor) -> JSONResponse:
    """Answer ``GET /livez``."""
    return _probe(door.health.livez())


@router.get("/startupz", summary="Has it started?", responses=_PROBE_RESPONSES)
async def startupz(door: TheDoor) -> JSONResponse:
    """Answer ``GET /startupz``."""
    return _probe(door.health.startupz())


@router.get("/healthz", summary="The same as /readyz", responses=_PROBE_RESPONSES)
@router.get("/readyz", summary="Should work come here?", responses=_PROBE_RESPONSES)
async def readyz(door: TheDoor) -> JSONResponse:
    """Answer ``GET /readyz`` and ``GET /healthz``."""
    return _probe(door.health.readyz())


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(door: TheDoor) -> Response:
    """Answer ``GET /metrics``."""
    return Response(
        generate_latest(door.telemetry.registry),
        headers={"content-type": CONTENT_TYPE_LATEST, "cache-control": "no-store"},
    )
