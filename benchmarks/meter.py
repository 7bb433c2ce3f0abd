"""What a server under test costs: CPU seconds and memory."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Self


@dataclass
class Meter:
    """CPU seconds and memory of a process and all its descendants, sampled while it is open.

    Memory is the proportional set size: a page that n processes share counts 1/n for each.

    Attributes:
        pid: the root of the tree.
        every_s: seconds between two samples of the memory.
        peak_bytes: the largest sample so far.
    """

    pid: int
    every_s: float = 2.0  # reading it holds up a server that maps memory
    peak_bytes: int = 0
    _closing: threading.Event = field(default_factory=threading.Event, repr=False)
    _sampler: threading.Thread | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._sampler is not None:
            self._sampler.join()

    def _sample(self) -> None:
        while not self._closing.is_set():
            self.peak_bytes = max(self.peak_bytes, self.memory_bytes())
            self._closing.wait(self.every_s)

    def memory_bytes(self) -> int:
        """Add up the memory of the tree."""
        return int(sum(_each(self.pid, "memory")))

    def cpu_s(self) -> float:
        """Add up the CPU seconds of the tree, those of ended children included."""
        return sum(_each(self.pid, "cpu"))


def _each(pid: int, what: Literal["memory", "cpu"]) -> Iterator[float]:
    import psutil  # noqa: PLC0415 - only who measures a server needs it

    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                yield (
                    process.memory_full_info().pss
                    if what == "memory"
                    else sum(process.cpu_times()[:4])
                )
