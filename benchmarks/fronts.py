"""What do more processes of HTTP bring on one machine? The engine takes no time.

One service; several on one port, to which the kernel gives connections; several behind HAProxy; in
turns. wrk is the load, and its CPU time is told apart from the servers'. Photos a second are what
these cores do. CPU time tells what others would: n cores do no more than n photos in the time that
one takes of all processes.

Run: .venv/bin/python benchmarks/fronts.py [PHOTO ...]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import load
import result
from servers import SERVERS, Unavailable, stop_servers_when_ended, tell

sys.path.append(str(SERVERS))

from haproxy_server import CONFIGURATION, backend

START_S = 120.0
STOP_S = 20.0
INSTANT = str(SERVERS / "instant.py")
TOPOLOGIES = ("one", "port", "haproxy")
WARM_UP_S = 1.0
OTHERS_S = 3.0  # of one port: only the first of them is seen to be ready


class Row(NamedTuple):
    """What a topology did.

    Attributes:
        per_s: photos a second.
        p50_ms: the median latency.
        p99_ms: the 99th percentile.
        errors: of all requests.
        busiest_ms: CPU milliseconds for a photo in the process that has most to do.
        python_ms: of all processes that speak HTTP or compute.
        decoders_ms: of those that decode.
        haproxy_ms: of the balancer.
        load_ms: of wrk.
        cores: that all of it kept busy, wrk as well.
        others: cores that other programs kept busy.
        pss_mb: memory of all, a page that n share counted once.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: float
    busiest_ms: float
    python_ms: float
    decoders_ms: float
    haproxy_ms: float
    load_ms: float
    cores: float
    others: float
    pss_mb: float


class Started:
    """Processes that are ended with the block.

    Args:
        settings: of all of them.
    """

    def __init__(self, stack: ExitStack, settings: Mapping[str, str]) -> None:
        self.roots: list[psutil.Process] = []
        self._stack = stack
        self._settings = settings

    def start(self, *command: str, **environment: str) -> None:
        """Start one; what it prints is not kept."""
        settings = {**os.environ, **self._settings, **environment}
        child = subprocess.Popen(
            command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._stack.callback(_stop, child)
        self.roots.append(psutil.Process(child.pid))

    def service(self, port: int, **environment: str) -> None:
        """Start a service."""
        command = (sys.executable, INSTANT)
        self.start(*command, CAPTION_PORT=str(port), **environment)

    @property
    def tree(self) -> list[psutil.Process]:
        """All of them with what they have started."""
        return [each for root in self.roots for each in (root, *root.children(recursive=True))]


class Topology(NamedTuple):
    """One that runs.

    Attributes:
        port: where it is asked.
        processes: all of it.
        pss_mb: their memory before any load.
    """

    port: int
    processes: list[psutil.Process]
    pss_mb: float


@contextmanager
def running(topology: str, processes: int, settings: Mapping[str, str]) -> Iterator[Topology]:
    """Start a topology."""
    port = load.free_port()
    with ExitStack() as stack:
        started = Started(stack, settings)
        share = str(max(1, int(settings["CAPTION_DECODE_PROCESSES"]) // processes))
        if topology == "one":
            started.service(port)
        elif topology == "port":
            for _ in range(processes):
                started.service(port, BENCH_SHARED_PORT="1", CAPTION_DECODE_PROCESSES=share)
        else:
            ports = [load.free_port() for _ in range(processes)]
            for each in ports:
                started.service(each, CAPTION_DECODE_PROCESSES=share)
            for each in ports:
                _wait_until_ready(each)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            _start_haproxy(started, Path(folder, "services.cfg"), ports, port)
        _wait_until_ready(port)
        time.sleep(OTHERS_S)
        tree = started.tree
        yield Topology(port, tree, sum(each.memory_full_info().pss for each in tree) / 1e6)


def _start_haproxy(started: Started, services: Path, ports: list[int], port: int) -> None:
    services.write_text(backend(ports), encoding="utf-8")
    started.start(
        *("haproxy", "-db", "-f", str(CONFIGURATION), "-f", str(services)),
        BALANCER_ADDRESS=f"{load.HOST}:{port}",
        BALANCER_METRICS_ADDRESS=f"{load.HOST}:{load.free_port()}",
    )


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _wait_until_ready(port: int) -> None:
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s:
        try:
            urllib.request.urlopen(f"http://{load.HOST}:{port}/readyz", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise Unavailable(f"was not ready within {START_S:.0f} s")


def measured(topology: Topology, posts: Sequence[load.Post], clients: int, seconds: float) -> Row:
    """Put load on a topology and tell who spent what."""
    load.closed_loop(topology.port, posts, concurrency=clients, seconds=WARM_UP_S)
    before, busy_before_s = _spent_s(topology), _busy_s()
    seen = load.closed_loop(topology.port, posts, concurrency=clients, seconds=seconds)
    after, busy_s = _spent_s(topology), _busy_s() - busy_before_s
    spent_s = {who: after[who] - before[who] for who in after}
    ms = 1e3 / max(1, seen.answers)

    def of(kind: str) -> float:
        return ms * sum(each for (its, _), each in spent_s.items() if its == kind)

    return Row(
        seen.per_s,
        seen.p50_ms,
        seen.p99_ms,
        seen.errors,
        max(ms * each for (kind, _), each in spent_s.items() if kind != "load"),
        of("python"),
        of("decoder"),
        of("haproxy"),
        of("load"),
        sum(spent_s.values()) / seen.seconds,
        (busy_s - sum(spent_s.values())) / seen.seconds,
        topology.pss_mb,
    )


def _spent_s(topology: Topology) -> dict[tuple[str, int], float]:
    """Give the CPU seconds of each process by its kind and number; wrk's are ours."""
    spent_s = {(_kind(each), each.pid): _cpu_s(each) for each in topology.processes}
    times = os.times()
    ours_s = times.children_user + times.children_system + times.user + times.system
    return {**spent_s, ("load", os.getpid()): ours_s}


def _busy_s() -> float:
    """Give the CPU seconds of all programs of the machine."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _kind(process: psutil.Process) -> str:
    if process.name() == "haproxy":
        return "haproxy"
    return "decoder" if any("decode_program" in part for part in process.cmdline()) else "python"


def compared(args: argparse.Namespace) -> dict[tuple[str, int], tuple[int, Row]]:
    """Give the quiet rounds and their medians by topology and size of the photos.

    All topologies run at once, and one is asked while the others idle.
    """
    posts = {size: _posts(args.photos, size) for size in args.sizes}
    settings = {
        "OPENBLAS_NUM_THREADS": "1",  # as the command has it, which has not been told before numpy
        "CAPTION_MAX_BATCH": str(args.batch),
        "CAPTION_DECODE_PROCESSES": str(args.decoders),
        "CAPTION_INFERENCE_THREADS": "1",
        "CAPTION_DRAIN_DELAY_S": "0",
        "CAPTION_LOG_LEVEL": args.log_level,
    }
    rows: dict[tuple[str, int], list[Row]] = {}
    with ExitStack() as stack:
        topologies = {}
        for name in args.topologies:
            tell(f"starting {name}")
            topology = running(name, args.processes, settings)
            topologies[name] = stack.enter_context(topology)
        for turn in range(args.rounds):
            tell(f"round {turn + 1} of {args.rounds}")
            for size in args.sizes:
                for name, topology in topologies.items():
                    row = measured(topology, posts[size], args.clients, args.seconds)
                    rows.setdefault((name, size), []).append(row)
    return {key: _of_quiet_times(each, args.most_others) for key, each in rows.items()}


def _of_quiet_times(rows: Sequence[Row], most_others: float) -> tuple[int, Row]:
    """Give how many rounds others left the cores alone, and the medians of these; else of all."""
    quiet = [row for row in rows if row.others <= most_others]
    return len(quiet), Row(*map(load.median, zip(*(quiet or rows), strict=True)))


def _posts(paths: Sequence[Path], size_px: int) -> list[load.Post]:
    return [load.post(each, "/v1/captions", "multipart") for each in load.photos(paths, size_px)]


COLUMNS = {
    "per_s": ("photos/s", "10.1f"),
    "p50_ms": ("p50 ms", "8.0f"),
    "p99_ms": ("p99 ms", "8.0f"),
    "errors": ("errors", "8.0f"),
    "busiest_ms": ("busiest ms", "12.2f"),
    "python_ms": ("python ms", "11.2f"),
    "decoders_ms": ("decoders ms", "13.2f"),
    "haproxy_ms": ("haproxy ms", "12.2f"),
    "load_ms": ("wrk ms", "8.2f"),
    "cores": ("cores", "7.2f"),
    "others": ("others", "8.2f"),
    "pss_mb": ("MB", "7.0f"),
}


def table_of(
    args: argparse.Namespace, rows: Mapping[tuple[str, int], tuple[int, Row]]
) -> list[str]:
    """Give the lines of the table."""
    names = "".join(load.heading(title, form) for title, form in COLUMNS.values())
    shared = f"{args.processes} processes, {args.decoders} decoders in all"
    rounds = f"{args.rounds} rounds of {args.seconds:g} s"
    table = [
        f"{shared}, {args.clients} clients; {rounds}; CPU time for a photo",
        f"{'topology':10}{'px':>5}{'quiet':>7}{names}",
    ]
    for (topology, size), (quiet, row) in rows.items():
        cells = "".join(f"{getattr(row, name):{form}}" for name, (_, form) in COLUMNS.items())
        table.append(f"{topology:10}{size:>5}{quiet:>7}{cells}")
    return table


def main() -> None:
    """Print the table, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    rows = compared(args)
    named = (
        "processes",
        "decoders",
        "clients",
        "batch",
        "rounds",
        "seconds",
        "most_others",
        "log_level",
    )
    line: dict[str, Any] = {
        "benchmark": "fronts",
        **{name: getattr(args, name) for name in named},
        "load": load.generator(),
        "rows": [
            {"topology": topology, "px": size, "quiet": quiet, **row._asdict()}
            for (topology, size), (quiet, row) in rows.items()
        ],
    }
    result.report(table_of(args, rows), line, args.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--processes", type=int, default=2, help="services side by side")
    parser.add_argument("--decoders", type=int, default=2, help="processes that decode, in all")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32, help="images of a batch, at most")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 640], help="px")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load, whole ones")
    parser.add_argument(
        "--most-others", type=float, default=0.1, help="cores that others have in a quiet round"
    )
    parser.add_argument("--log-level", default="info", help="of the services")
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
