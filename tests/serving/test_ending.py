"""A process that ends for certain, in a process of its own."""

import json
import subprocess
import sys

from support.processes import ends, wants_proc

HANGS = """
import os, signal, subprocess, sys, threading, time
from app.serving.ending import HardLimit
from app.observability.logs import configure_logging

configure_logging("info")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
child.send_signal(signal.SIGSTOP)
print(child.pid)
limit = HardLimit()
threading.Thread(target=time.sleep, args=[3600], name="hangs").start()
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", HANGS + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    pid, *lines = done.stdout.splitlines()
    return done.returncode, int(pid), [json.loads(line) for line in lines]


@wants_proc
def test_an_end_that_takes_too_long_is_cut_short_and_the_log_says_what_hung():
    code, pid, (told,) = run("limit.start(0.2)\nlimit.start(3600)\n")
    assert code == 1
    assert told["event"] == "end_took_too_long"
    assert "hangs" in told["threads"]
    assert (pid, "T") in [(process["pid"], process["state"]) for process in told["processes"]]
    assert ends(pid)


def test_what_hangs_after_the_drain_does_not_change_the_exit_code():
    code, _, _ = run("limit.start(0.2)\nlimit.code = 0\n")
    assert code == 0


@wants_proc
def test_last_words_that_hang_are_cut_short_too():
    code, pid, _ = run("from app.serving.ending import leave\nleave(7, lambda: time.sleep(3600))\n")
    assert code == 7
    assert ends(pid)


@wants_proc
def test_last_words_that_fail_change_nothing():
    code, pid, _ = run("from app.serving.ending import leave\nleave(7, 5)\n")
    assert code == 7
    assert ends(pid)
