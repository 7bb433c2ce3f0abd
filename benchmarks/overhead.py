"""What does the service cost? The pipeline without one and with one, in turns.

One client tells what it adds to a caption, many clients what it leaves of the throughput.

Run: .venv/bin/python benchmarks/overhead.py photo.jpg [more.jpg ...]
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, Self

import uvloop

import load
import result
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings
from limit import best_of, taken_s, whole_per_s
from servers import (
    MAX_BATCH,
    OURS,
    THREADS,
    Conditions,
    Contender,
    Server,
    Unavailable,
    absolute,
    add_precision,
    check_captions,
    serving,
    stop_servers_when_ended,
)

TIMEOUT_S = 60.0
START_S = 300.0
IN_A_ROW = 6
NAMED = ("threads", "precision", "clients", "rounds", "seconds")


class OneClient(NamedTuple):
    """Median milliseconds of one caption.

    Attributes:
        bare_ms: without the service.
        service_ms: with it.
        more_ms: what the service adds, in the median of the pairs.
    """

    bare_ms: float
    service_ms: float
    more_ms: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Self:
        """Sum up pairs of neighbours in time, without the service and with it, in ms."""
        bare_ms, service_ms = zip(*pairs, strict=True)
        more_ms = [with_it - without for without, with_it in pairs]
        return cls(*map(statistics.median, (bare_ms, service_ms, more_ms)))


class ManyClients(NamedTuple):
    """Photos a second, without the service in full batches and with it from many clients."""

    bare_per_s: float
    service_per_s: float

    @property
    def share(self) -> float:
        """What the service leaves of it; above 1 where its decoding fills gaps of the network."""
        return self.service_per_s / self.bare_per_s


Row = tuple[OneClient, ManyClients]


async def pairs_ms(
    captioner: Captioner, server: Server, photos: Sequence[bytes], seconds: float
) -> list[tuple[float, float]]:
    """Caption a photo a few times without the service, then with it, then the next photo.

    Seconds apart, a shared machine has changed its speed by more than the service costs.

    Raises:
        Unavailable: the service refuses a photo.
    """
    pairs: list[tuple[float, float]] = []
    ends_s = time.perf_counter() + seconds
    with closing(load.Connection(server.port)) as connection:
        for photo, post in cycle(zip(photos, server.posts(photos), strict=True)):
            bare_s = [taken_s(captioner, [photo]) for _ in range(IN_A_ROW)]
            service_s = [await _asked_s(connection, post) for _ in range(IN_A_ROW)]
            # the first of a row finds the caches full of what the other side left
            pairs.append((_median_ms(bare_s[1:]), _median_ms(service_s[1:])))
            if time.perf_counter() > ends_s:
                break
    return pairs


def _median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


async def _asked_s(connection: load.Connection, post: load.Post) -> float:
    began_s = time.perf_counter()
    status, _ = await connection.ask(post)
    if status != HTTPStatus.OK:
        raise Unavailable(f"answered a photo with {status}")
    return time.perf_counter() - began_s


def measured(
    captioner: Captioner, photos: dict[int, list[bytes]], args: argparse.Namespace
) -> dict[int, Row]:
    """Let pipeline and service take turns, and give what one client and many saw, by size.

    Raises:
        Unavailable: the service does not start, or says something else than the captioner.
    """
    conditions = Conditions(
        args.checkpoint, args.threads, TIMEOUT_S, START_S, Path(), args.precision
    )
    one: dict[int, list[tuple[float, float]]] = {size: [] for size in photos}
    many: dict[int, list[ManyClients]] = {size: [] for size in photos}
    with serving(Contender(OURS, "captioner"), conditions) as server:
        for each in photos.values():
            check_captions(server, each, [best_of(captioner, photo) for photo in each])
        for _ in range(args.rounds):
            for size, each in photos.items():
                one[size] += uvloop.run(pairs_ms(captioner, server, each, args.seconds))
                many[size].append(_turn(captioner, server, each, args))
    return {size: (OneClient.of(one[size]), middle(many[size])) for size in photos}


def _turn(
    captioner: Captioner, server: Server, photos: Sequence[bytes], args: argparse.Namespace
) -> ManyClients:
    """Measure the pipeline before and after the service: a shared machine changes its speed."""
    before = whole_per_s(captioner, photos, MAX_BATCH, args.seconds / 2)
    seen = load.closed_loop(
        server.port, server.posts(photos), concurrency=args.clients, seconds=args.seconds
    )
    after = whole_per_s(captioner, photos, MAX_BATCH, args.seconds / 2)
    return ManyClients((before + after) / 2, seen.per_s)


def middle(rounds: Sequence[ManyClients]) -> ManyClients:
    """Give the round with the median share."""
    return sorted(rounds, key=lambda each: each.share)[len(rounds) // 2]


def table_of(rows: dict[int, Row], clients: int) -> list[str]:
    """Give the lines of the table."""
    batches = f"the pipeline in batches of {MAX_BATCH}, side by side"
    head = ("px", "pipeline", "service", "more", "pipeline/s", "service/s", "share")
    return [
        "one client: milliseconds of a caption in turns with the pipeline, medians",
        f"{clients} clients: photos a second, {batches}; the round with the median share",
        "{:>6}{:>10}{:>10}{:>8}{:>12}{:>11}{:>8}".format(*head),
        *(
            f"{size:6}{one.bare_ms:10.1f}{one.service_ms:10.1f}{one.more_ms:8.1f}"
            f"{many.bare_per_s:12.1f}{many.service_per_s:11.1f}{many.share:8.2f}"
            for size, (one, many) in rows.items()
        ),
    ]


def main() -> None:
    """Print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    captioner = Captioner.load(args.checkpoint, precision=args.precision, workers=args.threads)
    captioner.warm_up([1, MAX_BATCH])
    photos = {size: load.photos(args.photos, size) for size in args.sizes}
    rows = measured(captioner, photos, args)
    line = {
        "benchmark": "overhead",
        **{name: getattr(args, name) for name in NAMED},
        "load": load.generator(),
        "rows": [
            {
                "px": size,
                "one": one._asdict(),
                "many": {**many._asdict(), "share": many.share},
            }
            for size, (one, many) in rows.items()
        ],
    }
    result.report(table_of(rows, args.clients), line, args.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--checkpoint", type=absolute, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help=THREADS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 1280, 4000], help="in px")
    parser.add_argument("--clients", type=int, default=16, help="who ask at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each, per round and size")
    add_precision(parser)
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
