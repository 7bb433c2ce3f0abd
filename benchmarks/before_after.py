"""What did a change bring? The services of two source trees, in turns.

Both run; one is under load while the other idles, and the one who begins changes from round to
round. Both have their own defaults: checkpoint, precision, cores.

Run: .venv/bin/python benchmarks/before_after.py --before TREE --after TREE [PHOTO ...]
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import load
import overload
import probes
import result
from meter import Meter
from servers import (
    OURS,
    SERVICE,
    Launch,
    Server,
    absolute,
    running,
    stop_servers_when_ended,
    tell,
)
from startup import fresh_service

OUTPUT = Path(__file__).resolve().parent / "results" / "before-after.md"
LONE_TIMES = 3
"""One client asks for so much longer: its answers are few."""
DEADLINE_S = 60.0
"""Nobody is refused for a machine that is slow."""
OVERLOAD_DEADLINE_S = 2.0
_SITE = '''"""Leave out what maps `app` to the checkout that is installed."""
import sys

sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if "Editable" not in getattr(finder, "__name__", type(finder).__name__)
]
'''
Pair = tuple[float, float]
Figures = dict[str, list[Pair]]
"""By what was measured, before and after; a pair for each round."""


class Tree(NamedTuple):
    """A checkout whose service is measured.

    Attributes:
        folder: its root.
        site: holds what makes Python take `app` from it.
    """

    folder: Path
    site: Path

    def environment(self, **settings: Any) -> dict[str, str]:
        """Give the environment of its service: the defaults, but for these settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CAPTION_")}
        ours = {f"CAPTION_{name.upper()}": str(value) for name, value in settings.items()}
        return {**kept, **ours, "PYTHONPATH": os.pathsep.join(map(str, self))}

    def check(self) -> None:
        """See that Python takes `app` from it.

        Raises:
            SystemExit: it does not.
        """
        asking = [sys.executable, "-P", "-c", "import app; print(app.__file__)"]
        ran = subprocess.run(
            asking, env=self.environment(), capture_output=True, text=True, check=False
        )
        if not Path(ran.stdout.strip()).is_relative_to(self.folder):
            raise SystemExit(f"{self.folder} is no checkout of ours: {ran.stdout}{ran.stderr}")


@contextmanager
def trees(folders: Sequence[Path]) -> Iterator[list[Tree]]:
    """Give the checkouts, ready to be started."""
    with tempfile.TemporaryDirectory() as site:
        Path(site, "sitecustomize.py").write_text(_SITE, encoding="utf-8")
        found = [Tree(folder, Path(site)) for folder in folders]
        for tree in found:
            tree.check()
        yield found


@contextmanager
def services(both: Sequence[Tree], start_s: float, **settings: Any) -> Iterator[list[Server]]:
    """Run the service of each tree, one beside the other.

    Raises:
        Unavailable: one does not start.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_service(tree, start_s, settings)) for tree in both]


@contextmanager
def _service(tree: Tree, start_s: float, settings: Mapping[str, Any]) -> Iterator[Server]:
    port, peer = load.free_port(), SERVICE[OURS]
    environment = tree.environment(port=port, log_level="warning", drain_delay_s=0, **settings)
    command = [sys.executable, *peer.arguments]
    launch = Launch(command, environment, tree.folder)
    with running(launch, Server(0, port, peer), start_s) as server:
        yield server


# --- what is measured ---------------------------------------------------------------------------


def in_turns(measure: Callable[[int], float], turn: int) -> Pair:
    """Measure before (0) and after (1); in every other round the other way round."""
    if turn % 2:
        after = measure(1)
        return measure(0), after
    return measure(0), measure(1)


def of_starts(both: Sequence[Tree], photo: bytes, args: argparse.Namespace) -> Figures:
    """Give the seconds from the start of a service until it is ready."""

    def ready_s(side: int) -> float:
        tree = both[side]
        path = {"PYTHONPATH": tree.environment()["PYTHONPATH"]}
        return fresh_service(photo, path, tree.folder)["ready"]

    return {"s from start to ready": [in_turns(ready_s, turn) for turn in range(args.starts)]}


def of_loads(
    both: Sequence[Server], photos: dict[int, list[bytes]], args: argparse.Namespace
) -> Figures:
    """Give what many clients got and one client waited, by size, then errors and memory."""
    figures: Figures = {}
    errors = [0, 0]

    def figure(side: int, size: int, clients: int) -> float:
        seconds = args.seconds * (LONE_TIMES if clients == 1 else 1)
        seen = _seen(both[side], photos[size], clients, seconds)
        errors[side] += seen.errors
        return seen.p50_ms if clients == 1 else seen.per_s

    for server in both:
        _seen(server, photos[args.sizes[0]], max(args.clients), args.warm_up_s)
    for turn, size, clients in product(range(args.rounds), args.sizes, [*args.clients, 1]):
        tell(f"round {turn + 1} of {args.rounds}: {size} px, {clients} clients")
        name = "ms, one client, median" if clients == 1 else f"photos/s, {clients} clients"
        pair = in_turns(partial(figure, size=size, clients=clients), turn)
        figures.setdefault(f"{name}, {size} px", []).append(pair)
    before, after = (Meter(server.pid).memory_bytes() / 2**20 for server in both)
    return {
        **figures,
        "requests refused or broken": [(errors[0], errors[1])],
        "MiB of all processes after load": [(before, after)],
    }


def _seen(server: Server, photos: Sequence[bytes], clients: int, seconds: float) -> load.Outcome:
    """Load one server; what it was asked before is answered first."""
    posts = server.posts(photos)
    load.let_it_rest(server.port, posts[0])
    return load.closed_loop(server.port, posts, concurrency=clients, seconds=seconds)


def of_probes(both: Sequence[Server], photos: list[bytes], args: argparse.Namespace) -> Figures:
    """Give the 99th percentile of a liveness probe while the service captions."""

    def p99_ms(side: int) -> float:
        port = both[side].port
        with probes.load(port, photos, args.at_once):
            return probes.measure(port, args.probes)["/livez"]["p99"]

    return {f"ms, p99 of /livez, {args.at_once} clients": [in_turns(p99_ms, 0)]}


def of_overload(both: Sequence[Server], photos: list[bytes], args: argparse.Namespace) -> Figures:
    """Give captions in time at a multiple of the capacity, which is measured in the same run."""
    args = argparse.Namespace(
        **{**vars(args), "seconds": args.overload, "deadline_s": OVERLOAD_DEADLINE_S}
    )
    rows = [next(overload.overloaded(server, photos, args)) for server in both]
    told = f"at {args.loads[0]:g} times capacity, deadline {OVERLOAD_DEADLINE_S:g} s"
    names = {"good_per_s": "captions/s in time", "good_part": "captions in time/capacity"}
    before, after = (row for _, _, row in rows)
    return {f"{name}, {told}": [(before[key], after[key])] for key, name in names.items()}


def measured(both: Sequence[Tree], args: argparse.Namespace) -> Figures:
    """Measure all that was asked for.

    Raises:
        Unavailable: a service does not start, or refuses what it should not.
    """
    photos = {size: load.photos(args.photos, size) for size in args.sizes}
    first = photos[args.sizes[0]]
    tell("starts")
    figures = of_starts(both, first[0], args)
    with services(both, args.start_s, deadline_s=DEADLINE_S) as servers:
        figures |= of_loads(servers, photos, args)
        if args.probes:
            tell("probes")
            figures |= of_probes(servers, first, args)
    if args.overload:
        tell("overload")
        late = {"deadline_s": OVERLOAD_DEADLINE_S, "body_timeout_s": OVERLOAD_DEADLINE_S}
        with services(both, args.start_s, **late) as servers:
            figures |= of_overload(servers, first, args)
    return figures


# --- what is told -------------------------------------------------------------------------------


def summed_up(pairs: Sequence[Pair]) -> dict[str, float]:
    """Give the medians, and the median of the ratios of the rounds."""
    return {
        "before": statistics.median(before for before, _ in pairs),
        "after": statistics.median(after for _, after in pairs),
        "ratio": statistics.median(
            after / before if before else math.nan for before, after in pairs
        ),
    }


def table_of(rows: Mapping[str, Mapping[str, float]], about: str) -> list[str]:
    """Give the lines of a Markdown table; the ratio is after over before."""
    return [
        about,
        "",
        "| | before | after | ratio |",
        "|---|---:|---:|---:|",
        *(
            f"| {name} | {row['before']:.3g} | {row['after']:.3g} | {row['ratio']:.2f} |"
            for name, row in rows.items()
        ),
    ]


def main() -> None:
    """Print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    commits = [result.commit(folder) for folder in (args.before, args.after)]
    with trees([args.before, args.after]) as both:
        figures = measured(both, args)
    rows = {name: summed_up(pairs) for name, pairs in figures.items()}
    machine = f"{result.cpu_model()}, {os.cpu_count()} cores{result.cpu_instructions()}"
    rounds = f"medians of {args.rounds} rounds of {args.seconds:g} s, of the ratios too"
    about = f"{machine}. Before {commits[0]}, after {commits[1]}; {rounds}."
    line = {
        "benchmark": "before-after",
        "commits": commits,
        **{name: getattr(args, name) for name in ("rounds", "seconds", "starts")},
        "load": load.generator(),
        "rows": rows,
        "rounds_seen": figures,
    }
    table = table_of(rows, about)
    result.report(table, load.without_nan(line), args.output, markdown=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--before", type=absolute, required=True, metavar="TREE")
    parser.add_argument("--after", type=absolute, required=True, metavar="TREE")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640, 1280], help="px")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--warm-up-s", type=float, default=5.0)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--start-s", type=float, default=300.0, help="until a service answers")
    parser.add_argument("--probes", type=float, metavar="SECONDS", help="ask /livez under load")
    parser.add_argument("--overload", type=float, metavar="SECONDS", help="ask too much")
    parser.add_argument("--loads", type=float, nargs=1, default=[3.0], help="times the capacity")
    parser.add_argument("--at-once", type=int, default=16, help="of probes and of the capacity")
    parser.add_argument("--capacity-seconds", type=float, default=5.0)
    parser.add_argument("--patience-s", type=float, default=30.0, help="then a client hangs up")
    parser.add_argument("--even", action="store_true", help="arrive evenly, not Poisson")
    parser.add_argument("--seed", type=int, default=0)
    result.add_output(parser)
    parser.set_defaults(output=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
