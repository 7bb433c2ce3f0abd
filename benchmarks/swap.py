"""What do callers notice while another checkpoint takes over?

One service under load goes back and forth between two versions of a checkpoint. Requests that
overlap with a swap are compared with those between swaps, in the same run: at full load, where so
many clients ask without a pause, and at a part of what was done then.

Run: .venv/bin/python benchmarks/swap.py photo.jpg
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

import load
import result
from app.settings import PROJECT_ROOT, Settings
from servers import OURS, SERVICE, Launch, Server, running, tell

_KEY = "swap"
_START_S = 300.0
_LOOK_S = 0.02
_WARM_S = 3.0
_FULL = "full"
_REFUSED = 503


class Asked(NamedTuple):
    """One request: when it began and ended, and its status, 0 for a broken connection."""

    began_s: float
    ended_s: float
    status: int


class Span(NamedTuple):
    """When something began and ended."""

    began_s: float
    ended_s: float

    def overlaps(self, other: "Asked | Span") -> bool:
        """Say whether both were under way at some moment."""
        return self.began_s < other.ended_s and other.began_s < self.ended_s


class Seen(NamedTuple):
    """What a load saw.

    Attributes:
        asked: every request.
        swaps: from the call to its answer.
        rss_mb: resident memory of the service by moment, decode processes left out.
    """

    asked: list[Asked]
    swaps: list[Span]
    rss_mb: list[tuple[float, float]]


def copies(checkpoint: Path, store: Path, count: int) -> list[Path]:
    """Put versions 1, 2 and so on of a checkpoint, all of them the same, into a store."""
    about = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    made = [store / about["name"] / str(1 + number) for number in range(count)]
    for copy in made:
        shutil.copytree(checkpoint, copy)
        changed = json.dumps({**about, "version": copy.name})
        (copy / "manifest.json").write_text(changed, encoding="utf-8")
    return made


@contextmanager
def service(checkpoint: Path, threads: int) -> Iterator[Server]:
    """Serve a checkpoint that the folder of its name holds twice, as versions 1 and 2."""
    with tempfile.TemporaryDirectory() as store:
        first, _ = copies(checkpoint, Path(store), 2)
        port = load.free_port()
        ours = {
            "PORT": port,
            "CHECKPOINT": f"{first.parent}@1",
            "ADMIN_KEYS": _KEY,
            "INFERENCE_THREADS": threads,
            "DEVICE": "cpu",
            "LOG_LEVEL": "warning",
            "DRAIN_DELAY_S": 0,
        }
        environment = {f"CAPTION_{name}": str(value) for name, value in ours.items()}
        command = [sys.executable, "-m", "app.cli", "serve"]
        launch = Launch(command, {**os.environ, **environment}, PROJECT_ROOT)
        with running(launch, Server(0, port, SERVICE[OURS]), _START_S) as server:
            yield server


class Load:
    """Asks for captions while the service swaps, and takes notes.

    Args:
        server: Who is asked.
        posts: What for; they take turns.
    """

    def __init__(self, server: Server, posts: Sequence[load.Post]) -> None:
        self._server = server
        self._posts = posts
        self._seen = Seen([], [], [])
        self._stopped = asyncio.Event()

    async def full(self, clients: int, swaps: int, between_s: float) -> Seen:
        """Let so many clients ask without a pause."""
        return await self._run(
            [self._client(number) for number in range(clients)], swaps, between_s
        )

    async def part(self, rate_per_s: float, swaps: int, between_s: float) -> Seen:
        """Let requests come by the clock, as a Poisson process."""
        return await self._run([self._arrivals(rate_per_s)], swaps, between_s)

    async def _run(self, askers: Sequence[Any], swaps: int, between_s: float) -> Seen:
        tasks = [asyncio.create_task(each) for each in (*askers, self._weigh())]
        await asyncio.sleep(_WARM_S)
        first_s = time.perf_counter()
        for number in range(swaps):
            await asyncio.sleep(between_s)
            await self._swap(str(2 - number % 2))
        await asyncio.sleep(between_s)
        self._stopped.set()
        await asyncio.gather(*tasks)
        asked = [each for each in self._seen.asked if each.began_s >= first_s]
        return self._seen._replace(asked=asked)

    async def _swap(self, version: str) -> None:
        path = f"/v1/admin/reload?version={version}"
        connection, began_s = load.Connection(self._server.port), time.perf_counter()
        status, body = await connection.ask(load.Post(path, "text/plain", b"", load.key(_KEY)))
        connection.close()
        if status != 200 or json.loads(body)["outcome"] != "served":
            raise SystemExit(f"the swap was answered with {status}: {body[:300]!r}")
        self._seen.swaps.append(Span(began_s, time.perf_counter()))

    async def _client(self, number: int) -> None:
        connection, turn = load.Connection(self._server.port), number
        while not self._stopped.is_set():
            await self._ask(connection, turn, time.perf_counter())
            turn += 1
        connection.close()

    async def _arrivals(self, rate_per_s: float) -> None:
        started_s, tasks = time.perf_counter(), []
        for turn, moment_s in enumerate(load.arrivals(rate_per_s, 3600, seed=0, even=False)):
            await asyncio.sleep(started_s + moment_s - time.perf_counter())
            if self._stopped.is_set():
                break
            tasks.append(asyncio.create_task(self._arrival(turn, started_s + moment_s)))
        await asyncio.gather(*tasks)

    async def _arrival(self, turn: int, began_s: float) -> None:
        connection = load.Connection(self._server.port)
        await self._ask(connection, turn, began_s)
        connection.close()

    async def _ask(self, connection: load.Connection, turn: int, began_s: float) -> None:
        try:
            status, _ = await connection.ask(self._posts[turn % len(self._posts)])
        except OSError:
            status = 0
        self._seen.asked.append(Asked(began_s, time.perf_counter(), status))

    async def _weigh(self) -> None:
        status = Path(f"/proc/{self._server.pid}/statm")
        page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
        while not self._stopped.is_set():
            self._seen.rss_mb.append((time.perf_counter(), _resident_pages(status) * page_mb))
            await asyncio.sleep(_LOOK_S)


def _resident_pages(status: Path) -> int:
    return int(status.read_text(encoding="ascii").split()[1])


def summary(seen: Seen) -> dict[str, Any]:
    """Compare what overlaps with a swap with what does not.

    Returns:
        Latencies are of captions; ``refused`` counts 503, for want of room, and ``broken`` every
        other failure of the whole run.
    """
    during = [each for each in seen.asked if any(swap.overlaps(each) for swap in seen.swaps)]
    between = [each for each in seen.asked if not any(swap.overlaps(each) for swap in seen.swaps)]
    taken_ms = {
        name: [1e3 * (each.ended_s - each.began_s) for each in part if each.status == 200]
        for name, part in (("between", between), ("during", during))
    }
    p99_ms = {name: load.percentile(values, 99) for name, values in taken_ms.items()}
    return {
        "swaps": len(seen.swaps),
        "swap_s": load.median([swap.ended_s - swap.began_s for swap in seen.swaps]),
        **{f"{name}_requests": len(values) for name, values in taken_ms.items()},
        **{f"{name}_p50_ms": load.percentile(values, 50) for name, values in taken_ms.items()},
        **{f"{name}_p99_ms": value for name, value in p99_ms.items()},
        "p99_ratio": p99_ms["during"] / p99_ms["between"],
        "refused_between": sum(each.status == _REFUSED for each in between),
        "refused_during": sum(each.status == _REFUSED for each in during),
        "broken": sum(each.status not in (200, _REFUSED) for each in seen.asked),
        **_memory(seen),
    }


def _memory(seen: Seen) -> dict[str, float]:
    first_s, last_s = seen.swaps[0].began_s, seen.swaps[-1].ended_s
    before = [mb for at_s, mb in seen.rss_mb if at_s < first_s]
    after = [mb for at_s, mb in seen.rss_mb if at_s > last_s]
    most = max(mb for _, mb in seen.rss_mb)
    return {"rss_before_mb": before[-1], "rss_most_mb": most, "rss_after_mb": after[-1]}


COLUMNS = {
    "swaps": ("swaps", "6.0f"),
    "swap_s": ("s each", "7.2f"),
    "between_requests": ("between", "8.0f"),
    "during_requests": ("during", "7.0f"),
    "between_p50_ms": ("p50 ms", "7.1f"),
    "during_p50_ms": ("during", "7.1f"),
    "between_p99_ms": ("p99 ms", "7.1f"),
    "during_p99_ms": ("during", "7.1f"),
    "p99_ratio": ("ratio", "6.2f"),
    "refused_between": ("refused", "8.0f"),
    "refused_during": ("during", "7.0f"),
    "broken": ("broken", "7.0f"),
    "rss_before_mb": ("MB", "6.0f"),
    "rss_most_mb": ("most", "6.0f"),
    "rss_after_mb": ("after", "6.0f"),
}


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="workers")
    parser.add_argument("--clients", type=int, default=16, help="of the full load")
    parser.add_argument("--parts", type=float, nargs="*", default=[0.5], help="of the full load")
    parser.add_argument("--swaps", type=int, default=10, help="at each load")
    parser.add_argument("--between-s", type=float, default=5.0, help="seconds between swaps")
    result.add_output(parser)
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with service(args.checkpoint.resolve(), args.threads) as server:
        posts = server.posts(load.photos(args.photos, 640))
        tell(f"{args.clients} clients without a pause")
        seen = uvloop.run(Load(server, posts).full(args.clients, args.swaps, args.between_s))
        rows[_FULL] = summary(seen)
        lasted_s = max(each.ended_s for each in seen.asked) - min(a.began_s for a in seen.asked)
        per_s = len(seen.asked) / lasted_s
        for part in args.parts:
            tell(f"{part:g} of {per_s:.1f} photos a second")
            seen = uvloop.run(Load(server, posts).part(part * per_s, args.swaps, args.between_s))
            rows[f"{part:g}"] = summary(seen)
    line = {"benchmark": "swap", "clients": args.clients, "per_s": per_s, "loads": rows}
    result.report(load.table("load", COLUMNS, rows), load.without_nan(line), args.output)


if __name__ == "__main__":
    main()
