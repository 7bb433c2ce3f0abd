"""How many services does one machine feed? One, two, four side by side for the same clients.

A service is one process of Python for HTTP, decoding and captions; a GPU can do more than that
feeds it. The clients, the decoders and the threads are shared out among the services.

Run: .venv/bin/python benchmarks/replicas.py --device cuda --batch 32 [PHOTO ...]
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import load
import result
from app.settings import PROJECT_ROOT, Settings
from meter import Meter
from peers import expected_captions
from servers import (
    MAX_BATCH,
    OURS,
    Conditions,
    Contender,
    Server,
    absolute,
    add_precision,
    check_captions,
    device_name,
    serving,
    stop_servers_when_ended,
    tell,
)

TIMEOUT_S = 60.0
START_S = 300.0
NAMED = ("device", "threads", "decoders", "batch", "precision", "size", "rounds", "seconds")


class Row(NamedTuple):
    """What all the services did together.

    Attributes:
        per_s: photos a second.
        p50_ms: the median of their medians.
        p99_ms: the longest of their 99th percentiles.
        errors: of all.
        cpu_s: CPU seconds of a request.
        peak_mb: memory of all on the host.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: float
    cpu_s: float
    peak_mb: float


def measured(
    servers: Sequence[Server], photos: Sequence[bytes], clients: int, seconds: float
) -> Row:
    """Let the clients ask all services at once, an equal part of them each."""
    each = clients // len(servers)
    with ExitStack() as stack, ThreadPoolExecutor(len(servers)) as threads:
        meters = [stack.enter_context(Meter(server.pid)) for server in servers]
        before_s = sum(meter.cpu_s() for meter in meters)
        seen = list(
            threads.map(
                lambda server: load.closed_loop(
                    server.port, server.posts(photos), concurrency=each, seconds=seconds
                ),
                servers,
            )
        )
        spent_s = sum(meter.cpu_s() for meter in meters) - before_s
    asked = max(1, sum(outcome.answers + outcome.errors for outcome in seen))
    return Row(
        sum(outcome.per_s for outcome in seen),
        load.median([outcome.p50_ms for outcome in seen]),
        max(outcome.p99_ms for outcome in seen),
        sum(outcome.errors for outcome in seen),
        spent_s / asked,
        sum(meter.peak_bytes for meter in meters) / 2**20,
    )


def shared_out(args: argparse.Namespace, services: int) -> Conditions:
    """Give each service its part of the machine; the largest batch is each one's own."""
    return Conditions(
        args.checkpoint,
        max(1, args.threads // services),
        TIMEOUT_S,
        START_S,
        Path(),
        args.precision,
        args.device,
        args.batch,
        max(1, args.decoders // services),
    )


def compared(
    args: argparse.Namespace, photos: Sequence[bytes], expected: Sequence[str]
) -> dict[tuple[int, int], Row]:
    """Give the medians of the rounds by services and clients; each service has one at least."""
    rows: dict[tuple[int, int], list[Row]] = {}
    for turn in range(args.rounds):
        for services in args.services:
            tell(f"round {turn + 1} of {args.rounds}: {services} side by side")
            enough = [clients for clients in args.clients if clients >= services]
            with _side_by_side(services, shared_out(args, services)) as servers:
                for server in servers:
                    check_captions(server, photos, expected)
                measured(servers, photos, max(enough, default=services), args.warm_up_s)
                for clients in enough:
                    row = measured(servers, photos, clients, args.seconds)
                    rows.setdefault((services, clients), []).append(row)
    return {key: Row(*map(load.median, zip(*each, strict=True))) for key, each in rows.items()}


@contextmanager
def _side_by_side(services: int, conditions: Conditions) -> Iterator[list[Server]]:
    """Start the services together: one after the other they would take minutes."""
    with ExitStack() as stack, ThreadPoolExecutor(services) as threads:
        starts = [serving(Contender(OURS, "captioner"), conditions) for _ in range(services)]
        yield list(threads.map(stack.enter_context, starts))


def main() -> None:
    """Print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    photos = load.photos(args.photos, args.size)
    expected = expected_captions(args.checkpoint, photos, args.precision, args.device)
    rows = compared(args, photos, expected)
    line = {
        "benchmark": "replicas",
        **{name: getattr(args, name) for name in NAMED},
        "load": load.generator(),
        "rows": [
            {"services": services, "clients": clients, **row._asdict()}
            for (services, clients), row in rows.items()
        ],
    }
    result.report(table_of(args, rows), line, args.output)


COLUMNS = {
    "per_s": ("photos/s", "10.1f"),
    "p50_ms": ("p50 ms", "8.0f"),
    "p99_ms": ("p99 ms", "8.0f"),
    "errors": ("errors", "8.0f"),
    "cpu_s": ("CPU s", "8.4f"),
    "peak_mb": ("MiB", "8.0f"),
}


def table_of(args: argparse.Namespace, rows: dict[tuple[int, int], Row]) -> list[str]:
    """Give the lines of the table."""
    shared = f"{args.threads} threads and {args.decoders} decoders shared out"
    about = f"{device_name(args.device)}, {shared}, batches of {args.batch} each, {args.precision}"
    names = "".join(load.heading(title, form) for title, form in COLUMNS.values())
    table = [
        f"{args.size} px; {about}; {args.rounds} rounds of {args.seconds:g} s",
        f"{'services':>8}{'clients':>9}{names}{'/one':>7}",
    ]
    for (services, clients), row in rows.items():
        cells = "".join(f"{getattr(row, name):{form}}" for name, (_, form) in COLUMNS.items())
        one = rows.get((1, clients))
        more = row.per_s / one.per_s if one else float("nan")
        table.append(f"{services:>8}{clients:>9}{cells}{more:>7.2f}")
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--checkpoint", type=absolute, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--services", type=int, nargs="+", default=[1, 2, 4], help="side by side")
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64], help="of all together")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="cores that compute, of all"
    )
    parser.add_argument("--decoders", type=int, default=8, help="of all together")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=MAX_BATCH, help="of each service, at most")
    parser.add_argument("--size", type=int, default=640, help="px, the long side of the photos")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--warm-up-s", type=float, default=3.0)
    add_precision(parser)
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
