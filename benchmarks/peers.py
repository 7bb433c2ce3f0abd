"""What does our serving bring, and what our engine? The same captions from other servers.

Each peer comes from its PyPI release into an environment of its own and serves the shipped
checkpoint twice: in plain torch (plain.py) and with our `Captioner`. The servers take turns, one
at a time, with the same photos, threads and batch size.

Run: .venv/bin/python benchmarks/peers.py --cache /tmp/peers [--peers litserve mosec] [PHOTO ...]
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import load
import result
from app.captioner.engines.engine import Precision
from app.captioner.pipeline import Captioner
from limit import best_of, whole_per_s
from meter import Meter
from plain import PlainCaptioner
from servers import (
    ENGINES,
    OURS,
    TROUBLE,
    Contender,
    Server,
    check_captions,
    conditions_of,
    contenders_of,
    device_name,
    installed,
    serving,
    shared_arguments,
    stop_servers_when_ended,
    tell,
)

LONE_TIMES = 3
"""One client asks for so much longer: the 99th percentile of fifty answers is the longest."""
_TOLD = ("device", "threads", "decoders", "batch", "precision", "rounds", "seconds")
Row = dict[str, float]
Key = tuple[str, str, int, int]  # server, engine, long side in px, concurrency


def expected_captions(
    checkpoint: Path, photos: Sequence[bytes], precision: Precision, device: str
) -> list[str]:
    """Caption photos with both engines.

    Raises:
        SystemExit: they do not say the same, so nothing can be compared.
    """
    ours = Captioner.load(checkpoint, precision=precision, device=device)
    plain = PlainCaptioner.load(checkpoint, device)
    said = []
    for photo in photos:
        best = best_of(ours, photo)
        (other,) = plain.caption([plain.read(photo)])
        if best != other:
            raise SystemExit(f"the engines disagree: Captioner {best!r}, plain.py {other!r}")
        said.append(best)
    return said


def ceilings(args: argparse.Namespace, photos: dict[int, list[bytes]]) -> dict[int, float]:
    """Measure images a second of the whole pipeline without a server, by size."""
    captioner = Captioner.load(
        args.checkpoint, precision=args.precision, device=args.device, workers=args.threads
    )
    captioner.warm_up([args.batch])
    return {
        size: whole_per_s(captioner, each, args.batch, args.seconds)
        for size, each in photos.items()
    }


def measured(server: Server, posts: Sequence[load.Post], concurrency: int, seconds: float) -> Row:
    """Load the server and say what came back and what it cost."""
    with Meter(server.pid) as meter:
        before_s = meter.cpu_s()
        seen = load.closed_loop(server.port, posts, concurrency=concurrency, seconds=seconds)
        spent_s = meter.cpu_s() - before_s
    asked = max(1, seen.answers + seen.errors)
    return {
        "per_s": seen.per_s,
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "errors": seen.errors,
        "cpu_s": spent_s / asked,
        "peak_mb": meter.peak_bytes / 2**20,
    }


def main() -> None:
    """Measure, print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    photos = {size: load.photos(args.photos, size) for size in args.sizes}
    expected = {
        size: expected_captions(args.checkpoint, each, args.precision, args.device)
        for size, each in photos.items()
    }
    conditions = conditions_of(args, args.timeout_s)
    contenders = contenders_of(args.peers, args.engines, args.services)
    versions, reasons = installed(contenders, conditions)
    rows: dict[Key, list[Row]] = defaultdict(list)
    limits: dict[int, list[float]] = defaultdict(list)
    for turn in range(args.rounds):
        for size, per_s in ceilings(args, photos).items():
            limits[size].append(per_s)
        for contender in contenders:
            if contender in reasons:
                continue
            tell(f"round {turn + 1} of {args.rounds}: {contender.name}, {contender.engine}")
            try:
                with serving(contender, conditions) as server:
                    for size, each in photos.items():
                        check_captions(server, each, expected[size])
                    for (size, concurrency), row in _measured(server, photos, args):
                        rows[(*contender, size, concurrency)].append(row)
            except TROUBLE as reason:
                reasons[contender] = str(reason) or type(reason).__name__
    ceiling = {size: load.median(seen) for size, seen in limits.items()}
    medians = summed_up(rows, ceiling)
    line = {
        "benchmark": "peers",
        **{name: getattr(args, name) for name in _TOLD},
        "load": load.generator(),
        "versions": versions,
        "ceiling_per_s": ceiling,
        "rows": [
            {"server": name, "engine": engine, "px": size, "concurrency": concurrency, **row}
            for (name, engine, size, concurrency), row in medians.items()
        ],
        "unavailable": [{**contender._asdict(), "reason": r} for contender, r in reasons.items()],
    }
    table = _table(args, medians, ceiling, reasons)
    result.report(table, load.without_nan(line), args.output)


def _measured(
    server: Server, photos: dict[int, list[bytes]], args: argparse.Namespace
) -> Iterator[tuple[tuple[int, int], Row]]:
    """Warm up with the heaviest load, then measure each size and concurrency."""
    every = server.posts([photo for each in photos.values() for photo in each])
    most = max(args.concurrencies)
    load.closed_loop(server.port, every, concurrency=most, seconds=args.warm_up_s)
    for size, each in photos.items():
        for concurrency in args.concurrencies:
            posts = server.posts(each)
            load.let_it_rest(server.port, posts[0], patience_s=args.timeout_s)
            seconds = args.seconds * (LONE_TIMES if concurrency == 1 else 1)
            yield (size, concurrency), measured(server, posts, concurrency, seconds)


def summed_up(rows: dict[Key, list[Row]], ceiling: dict[int, float]) -> dict[Key, Row]:
    """Give the medians over the rounds, with the throughput as a part of ours and the ceiling."""
    medians = {
        key: {name: load.median([row[name] for row in each]) for name in each[0]}
        for key, each in rows.items()
    }
    for (_, _, size, concurrency), row in medians.items():
        ours = medians.get((OURS, "captioner", size, concurrency))
        row["of_ours"] = row["per_s"] / ours["per_s"] if ours and ours["per_s"] else float("nan")
        row["of_ceiling"] = row["per_s"] / ceiling[size]
    return medians


COLUMNS = {
    "per_s": ("photos/s", "9.2f"),
    "p50_ms": ("p50 ms", "8.0f"),
    "p99_ms": ("p99 ms", "8.0f"),
    "errors": ("errors", "7.0f"),
    "cpu_s": ("CPU s", "7.3f"),
    "peak_mb": ("MiB", "7.0f"),
    "of_ours": ("/ours", "7.2f"),
    "of_ceiling": ("/ceiling", "9.2f"),
}


def _table(
    args: argparse.Namespace,
    rows: dict[Key, Row],
    ceiling: dict[int, float],
    reasons: dict[Contender, str],
) -> list[str]:
    about = f"{device_name(args.device)}, {args.threads} threads, {args.decoders} decoders"
    about += f", {args.precision}, {args.rounds} rounds of {args.seconds:g} s"
    table = [f"medians; {about}; load from {load.generator()}; CPU s is per request"]
    for size, per_s in ceiling.items():
        head = f"ceiling at {size} px: {per_s:.2f} photos/s without a server"
        table.append(f"{head}, batches of {args.batch} side by side")
    names = "".join(load.heading(title, form) for title, form in COLUMNS.values())
    table.append(f"{'server':<16}{'engine':<10}{'px':>6}{'at once':>8}{names}")
    for (name, engine, size, concurrency), row in sorted(rows.items(), key=_by_load):
        cells = "".join(f"{row[column]:{form}}" for column, (_, form) in COLUMNS.items())
        table.append(f"{name:<16}{engine:<10}{size:>6}{concurrency:>8}{cells}")
    for contender, reason in reasons.items():
        table.append(f"{contender.name:<16}{contender.engine:<10} {reason}")
    return table


def _by_load(item: tuple[Key, Row]) -> tuple[int, int, float]:
    (_, _, size, concurrency), row = item
    return size, concurrency, -row["per_s"]


def _arguments() -> argparse.Namespace:
    parser = shared_arguments(__doc__)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 1280, 4000], help="px")
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--warm-up-s", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=60.0, help="a server's own")
    return parser.parse_args()


if __name__ == "__main__":
    main()
