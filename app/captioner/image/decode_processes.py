"""Decode processes: uploads are decoded where it can be ended.

Each job has a CPU budget, which the kernel keeps, and the patience of whoever waits for it. A
process that used up its budget, died, or answers nothing is replaced, by a thread of its own, and
costs the one image it had. Small jobs have a process that no costly one ever enters.
"""

import fcntl
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from app.captioner.errors import ImageError, NoDecoder, TooCostly, UndecodableImage
from app.captioner.image.decode import Pixels
from app.captioner.image.decode_program import ANSWER, ORDER, READY, SHARED_BYTES, fits

Begin = Callable[[int, socket.socket], "subprocess.Popen[bytes]"]
Wanted = Callable[[], bool]

_LOOK_S = 0.1
"""How often a job under way is looked after."""
_ROUND_S = 1.0
"""How often the idle processes are."""
_START_PATIENCE_S = 20.0
_MOST_ATTEMPTS = 3
_MOST_DELAY_S = 10.0
"""Between two attempts to start a process where the system gives none."""
MOST_WORDS = 1000
"""Bytes of what a process says of an upload at fault."""
_PROGRAM = "app.captioner.image.decode_program"
_LARGE_BYTES = 2**20
_NICENESS = 10
_ROOT = Path(__file__).resolve().parents[3]
_LEFT_OVER = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT")
_CRASHES = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP}
)
_STOPPED = frozenset("Tt")
_REFUSALS = {kind.code: kind for kind in ImageError.__subclasses__()}


class Watcher(Protocol):
    """Who wants to know what becomes of the processes. Each call is quick and does not raise."""

    def ended(self, reason: str) -> None:
        """Take note of a process that ended, or was ended.

        It was ``over_budget``, it ``died`` by itself, it was ``unresponsive``, or its costly job
        was ``abandoned``.
        """

    def absent(self, error: Exception | None) -> None:
        """Take note that no process can be started, and why; then, with None, that one was."""


class Ended(Exception):
    """A process has ended, or had to be; ``reason`` is one of those of `Watcher.ended`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Crashed(Ended):
    """It was the decoder that ended it, so it would do so again."""


class Processes:
    """Processes that run a program, an upload each at a time. Safe to call from several threads.

    Args:
        program: the module, which takes the numbers that `_begun` gives it.
        count: of the processes.
        budget_s: CPU seconds for each upload.
        max_bytes: of an upload.
        max_pixels: that any order will allow; the memory of a process follows from both.
        watcher: told about processes that end.
        least_niceness: how far others go before the first of them.
    """

    def __init__(
        self,
        program: str,
        count: int,
        *,
        budget_s: float,
        max_bytes: int,
        max_pixels: int,
        watcher: Watcher,
        least_niceness: int = 0,
    ) -> None:
        self.count = count
        self.budget_s = budget_s
        self.patience_s = 4 * budget_s + 5  # others want the cores as well, but not for so long
        self._begin = partial(_begun, program, (max_bytes, max_pixels))
        self._watcher = watcher
        # The first is for what costs little. Others may be had by costly jobs, and wait for cores.
        self._missing = [least_niceness, *[_NICENESS] * (count - 1)]
        self._idle: list[Process] = []
        self._busy: set[Process] = set()
        self._closed = False
        self._error: OSError | None = None
        self._attempts = 0  # to start a process, since one was
        self._changed = threading.Condition()
        self._nurse = threading.Thread(target=self._tend, name="decoders", daemon=True)

    def start(self) -> None:
        """Begin to start the processes, in the background."""
        self._nurse.start()

    def wait(self) -> None:
        """Wait for the first process.

        Raises:
            OSError: the system gives none.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._idle or self._busy or self._is_hopeless or self._closed
            )
            if self._is_hopeless and self._error is not None:
                raise self._error

    def close(self) -> None:
        """End the processes, whatever they do."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._nurse.ident is not None:
            self._nurse.join(_ROUND_S)  # it may be waiting for a process that does not begin
        for process in (*self._idle, *self._busy):
            process.kill()
        for process in self._idle:
            process.end()

    def take(self, *, costly: bool, wanted: Wanted) -> "Process":
        """Give a process that is free, or the first that will be.

        `put_back` or `replace` ends its work.

        Raises:
            NoDecoder: none can be started, or nobody waits any more.
        """
        with self._changed:
            while True:
                if self._closed or not wanted():
                    raise NoDecoder("nobody waits for it any more")
                fit = [each for each in self._idle if self._suits(each, costly=costly)]
                if fit:
                    break
                if self._is_hopeless and not self._busy:
                    raise NoDecoder("no process can be started") from self._error
                self._changed.wait(_LOOK_S)
            process = min(fit, key=lambda each: each.niceness)
            self._idle.remove(process)
            self._busy.add(process)
            return process

    @property
    def _is_hopeless(self) -> bool:
        """Whether attempts to start a process fail; one may have been killed while it began."""
        return self._attempts >= _MOST_ATTEMPTS

    def _suits(self, process: "Process", *, costly: bool) -> bool:
        return self.count == 1 or not costly or process.niceness > 0

    def put_back(self, process: "Process") -> None:
        """Take back a process that has answered all that it was asked."""
        with self._changed:
            self._busy.remove(process)
            self._idle.append(process)
            self._changed.notify_all()

    def replace(self, process: "Process", reason: str) -> None:
        """End a process, and let another one take its place."""
        process.end()
        with self._changed:
            self._busy.discard(process)
            if process in self._idle:
                self._idle.remove(process)
            self._missing.append(process.niceness)
            closed = self._closed
            self._changed.notify_all()
        if not closed:
            self._watcher.ended(reason)

    # The thread that tends the processes. They ask the kernel to end with their parent, and it
    # takes the thread that started them for that, so it must be one that stays.

    def _tend(self) -> None:
        while not self._rest():
            self._look_after_the_idle()
            while self._missing and not self._closed:
                try:
                    self._add(Process(self._begin, min(self._missing)))
                except OSError as error:
                    self._despair(error)
                    break

    def _rest(self) -> bool:
        """Wait a while, or until there is something to do; say whether it is over."""
        with self._changed:
            if self._attempts:
                delay_s = min(_LOOK_S * 2**self._attempts, _MOST_DELAY_S)
                self._changed.wait_for(lambda: self._closed, delay_s)
            else:
                self._changed.wait_for(lambda: self._closed or self._missing, _ROUND_S)
            return self._closed

    def _add(self, process: "Process") -> None:
        with self._changed:
            if self._closed:
                process.end()
                return
            again, self._attempts = self._is_hopeless, 0
            self._missing.remove(process.niceness)
            self._idle.append(process)
            self._changed.notify_all()
        if again:
            self._watcher.absent(None)

    def _despair(self, error: OSError) -> None:
        with self._changed:
            self._error = error
            self._attempts += 1
            self._changed.notify_all()
        if self._attempts == _MOST_ATTEMPTS:
            self._watcher.absent(error)

    def _look_after_the_idle(self) -> None:
        with self._changed:
            idle = list(self._idle)
        for process in idle:
            reason = process.trouble()
            if reason is not None and self._take_out(process):
                self.replace(process, reason)

    def _take_out(self, process: "Process") -> bool:
        with self._changed:
            if process not in self._idle:
                return False
            self._idle.remove(process)
            return True


class DecodeProcesses(Processes):
    """Processes that decode images; see `Processes`."""

    def __init__(
        self, count: int, *, budget_s: float, max_bytes: int, max_pixels: int, watcher: Watcher
    ) -> None:
        super().__init__(
            _PROGRAM,
            count,
            budget_s=budget_s,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            watcher=watcher,
        )

    def decode(
        self,
        data: bytes,
        *,
        at_least_px: int,
        max_pixels: int,
        costly: bool = False,
        wanted: Wanted = lambda: True,
    ) -> Pixels:
        """Decode one upload in a process; see `decode.decode`.

        Args:
            data: as there.
            at_least_px: as there.
            max_pixels: as there.
            costly: whether it would keep others waiting.
            wanted: says whether somebody still waits for it.

        Returns:
            uint8 (H, W, 3), values 0..255, writable.

        Raises:
            ImageError: the upload is at fault: among others, it used up its budget.
            NoDecoder: no process can be started, or two ended that were not at fault; or nobody
                waits any more.
        """
        order = ORDER.pack(len(data), at_least_px, max_pixels, self.budget_s)
        for _ in range(2):
            try:
                with self._one(costly=costly, wanted=wanted) as process:
                    vigil = Vigil(process, self.patience_s, wanted if costly else lambda: True)
                    return _decoded(process, order, data, max_pixels, vigil)
            except Crashed:
                raise UndecodableImage("the image is damaged or incomplete") from None
            except Ended as ended:
                if ended.reason == "over_budget":
                    raise TooCostly("decoding the image takes longer than it may") from None
        raise NoDecoder("two processes ended under this image")

    @contextmanager
    def _one(self, *, costly: bool, wanted: Wanted) -> "Iterator[Process]":
        """Give a process that is free, or the first that will be."""
        process = self.take(costly=costly, wanted=wanted)
        try:
            yield process
        except ImageError:
            self.put_back(process)
            raise
        except BaseException as error:  # whatever it is, its next answer would be half of this one
            self.replace(process, error.reason if isinstance(error, Ended) else "unresponsive")
            raise
        self.put_back(process)


class Process:
    """Our end of one process: what it is asked, and what it answers.

    Raises:
        OSError: the system gives no process or no socket, or the process does not begin.
    """

    def __init__(self, begin: Begin, niceness: int) -> None:
        self.niceness = niceness
        self._socket, theirs = socket.socketpair()
        self._shared: mmap.mmap | None = None
        try:
            with theirs:
                self._child = begin(niceness, theirs)
            self._socket.settimeout(_LOOK_S)
            self._share()
            self._await_ready()
        except BaseException:
            self._let_go()
            raise

    def _share(self) -> None:
        """Give the process memory that both sides see, where the system has such, of fixed size."""
        descriptors: list[int] = []
        with suppress(AttributeError, OSError):
            descriptors.append(os.memfd_create("decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.ftruncate(descriptors[0], SHARED_BYTES)
            # whoever looks at what the other side cut off is ended by the kernel
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptors[0], fcntl.F_ADD_SEALS, seals)
            self._shared = mmap.mmap(descriptors[0], SHARED_BYTES)
        if self._shared is None:
            socket.send_fds(self._socket, [b"\0"], [])
        else:
            socket.send_fds(self._socket, [b"\0"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def _let_go(self) -> None:
        self._socket.close()
        if self._shared is not None:
            self._shared.close()

    def _await_ready(self) -> None:
        try:
            self.received(bytearray(len(READY)), Vigil(self, _START_PATIENCE_S, lambda: True))
        except (EOFError, OSError, Ended):
            self._child.kill()
            code = self._child.wait()
            raise OSError(f"the program of a decoder ended with {code}") from None

    @property
    def stopped(self) -> bool:
        """Whether somebody stopped the process; where the system does not tell, it is not."""
        with suppress(OSError, IndexError):
            stat = Path(f"/proc/{self._child.pid}/stat").read_text(encoding="ascii")
            return stat.rpartition(")")[2].split()[0] in _STOPPED
        return False

    def trouble(self) -> str | None:
        """Say why the process must be replaced, though it has nothing to do, if it must."""
        if self._child.poll() is not None:
            return "died"
        return "unresponsive" if self.stopped else None

    def ask(self, order: bytes, data: bytes, vigil: "Vigil") -> None:
        """Send an order, and the upload that it is about.

        Raises:
            OSError: the process hung up; `why` says why.
            Ended: nobody waits for it any more, or it takes too long.
        """
        if self._shared is not None and fits(len(data), self._shared):
            self._shared[: len(data)] = data
            self._send(order, vigil)
            return
        self._send(order, vigil)
        self._send(data, vigil)

    def pixels(self, size: int, vigil: "Vigil") -> Pixels:
        """Take the pixels of an image, from where the process may write no more of them."""
        if self._shared is not None and fits(size, self._shared):
            return np.frombuffer(self._shared, np.uint8, size).copy()
        return np.frombuffer(self.received(_room(size), vigil), np.uint8)

    def _send(self, data: bytes, vigil: "Vigil") -> None:
        rest = memoryview(data)
        while rest:
            vigil.look()
            with suppress(TimeoutError):
                rest = rest[self._socket.send(rest) :]

    def received(self, room: "bytearray | mmap.mmap", vigil: "Vigil") -> "bytearray | mmap.mmap":
        """Fill the room with what comes.

        Raises:
            EOFError: the process hung up; `why` says why.
            OSError: as above.
            Ended: nobody waits for it any more, or it takes too long.
        """
        rest = memoryview(room)
        while rest:
            vigil.look()
            with suppress(TimeoutError):
                count = self._socket.recv_into(rest)
                if not count:
                    raise EOFError
                rest = rest[count:]
        return room

    def why(self) -> Ended:
        """Say why the process hung up."""
        try:
            code = self._child.wait(_ROUND_S)
        except subprocess.TimeoutExpired:
            return Ended("unresponsive")
        if code == -signal.SIGPROF:
            return Ended("over_budget")
        return Crashed("died") if -code in _CRASHES else Ended("died")

    def kill(self) -> None:
        """Bring about its end; whoever waits for an answer hears of it."""
        self._child.kill()

    def end(self) -> None:
        """Bring about its end and wait for it."""
        self._child.kill()
        self._child.wait()
        self._let_go()


def _decoded(
    process: Process, order: bytes, data: bytes, max_pixels: int, vigil: "Vigil"
) -> Pixels:
    try:
        process.ask(order, data, vigil)
        height, width, words = ANSWER.unpack(process.received(bytearray(ANSWER.size), vigil))
        if words:
            raise refusal(bytes(process.received(bytearray(min(words, MOST_WORDS)), vigil)))
        if not 0 < height * width <= max_pixels:
            raise Ended("unresponsive")
        return process.pixels(3 * height * width, vigil).reshape(height, width, 3)
    except (EOFError, OSError):
        raise process.why() from None


class Vigil:
    """Looks after a job under way."""

    def __init__(self, process: Process, patience_s: float, wanted: Wanted) -> None:
        self._process = process
        self._wanted = wanted
        self._stopped = False
        self._next_s = time.monotonic() + _LOOK_S
        self._ends_s = time.monotonic() + patience_s

    def look(self) -> None:
        """Raise if the job had better end; quick if the last look was a moment ago."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _LOOK_S
        if not self._wanted():
            raise Ended("abandoned")
        was, self._stopped = self._stopped, self._process.stopped
        if now_s > self._ends_s or (was and self._stopped):
            raise Ended("unresponsive")


def _begun(
    program: str, limits: Sequence[int], niceness: int, theirs: socket.socket
) -> "subprocess.Popen[bytes]":
    numbers = (os.getpid(), *limits, niceness, theirs.fileno())
    return subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-P", "-m", program, *map(str, numbers)],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # decoders write warnings there, as often as uploads like
        stderr=subprocess.DEVNULL,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """Give what the program needs of our environment: our keys it does not."""
    path = [str(_ROOT), *(each for each in sys.path if each)]
    kept = {name: os.environ[name] for name in _LEFT_OVER if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path),
        "OPENBLAS_NUM_THREADS": "1",  # each would have memory, and there is nothing to multiply
        "MALLOC_ARENA_MAX": "1",
    }


def _room(size: int) -> "bytearray | mmap.mmap":
    """Give memory that goes back to the system as soon as nobody looks at it."""
    return bytearray(size) if size < _LARGE_BYTES else mmap.mmap(-1, size, mmap.MAP_PRIVATE)


def refusal(words: bytes) -> ImageError:
    """Read what a process says of an upload at fault."""
    code, limit, text = (*words.decode(errors="replace").split(" ", 2), "", "")[:3]
    kind = _REFUSALS.get(code, UndecodableImage)
    return kind(text, int(limit) if re.fullmatch("[0-9]{1,12}", limit) else None)
