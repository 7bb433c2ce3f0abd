"""How many connections there may be, and whose makes room; without a server."""

import asyncio
import errno
import resource
import socket

import pytest

from app import server
from app.observability.metrics import Metrics
from app.settings import Settings
from app.web import connections as module
from app.web.connections import Connections, Listener, Seldom, most_connections
from support.fake import until


class Line:
    """A connection that remembers why it was ended."""

    def __init__(self, address, unread_bytes=0):
        self.address = address
        self.unread_bytes = unread_bytes
        self.ended = None

    def abort(self, reason):
        self.ended = reason


def full_of(*lines, most=None):
    connections = Connections(most or len(lines), Metrics())
    for line in lines:
        connections.add(line)
    return connections


def test_of_the_address_that_holds_most_the_one_that_waited_longest_makes_room():
    alone, first, second = Line("a"), Line("b"), Line("b")
    connections = full_of(alone, first, second)
    for line in (alone, first, second):
        connections.idle(line)
    assert connections.make_room()
    assert (alone.ended, first.ended, second.ended) == (None, "evicted", None)
    assert len(connections) == 2


def test_whoever_is_at_work_is_spared_and_whoever_does_not_read_comes_next():
    at_work, unread = Line("a"), Line("a", 100_000)
    connections = full_of(at_work, unread)
    connections.idle(at_work)
    connections.active(at_work)
    connections.unread(unread)
    assert connections.make_room()
    assert (at_work.ended, unread.ended) == (None, "evicted")
    connections.add(Line("a"))
    assert not connections.make_room()
    assert at_work.ended is None


def test_those_that_are_accepted_and_not_added_yet_count():
    connections = full_of(Line("a"), most=3)
    assert connections.make_room(1)
    assert not connections.make_room(2)


def test_what_all_leave_unread_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MOST_UNREAD_BYTES", 250)
    oldest, middle, newest = lines = [Line("a", 100) for _ in range(3)]
    connections = full_of(*lines)
    for line in lines:
        connections.unread(line)
    assert [line.ended for line in (oldest, middle, newest)] == ["unread", None, None]
    assert connections.unread_bytes == 200


def test_an_end_that_is_told_twice_is_one_end():
    line = Line("a")
    connections = full_of(line, Line("b"))
    connections.idle(line)
    connections.remove(line)
    connections.remove(line)
    assert len(connections) == 1


def test_what_happens_often_is_told_seldom_with_how_often_it_was():
    now_s = [0.0]
    seldom = Seldom(lambda: now_s[0])
    told = []
    for second in range(25):
        now_s[0] = float(second)
        told.append(seldom.times("full"))
    assert [(second, times) for second, times in enumerate(told) if times] == [
        (0, 1), (10, 10), (20, 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "wanted", "most", "raised"),
    [
        ((1024, 4096), 1000, 1000, 1048),
        ((4096, 4096), 1000, 1000, 4096),
        ((256, 256), 1000, 208, 256),
        ((64, 64), 1000, 16, 64),
        ((20, 20), 1000, 16, 20),  # some must be served
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 5000, 5000, resource.RLIM_INFINITY),
    ],
)
def test_there_are_fewer_connections_than_descriptors(monkeypatch, limits, wanted, most, raised):
    now = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: now.append(both))
    assert most_connections(wanted) == most
    assert now[-1] == (raised, limits[1])


def test_some_connections_are_kept_for_probes(monkeypatch):
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # or the tests would have few
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    few = server.within_descriptors(Settings())
    assert (few.max_connections, few.max_inflight_requests) == (16, 8)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    assert server.within_descriptors(Settings()) == Settings()


class Failing:
    """A listening socket that cannot accept, for as long as it is told to."""

    def __init__(self, listening, error):
        self._listening = listening
        self.error = error
        self.failed = 0

    def accept(self):
        if self.error:
            self.failed += 1
            raise OSError(self.error, "no")
        return self._listening.accept()

    def __getattr__(self, name):
        return getattr(self._listening, name)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOBUFS, errno.EPERM])
async def test_what_cannot_be_accepted_is_survived_told_and_tried_again(error, capsys):
    made = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            made.append(transport)

    waiting = Line("a")
    connections = full_of(waiting, most=10)
    connections.idle(waiting)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        failing = Failing(bound, error)
        listener = Listener(failing, connections, Protocol, backlog=10)
        listener.open()
        _, writer = await asyncio.open_connection("127.0.0.1", bound.getsockname()[1])
        await until(lambda: failing.failed > 1)
        await asyncio.sleep(0.2)
        assert failing.failed < 20  # with pauses: each turn of the loop would be thousands
        failing.error = None
        await until(lambda: made)
        listener.close()
        writer.close()
        made[0].abort()
    assert capsys.readouterr().out.count("cannot_accept") == 1
    assert waiting.ended == (None if error == errno.EPERM else "evicted")
