"""How the process ends for certain: whatever hangs, and with all processes that it started."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import structlog

from app.observability import logs

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

_LAST_WORDS_S = 2.0
_FLUSH_S = 1.0


class Process(NamedTuple):
    """A process that this one started, or that one of those did; ``state`` is that of proc(5)."""

    pid: int
    name: str
    state: str


class HardLimit:
    """Ends the process when its end has taken too long.

    Attributes:
        code: the exit code then. 1, unless nothing is lost any more.
    """

    def __init__(self) -> None:
        self.code = 1

    def start(self, limit_s: float) -> None:
        """Give the process so many seconds from now; of several limits the first ends it."""
        timer = threading.Timer(limit_s, self._strike, [limit_s])
        timer.daemon = True
        timer.start()

    def _strike(self, limit_s: float) -> None:
        leave(self.code, lambda: _tell_what_hangs(limit_s))


def leave(code: int, last_words: Callable[[], object]) -> NoReturn:
    """End the process and all that it started, now.

    Args:
        code: to exit with.
        last_words: are given two seconds: they may hang as well, on a disk that does not answer.
    """
    try:
        words = threading.Thread(target=_say, args=[last_words], daemon=True)
        words.start()
        words.join(_LAST_WORDS_S)
        kill_descendants()
    finally:
        os._exit(code)


def _say(last_words: Callable[[], object]) -> None:
    last_words()
    logs.flush(_FLUSH_S)


def kill_descendants() -> None:
    """Kill all that this process started, and what those did: stopped ones cannot be asked."""
    for process in descendants():
        with suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)


def descendants() -> list[Process]:
    """Give the living processes that this one started, and those that they started.

    Where there is no /proc there are none.
    """
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):  # it has ended meanwhile
            parent, process = _read(entry)
            children.setdefault(parent, []).append(process)
    found: list[Process] = []
    newest = children.get(os.getpid(), [])
    while newest:
        found += newest
        newest = [child for process in newest for child in children.get(process.pid, [])]
    return found


def _read(stat: Path) -> tuple[int, Process]:
    begun, _, rest = stat.read_text(errors="replace").rpartition(")")
    pid, _, name = begun.partition(" (")
    state, parent, *_ = rest.split()
    return int(parent), Process(int(pid), name, state)


def _tell_what_hangs(limit_s: float) -> None:
    places = sys._current_frames()  # noqa: SLF001 - documented, for debuggers
    threads = {
        thread.name: _place(places.get(thread.ident or 0))
        for thread in threading.enumerate()
        if not thread.daemon
    }
    processes = [process._asdict() for process in descendants() if process.state != "Z"]
    log.critical("end_took_too_long", after_s=limit_s, threads=threads, processes=processes)


def _place(frame: FrameType | None) -> str:
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
