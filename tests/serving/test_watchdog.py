"""A loop that does not come back, in a process of its own."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx

from app.serving.watchdog import EXIT_CODE, Watchdog

STUCK_AFTER_S = 2
LAG = "caption_loop_lag_seconds"
# Python runs the handler of a signal in the thread of the loop: whatever it does, the loop waits.
PROGRAM = """
import os, signal, sys, threading, time
from app import cli, main

def sleep():
    time.sleep(3600)

def fill_the_pipe():
    while True:
        os.write(1, b"x" * 4096)

def be_suspended():
    time.sleep({stuck_after_s} / 4)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep({stuck_after_s} / 4)

signal.signal(signal.SIGUSR1, lambda *_: {freeze}())
main.CheckpointStore.load = lambda *_: threading.Event().wait()
sys.exit(cli.main(["serve"]))
"""


@contextlib.contextmanager
def service(freeze, stdout):
    """Give a process whose loop SIGUSR1 freezes, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"CAPTION_PORT": str(port), "CAPTION_LOOP_STUCK_AFTER_S": str(STUCK_AFTER_S)}
    program = PROGRAM.format(freeze=freeze, stuck_after_s=STUCK_AFTER_S)
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **settings}, stdout=stdout
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None and not alive(url):
            time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait()


def alive(url):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/livez").status_code == 200
    return False


def test_a_frozen_loop_ends_the_process_and_the_log_says_where(tmp_path):
    log = tmp_path / "log"
    with log.open("w") as stdout, service("sleep", stdout) as (process, _):
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == EXIT_CODE
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["level"]) == ("loop_stuck", "critical")
    assert last["stack"][-1].endswith(" sleep")
    assert any(place.endswith(" serve") for place in last["stack"])


def test_a_log_that_nobody_reads_does_not_keep_it(tmp_path):
    with service("fill_the_pipe", subprocess.PIPE) as (process, _):
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == EXIT_CODE
        process.stdout.close()


def test_a_process_that_was_suspended_goes_on(tmp_path):
    with service("be_suspended", subprocess.DEVNULL) as (process, url):
        process.send_signal(signal.SIGUSR1)
        os.waitpid(process.pid, os.WUNTRACED)
        time.sleep(1.5 * STUCK_AFTER_S)
        process.send_signal(signal.SIGCONT)
        assert alive(url)
        assert process.poll() is None
        metrics = httpx.get(f"{url}/metrics").text
    (told,) = [line for line in metrics.splitlines() if line.startswith(f"{LAG}_count")]
    assert float(told.split()[1]) >= 1


async def test_it_tells_the_lag_every_tick_and_leaves_no_thread_behind():
    lags_s = asyncio.Queue()
    with Watchdog(5, lags_s.put_nowait):
        assert 0 <= await lags_s.get() < 10
        assert 0 <= await lags_s.get() < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
