"""What does it cost to serve several checkpoints at once: photos a second, and memory?

Services with one, two and three copies of a checkpoint run at the same time. One is under load
while the others idle, and they take turns: nobody but the first checkpoint is asked, or all of
them alike. Every request names the checkpoint that it wants.

Run: .venv/bin/python benchmarks/side_by_side.py photo.jpg
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import load
import result
from app.settings import PROJECT_ROOT, Settings
from meter import Meter
from servers import OURS, SERVICE, Launch, Server, running, tell
from swap import copies

_START_S = 300.0
_MOST = 3
_PART = '--{}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{}\r\n'


class Case(NamedTuple):
    """How many checkpoints a service has, and how many of them are asked, in turns."""

    served: int
    asked: int

    @property
    def name(self) -> str:
        """As the table has it."""
        return f"{self.served} served, {self.asked} asked"


class Turn(NamedTuple):
    """What one turn saw, and the CPU time of the service for each photo."""

    outcome: load.Outcome
    cpu_ms: float


CASES = (Case(1, 1), Case(2, 1), Case(2, 2), Case(3, 3))


@contextmanager
def service(checkpoints: Sequence[Path], threads: int) -> Iterator[Server]:
    """Serve these."""
    port = load.free_port()
    ours = {
        "PORT": port,
        "CHECKPOINTS": ",".join(map(str, checkpoints)),
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


def posts(photos: Sequence[bytes], checkpoints: Sequence[Path]) -> list[load.Post]:
    """Ask each checkpoint for each photo, in forms that name it."""
    return [
        _asking(load.post(photo, SERVICE[OURS].path, "multipart"), checkpoint)
        for photo in photos
        for checkpoint in checkpoints
    ]


def _asking(post: load.Post, checkpoint: Path) -> load.Post:
    _, _, boundary = post.content_type.partition("boundary=")
    part = _PART.format(boundary, f"{checkpoint.parent.name}@{checkpoint.name}")
    return post._replace(body=part.encode() + post.body)


def resident_mb(server: Server) -> float:
    """Give the resident memory of the service, decode processes left out."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _turn(server: Server, asking: Sequence[load.Post], clients: int, seconds: float) -> Turn:
    meter = Meter(server.pid)
    before_s = meter.cpu_s()
    outcome = load.closed_loop(server.port, asking, concurrency=clients, seconds=seconds)
    return Turn(outcome, 1e3 * (meter.cpu_s() - before_s) / outcome.answers)


def measured(
    servers: dict[int, Server],
    checkpoints: Sequence[Path],
    photos: Sequence[bytes],
    *,
    clients: int,
    rounds: int,
    seconds: float,
) -> dict[str, dict[str, Any]]:
    """Let the cases take turns.

    Args:
        servers: by how many checkpoints each has.
        checkpoints: what the largest has.
        photos: what is asked for.
        clients: requests under way.
        rounds: turns of each case, after one that does not count.
        seconds: of a turn.
    """
    loaded_mb = {served: resident_mb(server) for served, server in servers.items()}
    seen: dict[Case, list[Turn]] = {case: [] for case in CASES}
    for number in range(1 + rounds):
        tell(f"round {number} of {rounds}")
        for case in CASES if number % 2 else CASES[::-1]:
            asking = posts(photos, checkpoints[: case.asked])
            turn = _turn(servers[case.served], asking, clients, seconds)
            seen[case] += [turn] * (number > 0)
    rows = {case.name: summary(seen[case], seen[CASES[0]]) for case in CASES}
    for case in CASES:
        rows[case.name]["loaded_mb"] = loaded_mb[case.served]
        rows[case.name]["after_mb"] = resident_mb(servers[case.served])
    return rows


def summary(seen: Sequence[Turn], first: Sequence[Turn]) -> dict[str, Any]:
    """Give medians over the rounds; ratios are to the first case in the same round."""
    pairs = list(zip(seen, first, strict=True))
    outcomes = [turn.outcome for turn in seen]
    return {
        "per_s": load.median([each.per_s for each in outcomes]),
        "ratio": load.median([a.outcome.per_s / b.outcome.per_s for a, b in pairs]),
        "cpu_ms": load.median([turn.cpu_ms for turn in seen]),
        "cpu_ratio": load.median([a.cpu_ms / b.cpu_ms for a, b in pairs]),
        "p50_ms": load.median([each.p50_ms for each in outcomes]),
        "p99_ms": load.median([each.p99_ms for each in outcomes]),
        "errors": sum(each.errors for each in outcomes),
    }


COLUMNS = {
    "per_s": ("photos/s", "8.1f"),
    "ratio": ("ratio", "6.2f"),
    "cpu_ms": ("CPU ms", "7.1f"),
    "cpu_ratio": ("ratio", "6.2f"),
    "p50_ms": ("p50 ms", "7.0f"),
    "p99_ms": ("p99 ms", "7.0f"),
    "errors": ("errors", "7.0f"),
    "loaded_mb": ("MB", "6.0f"),
    "after_mb": ("after", "6.0f"),
}


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="workers")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn")
    result.add_output(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as store, ExitStack() as stack:
        checkpoints = copies(args.checkpoint.resolve(), Path(store), _MOST)
        servers = {
            served: stack.enter_context(service(checkpoints[:served], args.threads))
            for served in range(1, 1 + _MOST)
        }
        rows = measured(
            servers,
            checkpoints,
            load.photos(args.photos, 640),
            clients=args.clients,
            rounds=args.rounds,
            seconds=args.seconds,
        )
    line = {"benchmark": "side_by_side", "clients": args.clients, "cases": rows}
    result.report(load.table("checkpoints", COLUMNS, rows), load.without_nan(line), args.output)


if __name__ == "__main__":
    main()
