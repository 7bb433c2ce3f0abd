"""The application as a deployment of Ray Serve: ``app.ray_serve:app``; needs the extra ``ray``.

Serve's proxy takes the place of `server`: it accepts connections, passes a request to a replica
that has room, watches over replicas, and ends them after what they have under way. Limits, keys,
batches and deadlines are those of the application in each replica.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Any

from fastapi import FastAPI

from app.main import create_app
from app.observability.logs import configure_logging
from app.settings import MOST_WORKERS, Settings, read_settings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import reads it
ray: Any = import_module("ray")
serve: Any = import_module("ray.serve")

_POLL_S = 0.05
_ONGOING = 64  # requests of a replica, of which batches are made; what is more waits in the proxy
_TARGET_ONGOING = 16
_DRAIN_S = 40.0  # more than CAPTION_DRAIN_TIMEOUT_S


class NotWell(Exception):
    """A replica says what its probes say, and Serve puts another in its place."""


def for_replica(settings: Settings, resources: Mapping[str, float]) -> Settings:
    """Give a replica the device and the cores that Ray has put aside for it.

    Args:
        settings: Of the environment.
        resources: By Ray's names, ``CPU`` and ``GPU``; parts of one are possible.
    """
    cores = min(max(1, int(resources.get("CPU", 1))), MOST_WORKERS)
    device = ("cuda" if resources.get("GPU") else "cpu") if settings.device == "auto" else None
    changed = {"inference_threads": settings.inference_threads or cores, "device": device}
    return settings.model_copy(update={name: each for name, each in changed.items() if each})


def _application() -> FastAPI:
    """Make the application of a replica, which is started when it is ready."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    resources = ray.get_runtime_context().get_assigned_resources()
    settings = for_replica(read_settings(), resources)
    configure_logging(settings.log_level)
    application = create_app(settings)
    router = application.router
    router.lifespan_context = partial(_until_ready, router.lifespan_context)
    return application


@asynccontextmanager
async def _until_ready(
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[Any]], application: FastAPI
) -> AsyncIterator[None]:
    """Start, and stay there until captions can be said: Serve sends requests at once.

    Raises:
        NotWell: The checkpoint cannot be served.
    """
    health = application.state.app_state.health
    async with lifespan(application):
        while not health.readyz().ok:
            if not health.livez().ok:
                raise NotWell(health.livez().reason)
            await asyncio.sleep(_POLL_S)
        yield


@serve.deployment(
    name="captions",
    max_ongoing_requests=_ONGOING,
    autoscaling_config={
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": _TARGET_ONGOING,
    },
    ray_actor_options={"num_cpus": 1},
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=_DRAIN_S,
)
@serve.ingress(_application)
class Captions:
    """A replica."""

    app: FastAPI

    async def check_health(self) -> None:
        """Say what ``/readyz`` says.

        Raises:
            NotWell: It is not ready.
        """
        report = self.app.state.app_state.health.readyz()
        if not report.ok:
            raise NotWell(report.reason)


_deployment: Any = Captions  # a type checker sees no class that a decorator makes
app = _deployment.bind()
