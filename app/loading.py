"""Settings -> captioner: which device, precision and cores, and which checkpoint."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.captioner.errors import CheckpointError
from app.settings import MOST_WORKERS, PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from app.captioner.pipeline import Captioner

_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def load_captioner(settings: Settings) -> "Captioner":
    """Load the checkpoint of the settings onto the device of the settings.

    Raises:
        CheckpointError: The directory cannot be trusted, or the device is not there.
    """
    from app.captioner.pipeline import Captioner  # noqa: PLC0415 - not for who asks for our health

    return Captioner.load(
        find_checkpoint(settings),
        device=_device(settings.device),
        precision=None if settings.precision == "auto" else settings.precision,
        workers=settings.inference_threads or min(usable_cores(), MOST_WORKERS),
    )


def find_checkpoint(settings: Settings) -> Path:
    """Find the checkpoint of the settings: from the working directory, else from the project.

    Raises:
        CheckpointError: There is no such version of it.
    """
    from app.captioner import store  # noqa: PLC0415

    return store.find(settings.checkpoint, (Path(), PROJECT_ROOT))


def _device(asked: str) -> str:
    """Choose the GPU where there is one that we can use; torch is imported only to ask for it."""
    if asked == "cpu" or (asked == "auto" and not _NVIDIA_DRIVER.exists()):
        return "cpu"
    if find_spec("torch") is None:
        if asked == "auto":
            return "cpu"
        raise CheckpointError(
            f"CAPTION_DEVICE={asked} needs torch: pip install 'caption-service[gpu]'"
        )
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        if asked == "auto":
            return "cpu"
        raise CheckpointError(f"CAPTION_DEVICE={asked}: torch finds no CUDA device")
    return "cuda" if asked == "auto" else asked


def usable_cores(quota: Path = _CPU_QUOTA) -> int:
    """Count the cores this process may use, a container's quota in mind."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit, _, period = quota.read_text().partition(" ") if quota.exists() else ("max", "", "")
    allowed = cores or 1
    return allowed if limit == "max" else max(1, min(allowed, int(limit) // int(period)))
