"""Write constraints.txt anew: the newest versions that fit pyproject.toml, as pip resolves them.

Run: make constraints
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVERYTHING = ".[train,dev,otel,bench]"
OF_A_PLATFORM = ("cuda-", "nvidia-")  # torch's own metadata names their versions, and triton's
ANY_BUILD_OF = ("torch", "torchvision")
HEADER = """\
# What make, CI and the image install: the versions that were tested together. Made by
# `make constraints`; pyproject.toml says what is allowed, this file what is taken. It names no
# hosts and no hashes: any index will do.
# torch and torchvision are ranges, and what torch brings for CUDA (nvidia-*, cuda-*, triton) is
# left out: other machines have other builds (2.14.0+cpu, +cu130), and each names what it needs.
"""


def resolved() -> dict[str, str]:
    """Ask pip which version of each package it would install into an empty environment."""
    command = ("pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-")
    done = subprocess.run(
        [sys.executable, "-m", *command, EVERYTHING], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    packages = (found["metadata"] for found in json.loads(done.stdout)["install"])
    return {package["name"].lower(): package["version"] for package in packages}


def constraint(name: str, version: str) -> str:
    """Give the line of one package."""
    if name not in ANY_BUILD_OF:
        return f"{name}=={version}"
    return f"{name}=={'.'.join(version.split('.')[:2])}.*"


def main() -> None:
    """Write the file."""
    lines = [
        constraint(name, version)
        for name, version in sorted(resolved().items())
        if name not in {"caption-service", "triton"} and not name.startswith(OF_A_PLATFORM)
    ]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
