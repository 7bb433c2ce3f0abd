"""The life of the process: accepting, signals, the drain, the end and its exit code."""

import asyncio
import errno
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import structlog
import uvicorn
from fastapi import FastAPI

from app.observability import logs
from app.observability.metrics import Metrics
from app.serving.ending import HardLimit, kill_descendants, leave
from app.serving.health import State
from app.serving.self_probe import SelfProbe
from app.serving.watchdog import Watchdog
from app.settings import Settings, variable
from app.web.connections import KEPT_FOR_PROBES, Connections, Listener, most_connections
from app.web.http1 import Http1Connection
from app.web.routes import AppState

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_TICK_S = 0.5
_LAST_WORDS_S = 1.0  # a failed process lives that long, so that a probe can read the reason
# How long an end may take, whatever hangs:
_FAILED_DRAIN_S = 2  # what a failed process still has under way
_FAILED_END_S = 8.0  # a failed process in all
_DRAINED_END_S = 8.0  # a drained one, after all that it may wait for
_EXIT_S = 5.0  # Python, after the loop
_KEEP_ALIVE_S = (
    75  # longer than balancers keep idle connections: they close first, and lose nothing
)


def serve(app: FastAPI) -> int:
    """Serve until told to stop, and give the exit code: 0 after a drain, 1 after a failure.

    A loop that stays away ends the process at once, with ``watchdog.EXIT_CODE``. Whatever else
    hangs at the end is left behind after a while, and the exit code is 1 unless the drain was over.
    """
    app_state: AppState = app.state.app_state
    connections = _connections(app_state.settings, app_state.metrics)
    config = _uvicorn_config(app, app_state.settings, connections)
    log.info("settings", **app_state.settings.model_dump(mode="json"))
    bound = _all_bound(app_state.settings)
    limit = HardLimit()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        try:
            serving = _serve(_Server(config, connections), app_state, bound, limit)
            limit.code = code = runner.run(serving)
        finally:
            limit.start(_EXIT_S)
    if app_state.health.heartbeat.busy:  # Python would wait for the thread, maybe for ever
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


class CannotListen(Exception):
    """The address cannot be had; the message names it and what would have worked."""


def _all_bound(settings: Settings) -> list[socket.socket]:
    """Take the addresses, the callers' first.

    Raises:
        CannotListen: One is another program's, or none of this machine.
    """
    ports = ["port"] if settings.admin_port is None else ["port", "admin_port"]
    with ExitStack() as stack:
        bound = [stack.enter_context(_bound(settings, port)) for port in ports]
        stack.pop_all()
    return bound


def _bound(settings: Settings, port: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, getattr(settings, port)))
    except OSError as error:
        bound.close()
        raise CannotListen(_why_not(error, settings, port)) from None
    log.info("listening", host=settings.host, **{port: bound.getsockname()[1]})
    return bound


def _why_not(error: OSError, settings: Settings, port: str) -> str:
    address = f"{settings.host} port {getattr(settings, port)}"
    flag = f"--{port.replace('_', '-')}"
    if error.errno == errno.EADDRINUSE:
        other = f"{flag} or {variable(port)}"
        return f"{address} is taken by another program: choose another with {other}"
    reason = error.strerror or error
    return f"cannot listen on {address}: {reason}: choose another with --host and {flag}"


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


def _connections(settings: Settings, metrics: Metrics) -> Connections:
    connections = Connections(settings.max_connections, metrics)
    metrics.connections.set_function(lambda: len(connections))
    metrics.unread_bytes.set_function(lambda: connections.unread_bytes)
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
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )


async def _serve(
    server: uvicorn.Server, app_state: AppState, bound: list[socket.socket], limit: HardLimit
) -> int:
    ending = _Ending(server, app_state, limit)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.on_signal, number)
    on_hangup = partial(_on_hangup, ending, app_state, has_terminal=_has_terminal())
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    watch = asyncio.create_task(ending.when_dead())

    noted = app_state.metrics.loop_lag.observe

    def note(lag_s: float) -> None:
        noted(lag_s)
        logs.pump()

    with SelfProbe(bound[0], noted), Watchdog(app_state.settings.loop_stuck_after_s, note):
        await server.serve(sockets=bound)
    watch.cancel()
    return 0 if app_state.health.livez().ok else 1


def _has_terminal() -> bool:
    """Say whether we run in a terminal; one that was closed is none."""
    return os.isatty(0)


def _on_hangup(ending: "_Ending", app_state: AppState, *, has_terminal: bool) -> None:
    """Look for another checkpoint, or end with the terminal that was closed."""
    if has_terminal and not _has_terminal():
        ending.on_signal(signal.SIGHUP)
    else:
        app_state.service.checkpoints.on_signal()


class _Ending:
    """How a server ends: by signal, with a drain, or because it can do nothing any more."""

    def __init__(self, server: uvicorn.Server, app_state: AppState, limit: HardLimit) -> None:
        self._server = server
        self._app_state = app_state
        self._limit = limit
        self._draining: asyncio.Task[None] | None = None

    def on_signal(self, number: int) -> None:
        """Drain at the first signal, end at the second."""
        if self._draining is not None:
            leave(128 + number, lambda: log.warning("second_signal", signal=number))
        self._draining = asyncio.create_task(self._drain(number))

    async def _drain(self, number: int) -> None:
        health, settings = self._app_state.health, self._app_state.settings
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
        self._server.config.timeout_graceful_shutdown = _FAILED_DRAIN_S
        self._server.should_exit = True

    def _failure(self) -> str:
        """Look at the health; whatever goes wrong with the look itself, the next one is made."""
        try:
            self._app_state.health.heartbeat.look()
            report = self._app_state.health.livez()
        except Exception:
            log.exception("health_unknown")
            return ""
        return "" if report.ok else report.reason
