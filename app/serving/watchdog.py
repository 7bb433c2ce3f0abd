"""Ends the process when its event loop does not come back: then nobody is left to answer /livez.

A thread asks the loop and counts its own ticks. ``faulthandler.dump_traceback_later`` would outlive
even a C call that keeps the GIL, but counts the time of a suspended process as well, and its
exit code and its words are those of any other failure.
"""

import asyncio
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable

import structlog

from app.serving.ending import leave

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

EXIT_CODE = 70
_TICK_S = 1.0
_TICKS = 10  # at least, before the loop is given up


class Watchdog:
    """Watches the loop that runs when it is entered.

    Args:
        stuck_after_s: How long the loop may stay away.
        on_lag: Told on the loop, once a tick, how many seconds late it came.
    """

    def __init__(self, stuck_after_s: float, on_lag: Callable[[float], None]) -> None:
        self._tick_s = min(_TICK_S, stuck_after_s / _TICKS)
        self._most_ticks = math.ceil(stuck_after_s / self._tick_s)
        self._on_lag = on_lag
        self._closed = threading.Event()
        self._answered = True
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        unanswered_ticks = 0
        # Ticks, not the clock: a suspended process has none, and its loop a chance when it wakes.
        while not self._closed.wait(self._tick_s):
            if self._answered:
                unanswered_ticks = 0
                self._ask()
            elif (unanswered_ticks := unanswered_ticks + 1) >= self._most_ticks:
                self._end()

    def _ask(self) -> None:
        self._answered = False
        self._loop.call_soon_threadsafe(self._answer, time.monotonic())

    def _answer(self, asked_s: float) -> None:
        self._answered = True
        self._on_lag(time.monotonic() - asked_s)

    def _end(self) -> None:
        """Say where the loop hangs, and go."""
        leave(EXIT_CODE, self._tell)

    def _tell(self) -> None:
        frame = sys._current_frames()[self._loop_thread]  # noqa: SLF001 - documented, for debuggers
        stack = [f"{at.filename}:{at.lineno} {at.name}" for at in traceback.extract_stack(frame)]
        log.critical("loop_stuck", after_s=self._tick_s * self._most_ticks, stack=stack)
