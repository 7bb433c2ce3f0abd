"""What does the service cost? The pipeline without one and with one, in turns.

One client tells what it adds to a caption, many clients what it leaves of the throughput.

Run: .venv/bin/python benchmarks/overhead.py photo.jpg [more.jpg ...]
"""

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import load
import result
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings
from limit import MAX_PIXELS, taken_s, whole_per_s
from servers import (
    MAX_BATCH,
    OURS,
    Conditions,
    Contender,
    Server,
    absolute,
    add_precision,
    check_captions,
    serving,
    stop_servers_when_ended,
)

TIMEOUT_S = 60.0
START_S = 300.0
NAMED = ("threads", "precision", "clients", "rounds", "seconds")


class OneClient(NamedTuple):
    """Median milliseconds of one caption, without the service and with it."""

    bare_ms: float
    service_ms: float

    @property
    def more_ms(self) -> float:
        """What the service adds."""
        return self.service_ms - self.bare_ms


class ManyClients(NamedTuple):
    """Photos a second, without the service in full batches and with it from many clients."""

    bare_per_s: float
    service_per_s: float

    @property
    def share(self) -> float:
        """What the service leaves of it; above 1 where its decoding fills gaps of the network."""
        return self.service_per_s / self.bare_per_s


Row = tuple[OneClient, ManyClients]


def bare_ms(captioner: Captioner, photos: Sequence[bytes], seconds: float) -> float:
    """Decode and caption one photo after another for so long, and give the median."""
    return statistics.median(taken_s(captioner, [[photo] for photo in photos], seconds)) * 1e3


def measured(
    captioner: Captioner, photos: dict[int, list[bytes]], args: argparse.Namespace
) -> dict[int, Row]:
    """Let pipeline and service take turns, and give by size the round of the median each.

    Raises:
        Unavailable: the service does not start, or says something else than the captioner.
    """
    conditions = Conditions(
        args.checkpoint, args.threads, TIMEOUT_S, START_S, Path(), args.precision
    )
    one: dict[int, list[OneClient]] = {size: [] for size in photos}
    many: dict[int, list[ManyClients]] = {size: [] for size in photos}
    with serving(Contender(OURS, "captioner"), conditions) as server:
        for each in photos.values():
            check_captions(server, each, [_said(captioner, photo) for photo in each])
        for _ in range(args.rounds):
            for size, each in photos.items():
                bare = partial(bare_ms, captioner, each)
                seen, taken_ms = _turn(bare, server, server.posts(each), 1, args.seconds)
                one[size].append(OneClient(taken_ms, seen.p50_ms))
                bare = partial(whole_per_s, captioner, each, MAX_BATCH)
                seen, per_s = _turn(bare, server, server.posts(each), args.clients, args.seconds)
                many[size].append(ManyClients(per_s, seen.per_s))
    return {
        size: (
            middle(one[size], lambda turn: turn.more_ms),
            middle(many[size], lambda turn: turn.share),
        )
        for size in photos
    }


def _turn(
    bare: Callable[[float], float],
    server: Server,
    posts: Sequence[load.Post],
    clients: int,
    seconds: float,
) -> tuple[load.Outcome, float]:
    """Measure the pipeline before and after the service: a shared machine changes its speed."""
    before = bare(seconds / 2)
    seen = load.closed_loop(server.port, posts, concurrency=clients, seconds=seconds)
    return seen, (before + bare(seconds / 2)) / 2


Turn = TypeVar("Turn")


def middle(turns: Sequence[Turn], by: Callable[[Turn], float]) -> Turn:
    """Give the turn whose figure is the median one."""
    return sorted(turns, key=by)[len(turns) // 2]


def _said(captioner: Captioner, photo: bytes) -> str:
    return captioner.caption([captioner.read(photo, max_pixels=MAX_PIXELS)])[0][0].text


def table_of(rows: dict[int, Row], clients: int) -> list[str]:
    """Give the lines of the table."""
    batches = f"the pipeline in batches of {MAX_BATCH}"
    head = ("px", "pipeline", "service", "more", "pipeline/s", "service/s", "share")
    return [
        "one client: milliseconds of a caption; the round with the median difference",
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
    captioner = Captioner.load(args.checkpoint, precision=args.precision, cores=args.threads)
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
                "one": {**one._asdict(), "more_ms": one.more_ms},
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
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 1280, 4000], help="in px")
    parser.add_argument("--clients", type=int, default=16, help="who ask at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each, per round and size")
    add_precision(parser)
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
