"""The program of a process that reads clips: one comes in through a socket, its frames go out.

See `app.captioner.image.decode_program`, whose ways these are. It sends ahead until the socket is
full, and waits there: the other end takes frames as it needs them.
"""

import json
import mmap
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from app.captioner.errors import ImageError
from app.captioner.image.decode_program import BYTES_BESIDE, received, serve, told, upload
from app.clips import reading
from app.clips.sampling import End, Frame, Sampling

PROGRAM: Final = "app.clips.clip_program"
ORDER: Final = struct.Struct("!IQd")
"""How an order begins: bytes of how to read, as JSON, and of the clip; seconds of CPU."""
ANSWER: Final = struct.Struct("!BdQ")
"""How each part of an answer begins: its kind, a number, and bytes that follow."""
FRAME, END, STILL, REFUSED = range(4)
"""A frame: its time and pixels. The end: how long the clip is, and ``_marks`` in place of bytes.
Neither: it does not move. Or what is wrong with it, in UTF-8."""
INCOMPLETE, DAMAGED = 1, 2
_COPIES: Final = 3  # of the upload: as it came, as FFmpeg reads it, and of what an image keeps
_BYTES_PER_PIXEL: Final = 40
"""What decoding holds at most: 16 frames of 1.5 bytes that others refer to, and some more."""


class _Order(NamedTuple):
    clip: bytes
    how: Sampling
    budget_s: float


def main(
    service_pid: int, most_bytes: int, most_pixels: int, niceness: int, descriptor: int
) -> None:
    """Read clips until the other end hangs up; see `decode_program.main`."""
    memory_bytes = _COPIES * most_bytes + _BYTES_PER_PIXEL * most_pixels + 2 * BYTES_BESIDE
    serve(service_pid, memory_bytes, niceness, descriptor, _answer_next)


def _answer_next(service: socket.socket, shared: mmap.mmap | None) -> None:
    order = _next_order(service, shared)
    for answer in _answers(order):
        service.sendall(answer)


def _next_order(service: socket.socket, shared: mmap.mmap | None) -> _Order:
    how_bytes, size, budget_s = ORDER.unpack(received(service, ORDER.size))
    how = Sampling(**json.loads(received(service, how_bytes)))
    return _Order(upload(service, shared, size), how, budget_s)


def _answers(order: _Order) -> Iterator[bytes]:
    """Read a clip with a budget: the kernel ends this process when it is used up."""
    signal.setitimer(signal.ITIMER_PROF, order.budget_s)
    try:
        for each in reading.frames(order.clip, order.how):
            yield from _written(each)
    except reading.Still:
        yield ANSWER.pack(STILL, 0.0, 0)
    except ImageError as error:
        words = told(error)
        yield ANSWER.pack(REFUSED, 0.0, len(words)) + words
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _written(each: Frame | End) -> Iterator[bytes]:
    if isinstance(each, End):
        marks = (0 if each.complete else INCOMPLETE) | (0 if each.whole else DAMAGED)
        yield ANSWER.pack(END, each.duration_s, marks)
        return
    yield ANSWER.pack(FRAME, each.time_s, each.pixels.size)
    yield each.pixels.tobytes()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
