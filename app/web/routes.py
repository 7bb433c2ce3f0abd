"""The routes: a request in, captions or a problem out."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.captioner.image import formats
from app.captioner.presentation import told
from app.observability.metrics import Metrics
from app.serving.batching import Closed, DeadlineExceeded, Flow, Overloaded
from app.serving.clips import Clips
from app.serving.health import Health, NotReady, Report
from app.serving.reloading import Refusal, Reloads, Served, name_of
from app.serving.service import CaptionService, OnStage
from app.settings import Settings
from app.web import answers, forms, problems
from app.web.fetching import Fetcher
from app.web.forms import CaptionRequest, Upload
from app.web.problems import InvalidRequest, ModelNotFound
from app.web.schemas import (
    MODEL,
    PARAMETERS,
    REQUEST_BODY,
    SECURITY,
    SHARE,
    VERSION,
    CanaryShare,
    CaptionResponse,
    CheckpointList,
    CheckpointName,
    HealthReport,
    ListedCheckpoint,
    RefusedCheckpoint,
    Reloaded,
    ServedCheckpoint,
)

if TYPE_CHECKING:
    from app.captioner.captions import Candidates
    from app.serving.captioner import Manifest
    from app.web.answers import Outcome


log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class Direct(APIRoute):
    """A route whose function takes the request and gives the response, with nothing in between.

    What the framework would do there, for parameters, models and open files that no function here
    has, takes a tenth of what HTTP costs.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        methods = set(self.methods or ())
        if "GET" in methods:  # not in ``methods`` themselves: the description would have each twice
            methods.add("HEAD")
        if scope["method"] not in methods:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        response: Response = await self.endpoint(Request(scope, receive, send))
        if scope["method"] == "HEAD":
            response.body = b""  # its length stays in the head
        await response(scope, receive, send)


router = APIRouter(
    route_class=Direct,
    generate_unique_id_function=lambda route: route.name,  # a generated client's methods
)

_WHOLE_REQUEST = (Overloaded, NotReady, Closed, DeadlineExceeded)  # not the fault of one image
CAPTION_PROBLEMS = (
    "malformed_request", "head_too_large", "malformed_body", "unauthorized", "model_not_found",
    "slow_body",
    "body_too_large", "too_many_pixels",
    "unsupported_encoding", "unsupported_media_type", "unsupported_image", "undecodable_image",
    "too_costly", "too_many_images", "invalid_request", "fetch_failed", "too_many_requests",
    "rate_exceeded", "internal_error", "overloaded", "not_ready", "deadline_exceeded",
)  # fmt: skip


@dataclass(frozen=True)
class AppState:
    """What the routes need; ``main`` makes one and keeps it in ``app.state.app_state``."""

    settings: Settings
    service: CaptionService
    health: Health
    metrics: Metrics
    fetcher: Fetcher
    clips: Clips | None = None


def app_state_of(request: Request) -> AppState:
    """Give the state; as a dependency it would cost every request a tenth of a millisecond."""
    app_state: AppState = request.app.state.app_state
    return app_state


def choose(request: Request, asked: str | None) -> None:
    """Choose who captions the images of a request, whatever takes its place meanwhile.

    Raises:
        ModelNotFound: Nothing that is served is called so.
    """
    checkpoints = app_state_of(request).service.checkpoints
    served = checkpoints.choose(asked)
    if served is None:
        raise ModelNotFound(asked or "", _names(checkpoints.served))
    request.scope["state"]["served"] = served


def served_of(request: Request) -> Served:
    """Give who captions the images of a request: what was chosen, else the first."""
    served: Served | None = request.scope["state"].get("served")
    return served or app_state_of(request).service.served


def _names(served: Sequence[Served]) -> list[str]:
    return [f"{each.name}@{each.version}" for each in served]


def manifest_of(request: Request) -> "Manifest":
    """Tell of the checkpoint that captions the images of a request."""
    return served_of(request).captioner.manifest


# Captions


@router.post(
    "/v1/captions",
    summary="Caption images",
    description="One to many images in, for each a sentence out, in the same order.",
    response_model=CaptionResponse,
    responses=problems.openapi_responses(*CAPTION_PROBLEMS),
    openapi_extra={"requestBody": REQUEST_BODY, "parameters": PARAMETERS, "security": SECURITY},
)
async def caption_images(request: Request) -> Response:
    """Answer ``POST /v1/captions``."""
    app_state = app_state_of(request)
    may_fetch = app_state.fetcher.is_on
    asked = await forms.read(request, app_state.settings.max_images, may_fetch=may_fetch)
    choose(request, asked.options.model)
    asked, outcomes = await caption_uploads(asked, request)
    model = manifest_of(request)
    return await answers.as_json(asked, outcomes, request.state.request_id, model)


async def caption_uploads(
    asked: CaptionRequest, request: Request
) -> "tuple[CaptionRequest, list[Outcome]]":
    """Caption the uploads of an admitted request, within its deadline and its key's share.

    Returns:
        The request with what its web addresses led to, and for each upload its captions, or what
        is wrong with it.

    Raises:
        InvalidRequest: More candidates are asked for than the beam is wide.
        Exception: What concerns the whole request; a lone image's problem is one.
    """
    app_state, served = app_state_of(request), served_of(request)
    check_n_best(asked.options.n_best, served)
    asked = await _fetched(asked, request.state, app_state.fetcher)
    with app_state.service.holding(len(asked.uploads), request.state.caller):
        return asked, await _outcomes(asked, request.state, app_state, served)


async def _fetched(asked: CaptionRequest, state: State, fetcher: Fetcher) -> CaptionRequest:
    try:
        async with asyncio.timeout_at(state.deadline_s):
            return await fetcher.fetched(asked, state.charge)
    except TimeoutError:
        raise DeadlineExceeded from None


def check_n_best(n_best: int, served: Served) -> None:
    """Refuse a request for more candidates than there are.

    Raises:
        InvalidRequest: It is.
    """
    beam_width = served.captioner.manifest.search.beam_width
    if n_best > beam_width:
        message = f"Input should be at most the beam width, {beam_width}"
        raise InvalidRequest([{"loc": ["n_best"], "msg": message}])


async def _outcomes(
    asked: CaptionRequest, state: State, app_state: AppState, served: Served
) -> "list[Outcome]":
    flow = Flow(state.caller, object())
    how = asked.options.presentation(app_state.settings.min_confidence)
    coroutines = [
        _found(
            app_state.service,
            upload,
            state.deadline_s,
            state.stages.of(image),
            flow,
            served=served,
        )
        for image, upload in enumerate(asked.uploads)
    ]
    if len(coroutines) == 1:  # it needs no task
        found = [await coroutines[0]]
    else:
        found = await asyncio.gather(*coroutines)
    outcomes: list[Outcome] = [
        each if isinstance(each, Exception) else told(each, how) for each in found
    ]
    checkpoint = name_of(served.captioner)
    _count(outcomes, app_state.metrics, checkpoint)
    state.notes.update(_notes(asked, outcomes, app_state.settings), checkpoint=checkpoint)
    _raise_what_concerns_all(outcomes)
    return outcomes


async def _found(
    service: CaptionService,
    upload: Upload,
    deadline_s: float,
    on_stage: OnStage,
    flow: Flow,
    *,
    served: Served,
) -> "Candidates | Exception":
    """Give the captions of one upload, or what went wrong with it: the others go on."""
    if upload.fault is not None:
        return upload.fault
    try:
        return await service.caption(upload.data, deadline_s, on_stage, flow, served=served)
    except Exception as error:  # noqa: BLE001 - becomes this image's problem or the request's
        return error


def _count(outcomes: "list[Outcome]", metrics: Metrics, checkpoint: str) -> None:
    for outcome in outcomes:
        code = problems.problem_type_of(outcome).code if isinstance(outcome, Exception) else "ok"
        metrics.captioned(code, checkpoint)
        if not isinstance(outcome, Exception):
            metrics.told(outcome[0].confidence, outcome.withheld, checkpoint)


def _notes(
    asked: CaptionRequest, outcomes: "list[Outcome]", settings: Settings
) -> dict[str, object]:
    """Give what the log line of a request for captions says of its images."""
    told: dict[str, object] = {
        "images": len(asked.uploads),
        "pixels": sum(formats.pixels(upload.data) for upload in asked.uploads),
    }
    if settings.log_captions:
        told["captions"] = [_said(outcome) for outcome in outcomes]
    return told


def _said(outcome: "Outcome") -> str | None:
    """Give what was said of an image; None where it was nothing."""
    return None if isinstance(outcome, Exception) or outcome.withheld else outcome[0].text


def _raise_what_concerns_all(outcomes: "list[Outcome]") -> None:
    """A lone image's problem is the request's; so is one that is no image's fault."""
    for outcome in outcomes:
        if isinstance(outcome, Exception) and (
            len(outcomes) == 1 or isinstance(outcome, _WHOLE_REQUEST)
        ):
            raise outcome


# What is served, and how it is


@router.get(
    "/v1/models",
    summary="List the checkpoints served",
    response_model=CheckpointList,
    responses=problems.openapi_responses(
        "unauthorized",
        "invalid_request",
        "too_many_requests",
        "rate_exceeded",
        "overloaded",
        "not_ready",
    ),
    openapi_extra={"security": SECURITY},
)
async def list_checkpoints(request: Request) -> Response:
    """Answer ``GET /v1/models``."""
    checkpoints = app_state_of(request).service.checkpoints
    captioners = [served.captioner for served in checkpoints.served]
    listed = CheckpointList(
        models=[captioner.manifest.public() for captioner in captioners],
        served=[
            ServedCheckpoint(
                name=place.served.name,
                version=place.served.version,
                share=checkpoints.share_of(place.served),
                refused=_refused(place.refusal),
            )
            for place in checkpoints.places
        ],
        data=[ListedCheckpoint(id=name_of(captioner)) for captioner in captioners],
        refused=_refused(checkpoints.refusal),
    )
    return Response(listed.model_dump_json(), media_type="application/json")


def _refused(refusal: Refusal | None) -> RefusedCheckpoint | None:
    return RefusedCheckpoint(**refusal._asdict()) if refusal else None


@router.post(
    "/v1/admin/reload",
    summary="Serve the checkpoint that is there now",
    description=(
        "Loads what CAPTION_CHECKPOINT leads to, or another version, beside the one that is "
        "served, and lets it take over. One that cannot be trusted changes nothing. Of several "
        "that are served the first is meant, unless `model` names another."
    ),
    response_model=Reloaded,
    responses=problems.openapi_responses(
        "unauthorized",
        "not_found",
        "model_not_found",
        "checkpoint_refused",
        "invalid_request",
        "not_ready",
    ),
    openapi_extra={"parameters": [MODEL, VERSION], "security": SECURITY[:-1]},
)
async def reload_checkpoint(request: Request) -> Response:
    """Answer ``POST /v1/admin/reload``."""
    place = _place(request, request.query_params.get("model") or None)
    version = request.query_params.get("version") or None
    done = await place.reload("admin", version)
    model = _checkpoint_name(done.served)
    told = Reloaded(outcome=done.outcome, model=model, seconds=done.seconds)
    return Response(told.model_dump_json(), media_type="application/json")


def _place(request: Request, asked: str | None) -> Reloads:
    """Find the place whose checkpoint is called so; the first unless told.

    Raises:
        ModelNotFound: There is none.
        InvalidRequest: There are several.
    """
    checkpoints = app_state_of(request).service.checkpoints
    if asked is None:
        return checkpoints.places[0]
    places = checkpoints.places_of(asked)
    if not places:
        raise ModelNotFound(asked, _names(checkpoints.served))
    if len(places) > 1:
        names = ", ".join(_names([place.served for place in places]))
        raise InvalidRequest([{"loc": ["model"], "msg": f"Input should be one of {names}"}])
    return places[0]


def _checkpoint_name(served: Served) -> CheckpointName:
    return CheckpointName(name=served.name, version=served.version)


@router.post(
    "/v1/admin/canary",
    summary="Try the last of two checkpoints",
    description=(
        "Gives the last of two checkpoints this share of the requests that ask for none: 0 ends "
        "the trial, 1 promotes it. It holds until the next call, or the end of the service."
    ),
    response_model=CanaryShare,
    responses=problems.openapi_responses(
        "unauthorized", "not_found", "invalid_request", "not_ready"
    ),
    openapi_extra={"parameters": [SHARE], "security": SECURITY[:-1]},
)
async def share_with_canary(request: Request) -> Response:
    """Answer ``POST /v1/admin/canary``."""
    share = _share(request.query_params.get("share"))
    checkpoints = app_state_of(request).service.checkpoints
    try:
        checkpoints.try_last(share)
    except ValueError as error:
        raise InvalidRequest([{"loc": ["share"], "msg": str(error)}]) from None
    last = checkpoints.places[-1].served
    log.info("canary", share=share, checkpoint=name_of(last.captioner))
    told = CanaryShare(share=share, model=_checkpoint_name(last))
    return Response(told.model_dump_json(), media_type="application/json")


def _share(given: str | None) -> float:
    """Read a share.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        share = float(given or "")
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        message = "Input should be a number from 0 to 1"
        raise InvalidRequest([{"loc": ["share"], "msg": message}])
    return share


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
async def livez(request: Request) -> JSONResponse:
    """Answer ``GET /livez``."""
    return _probe(app_state_of(request).health.livez())


@router.get("/startupz", summary="Has it started?", responses=_PROBE_RESPONSES)
async def startupz(request: Request) -> JSONResponse:
    """Answer ``GET /startupz``."""
    return _probe(app_state_of(request).health.startupz())


@router.get("/healthz", name="healthz", summary="The same as /readyz", responses=_PROBE_RESPONSES)
@router.get("/readyz", summary="Should work come here?", responses=_PROBE_RESPONSES)
async def readyz(request: Request) -> JSONResponse:
    """Answer ``GET /readyz`` and ``GET /healthz``."""
    return _probe(app_state_of(request).health.readyz())


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Answer ``GET /metrics``."""
    return Response(
        generate_latest(app_state_of(request).metrics.registry),
        headers={"content-type": CONTENT_TYPE_LATEST, "cache-control": "no-store"},
    )
