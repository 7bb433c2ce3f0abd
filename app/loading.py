"""Settings -> captioner: which device, precision and cores, and which checkpoint."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from app.captioner import forking
from app.settings import Settings

if TYPE_CHECKING:
    from app.captioner.pipeline import Captioner

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


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
