"""No library opens a connection or writes into the home directory by itself."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.photos import photo
from support.processes import descendants, wants_proc
from support.service_process import Process

STRACE = shutil.which("strace")
TABLES = ("tcp", "tcp6", "udp", "udp6")
HERE = re.compile(r"0*(FFFF0000)?(0100007F|0{8}|01000000)")  # loopback, or nobody yet
READY = (200, {"status": "ready", "reason": "ok"})
CALLS = "connect,sendto,sendmsg,sendmmsg"
PROGRAMS = {
    "caption": ("-m", "app.cli", "caption"),
    "bulk": ("-m", "app.cli", "bulk", "--output", "captions"),
    "trainer": (
        "-c",
        "import time, trainer.training.run_directory, trainer.publishing.publish; time.sleep(6)",
    ),  # calls take time
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory that nobody has used; nothing may stand in it afterwards."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in [name for name in os.environ if name.startswith(("XDG_", "OPENVINO_"))]:
        monkeypatch.delenv(name)
    return folder


def written(folder):
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]


def open_files(pid):
    """What a process has open; nothing of one that has ended meanwhile."""
    found = []
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(str(entry.readlink()))
    return found


def callees():
    """The other end of every socket of this machine, by its inode."""
    rows = [
        line.split()
        for table in TABLES
        if (path := Path(f"/proc/net/{table}")).exists()
        for line in path.read_text().splitlines()[1:]
    ]
    return {row[9]: row[2] for row in rows}


class Watch:
    """Looks at all files and sockets of a process and of its descendants, again and again."""

    def __init__(self, pid):
        self.pid = pid
        self.looks = 0
        self.files = set()
        self.elsewhere = set()

    def look(self):
        """Look once."""
        pids = {self.pid, *descendants(self.pid)}
        files = {file for pid in pids for file in open_files(pid)}
        other_ends = callees()
        ours = {other_ends.get(file[8:-1], "0" * 8) for file in files if file.startswith("socket:")}
        self.elsewhere |= {end for end in ours if not HERE.fullmatch(end.partition(":")[0])}
        self.files |= files
        self.looks += 1

    @contextmanager
    def looking(self):
        """Look for as long as the block lasts."""
        ended = threading.Event()

        def go_on():
            while not ended.wait(0.2):
                self.look()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def until_ready(service):
    """Wait for as long as it lives: it may take long on a machine with other work."""
    while service.process.poll() is None and service.get("/readyz") != READY:
        time.sleep(0.1)
    assert service.process.poll() is None, service.log.read_text()


@wants_proc
@pytest.mark.timeout(300)
def test_the_service_talks_to_its_callers_alone_and_leaves_home_as_it_is(
    checkpoint,
    tmp_path,
    home,
):
    with Process(checkpoint, tmp_path, INFERENCE_THREADS=2) as service:
        watch = Watch(service.process.pid)
        with watch.looking():
            until_ready(service)
            for seed in range(3):
                answer = service.client.post(
                    "/v1/captions", files={"image": photo(seed)}, timeout=60
                )
                assert answer.status_code == 200
            time.sleep(1)  # what calls home does so from a thread of its own
    assert watch.looks > 3
    assert any(file.startswith("socket:") for file in watch.files)
    assert watch.elsewhere == set()
    assert [file for file in watch.files if file.startswith(str(home)) or ".db" in file] == []
    assert written(home) == []


@pytest.mark.parametrize(
    "program", ["caption", "bulk", pytest.param("trainer", marks=pytest.mark.long)]
)
def test_the_other_programs_call_nobody_and_leave_home_as_it_is(
    program,
    checkpoint,
    tmp_path,
    home,
):
    trace = tmp_path / "trace"
    tracer = (STRACE, "-f", "-e", f"trace={CALLS}", "-o", trace) if STRACE else ()
    done = run(program, checkpoint, tmp_path, *tracer)
    assert done.returncode == 0, done.stderr
    assert written(home) == []
    if STRACE:
        assert re.findall(r".*AF_INET.*", trace.read_text()) == []


def run(program, checkpoint, tmp_path, *before):
    file = tmp_path / "a.png"
    file.write_bytes(photo())
    command = [
        *before,
        sys.executable,
        *PROGRAMS[program],
        *([file] if program in ("caption", "bulk") else ()),
    ]
    environment = {**os.environ, "CAPTION_CHECKPOINT": str(checkpoint)}
    return subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
