"""What does Ray Serve cost, and what do its replicas bring, beside our own server and HAProxy?

All services stay up and are asked in turns: by one client, which tells what a proxy adds to a
caption, and by many, which tell what is left of the throughput. Threads and decoders are shared
out among the replicas.

Run: .venv/bin/python benchmarks/ray_serve.py photo.jpg
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import load
import result
from app.settings import PROJECT_ROOT, Settings
from meter import Meter
from peers import expected_captions
from servers import (
    BALANCED,
    ON_RAY,
    OURS,
    THREADS,
    Conditions,
    Contender,
    Server,
    absolute,
    add_precision,
    check_captions,
    serving,
    stop_servers_when_ended,
    tell,
)

TIMEOUT_S = 60.0
START_S = 300.0
NAMED = ("threads", "precision", "size", "clients", "rounds", "seconds")


class Way(NamedTuple):
    """How captions are served.

    Attributes:
        title: in the table.
        server: of `servers.SERVICE`.
        services: behind one port.
    """

    title: str
    server: str
    services: int


WAYS = (
    Way("serve", OURS, 1),
    Way("Ray, 1 replica", ON_RAY, 1),
    Way("Ray, 2 replicas", ON_RAY, 2),
    Way("HAProxy, 2 services", BALANCED, 2),
)


class Row(NamedTuple):
    """What one way did in one round.

    Attributes:
        one_ms: median of a caption of one client, milliseconds.
        per_s: photos a second of many clients.
        p99_ms: of many clients, milliseconds.
        errors: of both.
        cpu_ms: of the server, its proxy and all they started, for a photo of many clients.
        peak_mb: memory of the same, MiB.
    """

    one_ms: float
    per_s: float
    p99_ms: float
    errors: float
    cpu_ms: float
    peak_mb: float


def measured(server: Server, photos: Sequence[bytes], clients: int, seconds: float) -> Row:
    """Ask with one client, then with many."""
    posts = server.posts(photos)
    one = load.closed_loop(server.port, posts, concurrency=1, seconds=seconds)
    with Meter(server.pid) as meter:
        before_s = meter.cpu_s()
        many = load.closed_loop(server.port, posts, concurrency=clients, seconds=seconds)
        spent_s = meter.cpu_s() - before_s
    asked, errors = many.answers + many.errors, one.errors + many.errors
    cpu_ms = 1e3 * spent_s / max(1, asked)
    return Row(one.p50_ms, many.per_s, many.p99_ms, errors, cpu_ms, meter.peak_bytes / 2**20)


@contextmanager
def _started(args: argparse.Namespace) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers = []
        for way in WAYS:
            tell(f"starting {way.title}")
            conditions = Conditions(
                args.checkpoint, args.threads, TIMEOUT_S, START_S, Path(), args.precision
            )._replace(services=way.services)
            contender = Contender(way.server, "captioner")
            servers.append(stack.enter_context(serving(contender, conditions)))
        yield servers


def compared(
    args: argparse.Namespace, photos: Sequence[bytes], expected: Sequence[str]
) -> list[Row]:
    """Give the medians of the rounds, one row for each of `WAYS`.

    Raises:
        Unavailable: one of them does not start, or says something else.
    """
    rounds: list[list[Row]] = []
    with _started(args) as servers:
        for server in servers:
            check_captions(server, photos, expected)
            measured(server, photos, args.clients, args.seconds / 2)
        for turn in range(args.rounds):
            tell(f"round {turn + 1} of {args.rounds}")
            rounds.append([measured(each, photos, args.clients, args.seconds) for each in servers])
    by_way = zip(*rounds, strict=True)
    return [Row(*map(load.median, zip(*each, strict=True))) for each in by_way]


COLUMNS = {
    "one_ms": ("one ms", "9.1f"),
    "per_s": ("photos/s", "10.1f"),
    "p99_ms": ("p99 ms", "8.0f"),
    "errors": ("errors", "8.0f"),
    "cpu_ms": ("CPU ms", "8.1f"),
    "peak_mb": ("MiB", "8.0f"),
}


def table_of(rows: Sequence[Row]) -> list[str]:
    """Give the lines of the table; the last column compares with the first row."""
    names = "".join(load.heading(title, form) for title, form in COLUMNS.values())
    lines = [f"{'':20}{names}{'/first':>8}"]
    for way, row in zip(WAYS, rows, strict=True):
        cells = "".join(f"{getattr(row, name):{form}}" for name, (_, form) in COLUMNS.items())
        lines.append(f"{way.title:20}{cells}{row.per_s / rows[0].per_s:8.2f}")
    return lines


def main() -> None:
    """Print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    photos = load.photos(args.photos, args.size)
    rows = compared(args, photos, expected_captions(args.checkpoint, photos, args.precision, "cpu"))
    line = {
        "benchmark": "ray_serve",
        **{name: getattr(args, name) for name in NAMED},
        "load": load.generator(),
        "rows": [{"way": way.title, **row._asdict()} for way, row in zip(WAYS, rows, strict=True)],
    }
    result.report(table_of(rows), line, args.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--checkpoint", type=absolute, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--threads", type=int, default=2, help=f"{THREADS}, of each way")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--size", type=int, default=640, help="px, the long side of the photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    add_precision(parser)
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
