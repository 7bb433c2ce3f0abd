"""Logs: JSON lines on stdout, ours and those of the libraries.

A log serves the service, never the other way round: nothing here raises, and nothing waits for a
reader. What does not go out now waits in a bounded backlog; what that cannot hold is counted.
"""

import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import suppress

import structlog

_MOST_WAITING_BYTES = 2**20
_BYTES_PER_LINE = 64  # what Python takes for a line beside its text
_LONGEST_LINE = 2**16
_LONGEST_VALUES = (16_000, 500)  # in characters: first the one, and the other if that is too long
_PAUSE_S = 0.01

_json = structlog.processors.JSONRenderer()
_now = structlog.processors.TimeStamper(fmt="iso", utc=True)


class Sink:
    """Writes lines to a descriptor, as far as it takes them without waiting.

    Safe to call from several threads, and from whatever runs in the middle of a call. No thread
    waits for another one that writes: whoever finds somebody at it leaves his line to him.

    Args:
        descriptor: of a file, a pipe, a socket or a terminal; others may write to it as well.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._readiness = select.poll()
        self._readiness.register(descriptor, select.POLLOUT)
        self._counting = threading.RLock()  # never held during a system call
        self._writing = threading.Lock()
        self._line = memoryview(b"")  # what is left of the one that is being written
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._untold = 0
        self._broken = False
        self.dropped = 0

    def write(self, text: str) -> None:
        """Take text that ends with its line; the oldest that wait make room for it."""
        line = text.encode(errors="backslashreplace")
        with self._counting:
            self._waiting.append(line)
            cost = len(line) + _BYTES_PER_LINE
            self._waiting_bytes += cost
            while self._waiting_bytes > _MOST_WAITING_BYTES:
                self._take()
                self.lose()
        self.pump()

    def lose(self) -> None:
        """Take note of a line that nobody will read."""
        with self._counting:
            self.dropped += 1
            self._untold += 1

    def pump(self) -> None:
        """Write what waits, as far as it goes now."""
        going = True
        while going and self._unwritten and self._writing.acquire(blocking=False):
            try:
                while self._has_line() and (going := self._push()):
                    pass
            finally:
                self._writing.release()

    def flush(self, timeout_s: float) -> None:
        """Wait for a reader who is slow, but not for one who is gone."""
        ends_s = time.monotonic() + timeout_s
        self.pump()
        while self._unwritten and not self._broken and time.monotonic() < ends_s:
            time.sleep(_PAUSE_S)
            self.pump()

    @property
    def _unwritten(self) -> bool:
        return bool(self._line or self._waiting or self._untold)

    def _has_line(self) -> bool:
        with self._counting:
            if not self._line:
                self._line = memoryview(self._next())
            return bool(self._line)

    def _next(self) -> bytes:
        if self._untold:  # they were older than whatever waits
            lost, self._untold = self._untold, 0
            return f"{_line(_now(None, '', _lost(lost)))}\n".encode()
        return self._take() if self._waiting else b""

    def _take(self) -> bytes:
        line = self._waiting.popleft()
        cost = len(line) + _BYTES_PER_LINE
        self._waiting_bytes -= cost
        return line

    def _push(self) -> bool:
        """Write some of the line. A pipe that is ready takes as much as this without waiting."""
        try:
            if not self._readiness.poll(0):
                return False
            written = os.write(self._descriptor, self._line[: select.PIPE_BUF])
        except OSError:  # its reader is gone, its disk is full: it may come back
            self._broken = True
            return False
        self._broken = False
        self._line = self._line[written:]
        return True


def _lost(lines: int) -> structlog.typing.EventDict:
    return {"event": "log_lines_lost", "lines": lines, "level": "warning"}


_stdout, _stderr = Sink(1), Sink(2)


def dropped_lines() -> int:
    """Give how many lines nobody will read."""
    return _stdout.dropped + _stderr.dropped


def pump() -> None:
    """Write what waits, as far as it goes now."""
    for sink in (_stdout, _stderr):
        sink.pump()


def flush(timeout_s: float) -> None:
    """Write what waits, for so long at most: the process is about to end."""
    for sink in (_stdout, _stderr):
        sink.flush(timeout_s)


# What is written


def configure_logging(level: str) -> None:
    """Send our events and the libraries' log records to stdout, one JSON object a line.

    What they print goes the same way as text: from now on it waits for no reader either.
    """
    _open_what_is_closed()
    sys.stdout, sys.stderr = _Printed(_stdout), _Printed(_stderr)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _now,
    ]
    structlog.configure(
        processors=[*shared, _render],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=_Logger,
    )
    _configure_library_logging(level, shared)


def _configure_library_logging(level: str, shared: list[structlog.typing.Processor]) -> None:
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render],
        )
    )
    logging.raiseExceptions = False
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)


def _open_what_is_closed() -> None:
    """Take the places of stdin, stdout and stderr, or a client's connection would get the log."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free one is the one that a file gets
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - os's own


class _Logger:
    """What structlog gives its lines to."""

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        _stdout.write(f"{line}\n")

    log = debug = info = warning = error = critical = fatal = exception = msg


class _Handler(logging.Handler):
    """What the libraries give their records to."""

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the handler's lock: who waits for it waits for whoever writes.
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - of the arguments, which are the library's
            _stdout.lose()
            return
        _stdout.write(f"{line}\n")


class _Printed(io.TextIOBase):
    """A text stream that neither raises nor waits, not even at the exit of Python."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def fileno(self) -> int:
        return 1 if self._sink is _stdout else 2

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if text:
            self._sink.write(text)
        return len(text)


def _render(
    logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict
) -> str:
    try:
        return _line(structlog.processors.format_exc_info(logger, name, event))
    except Exception as error:  # noqa: BLE001 - a value that cannot be told is not its teller's fault
        told = {key: event.get(key) for key in ("level", "timestamp")}
        return _line({"event": "unloggable", "reason": type(error).__name__, **told})


def _line(event: structlog.typing.EventDict) -> str:
    """Give the event as JSON of a bounded length."""
    line = str(_json(None, "", event))
    for longest in _LONGEST_VALUES:
        if len(line) > _LONGEST_LINE:
            line = str(_json(None, "", {key: _cut(event[key], longest) for key in event}))
    return line


def _cut(value: object, longest: int) -> object:
    """Give a value, or the beginning and the end of its text where that is too long."""
    text = value if isinstance(value, str) else repr(value)
    half = longest // 2
    cut = len(text) - 2 * half
    return value if cut <= 0 else f"{text[:half]} [{cut} characters cut] {text[-half:]}"
