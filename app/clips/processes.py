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

        Returns:
            what reads it. A process is taken with the first frame.
        """
        return ClipReader(self, clip, how, wanted)

    def one(self, wanted: Wanted) -> Process:
        """Take a process, the first that will be free.

        Raises:
            NoDecoder: none can be started, or nobody waits any more.
        """
        with self._starting:
            if not self._started:
                self._started = True
                self.start()
        return self.take(costly=False, wanted=wanted)


class ClipReader:
    """One clip under way; frames are taken one after another, whichever threads ask.

    Args:
        processes: that read it.
        clip: the file.
        how: which frames are looked at.
        wanted: says whether somebody still waits for it.
    """

    def __init__(
        self, processes: ClipProcesses, clip: bytes, how: Sampling, wanted: Wanted
    ) -> None:
        self._processes = processes
        self._clip: bytes | None = clip
        self._how = how
        self._wanted = wanted
        self._turn = threading.Lock()
        self._ended = False
        self._process: Process | None = None
        self._vigil: Vigil | None = None

    def next(self) -> Frame | End:
        """Give the next frame, or the end.

        Raises:
            Still: it is an image that does not move.
            ImageError: the clip is at fault: among others, it used up its budget.
            NoDecoder: no process can be started, or it ended for another reason, or nobody waits
                any more.
        """
        with self._turn:
            if self._ended:
                raise NoDecoder("the clip was read to its end")
            if self._process is None:
                self._process = self._processes.one(self._wanted)
            self._vigil = Vigil(self._process, self._processes.patience_s, self._wanted)
            try:
                return self._next(self._process, self._vigil)
            except Ended as ended:
                raise self._replaced(ended) from None

    def close(self) -> None:
        """Let go of the process; one that has not come to the end of the clip is ended."""
        with self._turn:
            self._leave("abandoned")

    def _next(self, process: Process, vigil: Vigil) -> Frame | End:
        words = b""
        try:
            if self._clip is not None:
                self._ask(process, self._clip, vigil)
                self._clip = None  # the process has it
            kind, number, size = ANSWER.unpack(process.received(bytearray(ANSWER.size), vigil))
            if kind == FRAME and size == 3 * self._how.size_px**2 and math.isfinite(number):
                pixels = np.frombuffer(process.received(bytearray(size), vigil), np.uint8)
                return Frame(number, pixels.reshape(self._how.size_px, self._how.size_px, 3))
            if kind == REFUSED:
                words = bytes(process.received(bytearray(min(size, MOST_WORDS)), vigil))
        except (EOFError, OSError):
            raise process.why() from None
        if kind not in {END, STILL, REFUSED} or not math.isfinite(number):
            raise Ended("unresponsive")
        self._leave()
        if kind == STILL:
            raise Still
        if kind == REFUSED:
            raise refusal(words)
        return End(number, complete=not size & INCOMPLETE, whole=not size & DAMAGED)

    def _ask(self, process: Process, clip: bytes, vigil: Vigil) -> None:
        how = json.dumps(asdict(self._how)).encode()
        order = ORDER.pack(len(how), len(clip), self._processes.budget_s)
        process.ask(order + how, clip, vigil)

    def _replaced(self, ended: Ended) -> Exception:
        """Give the process up, and say in our words why."""
        self._leave(ended.reason)
        if isinstance(ended, Crashed):
            return damaged_clip()
        if ended.reason == "over_budget":
            return TooCostly("decoding the clip takes longer than it may")
        return NoDecoder(f"the process of this clip: {ended.reason}")

    def _leave(self, reason: str | None = None) -> None:
        process, self._process, self._clip, self._ended = self._process, None, None, True
        if process is None:
            return
        if reason is None:
            self._processes.put_back(process)
        else:
            self._processes.replace(process, reason)
