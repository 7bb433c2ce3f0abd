"""Clips are read where it can be ended: processes of their own, a clip each.

S side of the network's square
"""

import json
import math
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import numpy as np

from app.captioner.errors import NoDecoder, TooCostly
from app.captioner.image.decode_processes import (
    MOST_WORDS,
    Crashed,
    Ended,
    Process,
    Processes,
    Vigil,
    Watcher,
    refusal,
)
from app.clips.clip_program import (
    ANSWER,
    DAMAGED,
    END,
    FRAME,
    INCOMPLETE,
    ORDER,
    PROGRAM,
    REFUSED,
    STILL,
)
from app.clips.reading import Still
from app.clips.sampling import End, Frame, Sampling, damaged_clip

Wanted = Callable[[], bool]
_NICENESS: Final = 10  # photos, which take less, come first


class ClipProcesses(Processes):
    """Processes that read clips; see `Processes`. They start with the first clip.

    Args:
        count: clips read side by side.
        budget_s: CPU seconds for each clip.
        max_bytes: of a clip.
        max_pixels: of a frame.
        watcher: told about processes that end.
    """

    def __init__(
        self, count: int, *, budget_s: float, max_bytes: int, max_pixels: int, watcher: Watcher
    ) -> None:
        super().__init__(
            PROGRAM,
            count,
            budget_s=budget_s,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            watcher=watcher,
            least_niceness=_NICENESS,
        )
        self._starting = threading.Lock()
        self._started = False

    def read(self, clip: bytes, how: Sampling, wanted: Wanted = lambda: True) -> "ClipReader":
        """Begin to read a clip; whoever begins calls `ClipReader.close` at the end.

        Args:
            clip: the file.
            how: which frames are looked at.
            wanted: says whether somebody still waits for it.

        Raises:
            NoDecoder: no process can be started, or nobody waits any more.
        """
        with self._starting:
            if not self._started:
                self._started = True
                self.start()
        return ClipReader(self, self.take(costly=False, wanted=wanted), clip, how, wanted)


class ClipReader:
    """One clip under way, for one thread at a time.

    Args:
        processes: whose process it is.
        process: that reads it.
        clip: the file.
        how: which frames are looked at.
        wanted: says whether somebody still waits for it.
    """

    def __init__(
        self, processes: Processes, process: Process, clip: bytes, how: Sampling, wanted: Wanted
    ) -> None:
        self._processes = processes
        self._process: Process | None = process
        self._clip: bytes | None = clip
        self._how = how
        self._wanted = wanted
        self._vigil = Vigil(process, processes.patience_s, wanted)

    def next(self) -> Frame | End:
        """Give the next frame, or the end.

        Raises:
            Still: it is an image that does not move.
            ImageError: the clip is at fault: among others, it used up its budget.
            NoDecoder: the process ended for another reason, or nobody waits any more.
        """
        if self._process is None:
            raise NoDecoder("the clip was read to its end")
        self._vigil = Vigil(self._process, self._processes.patience_s, self._wanted)
        try:
            return self._next(self._process)
        except Ended as ended:
            raise self._replaced(ended) from None

    def close(self) -> None:
        """Let go of the process; one that has not come to the end of the clip is ended."""
        if self._process is not None:
            self._leave("abandoned")

    def _next(self, process: Process) -> Frame | End:
        try:
            if self._clip is not None:
                self._ask(process, self._clip)
                self._clip = None  # the process has it
            kind, number, size = ANSWER.unpack(self._received(ANSWER.size))
            if kind == FRAME and size == 3 * self._how.size_px**2 and math.isfinite(number):
                return self._frame(number, size)
            if kind == REFUSED:
                words = self._received(min(size, MOST_WORDS))
        except (EOFError, OSError):
            raise process.why() from None
        if kind == END and math.isfinite(number):
            self._leave()
            return End(number, complete=not size & INCOMPLETE, whole=not size & DAMAGED)
        if kind == STILL:
            self._leave()
            raise Still
        if kind == REFUSED:
            self._leave()
            raise refusal(words)
        raise Ended("unresponsive")

    def _ask(self, process: Process, clip: bytes) -> None:
        how = json.dumps(asdict(self._how)).encode()
        order = ORDER.pack(len(how), len(clip), self._processes.budget_s)
        process.ask(order + how, clip, self._vigil)

    def _frame(self, time_s: float, size: int) -> Frame:
        side = self._how.size_px
        pixels = np.frombuffer(self._received(size), np.uint8)
        return Frame(time_s, pixels.reshape(side, side, 3))

    def _received(self, size: int) -> bytes:
        if self._process is None:
            raise EOFError
        return bytes(self._process.received(bytearray(size), self._vigil))

    def _replaced(self, ended: Ended) -> Exception:
        """Give the process up, and say in our words why."""
        self._leave(ended.reason)
        if isinstance(ended, Crashed):
            return damaged_clip()
        if ended.reason == "over_budget":
            return TooCostly("decoding the clip takes longer than it may")
        return NoDecoder(f"the process of this clip has {ended.reason}")

    def _leave(self, reason: str | None = None) -> None:
        process, self._process, self._clip = self._process, None, None
        if process is None:
            return
        if reason is None:
            self._processes.put_back(process)
        else:
            self._processes.replace(process, reason)
