"""A log that nobody reads, or that cannot be written, is nobody's trouble."""

import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from app.main import create_app
from app.observability import logs
from app.observability.logs import Sink
from app.settings import Settings

LINE = "x" * 99 + "\n"
MORE_THAN_A_PIPE_HOLDS = 20_000  # lines: 2 MB; a pipe holds 64 kB, the backlog 1 MiB


@pytest.fixture
def pipe():
    read, write = os.pipe()
    ends = {read, write}
    yield read, write, ends
    for end in ends:
        os.close(end)


def all_that_comes(sink, read):
    """Read like one who has come back; give the lines."""
    os.set_blocking(read, False)
    got, idle = b"", 0
    while idle < 2:
        sink.pump()
        try:
            got, idle = got + os.read(read, 2**20), 0
        except BlockingIOError:
            idle += 1
    return got.decode().splitlines(keepends=True)


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_the_lost_lines_are_counted(pipe):
    read, write, _ = pipe
    sink = Sink(write)
    for n in range(MORE_THAN_A_PIPE_HOLDS):
        sink.write(f"{n:099}\n")  # a write that waits never comes back: the test's time limit
    lost = sink.dropped
    assert 0 < lost < MORE_THAN_A_PIPE_HOLDS
    lines = all_that_comes(sink, read)
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(one["event"], one["lines"]) for one in told] == [("log_lines_lost", lost)]
    numbers = [int(line) for line in lines if not line.startswith("{")]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == MORE_THAN_A_PIPE_HOLDS - lost
    assert numbers[-1] == MORE_THAN_A_PIPE_HOLDS - 1


def test_a_line_longer_than_a_pipe_holds_nobody_up_either(pipe):
    read, write, _ = pipe
    sink, line = Sink(write), "x" * 200_000 + "\n"
    sink.write(line)
    assert "".join(all_that_comes(sink, read)) == line


def test_what_waits_is_bounded(pipe):
    _, write, _ = pipe
    sink = Sink(write)
    for _ in range(MORE_THAN_A_PIPE_HOLDS):
        sink.write(LINE)
    assert sum(map(len, sink._waiting)) <= 2**20
    assert sink._waiting_bytes == sum(len(line) + 64 for line in sink._waiting)


def test_what_waits_goes_without_another_line_once_there_is_a_reader(pipe):
    read, write, _ = pipe
    sink = Sink(write)
    for _ in range(2000):
        sink.write(LINE)
    assert sink.dropped == 0
    assert all_that_comes(sink, read) == [LINE] * 2000


def test_a_reader_who_is_gone_is_no_error(pipe):
    read, write, ends = pipe
    sink = Sink(write)
    os.close(read)
    ends.remove(read)
    for _ in range(MORE_THAN_A_PIPE_HOLDS):
        sink.write(LINE)
    assert sink.dropped > 0
    began_s = time.monotonic()
    sink.flush(3600)  # whoever is gone is not waited for
    assert time.monotonic() - began_s < 60


def test_a_descriptor_that_is_closed_is_no_error():
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    Sink(write).write(LINE)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="wants /dev/full")  # noqa: PTH110
def test_a_full_disk_is_no_error_and_lines_go_once_it_has_room(pipe):
    read, write, _ = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    sink = Sink(full)
    for n in range(100):
        sink.write(f"{n}\n")
    os.dup2(write, full)
    assert all_that_comes(sink, read) == [f"{n}\n" for n in range(100)]
    os.close(full)


def test_lines_of_many_threads_stay_whole(pipe):
    read, write, ends = pipe
    sink = Sink(write)
    got = []
    reader = threading.Thread(target=lambda: got.extend(os.fdopen(read, closefd=False)))
    reader.start()

    def tell(name):
        for _ in range(200):
            sink.write(name * 5000 + "\n")

    tellers = [threading.Thread(target=tell, args=[name]) for name in "abcd"]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join()
    sink.flush(60)
    os.close(write)
    ends.remove(write)
    reader.join()
    assert len(got) + sink.dropped >= 800
    whole = {name * 5000 + "\n" for name in "abcd"}
    assert {line for line in got if not line.startswith("{")} <= whole


def test_nobody_waits_for_a_thread_that_is_held_up_while_it_writes(pipe, monkeypatch):
    _, write, _ = pipe
    sink = Sink(write)
    held, goes_on, written = threading.Event(), threading.Event(), []

    def slow(descriptor, line):
        held.set()
        goes_on.wait(60)
        written.append(bytes(line))
        return len(line)

    monkeypatch.setattr("app.observability.logs.os.write", slow)
    first = threading.Thread(target=sink.write, args=["first\n"])
    first.start()
    held.wait(60)
    sink.write("second\n")
    assert written == []
    goes_on.set()
    first.join()
    sink.pump()
    assert written == [b"first\n", b"second\n"]


# What is written


@pytest.fixture
def told(monkeypatch):
    """Give the lines that come of what the program does."""

    def run(program, stdout=subprocess.PIPE, **more):
        begin = (
            "import logging, os, structlog, sys, threading\nfrom app.observability.logs import *\n"
        )
        return subprocess.run(
            [sys.executable, "-c", begin + "configure_logging('info')\n" + program],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            **more,
        )

    return run


def test_no_value_breaks_a_line_forges_one_or_makes_it_endless(told):
    done = told(
        "log = structlog.get_logger()\n"
        "class Odd:\n"
        "    def __repr__(self): raise RuntimeError('odd')\n"
        "log.info('forged', path='a\\n{\"event\": \"forged\"}\\r\\x1b[2J\\u2028')\n"
        "log.info('surrogate \\ud800')\n"
        "log.info('odd', value=Odd())\n"
        "log.info('long', value='a' + 'm' * 10**6 + 'z')\n"
        "log.info('wide', value='\\U0001f600' * 10**6, other=['m'] * 10**6)\n"
        "logging.getLogger('theirs').warning('%d', 'no number')\n"
        "logging.getLogger('theirs').warning('\\ud800 %s', Odd)\n"
        "print('printed \\ud800')\n"
        "log.info('last')\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    *lines, printed, last = done.stdout.splitlines()
    assert printed == "printed \\ud800"
    assert json.loads(last)["event"] == "last"
    events = [json.loads(line) for line in lines]
    names = [event["event"] for event in events]
    assert names[:5] == ["forged", "surrogate \ud800", "unloggable", "long", "wide"]
    assert names[5] == "log_lines_lost"  # what the library could not format
    assert all(line.isascii() and len(line) <= 2**16 for line in lines)
    assert events[3]["value"].startswith("amm")
    assert events[3]["value"].endswith("mmz")
    assert "characters cut" in events[3]["value"]


@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise SystemExit(3)", "os._exit(3)"])
def test_an_exit_code_is_kept_though_nobody_reads(told, ending):
    read, write = os.pipe()
    os.close(read)
    program = (
        "structlog.get_logger().info('ours')\n"
        "logging.getLogger('library').error('theirs')\n"
        "print('printed'); print('printed', file=sys.stderr); sys.stdout.flush()\n"
    )
    done = told(program + ending, write)
    os.close(write)
    assert done.returncode == 3


def test_with_stdout_closed_no_other_file_gets_the_log(told, tmp_path):
    program = (
        "file = open(sys.argv[1], 'w') if len(sys.argv) > 1 else open('other', 'w')\n"
        "structlog.get_logger().info('ours')\n"
        "assert file.fileno() > 2\n"
    )
    done = told(program, cwd=tmp_path, env=_anywhere(), preexec_fn=_close_all_three)
    assert done.returncode == 0
    assert (tmp_path / "other").read_text() == ""


def _anywhere():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}  # noqa: PTH109


def _close_all_three():
    for descriptor in range(3):
        os.close(descriptor)


async def test_the_lost_lines_are_a_metric(monkeypatch):
    monkeypatch.setattr(logs._stdout, "dropped", 7)
    registry = create_app(Settings()).state.app_state.metrics.registry
    assert registry.get_sample_value("caption_log_lines_dropped_total") == 7


def test_a_library_s_record_waits_for_no_other_thread():
    assert logging.Handler.handle is not logs._Handler.handle
    handler, done = logs._Handler(), threading.Event()
    handler.acquire()  # as a thread does that is held up
    record = logging.makeLogRecord({"msg": "%d", "args": ("no number",)})
    threading.Thread(target=lambda: (handler.handle(record), done.set()), daemon=True).start()
    assert done.wait(60)
    handler.release()
