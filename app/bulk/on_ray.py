"""Parts -> files of captions, on the machines of a Ray cluster; needs the extra ``ray``.

What travels over Ray Data is where a part stands in the plan, and what became of it. Photos and
captions go from their store to a worker and from there into the output, through no other memory.
"""

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from app.bulk.plan import PlannedPart
from app.bulk.work import Done, Job

_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_HERE = "local"


class NoRay(Exception):
    """The cluster cannot be used; the message says why."""


def check_library() -> None:
    """Look for the library before any work is done.

    Raises:
        NoRay: It is not installed.
    """
    if find_spec("ray") is None:
        raise NoRay("--ray needs Ray: pip install 'caption-service[ray]'")


def caption(
    job: Job, planned: Sequence[PlannedPart], *, address: str, workers: int | None
) -> Generator[Done, None, None]:
    """Caption parts on a cluster, in any order; a part whose worker dies is begun again elsewhere.

    Args:
        job: What to do; every machine finds checkpoint, sources and output at the same addresses.
        planned: The parts.
        address: Of the cluster, as `ray.init` takes it; ``local`` starts one on this machine.
        workers: At once; as many as the cluster has room for, unless given.

    Raises:
        NoRay: There is no such cluster, it has no room, or its workers fail again and again.
    """
    with _connected(address) as ray:
        need = _need(job, ray.cluster_resources())
        rows = [each._asdict() for each in planned]
        try:
            # a block for each part: blocks are what is handed out, and told of when done
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Worker,
                fn_constructor_args=(need.job,),
                batch_size=1,
                concurrency=min(workers or need.most_workers, len(rows)),
                num_cpus=need.cpus,
                num_gpus=need.gpus,
            )
            for row in done.iter_rows():
                yield Done(**row)
        except ray.exceptions.RayError as error:
            raise NoRay(f"{address}: {_said(error)}") from error


@dataclass(frozen=True)
class _Need:
    """What a worker takes of a cluster."""

    job: Job
    cpus: int
    gpus: int
    most_workers: int


def _need(job: Job, cluster: dict[str, float]) -> _Need:
    """A worker has a GPU to itself, or ``CAPTION_INFERENCE_THREADS`` cores and a batch on each.

    The keys of the service stay here: no worker needs them.

    Raises:
        NoRay: The cluster has room for no worker.
    """
    settings = job.settings
    on_gpu = settings.device.startswith("cuda") or (
        settings.device == "auto" and cluster.get("GPU", 0) >= 1
    )
    cpus = settings.inference_threads or 1
    room = int(cluster.get("GPU", 0)) if on_gpu else int(cluster.get("CPU", 0)) // cpus
    if room < 1:
        raise NoRay(f"the cluster has no {'GPU' if on_gpu else f'{cpus} CPUs'} for a worker")
    device = "cuda" if on_gpu else "cpu"
    chosen = settings.model_copy(
        update={"inference_threads": cpus, "device": device, "api_keys": ()}
    )
    return _Need(replace(job, settings=chosen), cpus, int(on_gpu), room)


class _Worker:
    """One process of the cluster, with a network of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._caption_all = job.captioner()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Caption one part, or more."""
        planned = (
            PlannedPart(int(number), None, int(offset))
            for number, offset in zip(batch["number"], batch["offset_bytes"], strict=True)
        )
        done = [asdict(each) for each in self._job.caption(planned, self._caption_all)]
        return {name: [each[name] for each in done] for name in asdict(Done(0))}


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Join a cluster, silently, and leave it; gives the library.

    Raises:
        NoRay: There is none.
    """
    os.environ.update(_ENVIRONMENT)  # before the import reads it: Ray would tell its makers of us
    ray: Any = import_module("ray")
    data: Any = import_module("ray.data")
    here: dict[str, Any] = {"include_dashboard": False} if address == _HERE else {}
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _ENVIRONMENT},
            **here,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise NoRay(f"--ray {address}: {_said(error)}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        ray.shutdown()


def _said(error: Exception) -> str:
    """Give the last line: Ray puts the traceback of its worker above it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
