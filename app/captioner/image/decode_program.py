"""The program of a decode process: uploads come in through a socket, pixels go out.

A process of its own because only the kernel ends a decoder written in C whatever it is doing, and
takes back all its memory. It imports no torch, so that it starts at once and weighs little. What
comes from it is taken for data by the other end, `decoders`: numbers and bytes, never a pickle.
"""

import ctypes
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from app.captioner.errors import ImageError
from app.captioner.image import decode

READY = b"\1"
ORDER = struct.Struct("!QQQd")
"""How an order begins: bytes of the upload, ``at_least_px``, ``max_pixels``, seconds of CPU."""
ANSWER = struct.Struct("!III")
"""How an answer begins: height, width, and bytes of UTF-8; these say what is wrong."""
SHARED_BYTES = 8 * 2**20
"""Of the memory that both sides see: what fits goes through it, and the rest through the socket."""
_BYTES_PER_PIXEL = 24
"""What decoding holds at most: 16 with a transparent WebP, plus 3 for the pixels that leave."""
_COPIES = 5  # of the upload: as it came, without metadata, as Pillow and a decoder read it
BYTES_BESIDE = 64 * 2**20
_PR_SET_PDEATHSIG = 1
_MOST_EXPENDABLE = "1000"


class _Order(NamedTuple):
    upload: bytes
    at_least_px: int
    max_pixels: int
    budget_s: float


def main(
    service_pid: int, most_bytes: int, most_pixels: int, niceness: int, descriptor: int
) -> None:
    """Decode until the other end hangs up.

    Args:
        service_pid: whose end is ours.
        most_bytes: of an upload.
        most_pixels: that any order will allow; memory is bounded by both.
        niceness: how far others go first.
        descriptor: of our end of the socket.
    """
    memory_bytes = _COPIES * most_bytes + _BYTES_PER_PIXEL * most_pixels + BYTES_BESIDE
    serve(service_pid, memory_bytes, niceness, descriptor, _answer_next)


def serve(
    service_pid: int,
    memory_bytes: int,
    niceness: int,
    descriptor: int,
    answer_next: Callable[[socket.socket, mmap.mmap | None], None],
) -> None:
    """Answer orders until the other end hangs up.

    Args:
        service_pid: whose end is ours.
        memory_bytes: that the orders take, beside what is there before the first.
        niceness: how far others go first.
        descriptor: of our end of the socket.
        answer_next: takes the next order from the socket, or from memory that both sides see.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the service decides when we end
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    _end_with(service_pid)
    _be_modest(memory_bytes, niceness)
    with socket.socket(fileno=descriptor) as service, suppress(EOFError, OSError):
        shared = _shared(service)
        service.sendall(READY)
        while True:
            answer_next(service, shared)


def _answer_next(service: socket.socket, shared: mmap.mmap | None) -> None:
    _answer(service, _next_order(service, shared), shared)


def fits(size: int, shared: mmap.mmap | None) -> bool:
    """Say, on both sides alike, whether so many bytes go through memory that both see."""
    return shared is not None and size <= SHARED_BYTES


def _shared(service: socket.socket) -> mmap.mmap | None:
    """Take the memory that both sides see, where there is some; its size cannot change any more."""
    _, descriptors, _, _ = socket.recv_fds(service, 1, 1)
    for descriptor in descriptors:
        shared = mmap.mmap(descriptor, SHARED_BYTES)
        os.close(descriptor)
        return shared
    return None


def _end_with(service_pid: int) -> None:
    """End with the process that started us, however it ended and whatever we are doing."""
    with suppress(AttributeError):  # Linux has it; elsewhere we end with the socket, after a job
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != service_pid:  # it ended before we asked
        sys.exit(1)


def _be_modest(most_bytes: int, niceness: int) -> None:
    """Take no more memory than that beyond what we have, and be the first whom the kernel ends."""
    os.nice(niceness)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_MOST_EXPENDABLE, encoding="ascii")
    _limit(resource.RLIMIT_DATA, _data_bytes() + most_bytes)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    with suppress(OSError, ValueError):
        resource.setrlimit(what, (min(most, hard) if hard >= 0 else most, hard))


def _data_bytes() -> int:
    """Give what the limit counts of us so far; without Linux's word for it, more than we need."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return BYTES_BESIDE


def _next_order(service: socket.socket, shared: mmap.mmap | None) -> _Order:
    size, at_least_px, max_pixels, budget_s = ORDER.unpack(received(service, ORDER.size))
    return _Order(upload(service, shared, size), at_least_px, max_pixels, budget_s)


def upload(service: socket.socket, shared: mmap.mmap | None, size: int) -> bytes:
    """Take the upload of an order, from where the other end put it."""
    if shared is not None and fits(size, shared):
        return shared[:size]
    return bytes(received(service, size))


def received(service: socket.socket, size: int) -> bytearray:
    """Take so many bytes from the socket.

    Raises:
        EOFError: the other end hung up.
    """
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = service.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return data


def _answer(service: socket.socket, order: _Order, shared: mmap.mmap | None) -> None:
    """Send what became of an upload."""
    try:
        pixels_HWC = _decoded(order)
    except ImageError as error:
        words = told(error)
        service.sendall(ANSWER.pack(0, 0, len(words)) + words)
        return
    answer, pixels = ANSWER.pack(*pixels_HWC.shape[:2], 0), pixels_HWC.data.cast("B")
    if shared is not None and fits(len(pixels), shared):
        shared[: len(pixels)] = pixels
        service.sendall(answer)
        return
    service.sendall(answer)
    service.sendall(pixels)


def told(error: ImageError) -> bytes:
    """Write what is wrong with an upload, as the other end reads it."""
    return f"{error.code} {'-' if error.limit is None else error.limit} {error}".encode()


def _decoded(order: _Order) -> decode.Pixels:
    """Decode with a budget: the kernel ends this process when it is used up."""
    signal.setitimer(signal.ITIMER_PROF, order.budget_s)
    try:
        return decode.decode(
            order.upload, at_least_px=order.at_least_px, max_pixels=order.max_pixels
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
