"""What a device can do for us, and to us: run out of memory, or fail for good."""

import heapq
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple, TypeVar

import torch

from app.captioner.errors import DeviceFault, OutOfMemory

Result = TypeVar("Result")
Precision = Literal["float32", "bfloat16"]
_CPU_IS_FULL = "DefaultCPUAllocator"
_CUDA_FAILED = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS")


def guarded(job: Callable[[], Result]) -> Result:
    """Run a job of torch, and say in our words what the device did to it.

    Raises:
        OutOfMemory: It did not fit. What the job held is free again, and so is torch's cache.
        DeviceFault: The device answers nothing any more.
        Exception: Whatever else the job raises.
    """
    try:
        return job()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        if _is_fault(error):
            raise DeviceFault("the device has failed; only a new process can use it") from error
        if _CPU_IS_FULL not in str(error):
            raise
    # Here the exception is gone, and with it the frames that kept the tensors alive.
    _empty_cache()
    raise OutOfMemory("the batch does not fit into the memory of the device")


class Share(NamedTuple):
    """The cores of one call.

    Attributes:
        cores: how many threads torch may have.
        core: the one that the call keeps to, if any.
        all: those of the process, to go back to.
    """

    cores: int
    core: int | None
    all: Sequence[int]


class Cores:
    """The cores of torch, shared by the calls under way: a lone call gets all, others one each.

    Many steps of the search are too short to be split, so calls side by side with a core each do
    more than one after the other with all cores. Only the thread that called first ever gets them
    all: OpenMP keeps helpers for every thread that had several cores once, and when those are more
    than the cores, all of them sleep between steps and wake late. That doubles a caption's time. So
    does a call beside one that has them all, which therefore waits for its end.

    A call that has one core stays on it, where the process may use no other cores than these: a
    scheduler that sees threads wake each other thousands of times a second puts two of them on the
    same core again and again. Where there are more cores, others may have been promised them.

    Args:
        count: cores of all calls together.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._calls = 0
        self._lone = False
        self._first: threading.Thread | None = None
        self._changed = threading.Condition()
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._all = allowed if len(allowed) == count else []
        self._free = list(self._all)

    @contextmanager
    def granted(self, *, alone: bool = True) -> Iterator[Share]:
        """Give a call its share until its end: to `limited_to`, here or in another process.

        Args:
            alone: whether nothing else in the process wants a core: helpers that wait for one hold
                up the whole call.
        """
        with self._changed:
            self._first = self._first or threading.current_thread()
            self._changed.wait_for(lambda: not self._lone)
            self._calls += 1
            mine = self._first is threading.current_thread()
            self._lone = alone and self._calls == 1 and mine
            core = heapq.heappop(self._free) if self._free and not self._lone else None
            share = Share(self.count if self._lone else 1, core, self._all)
        try:
            yield share
        finally:
            with self._changed:
                if core is not None:
                    heapq.heappush(self._free, core)
                self._calls -= 1
                self._lone = False
                self._changed.notify_all()


@contextmanager
def limited_to(share: Share) -> Iterator[None]:
    """Keep the torch of this thread to its share, then let it go back to what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(share.cores)
    if share.core is not None:
        _run_on([share.core])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if share.core is not None:
            _run_on(share.all)


def _run_on(cores: Sequence[int]) -> None:
    with suppress(OSError):  # whoever runs the container took them away, or forbids the choice
        os.sched_setaffinity(0, cores)


def take_one_core() -> None:
    """Keep the torch of this thread on one core from now on."""
    torch.get_num_threads()  # or the first operation would take over the setting of other threads
    torch.set_num_threads(1)


def _is_fault(error: RuntimeError) -> bool:
    return isinstance(error, torch.AcceleratorError) or any(
        sign in str(error) for sign in _CUDA_FAILED
    )


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
