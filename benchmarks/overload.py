"""What is still done in time when more is asked than can be done?

Requests arrive by the clock, at parts and multiples of what each server was first measured to do.
Every server is told the deadline by the setting it has for it. A client waits longer than that, so
that late answers are seen.

Run: .venv/bin/python benchmarks/overload.py --cache /tmp/peers [--peers litserve] [PHOTO ...]
"""

import argparse
from collections.abc import Iterator, Sequence

import load
import result
from servers import (
    ENGINES,
    TROUBLE,
    Contender,
    Server,
    Unavailable,
    conditions_of,
    contenders_of,
    installed,
    serving,
    shared_arguments,
    stop_servers_when_ended,
    tell,
)

Row = dict[str, float]
REFUSALS = (429, 503)
TIMEOUTS = (408, 504)
COLUMNS = {
    "offered_per_s": ("asked/s", "9.2f"),
    "good_per_s": ("good/s", "8.2f"),
    "good_part": ("/capacity", "10.2f"),
    "p99_s": ("p99 s", "7.2f"),
    "late": ("late", "6.0f"),
    "refused": ("refused", "8.0f"),
    "timed_out": ("timed out", "10.0f"),
    "errors": ("errors", "7.0f"),
}


def summary(
    answers: Sequence[load.Answer], *, seconds: float, deadline_s: float, capacity_per_s: float
) -> Row:
    """Count what became of the arrivals of one load.

    Returns:
        ``good_per_s`` counts captions within the deadline, ``late`` those after it, ``p99_s`` is of
        both; ``refused`` counts 429 and 503, ``timed_out`` 408 and 504, ``errors`` all the rest,
        broken connections and lost patience included.
    """
    captioned_s = [answer.taken_s for answer in answers if answer.status == 200]
    good = sum(taken_s <= deadline_s for taken_s in captioned_s)
    refused = sum(answer.status in REFUSALS for answer in answers)
    timed_out = sum(answer.status in TIMEOUTS for answer in answers)
    return {
        "offered_per_s": len(answers) / seconds,
        "good_per_s": good / seconds,
        "good_part": good / seconds / capacity_per_s,
        "p99_s": load.percentile(captioned_s, 99),
        "late": len(captioned_s) - good,
        "refused": refused,
        "timed_out": timed_out,
        "errors": len(answers) - len(captioned_s) - refused - timed_out,
    }


def overloaded(
    server: Server, photos: Sequence[bytes], args: argparse.Namespace
) -> Iterator[tuple[float, float, Row]]:
    """Give each load with the capacity and what became of the arrivals.

    Shared machines change their speed within minutes, so the capacity is measured before and after
    each load, and is the mean of both.

    Raises:
        Unavailable: the server captions nothing.
    """
    posts = server.posts(photos)

    def per_s(seconds: float) -> float:
        seen = load.closed_loop(server.port, posts, concurrency=args.at_once, seconds=seconds)
        if not seen.answers:
            raise Unavailable(f"no caption from {args.at_once} at once in {seconds:g} s")
        return seen.per_s

    load.closed_loop(server.port, posts, concurrency=args.at_once, seconds=args.warm_up_s)
    before_per_s = per_s(args.capacity_seconds)
    for part in args.loads:
        moments = load.arrivals(part * before_per_s, args.seconds, seed=args.seed, even=args.even)
        answers = load.open_loop(server.port, posts, moments, patience_s=args.patience_s)
        load.let_it_rest(server.port, posts[0], patience_s=args.patience_s)
        after_per_s = per_s(args.capacity_seconds)
        capacity_per_s = (before_per_s + after_per_s) / 2
        row = summary(
            answers,
            seconds=args.seconds,
            deadline_s=args.deadline_s,
            capacity_per_s=capacity_per_s,
        )
        yield part, capacity_per_s, row
        before_per_s = after_per_s


def main() -> None:
    """Measure, print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    photos = load.photos(args.photos, args.size)
    conditions = conditions_of(args, args.deadline_s)
    contenders = contenders_of(args.peers, [args.engine], args.services)
    versions, reasons = installed(contenders, conditions)
    rows: dict[tuple[Contender, float], tuple[float, Row]] = {}
    for contender in contenders:
        if contender in reasons:
            continue
        tell(f"{contender.name}, {contender.engine}")
        try:
            with serving(contender, conditions) as server:
                for part, capacity_per_s, row in overloaded(server, photos, args):
                    rows[contender, part] = capacity_per_s, row
        except TROUBLE as reason:
            reasons[contender] = str(reason) or type(reason).__name__
    line = {
        "benchmark": "overload",
        **{
            name: getattr(args, name)
            for name in ("threads", "precision", "size", "seconds", "seed", "even")
        },
        "deadline_s": args.deadline_s,
        "versions": versions,
        "rows": [
            {**contender._asdict(), "load": part, "capacity_per_s": capacity_per_s, **row}
            for (contender, part), (capacity_per_s, row) in rows.items()
        ],
        "unavailable": [{**contender._asdict(), "reason": r} for contender, r in reasons.items()],
    }
    result.report(_table(args, rows, reasons), load.without_nan(line), args.output)


def _table(
    args: argparse.Namespace,
    rows: dict[tuple[Contender, float], tuple[float, Row]],
    reasons: dict[Contender, str],
) -> list[str]:
    kind = "even" if args.even else f"Poisson, seed {args.seed}"
    names = "".join(load.heading(title, form) for title, form in COLUMNS.values())
    table = [
        f"arrivals for {args.seconds:g} s, {kind}; good: a caption within {args.deadline_s:g} s",
        f"{'server':<16}{'engine':<10}{'capacity/s':>11}{'load':>6}{names}",
    ]
    for (contender, part), (capacity_per_s, row) in rows.items():
        cells = "".join(f"{row[column]:{form}}" for column, (_, form) in COLUMNS.items())
        head = f"{contender.name:<16}{contender.engine:<10}{capacity_per_s:11.2f}{part:6.1f}"
        table.append(f"{head}{cells}")
    for contender, reason in reasons.items():
        table.append(f"{contender.name:<16}{contender.engine:<10} {reason}")
    return table


def _arguments() -> argparse.Namespace:
    parser = shared_arguments(__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="captioner", help="of the peers")
    parser.add_argument("--size", type=int, default=640, help="long side of the photos, px")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.9, 1.5, 3.0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--deadline-s", type=float, default=2.0, help="a later caption is no use")
    parser.add_argument("--patience-s", type=float, default=30.0, help="then a client hangs up")
    parser.add_argument("--at-once", type=int, default=16, help="while capacity is measured")
    parser.add_argument("--capacity-seconds", type=float, default=5.0)
    parser.add_argument("--warm-up-s", type=float, default=5.0)
    parser.add_argument("--even", action="store_true", help="at even intervals, not Poisson")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
