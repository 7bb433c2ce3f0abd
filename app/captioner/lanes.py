"""Lanes of a CPU: batches side by side, each in a process of its own.

Threads would do, but for Python's lock: the network lets go of it for every product and wants it
back a moment later, hundreds of times a batch, while the event loop has requests to answer.

The processes are forked from one that has imported torch and done nothing else, so they share its
memory. Pixels lie in memory that both sides see; uploads, orders and findings go through a pipe.
"""

import atexit
import gc
import math
import multiprocessing
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ctypes import Array, c_ubyte
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from app.captioner import forking
from app.captioner.captions import Findings
from app.captioner.device import Share, limited_to, take_one_core
from app.captioner.errors import DeviceFault, LaneDied
from app.captioner.image import Unread

OnStage = Callable[[str, float, float], None]
Wanted = Callable[[int], bool]

_LOOK_MS = 10
"""How often a lane is told who still waits."""
_PATIENCE_S = 2.0
"""For the end of all processes; then they are killed."""
_LEAST_PATIENCE_S = 0.1


class Finder(Protocol):
    """What a lane needs of a captioner."""

    def find(
        self, images: Sequence[Tensor | Unread], *, on_stage: OnStage, wanted: Wanted, alone: bool
    ) -> Findings:
        """Find the captions of one batch."""


class _Order(NamedTuple):
    uploads: list[Unread | None]  # None where the pixels lie in common memory
    share: Share


class _Answer(NamedTuple):
    findings: Findings
    stages: list[tuple[str, float, float]]


class Lanes:
    """Processes that find captions, a batch each. Safe to call from several threads.

    Args:
        load: gives the captioner, in each process.
        count: of the processes.
        most_images: in a batch.
        size_px: side S of an image.

    Raises:
        OSError: the system gives no process, no memory that two see, or no file for it.
        LaneDied: a process ended before it had loaded.
        Exception: whatever ``load`` raises.
    """

    def __init__(
        self, load: Callable[[], Finder], *, count: int, most_images: int, size_px: int
    ) -> None:
        context = forking.context()
        shape = (most_images, 3, size_px, size_px)
        self._lanes: list[_Lane] = []
        self._changed = threading.Condition()
        atexit.register(self.close)  # or multiprocessing would wait for them at the end, for ever
        try:
            for _ in range(count):
                self._lanes.append(_Lane(context, load, shape))
            for lane in self._lanes:
                lane.hear()
        except Exception:
            self.close()
            raise
        self._free = list(self._lanes)

    def find(
        self, images: Sequence[Tensor | Unread], share: Share, *, on_stage: OnStage, wanted: Wanted
    ) -> Findings:
        """Find the captions of one batch; see `pipeline.Captioner.caption`.

        Args:
            images: as there.
            share: the cores that it may use.
            on_stage: as there.
            wanted: as there.

        Raises:
            LaneDied: the process of the lane has ended.
            ValueError: there are more images than ``most_images``.
            Exception: whatever the captioner raises.
        """
        with self._one() as lane:
            answer = lane.find(images, share, wanted)
        for stage in answer.stages:
            on_stage(*stage)
        return answer.findings

    def warm_up(self, batches: Sequence[Sequence[Tensor]]) -> None:
        """Run each batch once in each lane, with one core."""

        def run(lane: _Lane) -> None:
            for batch in batches:
                lane.find(batch, Share(1, None, ()), lambda _: True)

        with ThreadPoolExecutor(len(self._lanes)) as threads:
            list(threads.map(run, self._lanes))

    @property
    def whole(self) -> bool:
        """Whether all processes live."""
        return all(lane.lives for lane in self._lanes)

    def close(self) -> None:
        """End the processes, whatever they do, and whatever became of the one they come from."""
        atexit.unregister(self.close)
        for lane in self._lanes:
            lane.dismiss()
        ends_s = time.monotonic() + _PATIENCE_S
        for lane in self._lanes:
            lane.end(ends_s)

    @contextmanager
    def _one(self) -> Iterator["_Lane"]:
        """Give a lane that is free, or the first that will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            lane = self._free.pop()
        try:
            yield lane
        finally:
            with self._changed:
                self._free.append(lane)
                self._changed.notify()


class _Lane:
    """Our end of one process."""

    def __init__(
        self, context: ForkServerContext, load: Callable[[], Finder], shape: tuple[int, ...]
    ) -> None:
        pixels = context.RawArray(c_ubyte, math.prod(shape))
        # numpy's: a copy of torch's would wake helpers on the cores that the lanes need
        self._images = np.frombuffer(memoryview(pixels), np.uint8).reshape(shape)
        self._wanted = context.RawArray(c_ubyte, shape[0])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(load, pixels, self._wanted, shape, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._news = select.poll()
        self._news.register(self._connection, select.POLLIN)
        self._busy = True  # it loads

    def find(self, images: Sequence[Tensor | Unread], share: Share, wanted: Wanted) -> _Answer:
        if len(images) > len(self._images):
            raise ValueError(f"expected at most {len(self._images)} images, got {len(images)}")
        uploads = [each if isinstance(each, Unread) else None for each in images]
        for n, each in enumerate(images):
            if not isinstance(each, Unread):
                self._images[n] = each.numpy()
        self._tell(len(images), wanted)
        self._busy = True
        with _ended_is_a_fault():
            self._connection.send(_Order(uploads, share))
            while not self._news.poll(_LOOK_MS):
                self._tell(len(images), wanted)
        answer = self.hear()
        if answer is None:
            raise DeviceFault("a lane said that it had loaded when it was asked for captions")
        return answer

    def _tell(self, images: int, wanted: Wanted) -> None:
        for n in range(images):
            self._wanted[n] = wanted(n)

    def hear(self) -> _Answer | None:
        """Wait for an answer, or at first for the news that the captioner is loaded."""
        with _ended_is_a_fault():
            answer: _Answer | Exception | None = self._connection.recv()
        self._busy = False
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def lives(self) -> bool:
        """Whether the process still holds its end of the pipe.

        Its parent would know as well, but the parent may have been ended by a signal to all.
        """
        return not self._hangs_up_within(0.0)

    def _hangs_up_within(self, timeout_s: float) -> bool:
        if self._connection.closed:
            return True
        hung_up = select.poll()  # one of its own: another thread may be waiting with ours
        hung_up.register(self._connection, 0)
        return bool(hung_up.poll(1000 * timeout_s))

    def dismiss(self) -> None:
        """Ask the process to end; do not ask one that is at work, it may never come back."""
        if not self.lives:
            return
        room = select.poll()
        room.register(self._connection, select.POLLOUT)
        if self._busy or not room.poll(0):
            self._kill()
            return
        with suppress(OSError):
            self._connection.send(None)

    def end(self, ends_s: float) -> None:
        """Wait until then for the end of the process, then bring it about."""
        if not self._hangs_up_within(max(0.0, ends_s - time.monotonic())):
            self._kill()
            self._hangs_up_within(_PATIENCE_S)
        # Its parent tells of its end, but not if that is stopped.
        self._process.join(max(_LEAST_PATIENCE_S, ends_s - time.monotonic()))
        self._connection.close()

    def _kill(self) -> None:
        """Kill the process, were it stopped or its parent dead; multiprocessing asks the parent."""
        if self.lives and (pid := self._process.pid):  # else the number may be another's by now
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _ended_is_a_fault() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise LaneDied("the process of a lane has ended") from error


# In the process of a lane


def _serve(
    load: Callable[[], Finder],
    pixels: "Array[c_ubyte]",
    wanted: "Array[c_ubyte]",
    shape: tuple[int, ...],
    connection: Connection,
) -> None:
    """Find captions until the other end has no more orders."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the service decides when we end
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    take_one_core()  # torch sees all cores of the machine, whatever a container may use
    with suppress(EOFError, OSError):
        try:
            captioner = load()
        except Exception as error:  # noqa: BLE001 - the other end raises it
            connection.send(_fit_to_travel(error))
            return
        gc.freeze()
        connection.send(None)
        images_BCHW = torch.frombuffer(pixels, dtype=torch.uint8).view(shape)
        while order := connection.recv():
            connection.send(_obey(order, captioner, images_BCHW, wanted))


def _end_with_the_service() -> None:
    """End with the process that started us, however it ended and whatever we are doing."""
    if service := multiprocessing.parent_process():
        service.join()
    os._exit(1)


def _obey(
    order: _Order, captioner: Finder, images_BCHW: Tensor, wanted: "Array[c_ubyte]"
) -> _Answer | Exception:
    stages: list[tuple[str, float, float]] = []
    images = [images_BCHW[n] if each is None else each for n, each in enumerate(order.uploads)]
    try:
        with limited_to(order.share):
            findings = captioner.find(
                images,
                on_stage=lambda *stage: stages.append(stage),
                wanted=lambda n: bool(wanted[n]),
                alone=False,
            )
    except Exception as error:  # noqa: BLE001 - the other end raises it
        return _fit_to_travel(error)
    return _Answer(findings, stages)


def _fit_to_travel(error: Exception) -> Exception:
    """Give an exception with its traceback as a note, which a pickle would leave behind."""
    error.add_note("in a lane:\n" + "".join(traceback.format_exception(error)))
    return error
