"""How long until the first caption, and how much lies on the disk?

The captioner in fresh processes, step by step, and the whole service until it is ready and has
answered once.

Run: .venv/bin/python benchmarks/startup.py photo.jpg
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import result
from shipped import PROJECT_ROOT, SHIPPED

STEPS = ("process", "import", "load", "warm-up", "first caption", "second caption")
SERVICE_STEPS = ("ready", "first answer")
GIVE_UP_S = 600.0
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[([\w, -]+)\])?[^;]*(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


# --- in the child -------------------------------------------------------------------------------


def steps_of_a_process(args: argparse.Namespace) -> list[float]:
    """Import, load, warm up, caption twice; give the seconds of each."""
    moments = [time.perf_counter()]
    from app.captioner.pipeline import Captioner  # noqa: PLC0415 - the import is timed

    moments.append(time.perf_counter())
    captioner = Captioner.load(args.checkpoint, workers=os.cpu_count() or 1)
    moments.append(time.perf_counter())
    captioner.warm_up([1, 2, 4, 8])
    moments.append(time.perf_counter())
    data = args.photo.read_bytes()
    for _ in range(2):
        captioner.caption([captioner.read(data, max_pixels=100_000_000)])
        moments.append(time.perf_counter())
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


# --- in the parent ------------------------------------------------------------------------------


def fresh_process(args: argparse.Namespace) -> dict[str, float]:
    """Give the seconds of each step in a new process; its own start is what is left."""
    command = [
        sys.executable,
        Path(__file__).absolute(),
        "--child",
        "--checkpoint",
        args.checkpoint,
        args.photo,
    ]
    started = time.perf_counter()
    path = {"PYTHONPATH": str(PROJECT_ROOT)}
    ran = subprocess.run(
        command, env=_with_settings(path), capture_output=True, text=True, check=True
    )
    whole_s = time.perf_counter() - started
    steps = json.loads(ran.stdout.splitlines()[-1])
    return dict(zip(STEPS, [whole_s - sum(steps), *steps], strict=True))


def fresh_service(
    photo: bytes, settings: dict[str, Any], tree: Path = PROJECT_ROOT
) -> dict[str, float]:
    """Give the seconds from the start of the service to ready, and of its first answer.

    Args:
        photo: what is asked first, a JPEG.
        settings: of the environment, beside its port.
        tree: the checkout it runs in.

    Raises:
        RuntimeError: it ended, or was not ready within ten minutes.
    """
    from load import free_port  # noqa: PLC0415 - not in the child, whose imports are timed

    port = free_port()
    quickly = {"CAPTION_DRAIN_DELAY_S": 0, "CAPTION_DEADLINE_S": GIVE_UP_S}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve"],
        env=_with_settings({**settings, **quickly, "CAPTION_PORT": port}),
        cwd=tree,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_ready(process, port)
        ready = time.perf_counter()
        _ask(port, photo)
        answered = time.perf_counter()
    finally:
        process.terminate()
        process.wait()
    return dict(zip(SERVICE_STEPS, (ready - started, answered - ready), strict=True))


def _with_settings(settings: dict[str, Any]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CAPTION_")}
    return {**kept, **{name: str(value) for name, value in settings.items()}}


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + GIVE_UP_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"the service was not ready within {GIVE_UP_S:g} s")


def _ask(port: int, photo: bytes) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/captions", photo, {"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=GIVE_UP_S) as answer:  # noqa: S310
        answer.read()


def installed_bytes(name: str, extras: frozenset[str] = frozenset()) -> dict[str, int]:
    """Add up the files of a distribution and of all it requires that is installed."""
    sizes: dict[str, int] = {}
    waiting, seen = [(name, extras)], set()
    while waiting:
        wanted, chosen = waiting.pop()
        key = re.sub(r"[-_.]+", "-", wanted).lower()
        if (key, chosen) in seen:
            continue
        seen.add((key, chosen))
        try:
            found = importlib.metadata.distribution(wanted)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        sizes[key] = _bytes_of(found)
        waiting += _required(found, chosen)
    return sizes


def _bytes_of(found: importlib.metadata.Distribution) -> int:
    paths = (Path(str(file.locate())) for file in found.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def _required(
    found: importlib.metadata.Distribution, chosen: frozenset[str]
) -> list[tuple[str, frozenset[str]]]:
    required = []
    for line in found.requires or ():
        if not (parts := _REQUIREMENT.match(line)):
            continue
        name, extras, marker = parts.groups()
        needed_by = set(_EXTRA.findall(marker or ""))
        if not needed_by or needed_by & chosen:
            required.append((name, frozenset((extras or "").replace(" ", "").split(",")) - {""}))
    return required


def folder_bytes(folder: Path) -> int:
    """Add up the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure, print the table, then one JSON line."""
    args = _arguments()
    if args.child:
        print(json.dumps(steps_of_a_process(args)))
        return
    settings = {"CAPTION_CHECKPOINT": args.checkpoint}
    photo = args.photo.read_bytes()
    runs = [{**fresh_process(args), **fresh_service(photo, settings)} for _ in range(args.runs)]
    seconds = {
        name: statistics.median(run[name] for run in runs) for name in (*STEPS, *SERVICE_STEPS)
    }
    sizes = {
        "install": sum(installed_bytes("caption-service").values()),
        "code": folder_bytes(PROJECT_ROOT / "app"),
        "checkpoint": folder_bytes(args.checkpoint),
    }
    table = [
        f"seconds, medians of {args.runs} fresh processes and services",
        *(f"{name:<16}{taken_s:8.2f}" for name, taken_s in seconds.items()),
        *(f"{name:<16}{size / 2**20:8.1f} MiB" for name, size in sizes.items()),
    ]
    line = {"benchmark": "startup", "runs": args.runs, "seconds": seconds, "bytes": sizes}
    result.report(table, line, args.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path, help="a JPEG file")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    result.add_output(parser)
    args = parser.parse_args()
    args.photo, args.checkpoint = args.photo.absolute(), args.checkpoint.absolute()
    return args


if __name__ == "__main__":
    main()
