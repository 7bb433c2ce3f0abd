"""Settings -> captioner: which device, precision and cores, and which checkpoint."""

import os
from collections.abc import Hashable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.captioner.errors import CheckpointError
from app.settings import MOST_WORKERS, PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from app.captioner.pipeline import Captioner

_NVIDIA_DRIVER = Path("/dev/nvidiactl")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


# What the captioner brings is imported late: not for who asks for our health.


def load_captioner(settings: Settings) -> "Captioner":
    """Load the checkpoint of the settings, the first of several, onto their device.

    Raises:
        CheckpointError: The directory cannot be trusted, or the device is not there.
    """
    store = CheckpointStore(settings)
    return store.load(store.find())


class CheckpointStore:
    """A checkpoint, its other versions, and the device of the settings.

    See `app.serving.reloading.Store`.

    Args:
        settings: Which device, precision and cores.
        named: The checkpoint; the first of the settings if None.
    """

    def __init__(self, settings: Settings, named: Path | None = None) -> None:
        self._settings = settings
        self._named = named or settings.served_checkpoints[0]

    def find(self, version: str | None = None) -> Path:
        """Give its directory: from the working directory, else from the project.

        Raises:
            CheckpointError: There is no such version.
        """
        from app.captioner import store  # noqa: PLC0415

        return store.find(self._named, (Path(), PROJECT_ROOT), version)

    def fingerprint(self, directory: Path) -> Hashable:
        """Tell what lies there; another value may be another checkpoint."""
        from app.captioner import store  # noqa: PLC0415

        return store.fingerprint(directory)

    def load(self, directory: Path, *, beside: bool = False) -> "Captioner":
        """Load a checkpoint, on one core where another one is at work.

        Raises:
            CheckpointError: The directory cannot be trusted, or the device is not there.
        """
        from app.captioner.pipeline import Captioner  # noqa: PLC0415

        settings = self._settings
        return Captioner.load(
            directory,
            device=_device(settings.device),
            precision=None if settings.precision == "auto" else settings.precision,
            workers=settings.inference_threads or min(usable_cores(), MOST_WORKERS),
            beside=beside,
        )


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
