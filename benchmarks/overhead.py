"""What does one client pay for the service? The pipeline without one and with one, in turns.

Run: .venv/bin/python benchmarks/overhead.py photo.jpg [more.jpg ...]
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import load
import result
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings
from limit import MAX_PIXELS
from servers import (
    OURS,
    Conditions,
    Contender,
    absolute,
    add_precision,
    check_captions,
    serving,
    stop_servers_when_ended,
)

TIMEOUT_S = 60.0
START_S = 300.0


class Pair(NamedTuple):
    """Median milliseconds of one caption, without the service and with it."""

    bare_ms: float
    service_ms: float

    @property
    def more_ms(self) -> float:
        """What the service adds."""
        return self.service_ms - self.bare_ms


def bare_ms(captioner: Captioner, photos: Sequence[bytes], seconds: float) -> float:
    """Decode and caption one photo after another for so long, and give the median."""
    taken_s = []
    ends_s = time.perf_counter() + seconds
    for photo in itertools.cycle(photos):
        began_s = time.perf_counter()
        captioner.caption([captioner.read(photo, max_pixels=MAX_PIXELS)])
        taken_s.append(time.perf_counter() - began_s)
        if time.perf_counter() > ends_s:
            return statistics.median(taken_s) * 1e3
    raise ValueError("no photos")


def measured(
    captioner: Captioner, photos: dict[int, list[bytes]], args: argparse.Namespace
) -> dict[int, Pair]:
    """Let pipeline and service take turns, and give the round of the median difference by size.

    Raises:
        Unavailable: the service does not start, or says something else than the captioner.
    """
    conditions = Conditions(
        args.checkpoint, args.threads, TIMEOUT_S, START_S, Path(), args.precision
    )
    rounds: dict[int, list[Pair]] = {size: [] for size in photos}
    with serving(Contender(OURS, "captioner"), conditions) as server:
        for each in photos.values():
            check_captions(server, each, [_said(captioner, photo) for photo in each])
        for _ in range(args.rounds):
            for size, each in photos.items():
                bare = bare_ms(captioner, each, args.seconds)
                seen = load.closed_loop(
                    server.port, server.posts(each), concurrency=1, seconds=args.seconds
                )
                rounds[size].append(Pair(bare, seen.p50_ms))
    return {size: middle(pairs) for size, pairs in rounds.items()}


def middle(pairs: Sequence[Pair]) -> Pair:
    """Give the round whose difference is the median one."""
    return sorted(pairs, key=lambda pair: pair.more_ms)[len(pairs) // 2]


def _said(captioner: Captioner, photo: bytes) -> str:
    return captioner.caption([captioner.read(photo, max_pixels=MAX_PIXELS)])[0][0].text


def table_of(pairs: dict[int, Pair]) -> list[str]:
    """Give the lines of the table."""
    head = f"{'px':>6}{'pipeline':>10}{'service':>10}{'more':>8}"
    return [
        "milliseconds of a caption, one client; the round with the median difference",
        head,
        *(
            f"{size:6}{pair.bare_ms:10.1f}{pair.service_ms:10.1f}{pair.more_ms:8.1f}"
            for size, pair in pairs.items()
        ),
    ]


def main() -> None:
    """Print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    captioner = Captioner.load(args.checkpoint, precision=args.precision, cores=args.threads)
    captioner.warm_up([1])
    photos = {size: load.photos(args.photos, size) for size in args.sizes}
    pairs = measured(captioner, photos, args)
    line = {
        "benchmark": "overhead",
        **{name: getattr(args, name) for name in ("threads", "precision", "rounds", "seconds")},
        "load": load.generator(),
        "rows": [
            {"px": size, **pair._asdict(), "more_ms": pair.more_ms} for size, pair in pairs.items()
        ],
    }
    result.report(table_of(pairs), line, args.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--checkpoint", type=absolute, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 1280, 4000], help="in px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each, per round and size")
    add_precision(parser)
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
