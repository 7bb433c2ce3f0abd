"""The connections of the server: how many there may be, which one makes room, and how they begin.

Descriptors are bounded: a process that has none left can accept nobody, not even a probe. So there
are fewer connections than descriptors, and where all are taken, one that waits for its client makes
room for the next: of the address that holds most of them, the one that has waited longest.
"""

import asyncio
import errno
import os
import resource
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import structlog

from app.observability.metrics import Metrics

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

DESCRIPTORS_KEPT = 48
"""For everything but connections: the loop, the log, decoders, files that are opened."""
KEPT_FOR_PROBES = 8
"""Connections that no request for captions may be under way on."""
_FEWEST = 2 * KEPT_FOR_PROBES
_MOST_UNREAD_BYTES = 64 * 2**20
_MOST_AHEAD_BYTES = 32 * 2**20
_ACCEPTED_AT_ONCE = 64
_PAUSE_S = 0.1
_BETWEEN_LINES_S = 10.0
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Connection(Protocol):
    """What is known of a connection here."""

    @property
    def address(self) -> str:
        """Whose it is."""

    @property
    def unread_bytes(self) -> int:
        """How much of its answers its client has not taken yet."""

    def abort(self, reason: str) -> None:
        """End it at once."""


class Connections:
    """All connections of one server.

    Args:
        most: So many at a time.
        metrics: Told how many there are, and why some were ended.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.most = most
        self._metrics = metrics
        self._all: set[Connection] = set()
        self._of_address: Counter[str] = Counter()
        # By address those that wait for their client to say something, and in all those that wait
        # for theirs to read: whoever has waited longest comes first.
        self._idle: dict[str, OrderedDict[Connection, None]] = {}
        self._unread: OrderedDict[Connection, None] = OrderedDict()
        self.ahead_bytes = 0
        self._seldom = Seldom()

    def __len__(self) -> int:
        """Count them."""
        return len(self._all)

    @property
    def unread_bytes(self) -> int:
        """How much of all answers their clients have not taken yet."""
        return sum(connection.unread_bytes for connection in self._all)

    def add(self, connection: Connection) -> None:
        """Take note of a connection that has begun."""
        self._all.add(connection)
        self._of_address[connection.address] += 1

    def remove(self, connection: Connection) -> None:
        """Take note of its end."""
        self.active(connection)
        self.read(connection)
        if connection in self._all:
            self._all.remove(connection)
            self._of_address[connection.address] -= 1
            if not self._of_address[connection.address]:
                del self._of_address[connection.address]

    def idle(self, connection: Connection) -> None:
        """Take note that it waits for the head of a request."""
        self._idle.setdefault(connection.address, OrderedDict())[connection] = None

    def active(self, connection: Connection) -> None:
        """Take note that a request is under way on it."""
        waiting = self._idle.get(connection.address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._idle[connection.address]

    def unread(self, connection: Connection) -> None:
        """Take note that its client does not read; where all such hold too much, end the oldest."""
        self._unread[connection] = None
        while sum(each.unread_bytes for each in self._unread) > _MOST_UNREAD_BYTES:
            self._end(next(iter(self._unread)), "unread")

    def read(self, connection: Connection) -> None:
        """Take note that its client reads again."""
        self._unread.pop(connection, None)

    def hold_ahead(self, change_bytes: int) -> bool:
        """Count bytes that were sent before their turn; say whether there is room for them."""
        self.ahead_bytes += change_bytes
        return self.ahead_bytes <= _MOST_AHEAD_BYTES

    def make_room(self, beginning: int = 0) -> bool:
        """Make room for one more, at the expense of one that waits; say whether there is some.

        Args:
            beginning: Those that are accepted and not added yet.
        """
        if len(self._all) + beginning < self.most:
            return True
        told = self._seldom.times("connections_full")
        if told:
            log.warning("connections_full", most=self.most, times=told)
        return self.evict()

    def evict(self) -> bool:
        """End one that waits for its client, if any does."""
        waiting = max(self._idle, key=self._of_address.__getitem__, default=None)
        if waiting is not None:
            self._end(next(iter(self._idle[waiting])), "evicted")
        elif self._unread:
            self._end(next(iter(self._unread)), "evicted")
        else:
            return False
        return True

    def left(self) -> None:
        """Count a request whose client left before it was begun."""
        self._metrics.answered("unmatched", "client_closed")

    def ended(self, reason: str) -> None:
        """Count a connection that we ended before its client did."""
        self._metrics.connections_ended.labels(reason).inc()

    def _end(self, connection: Connection, reason: str) -> None:
        self.remove(connection)
        connection.abort(reason)


class Seldom:
    """Lets what may happen very often be logged once in ten seconds, with how often it was."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s: dict[str, float] = {}
        self._since: Counter[str] = Counter()

    def times(self, event: str) -> int:
        """Count an event; give how often it was since the last line, or 0 while it is too soon."""
        self._since[event] += 1
        now_s = self._clock()
        if now_s - self._last_s.get(event, -_BETWEEN_LINES_S) < _BETWEEN_LINES_S:
            return 0
        self._last_s[event] = now_s
        return self._since.pop(event)


def most_connections(wanted: int) -> int:
    """Give how many connections there can be, raising the soft limit of descriptors if need be.

    Args:
        wanted: So many at most.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + DESCRIPTORS_KEPT
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    most = max(_FEWEST, min(wanted, soft - DESCRIPTORS_KEPT))
    if most < wanted:
        log.warning("few_descriptors", limit=soft, connections=most, wanted=wanted)
    return most


class Listener:
    """Accepts connections one by one, which a server of asyncio does without asking.

    Args:
        listening: Bound, not yet listening.
        connections: Say whether there is room.
        protocol: Makes the protocol of a connection.
        backlog: How many may wait to be accepted.
    """

    def __init__(
        self,
        listening: socket.socket,
        connections: Connections,
        protocol: Callable[[], asyncio.Protocol],
        *,
        backlog: int,
    ) -> None:
        self._listening = listening
        self._connections = connections
        self._protocol = protocol
        self._backlog = backlog
        self._loop = asyncio.get_running_loop()
        self._begun: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._seldom = Seldom()

    def open(self) -> None:
        """Begin to accept."""
        self._listening.settimeout(0)
        self._listening.listen(self._backlog)
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Accept nobody any more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):  # then the others have their turn
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot(error)
                return
            if self._connections.make_room(len(self._begun)):
                self._begin(accepted)
            else:
                self._connections.ended("refused")
                accepted.close()

    def _begin(self, accepted: socket.socket) -> None:
        accepted.settimeout(0)
        beginning = self._loop.connect_accepted_socket(self._protocol, accepted)
        task: asyncio.Task[object] = self._loop.create_task(beginning)
        self._begun.add(task)
        task.add_done_callback(self._has_begun)

    def _has_begun(self, task: "asyncio.Task[object]") -> None:
        self._begun.discard(task)
        if not task.cancelled() and task.exception() is not None:  # it was gone again
            self._connections.ended("not_begun")

    def _cannot(self, error: OSError) -> None:
        """Survive that nothing can be accepted: whoever waits for his client makes room."""
        self._connections.ended("not_accepted")
        told = self._seldom.times("cannot_accept")
        if told:
            reason = os.strerror(error.errno or 0)
            log.error(
                "cannot_accept", reason=reason, times=told, connections=len(self._connections)
            )
        if error.errno in _NO_ROOM:
            self._connections.evict()
        self._loop.remove_reader(self._listening)
        self._pause = self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._loop.add_reader(self._listening, self._accept)
