"""Other processes, as Linux tells of them."""

import time
from pathlib import Path

import pytest

wants_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


def is_running(pid: int) -> bool:
    """Say whether a process lives; one that has ended and that nobody asked about does not."""
    return _state_and_parent(pid)[0] not in ("", "Z")


def ends(pid: int) -> bool:
    """Say whether a process that was killed ends within a minute; it closes its files before."""
    ends_s = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < ends_s:
        time.sleep(0.001)
    return not is_running(pid)


def descendants(pid: int) -> set[int]:
    """Give the processes that a process started, and those that they started."""
    parents = {
        int(entry.name): _state_and_parent(int(entry.name))[1]
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
    }
    found: set[int] = set()
    newest = {pid}
    while newest := {each for each, parent in parents.items() if parent in newest}:
        found |= newest
    return found


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", 0
    state, parent, *_ = stat.rpartition(")")[2].split()
    return state, int(parent)
