"""create_app: the only place where real things are chosen and wired.

No decision about pixels or words.
"""

import os
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from app import server
from app.clips.processes import ClipProcesses
from app.dialects.errors import DialectErrors
from app.dialects.registry import chosen
from app.loading import CheckpointStore
from app.observability import logs
from app.observability.metrics import Metrics
from app.observability.request_log import RequestLog
from app.observability.tracing import Tracing
from app.serving.clips import Clips
from app.serving.health import Health
from app.serving.reloading import Store
from app.serving.service import CaptionService
from app.settings import Settings
from app.web import clip_routes, problems, routes
from app.web.admission import Admission
from app.web.browsers import Browsers
from app.web.fetching import Fetcher
from app.web.page import assets
from app.web.paths import Paths
from app.web.ports import Ports
from app.web.problems import Problems
from app.web.routes import AppState
from app.web.schemas import SECURITY_SCHEMES

if TYPE_CHECKING:
    from app.captioner.image.decode_processes import DecodeProcesses
    from app.serving.captioner import Captioner

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def serve(settings: Settings) -> int:
    """Serve until told to stop, and give the exit code; see ``server.serve``."""
    return server.serve(create_app(server.within_descriptors(settings)))


def create_app(settings: Settings, *, captioners: "Sequence[Captioner]" = ()) -> FastAPI:
    """Make the application.

    Args:
        settings: What this machine may do.
        captioners: Used as they are; without any, the checkpoints of the settings are loaded once
            the application runs, and uploads are decoded in processes.
    """
    metrics = Metrics()
    decoders = None if captioners else _decoders(settings, metrics)
    loaded = [CheckpointStore(settings, named) for named in settings.served_checkpoints]
    stores = [_Given(captioner) for captioner in captioners] or loaded
    app_state = _app_state(settings, stores, metrics, decoders)
    app = _Application(
        title="Caption service",
        summary="Post a photo, get a sentence.",
        version=version("caption-service"),
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's own page loads from a foreign network
        redoc_url=None,
        redirect_slashes=False,
        routes=_routes(settings),  # an included router would look each path up twice
        # what a request leaves behind, ``request_log`` makes
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.app_state = app_state
    app.state.tracing = Tracing(os.environ)
    app.add_exception_handler(HTTPException, problems.answer_http_exception)
    _guard(app, app_state)
    return app


def _files(settings: Settings) -> list[Route]:
    return assets.routes(
        page=settings.page,
        root_path=settings.root_path,
        links_docs=settings.admin_port is None,
        clips=settings.clips,
    )


def _routes(settings: Settings) -> list[BaseRoute]:
    foreign = (route for dialect in chosen(settings.dialects) for route in dialect.routes)
    clips = clip_routes.router.routes if settings.clips else []
    return [*routes.router.routes, *clips, *foreign, *_files(settings)]


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """Describe the API; keys are checked before any route, so the framework knows of none."""
        description = super().openapi()
        description["components"]["securitySchemes"] = SECURITY_SCHEMES
        return description


class _Given:
    """A store with one captioner, which is loaded already."""

    def __init__(self, captioner: "Captioner") -> None:
        self._captioner = captioner

    def find(self, version: str | None = None) -> Path:  # noqa: ARG002 - as every store
        return Path()

    def fingerprint(self, directory: Path) -> Hashable:  # noqa: ARG002
        return None

    def load(self, directory: Path, *, beside: bool = False) -> "Captioner":  # noqa: ARG002
        return self._captioner


def _decoders(settings: Settings, metrics: Metrics) -> "DecodeProcesses":
    from app.captioner.image.decode_processes import DecodeProcesses  # noqa: PLC0415 - brings Pillow

    return DecodeProcesses(
        settings.decode_processes,
        budget_s=settings.decode_cpu_s,
        max_bytes=settings.max_upload_bytes,
        max_pixels=settings.max_pixels,
        watcher=_DecoderNews(metrics),
    )


def _clips(settings: Settings, service: CaptionService, metrics: Metrics) -> Clips:
    processes = ClipProcesses(
        settings.clip_processes,
        budget_s=settings.clip_cpu_s,
        max_bytes=max(settings.most_clip_bytes, settings.max_upload_bytes),
        max_pixels=settings.max_pixels,
        watcher=_DecoderNews(metrics),
    )
    return Clips(service, settings=settings, processes=processes)


class _DecoderNews:
    """Logs and counts what becomes of decode processes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def ended(self, reason: str) -> None:
        log.warning("decoder_ended", reason=reason)
        self._metrics.decoders_ended.labels(reason).inc()

    def absent(self, error: Exception | None) -> None:
        if error is None:
            log.info("decoder_again")
        else:
            log.error("no_decoder", reason=str(error))


def _app_state(
    settings: Settings,
    stores: Sequence[Store],
    metrics: Metrics,
    decoders: "DecodeProcesses | None",
) -> AppState:
    health = Health(stuck_after_s=settings.stuck_after_s)
    service = CaptionService(
        stores, settings=settings, health=health, metrics=metrics, decoders=decoders
    )
    metrics.queue_depth.set_function(lambda: service.depth)
    metrics.batch_size_limit.set_function(lambda: service.batch_size_limit)
    metrics.ready.set_function(lambda: health.readyz().ok)
    metrics.follow_log(logs.dropped_lines)
    clips = _clips(settings, service, metrics) if settings.clips else None
    return AppState(settings, service, health, metrics, Fetcher(settings), clips)


def _guard(app: FastAPI, app_state: AppState) -> None:
    """Wrap the routes; the last layer added is the outermost."""
    app.add_middleware(
        Admission,
        settings=app_state.settings,
        check_accepting=app_state.health.check_accepting,
        retry_after_s=app_state.service.retry_after_s,
        has_room=app_state.service.has_room,
        seconds_per_image=lambda: app_state.service.seconds_per_image,
        metrics=app_state.metrics,
    )
    if app_state.settings.admin_port is not None:
        app.add_middleware(Ports, admin_port=app_state.settings.admin_port)
    app.add_middleware(Problems)
    dialects = chosen(app_state.settings.dialects)
    if dialects:
        app.add_middleware(DialectErrors, dialects=dialects)
    paths = [route for dialect in dialects for route in dialect.routes if isinstance(route, Route)]
    app.add_middleware(Browsers, origins=app_state.settings.cors_origins)
    app.add_middleware(
        RequestLog,
        metrics=app_state.metrics,
        tracing=app.state.tracing,
        routes={
            **{path: path for path in app.openapi()["paths"]},
            **{route.path: route.path for route in paths if not route.param_convertors},
            **assets.LABELS,
        },
        templates=[(route.path_regex, route.path) for route in paths if route.param_convertors],
    )
    app.add_middleware(Paths, root_path=app_state.settings.root_path)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: CaptionService = app.state.app_state.service
    tracing: Tracing = app.state.tracing
    await tracing.start()
    service.start()
    yield
    app.state.app_state.fetcher.close()
    if app.state.app_state.clips is not None:
        await app.state.app_state.clips.close()
    await service.close()
    await tracing.close()
