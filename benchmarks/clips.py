"""What does a clip cost by its length, against decoding it alone, and does memory grow?

A service of its own, asked for a montage of photos again and again, in H.264 at 12 frames a second.

Run: .venv/bin/python benchmarks/clips.py FOLDER [--seconds 10 60 600 3600]
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

import montages
import result
from app.clips import reading
from app.clips.sampling import DEFAULT_FPS, Sampling
from caption_client.images import images_in
from shipped import PROJECT_ROOT, SHIPPED

_PHOTOS = 12
_PATIENCE_S = 120.0
_ANSWER_S = 3600.0


@dataclass(frozen=True)
class Cost:
    """What a clip took.

    Attributes:
        clip_s: its length.
        mib: its size.
        decoding_s: reading its frames alone, here.
        answer_s: until the whole answer.
        first_shot_s: until the first line.
        shots: in the answer.
        held_mib: by how much the service and its processes are larger at the first line.
        grew_mib: and by how much more at most until the last one.
    """

    clip_s: float
    mib: float
    decoding_s: float
    answer_s: float
    first_shot_s: float
    shots: int
    held_mib: float
    grew_mib: float


@contextlib.contextmanager
def service(checkpoint: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a service that takes long clips; give its address and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "CHECKPOINT": checkpoint, "PORT": port, "MAX_CLIP_S": 10**5, "MAX_CLIP_FRAMES": 10**6,
        "MAX_CLIP_BYTES": 2**28, "CLIP_CPU_S": 3600, "CLIP_DEADLINE_S": 3600, "LOG_LEVEL": "error",
    }  # fmt: skip
    ours = {f"CAPTION_{name}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "app.cli", "serve"]
    process = subprocess.Popen(command, env={**os.environ, **ours}, cwd=PROJECT_ROOT)
    try:
        _wait(f"http://127.0.0.1:{port}/readyz")
        yield f"http://127.0.0.1:{port}/v1/clips", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _wait(url: str) -> None:
    ends_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < ends_s:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} was never ready")


def decoding_s(clip: bytes) -> float:
    """Give the seconds of reading the frames that the service looks at, without it."""
    how = Sampling(
        fps=DEFAULT_FPS,
        max_frames=10**6,
        max_s=10**5,
        max_pixels=10**8,
        max_pixels_per_s=10**10,
        size_px=224,
        fit="squeeze",
        resampling="bilinear",
    )
    began_s = time.perf_counter()
    for _ in reading.frames(clip, how):
        pass
    return time.perf_counter() - began_s


def measured(clip: bytes, clip_s: float, url: str, process: psutil.Process) -> Cost:
    """Ask for a clip in lines, and look at the memory of the service with each."""
    alone_s = decoding_s(clip)
    before, first_s = _memory(process), 0.0
    memory: list[int] = []
    began_s = time.perf_counter()
    asked = {"content": clip, "headers": {"accept": "application/x-ndjson"}, "timeout": _ANSWER_S}
    with httpx.stream("POST", url, **asked) as answer:
        answer.raise_for_status()
        for _ in answer.iter_lines():
            first_s = first_s or time.perf_counter() - began_s
            memory.append(_memory(process))
    answer_s = time.perf_counter() - began_s
    held, grew = ((most - least) / 2**20 for most, least in _growth(before, memory))
    shots = len(memory) - 1
    return Cost(clip_s, len(clip) / 2**20, alone_s, answer_s, first_s, shots, held, grew)


def _growth(before: int, memory: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (memory[0], before), (max(memory), memory[0])


def _memory(process: psutil.Process) -> int:
    """Give the bytes that the service and its processes have to themselves."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += each.memory_full_info().uss
    return total


def clip_of(photos: Sequence[bytes], seconds: float) -> tuple[bytes, float]:
    """Make a clip of about so many seconds: a montage, again and again."""
    made = montages.make(photos, montages.KINDS["cuts, pans"], seed=0)
    times = max(1, round(seconds / made.duration_s))
    return montages.repeated(made.clip, times), times * made.duration_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60, 600, 3600])
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / SHIPPED)
    result.add_output(parser)
    args = parser.parse_args(arguments)
    names = list(images_in(args.photos))
    chosen = np.random.default_rng(0).permutation(len(names))[:_PHOTOS]
    photos = [names[index].read_bytes() for index in chosen]
    costs = []
    with service(args.checkpoint) as (url, process):
        short, short_s = clip_of(photos[:3], 1)
        measured(short, short_s, url, process)  # the process that reads starts with it
        for seconds in args.seconds:
            few = photos[: max(2, min(_PHOTOS, round(seconds / 4)))]
            costs.append(measured(*clip_of(few, seconds), url, process))
    result.report(_table(costs), _line(costs), args.output)
    return 0


def _table(costs: Sequence[Cost]) -> list[str]:
    head = (
        f"{'clip s':>8}{'MiB':>8}{'decoding s':>12}{'answer s':>10}{'first shot s':>14}"
        f"{'shots':>7}{'times real time':>17}{'clips/s':>9}{'held MiB':>10}{'grew MiB':>10}"
    )
    return [head, *map(_row, costs)]


def _row(cost: Cost) -> str:
    return (
        f"{cost.clip_s:8.0f}{cost.mib:8.2f}{cost.decoding_s:12.2f}{cost.answer_s:10.2f}"
        f"{cost.first_shot_s:14.2f}{cost.shots:7}{cost.clip_s / cost.answer_s:17.1f}"
        f"{1 / cost.answer_s:9.3f}{cost.held_mib:10.1f}{cost.grew_mib:10.1f}"
    )


def _line(costs: Sequence[Cost]) -> dict[str, object]:
    return {"benchmark": "clips", "rows": [vars(cost) for cost in costs]}


if __name__ == "__main__":
    sys.exit(main())
