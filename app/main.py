"""create_app: the only place where real things are chosen and wired; serve: its life as a process.

No decision about pixels or words.
"""

import asyncio
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from app import api, logs, problems
from app.api import Door
from app.captioner import forking
from app.connections import KEPT_FOR_PROBES, Connections, Listener, most_connections
from app.ending import HardLimit, kill_descendants, leave
from app.exchange import RequestTelemetry
from app.health import Health, State
from app.http1 import Http1Connection
from app.limits import Admission
from app.problems import Problems
from app.self_probe import SelfProbe
from app.service import CaptionService
from app.settings import Settings
from app.telemetry import Telemetry
from app.tracing import Tracing
from app.watchdog import Watchdog

if TYPE_CHECKING:
    from app.captioner.decoders import Decoders
    from app.captioner.pipeline import Captioner

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_TICK_S = 0.5
_LAST_WORDS_S = 1.0  # a failed process lives that long, so that a probe can read the reason
# How long an end may take, whatever hangs:
_FAILED_PATIENCE_S = 2  # what a failed process still has under way
_FAILED_END_S = 8.0  # a failed process in all
_DRAINED_END_S = 8.0  # a drained one, after all that it may wait for
_EXIT_S = 5.0  # Python, after the loop
_KEEP_ALIVE_S = (
    75  # longer than balancers keep idle connections: they close first, and lose nothing
)
_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def create_app(settings: Settings, *, captioner: "Captioner | None" = None) -> FastAPI:
    """Make the application.

    Args:
        settings: What this machine may do.
        captioner: Used as it is; without one, the checkpoint of the settings is loaded once the
            application runs, and uploads are decoded in processes.
    """
    telemetry = Telemetry()
    decoders = _decoders(settings, telemetry) if captioner is None else None
    door = _door(settings, _loader(settings, captioner), telemetry, decoders)
    app = FastAPI(
        title="Caption service",
        summary="Post a photo, get a sentence.",
        version=version("caption-service"),
        lifespan=_lifespan,
        redoc_url=None,
        redirect_slashes=False,
        routes=api.router.routes,  # an included router would look each path up twice
        # what a request leaves behind, ``exchange`` makes
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.door = door
    app.state.tracing = Tracing(os.environ)
    app.add_exception_handler(HTTPException, problems.answer_http_exception)
    _guard(app, door)
    return app


def load_captioner(settings: Settings) -> "Captioner":
    """Load the checkpoint of the settings into this process.

    Raises:
        CheckpointError: The directory cannot be trusted.
    """
    return _load_captioner(settings, apart=False)


def load_captioner_apart(settings: Settings) -> "Captioner":
    """Load the checkpoint of the settings, for a CPU of several cores in processes of its own.

    Where the system refuses what processes need, in this one.

    Raises:
        CheckpointError: The directory cannot be trusted.
    """
    apart = settings.lane_processes and _cores(settings) > 1
    try:
        if apart and (settings.device == "cpu" or not _NVIDIA_DRIVER.exists()):
            forking.begin()  # it imports torch while we do
        return _load_captioner(settings, apart=apart)
    except OSError as error:
        if not apart:
            raise
        log.warning("no_lane_processes", reason=str(error))
    return _load_captioner(settings, apart=False)


def _load_captioner(settings: Settings, *, apart: bool) -> "Captioner":
    import torch  # noqa: PLC0415 - seconds of import, paid in an inference thread

    from app.captioner import compiled  # noqa: PLC0415
    from app.captioner.pipeline import Captioner, fastest_precision  # noqa: PLC0415

    cores = _cores(settings)
    torch.set_num_threads(cores)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = settings.precision
    if precision == "auto":
        precision = fastest_precision(device)
    if device == "cpu" and not compiled.available():
        log.warning("search_not_compiled", reason="the installation compiled nothing")
    directory = settings.checkpoint_directory()
    if apart and device == "cpu":
        return Captioner.load_in_lanes(
            directory, precision=precision, cores=cores, most_images=settings.max_batch
        )
    return Captioner.load(directory, device=device, precision=precision, cores=cores)


def _cores(settings: Settings) -> int:
    return settings.torch_threads or usable_cores()


def usable_cores(quota: Path = _CPU_QUOTA) -> int:
    """Count the cores this process may use; torch does not see a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit, _, period = quota.read_text().partition(" ") if quota.exists() else ("max", "", "")
    allowed = cores or 1
    return allowed if limit == "max" else max(1, min(allowed, int(limit) // int(period)))


def _loader(settings: Settings, captioner: "Captioner | None") -> "Callable[[], Captioner]":
    return partial(load_captioner_apart, settings) if captioner is None else lambda: captioner


def _decoders(settings: Settings, telemetry: Telemetry) -> "Decoders":
    from app.captioner.decoders import Decoders  # noqa: PLC0415 - brings Pillow

    return Decoders(
        settings.decode_processes,
        budget_s=settings.decode_cpu_s,
        max_bytes=settings.max_upload_bytes,
        max_pixels=settings.max_pixels,
        watcher=_DecoderNews(telemetry),
    )


class _DecoderNews:
    """Logs and counts what becomes of decode processes."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def ended(self, reason: str) -> None:
        log.warning("decoder_ended", reason=reason)
        self._telemetry.decoders_ended.labels(reason).inc()

    def absent(self, error: Exception | None) -> None:
        if error is None:
            log.info("decoder_again")
        else:
            log.error("no_decoder", reason=str(error))


def _door(
    settings: Settings,
    load: "Callable[[], Captioner]",
    telemetry: Telemetry,
    decoders: "Decoders | None",
) -> Door:
    health = Health(stuck_after_s=settings.stuck_after_s)
    service = CaptionService(
        load, settings=settings, health=health, telemetry=telemetry, decoders=decoders
    )
    telemetry.queue_depth.set_function(lambda: service.depth)
    telemetry.batch_ceiling.set_function(lambda: service.batch_ceiling)
    telemetry.ready.set_function(lambda: health.readyz().ok)
    telemetry.follow_log(logs.dropped_lines)
    return Door(settings, service, health, telemetry)


def _guard(app: FastAPI, door: Door) -> None:
    """Wrap the routes; the last layer added is the outermost."""
    app.add_middleware(
        Admission,
        settings=door.settings,
        check_accepting=door.health.check_accepting,
        retry_after_s=door.service.retry_after_s,
        has_room=door.service.has_room,
        seconds_per_image=lambda: door.service.seconds_per_image,
        telemetry=door.telemetry,
    )
    app.add_middleware(Problems)
    app.add_middleware(
        RequestTelemetry,
        telemetry=door.telemetry,
        tracing=app.state.tracing,
        routes=frozenset(app.openapi()["paths"]),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: CaptionService = app.state.door.service
    tracing: Tracing = app.state.tracing
    await tracing.start()
    service.start()
    yield
    await service.close()
    await tracing.close()


# The process


class _Server(uvicorn.Server):
    """uvicorn whose connections are accepted by us, and whose signals are ours.

    At the first signal it would stop accepting at once.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self._listeners: list[Listener] = []

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        protocol = partial(
            make,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        backlog = self.config.backlog
        for bound in sockets or []:
            listener = Listener(bound, self._connections, protocol, backlog=backlog)
            self._listeners.append(listener)
            listener.open()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self._listeners:
            listener.close()
        await super().shutdown(sockets)


def serve(settings: Settings) -> int:
    """Serve until told to stop, and give the exit code: 0 after a drain, 1 after a failure.

    A loop that stays away ends the process at once, with ``watchdog.EXIT_CODE``. Whatever else
    hangs at the end is left behind after a while, and the exit code is 1 unless the drain was over.
    """
    settings = within_descriptors(settings)
    app = create_app(settings)
    connections = _connections(settings, app.state.door.telemetry)
    config = _uvicorn_config(app, settings, connections)
    log.info("settings", **settings.model_dump(mode="json"))
    bound = config.bind_socket()
    limit = HardLimit()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        try:
            serving = _serve(_Server(config, connections), app.state.door, bound, limit)
            limit.code = code = runner.run(serving)
        finally:
            limit.start(_EXIT_S)
    if app.state.door.health.heartbeat.busy:  # Python would wait for the thread, maybe for ever
        leave(1, lambda: log.error("inference_thread_left_behind"))
    kill_descendants()  # Python would wait for those as well, and some may be stopped
    logs.flush(_LAST_WORDS_S)
    return code


def within_descriptors(settings: Settings) -> Settings:
    """Give settings with no more connections than descriptors, and some kept for probes."""
    connections = most_connections(settings.max_connections)
    requests = min(settings.max_inflight_requests, max(1, connections - KEPT_FOR_PROBES))
    changed = {"max_connections": connections, "max_inflight_requests": requests}
    return settings.model_copy(update=changed)


def _connections(settings: Settings, telemetry: Telemetry) -> Connections:
    connections = Connections(settings.max_connections, telemetry)
    telemetry.connections.set_function(lambda: len(connections))
    telemetry.unread_bytes.set_function(lambda: connections.unread_bytes)
    return connections


def _uvicorn_config(app: FastAPI, settings: Settings, connections: Connections) -> uvicorn.Config:
    """Give uvicorn's configuration, with the protocol class of ours."""
    protocol = partial(
        Http1Connection,
        connections=connections,
        head_timeout_s=settings.head_timeout_s,
        idle_timeout_s=_KEEP_ALIVE_S,
        send_timeout_s=settings.send_timeout_s,
    )
    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type] # called like a class
        host=settings.host,
        port=settings.port,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )


async def _serve(server: uvicorn.Server, door: Door, bound: socket.socket, limit: HardLimit) -> int:
    ending = _Ending(server, door, limit)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.on_signal, number)
    watch = asyncio.create_task(ending.when_dead())

    noted = door.telemetry.loop_lag.observe

    def note(lag_s: float) -> None:
        noted(lag_s)
        logs.pump()

    with SelfProbe(bound, noted), Watchdog(door.settings.loop_stuck_after_s, note):
        await server.serve(sockets=[bound])
    watch.cancel()
    return 0 if door.health.livez().ok else 1


class _Ending:
    """How a server ends: by signal, with a drain, or because it can do nothing any more."""

    def __init__(self, server: uvicorn.Server, door: Door, limit: HardLimit) -> None:
        self._server = server
        self._door = door
        self._limit = limit
        self._draining: asyncio.Task[None] | None = None

    def on_signal(self, number: int) -> None:
        """Drain at the first signal, end at the second."""
        if self._draining is not None:
            leave(128 + number, lambda: log.warning("second_signal", signal=number))
        self._draining = asyncio.create_task(self._drain(number))

    async def _drain(self, number: int) -> None:
        health, settings = self._door.health, self._door.settings
        # balancers need time to look away; ^C does not
        waits = health.state is State.READY and number == signal.SIGTERM
        delay_s = settings.drain_delay_s if waits else 0.0
        self._limit.start(delay_s + settings.drain_timeout_s + _DRAINED_END_S)
        health.drain()
        log.info("draining", signal=number)
        await asyncio.sleep(delay_s)
        health.refuse()
        self._server.should_exit = True

    async def when_dead(self) -> None:
        """Watch the health and stop the server when restarting is the only cure."""
        while not (reason := self._failure()):  # noqa: ASYNC110 - time itself is a cause
            await asyncio.sleep(_TICK_S)
        self._limit.start(_FAILED_END_S)
        log.error("giving_up", reason=reason)
        await asyncio.sleep(_LAST_WORDS_S)
        self._server.config.timeout_graceful_shutdown = _FAILED_PATIENCE_S
        self._server.should_exit = True

    def _failure(self) -> str:
        """Look at the health; whatever goes wrong with the look itself, the next one is made."""
        try:
            self._door.health.heartbeat.look()
            report = self._door.health.livez()
        except Exception:
            log.exception("health_unknown")
            return ""
        return "" if report.ok else report.reason
