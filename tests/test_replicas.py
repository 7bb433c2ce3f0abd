"""Several services side by side, with nothing behind them."""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.settings import PROJECT_ROOT

sys.path.append(str(PROJECT_ROOT / "benchmarks"))

import load
import replicas

ARGS = argparse.Namespace(
    checkpoint=Path(),
    services=[1, 2, 4],
    clients=[2, 8],
    threads=4,
    decoders=6,
    device="cpu",
    batch=8,
    precision="float32",
    size=640,
    rounds=2,
    seconds=3.0,
    warm_up_s=1.0,
)


class NoMeter:
    """A meter of a process that does not exist."""

    peak_bytes = 2**20

    def __init__(self, pid):
        self.pid = pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def cpu_s(self):
        return 0.0


def server(port):
    return SimpleNamespace(pid=1, port=port, posts=lambda photos: photos)


@pytest.fixture
def seen(monkeypatch):
    """Start services that only take note, and give what they noted."""
    noted = SimpleNamespace(conditions=[], loads=[], ended=[])

    @contextmanager
    def serving(contender, conditions):
        noted.conditions.append(conditions)
        yield server(1)
        noted.ended.append(conditions)

    def closed_loop(port, posts, *, concurrency, seconds):
        noted.loads.append((concurrency, seconds))
        return load.Outcome(concurrency * 10, 1.0, 1, 10.0 * port, 20.0 * port)

    monkeypatch.setattr(replicas, "serving", serving)
    monkeypatch.setattr(replicas, "Meter", NoMeter)
    monkeypatch.setattr(replicas, "check_captions", lambda *_: None)
    monkeypatch.setattr(load, "closed_loop", closed_loop)
    return noted


def test_clients_and_cores_are_shared_out(seen):
    rows = replicas.compared(ARGS, [b"photo"], ["dog"])
    assert list(rows) == [(1, 2), (1, 8), (2, 2), (2, 8), (4, 8)]  # no service without a client
    assert [each.threads for each in seen.conditions[:7]] == [4, 2, 2, 1, 1, 1, 1]
    assert [each.decoders for each in seen.conditions[:7]] == [6, 3, 3, 1, 1, 1, 1]
    assert seen.loads[:3] == [(8, 1.0), (2, 3.0), (8, 3.0)]
    assert len(seen.ended) == len(seen.conditions) == 2 * (1 + 2 + 4)


def test_what_all_did_is_added_up(seen):
    row = replicas.measured([server(1), server(2)], [b"photo"], 8, 3.0)
    assert row == replicas.Row(80.0, 15.0, 40.0, 2, 0.0, 2.0)
    assert seen.loads == [(4, 3.0)] * 2


def test_the_table_holds_every_row_against_one_service(seen):
    *_, head, one, _, two, _, four = replicas.table_of(
        ARGS, replicas.compared(ARGS, [b"photo"], ["dog"])
    )
    assert head.split()[:2] == ["services", "clients"]
    assert one.split()[-1] == two.split()[-1] == "1.00"
    assert four.split()[:3] == ["4", "8", "80.0"]
