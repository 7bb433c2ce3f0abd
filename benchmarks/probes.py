"""How long does a probe wait while the service is full of captions? Idle and loaded, in one run.

Run: .venv/bin/python benchmarks/probes.py photo.jpg
"""

import argparse
import io
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from PIL import Image

import result
from app.settings import PROJECT_ROOT, Settings
from load import HOST, free_port

PROBES = ("/livez", "/readyz")
PAUSE_S = 0.01
PATIENCE_S = 600.0


@contextmanager
def service(checkpoint: Path) -> Iterator[int]:
    """Give the port of a service that is ready."""
    port = free_port()
    ours = {"HOST": HOST, "PORT": port, "LOG_LEVEL": "warning", "CHECKPOINT": checkpoint}
    environment = {f"CAPTION_{name}": str(value) for name, value in ours.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve"],
        cwd=PROJECT_ROOT,
        env={**os.environ, **environment},
    )
    try:
        _wait_until_ready(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < ends_s:
        if ask(port, "GET", "/readyz"):
            return
        time.sleep(0.2)
    sys.exit("the service did not become ready")


def ask(port: int, method: str, path: str, body: bytes | None = None) -> bool:
    """Ask over a new connection, as orchestrators do, and say whether the answer was 200."""
    connection = HTTPConnection(HOST, port, timeout=PATIENCE_S)
    headers = {"content-type": "image/jpeg"} if body else {}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return answer.status == 200


@contextmanager
def load(port: int, photos: list[bytes], concurrency: int) -> Iterator[list[int]]:
    """Post photos from another process; the list has captions and failures at the end."""
    context = multiprocessing.get_context("spawn")
    flowing, stop, results = context.Event(), context.Event(), context.Queue()
    poster = context.Process(
        target=_post_all,
        args=(port, photos, concurrency),
        kwargs={"flowing": flowing, "stop": stop, "results": results},
        daemon=True,
    )
    poster.start()
    counted: list[int] = []
    try:
        if not flowing.wait(PATIENCE_S):
            sys.exit("no photo was answered")
        yield counted
    finally:
        stop.set()
        counted += results.get(timeout=PATIENCE_S)
        poster.join(PATIENCE_S)


def _post_all(
    port: int,
    photos: list[bytes],
    concurrency: int,
    *,
    flowing: Event,
    stop: Event,
    results: "multiprocessing.Queue[list[int]]",
) -> None:
    answers: list[bool] = []

    def post(number: int) -> None:
        while not stop.is_set():
            answers.append(ask(port, "POST", "/v1/captions", photos[number % len(photos)]))
            flowing.set()

    threads = [threading.Thread(target=post, args=(number,)) for number in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put([sum(answers), len(answers) - sum(answers)])


def measure(port: int, seconds: float) -> dict[str, dict[str, float]]:
    """Ask the probes in turn and give the milliseconds of each."""
    taken_ms: dict[str, list[float]] = {path: [] for path in PROBES}
    failed = dict.fromkeys(PROBES, 0)
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s or len(taken_ms[PROBES[-1]]) < 2:
        for path in PROBES:
            began_s = time.perf_counter()
            failed[path] += not ask(port, "GET", path)
            taken_ms[path].append((time.perf_counter() - began_s) * 1e3)
            time.sleep(PAUSE_S)
    return {path: {**_summary(taken_ms[path]), "failed": failed[path]} for path in PROBES}


def _summary(taken_ms: list[float]) -> dict[str, float]:
    percentiles = statistics.quantiles(taken_ms, n=100, method="inclusive")
    values = {"p50": percentiles[49], "p99": percentiles[98], "max": max(taken_ms)}
    return {"probes": len(taken_ms), **{name: round(value, 2) for name, value in values.items()}}


def draw_photo() -> bytes:
    """Draw blocks of random colours as a JPEG."""
    blocks = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", help="JPEG, PNG or WebP; one is drawn else")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way")
    parser.add_argument("--seconds", type=float, default=20.0, help="of probes, idle and loaded")
    result.add_output(parser)
    args = parser.parse_args()
    photos = [photo.read_bytes() for photo in args.photos] or [draw_photo()]
    with service(args.checkpoint.resolve()) as port:
        rows = {"idle": measure(port, args.seconds)}
        with load(port, photos, args.concurrency) as counted:
            began_s = time.monotonic()
            rows["loaded"] = measure(port, args.seconds)
            loaded_s = time.monotonic() - began_s
    captions, failures = counted
    about = {"cpus": os.cpu_count(), "concurrency": args.concurrency, "photos": len(photos)}
    load_ = {"loaded_s": round(loaded_s, 1), "captions": captions, "failures": failures}
    line = {"benchmark": "probes", **about, **load_, "ms": rows}
    result.report(_table(rows), line, args.output)


def _table(rows: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    head = f"{'':8}{'':10}{'probes':>8}{'p50':>9}{'p99':>9}{'max':>9}{'failed':>8}"
    table = ["milliseconds of a probe", head]
    for state, row in rows.items():
        for path, at in row.items():
            figures = f"{at['p50']:9.1f}{at['p99']:9.1f}{at['max']:9.1f}{at['failed']:8}"
            table.append(f"{state:8}{path:10}{at['probes']:8}{figures}")
    return table


if __name__ == "__main__":
    main()
