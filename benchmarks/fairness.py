"""What does a polite caller notice of a greedy one? His latency beside it and alone, in one run.

The polite caller asks for one photo at a time and pauses in between; every figure beside a greedy
load is compared with his own alone, measured right before and right after.

Run: .venv/bin/python benchmarks/fairness.py [--seconds 60] [PHOTO ...]
"""

import argparse
import asyncio
import io
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop
from PIL import Image

import load
import result
from app.settings import PROJECT_ROOT, Settings
from servers import (
    OURS,
    THREADS,
    Conditions,
    Contender,
    Server,
    absolute,
    add_precision,
    serving,
    stop_servers_when_ended,
    tell,
)

POLITE, GREEDY = "polite-key", "greedy-key"
BOUNDARY = "5a1e0c77d3f2"
PNG_SIDES_PX = (8000, 5000)
PAUSES_S = (0.02, 0.1)  # of the polite caller, evenly distributed: he must not fall into step
START_S = 300.0
REFUSALS = (429, 503)


class Greedy(NamedTuple):
    """A load that the polite caller has beside him.

    Attributes:
        clients: connections, each asks again at once.
        posts: what they ask, in turns.
    """

    clients: int
    posts: list[load.Post]


class Seen(NamedTuple):
    """What the polite caller saw: milliseconds of his answers, and how many he did not get."""

    taken_ms: list[float]
    failed: int

    @property
    def share(self) -> float:
        """Part of his requests that were answered."""
        return len(self.taken_ms) / max(1, len(self.taken_ms) + self.failed)

    def plus(self, other: "Seen") -> "Seen":
        """Add what he saw another time."""
        return Seen(self.taken_ms + other.taken_ms, self.failed + other.failed)

    def percentile(self, percent: float) -> float:
        """Give a percentile of the milliseconds."""
        return load.percentile(self.taken_ms, percent)


# --- the loads ----------------------------------------------------------------------------------


def loads(server: Server, photos: Sequence[bytes], args: argparse.Namespace) -> dict[str, Greedy]:
    """Give every greedy load by its name."""
    path, greedy, polite = server.peer.path, load.key(GREEDY), load.key(POLITE)
    many = [_many(path, photos, args.images, greedy)]
    single = [load.post(photo, path, "raw")._replace(headers=greedy) for photo in photos]
    png = load.Post(path, "image/png", slow_png(), greedy)
    return {
        "many clients": Greedy(args.clients, single),
        "many images": Greedy(1, many),
        "many images, same key": Greedy(1, [many[0]._replace(headers=polite)]),
        "slow PNG": Greedy(1, [png]),
    }


def _many(path: str, photos: Sequence[bytes], images: int, headers: tuple[str, ...]) -> load.Post:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    parts = [head + photos[number % len(photos)] + b"\r\n" for number in range(images)]
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    return load.Post(path, f"multipart/form-data; boundary={BOUNDARY}", body, headers)


def slow_png() -> bytes:
    """Draw 40 megapixels of noise of one bit: a small file that is long to inflate and filter."""
    width, height = PNG_SIDES_PX
    noise_HW = np.random.default_rng(0).integers(0, 2, (height, width), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.repeat(noise_HW[..., None] * 255, 3, axis=2)).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


@contextmanager
def beside(port: int, greedy: Greedy) -> Iterator[list[int]]:
    """Keep a greedy load up from another process; at the end the list has its statuses."""
    context = multiprocessing.get_context("spawn")
    flowing, stop, heard = context.Event(), context.Event(), context.Queue()
    process = context.Process(
        target=_ask_without_pause,
        args=(port, greedy),
        kwargs={"flowing": flowing, "stop": stop, "heard": heard},
        daemon=True,
    )
    process.start()
    counted: list[int] = []
    try:
        flowing.wait(load.TIMEOUT_S)
        yield counted
    finally:
        stop.set()
        counted += heard.get(timeout=2 * load.TIMEOUT_S)
        process.join(load.TIMEOUT_S)


def _ask_without_pause(
    port: int,
    greedy: Greedy,
    *,
    flowing: Event,
    stop: Event,
    heard: "multiprocessing.Queue[list[int]]",
) -> None:
    statuses: list[int] = []

    async def client(number: int) -> None:
        connection = load.Connection(port)
        while not stop.is_set():
            status = await _status(connection, greedy.posts[number % len(greedy.posts)])
            statuses.append(status)
            flowing.set()
            if status != 200:
                await asyncio.sleep(0.05)
        connection.close()

    async def everybody() -> None:
        await asyncio.gather(*map(client, range(greedy.clients)))

    uvloop.run(everybody())
    heard.put(statuses)


async def _status(connection: load.Connection, post: load.Post) -> int:
    try:
        status, _ = await asyncio.wait_for(connection.ask(post), load.TIMEOUT_S)
    except OSError:
        connection.close()
        return 0
    return status


# --- the polite caller --------------------------------------------------------------------------


def ask_politely(port: int, posts: Sequence[load.Post], *, clients: int, seconds: float) -> Seen:
    """Let so many clients ask for one photo at a time, with pauses."""
    taken_ms: list[float] = []
    failed = 0
    ends_s = time.perf_counter() + seconds

    async def client(number: int) -> None:
        nonlocal failed
        pauses, connection, turn = random.Random(number), load.Connection(port), number
        while time.perf_counter() < ends_s:
            await asyncio.sleep(pauses.uniform(*PAUSES_S))
            began_s, turn = time.perf_counter(), turn + 1
            if await _status(connection, posts[turn % len(posts)]) == 200:
                taken_ms.append((time.perf_counter() - began_s) * 1e3)
            else:
                failed += 1
        connection.close()

    async def everybody() -> None:
        await asyncio.gather(*map(client, range(clients)))

    uvloop.run(everybody())
    return Seen(taken_ms, failed)


def compared(
    server: Server, greedy: Greedy, posts: Sequence[load.Post], args: argparse.Namespace
) -> dict[str, float]:
    """Measure the polite caller alone, beside a greedy load and alone again."""

    def seen(seconds: float) -> Seen:
        return ask_politely(server.port, posts, clients=args.polite, seconds=seconds)

    alone = seen(args.seconds / 2)
    with beside(server.port, greedy) as counted:
        began_s = time.perf_counter()
        besides = seen(args.seconds)
        lasted_s = time.perf_counter() - began_s
    load.let_it_rest(server.port, posts[0])
    alone = alone.plus(seen(args.seconds / 2))
    return {
        "answered": besides.share,
        "asked": len(besides.taken_ms) + besides.failed,
        **{
            f"{name}_p{percent}_ms": each.percentile(percent)
            for name, each in (("alone", alone), ("beside", besides))
            for percent in (50, 99)
        },
        **{f"p{p}_times": besides.percentile(p) / alone.percentile(p) for p in (50, 99)},
        "greedy_per_s": counted.count(200) / lasted_s,
        "greedy_refused": sum(status in REFUSALS for status in counted),
        "greedy_failed": sum(status not in (200, *REFUSALS) for status in counted),
    }


COLUMNS = {
    "answered": ("answered", "9.3f"),
    "asked": ("asked", "7.0f"),
    "alone_p50_ms": ("alone p50", "11.1f"),
    "alone_p99_ms": ("p99", "8.1f"),
    "beside_p50_ms": ("beside p50", "12.1f"),
    "beside_p99_ms": ("p99", "8.1f"),
    "p50_times": ("p50 times", "11.2f"),
    "p99_times": ("p99 times", "11.2f"),
    "greedy_per_s": ("greedy/s", "10.2f"),
    "greedy_refused": ("refused", "9.0f"),
    "greedy_failed": ("failed", "8.0f"),
}


def _table(rows: dict[str, dict[str, float]], args: argparse.Namespace) -> list[str]:
    names = "".join(load.heading(title, form) for title, form in COLUMNS.values())
    table = [
        f"{args.polite} polite client(s), {args.seconds:g} s alone and beside; milliseconds",
        f"{'greedy':<24}{names}",
    ]
    for name, row in rows.items():
        cells = "".join(f"{row[column]:{form}}" for column, (_, form) in COLUMNS.items())
        table.append(f"{name:<24}{cells}")
    return table


def main() -> None:
    """Measure, print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    photos = load.photos(args.photos, args.size)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        conditions = Conditions(
            args.checkpoint, args.threads, 30.0, START_S, Path(cache), args.precision,
            keys=(POLITE, GREEDY),
        )  # fmt: skip
        with serving(Contender(OURS, "captioner"), conditions) as server:
            posts = server.posts(photos)
            for name, greedy in loads(server, photos, args).items():
                if name in args.loads:
                    tell(name)
                    rows[name] = compared(server, greedy, posts, args)
    about = {name: getattr(args, name) for name in ("threads", "precision", "size", "seconds")}
    more = {name: getattr(args, name) for name in ("polite", "clients", "images")}
    line = {"benchmark": "fairness", **about, **more, "rows": rows}
    result.report(_table(rows, args), load.without_nan(line), args.output)


LOADS = ("many clients", "many images", "many images, same key", "slow PNG")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--checkpoint", type=absolute, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help=THREADS)
    parser.add_argument("--size", type=int, default=640, help="long side of the photos, px")
    parser.add_argument("--seconds", type=float, default=10.0, help="alone, and beside each load")
    parser.add_argument("--polite", type=int, default=1, help="clients of the polite caller")
    parser.add_argument("--clients", type=int, default=64, help="of the greedy key")
    parser.add_argument("--images", type=int, default=16, help="of a request with many")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    add_precision(parser)
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
