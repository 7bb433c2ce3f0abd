"""What a manifest says of where it comes from."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def versions() -> dict[str, str]:
    """Name the libraries that decide what comes out of a run."""
    names = ("caption-service", "torch", "torchvision", "numpy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def source_commit() -> str:
    """Name the commit of this program, ``-dirty`` where files differ; empty outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
