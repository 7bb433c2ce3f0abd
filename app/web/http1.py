"""HTTP/1.1 for uvicorn, with bounds that its own protocol classes lack.

llhttp reads the head of a request and nothing else: it takes an offer of another protocol
(``Upgrade``) for its acceptance, and the body for another request. The body is delimited here, by
the length or the chunks that llhttp has let pass. One request at a time is read from a connection;
what was sent ahead of its turn waits, and the socket with it.

Reference: RFC 9112, RFC 9110 section 7.8
"""

import asyncio
import fcntl
import sys
import termios
import uuid
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from app.web import problems
from app.web.chunked import ChunkedBody, ChunkedError
from app.web.connections import Connections, Seldom
from app.web.problems import HeadTooLarge, MalformedRequest

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

MAX_HEAD_BYTES = 32 * 1024
MAX_FIELDS = 100
_VERSIONS = {"1.0", "1.1"}
_HEAD_END = b"\r\n\r\n"
_LEAST_READ_BYTES = 16 * 1024  # in each time-out: a client that reads steadily is no threat
_LINGER_S = 1.0
_LINGER_BYTES = 512 * 1024

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
_seldom = Seldom()


class _Flow(FlowControl):
    """Flow control that does not read on while what was read waits for its turn."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()

    def hold(self) -> None:
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        self.held = False


class _Length:
    """A body of a declared length."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def complete(self) -> bool:
        return not self._left

    def take(self, data: bytes, at: int, into: bytearray) -> int:
        end = min(len(data), at + self._left)
        into += memoryview(data)[at:end]
        self._left -= end - at
        return end


class Http1Connection(HttpToolsProtocol):
    """One connection of a client.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: What the lifespan left for requests.
        connections: All of them; they bound their number and what they hold.
        head_timeout_s: How long the head of a request may take, from its first byte or from the
            beginning of the connection.
        idle_timeout_s: How long a connection may wait for its next request.
        send_timeout_s: How long a client may read nothing of what is ready for it.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
        head_timeout_s: float,
        idle_timeout_s: float,
        send_timeout_s: float,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.flow: _Flow
        self._connections = connections
        self._head_timeout_s = head_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._send_timeout_s = send_timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._timed = ""  # what the timer waits for
        self._send_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._tail = b""  # the last bytes of a head that goes on
        self._fields = 0
        self._body: _Length | ChunkedBody | None = None
        self._ahead = b""
        self._lingered_bytes: int | None = None  # since it was refused
        self.address = ""

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the client has so long to send a head."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.address = self.client[0] if self.client else ""
        self._connections.add(self)
        self._await_head(self._head_timeout_s, "head_timeout")

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        super().connection_lost(exc)
        self._stop_timer()
        self._stop_send_timer()
        self._keep_ahead(b"")
        self._connections.remove(self)

    def eof_received(self) -> None:
        """Take note that the client sends no more; the transport closes then."""
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def shutdown(self) -> None:
        """End soon: at once where nothing is under way, else after the answer."""
        super().shutdown()
        if self.transport.is_closing():  # it waits for a client that may read nothing
            self._set_timer(self._send_timeout_s, "unread")

    @property
    def unread_bytes(self) -> int:
        """How much of the answers the client has not taken yet."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def abort(self, reason: str) -> None:
        """End the connection at once, with whatever lies in it."""
        self._connections.ended(reason)
        self.transport.abort()

    # What is read

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self._lingered_bytes is not None:
            self._linger(len(data))
        elif self._ahead:
            self._keep_ahead(self._ahead + data)
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        """Read on until the data ends, or the rest of it has to wait for its turn."""
        at = 0
        while at < len(data) and self._lingered_bytes is None and not self.transport.is_closing():
            if self._body is not None:
                at = self._read_body(self._body, data, at)
            elif self._answering:
                self._keep_ahead(data[at:] if at else data)
                return
            else:
                at = self._read_head(data, at)
        if self._head_bytes and self._lingered_bytes is None:
            self._await_rest_of_head()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _read_head(self, data: bytes, at: int) -> int:
        """Give llhttp what belongs to the head; give where the head, or the data, ends."""
        if not self._head_bytes:
            self.parser = httptools.HttpRequestParser(self)
            while at < len(data) and data[at] in b"\r\n":  # clients of old end a body so
                at += 1
            if at == len(data):
                return at
        end = self._end_of_head(data, at)
        piece = memoryview(data)[at : end or len(data)]
        self._head_bytes += len(piece)
        self._fields += data.count(b"\n", at, end or len(data))
        if self._head_bytes > MAX_HEAD_BYTES or self._fields > MAX_FIELDS + 2:
            self._refuse(HeadTooLarge(MAX_HEAD_BYTES))
            return len(data)
        if not (self._feed(piece) and self._agree(ended=end is not None)):
            return len(data)
        return len(data) if end is None else end

    def _end_of_head(self, data: bytes, at: int) -> int | None:
        """Find where the head ends, which may have begun in an earlier piece."""
        seam = self._tail + data[at : at + 3]
        found = seam.find(_HEAD_END)
        if found >= 0:
            return at + found + len(_HEAD_END) - len(self._tail)
        found = data.find(_HEAD_END, at, at + MAX_HEAD_BYTES + 1)
        self._tail = (self._tail + data[max(at, len(data) - 3) :])[-3:]
        return None if found < 0 else found + len(_HEAD_END)

    def _feed(self, piece: memoryview) -> bool:
        """Give llhttp a piece of a head; say whether it is well-formed."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # an offer that we do not take; the head is over
            pass
        except httptools.HttpParserError:
            self._refuse(MalformedRequest())
            return False
        return True

    def _agree(self, *, ended: bool) -> bool:
        """Say whether llhttp sees the end of the head where we do."""
        if ended == self._head_complete:
            return True
        self._refuse(MalformedRequest())
        return False

    @property
    def _head_complete(self) -> bool:
        return self._head_bytes == 0

    def on_headers_complete(self) -> None:
        """Begin the request: its body is delimited from here on."""
        if self.parser.get_http_version() not in _VERSIONS:
            raise MalformedRequest
        body = self._body_of_head()
        self._head_bytes = self._fields = 0
        self._tail = b""
        self._stop_timer()
        self._connections.active(self)
        super().on_headers_complete()
        self._body = None if body.complete else body
        self.cycle.more_body = self._body is not None
        if not self.cycle.more_body:
            self.cycle.message_event.set()

    def _body_of_head(self) -> _Length | ChunkedBody:
        """Give what the head says about the body; llhttp lets no two lengths pass, nor both kinds.

        Raises:
            MalformedRequest: It is coded in a way that nobody could delimit.
        """
        coded = [
            value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"
        ]
        if coded:
            if coded != [b"chunked"] or self.parser.get_http_version() == "1.0":
                raise MalformedRequest
            return ChunkedBody()
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return _Length(int(lengths[0]) if lengths else 0)

    def on_body(self, body: bytes) -> None:
        """Ignore what llhttp takes for a body: it is given none."""

    def on_message_complete(self) -> None:
        """Ignore what llhttp takes for the end of a request."""

    def _read_body(self, body: _Length | ChunkedBody, data: bytes, at: int) -> int:
        """Take what belongs to the body; give where it, or the data, ends."""
        unread = self.cycle.response_complete
        into = bytearray() if unread else self.cycle.body
        try:
            end = body.take(data, at, into)
        except ChunkedError:
            self._refuse(MalformedRequest())
            return len(data)
        if body.complete:
            self._body = None
            self.cycle.more_body = False
        if not unread and len(into) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        if unread and body.complete:
            self._await_head(self._idle_timeout_s, "idle")
        self.cycle.message_event.set()
        return end

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        super()._start_asgi_task(cycle, partial(self._answer, app))

    async def _answer(
        self,
        app: "ASGI3Application",
        scope: "Scope",
        receive: "ASGIReceiveCallable",
        send: "ASGISendCallable",
    ) -> None:
        """Run the app, unless the client has left before its turn."""
        if self.cycle.body:  # the next turn of the loop sees whether its sender has hung up
            await asyncio.sleep(0)
        if self.cycle.disconnected:
            self._connections.left()
        else:
            await app(scope, receive, send)

    # What waits for its turn

    def _keep_ahead(self, data: bytes) -> None:
        """Keep what was sent before the answer to what came before it."""
        room = self._connections.hold_ahead(len(data) - len(self._ahead))
        self._ahead = data
        if data:
            self.flow.hold()
            if not room:
                self.abort("too_much_ahead")

    def _go_on(self) -> None:
        """Take the turn of what was kept."""
        if self.transport.is_closing() or self._answering:
            return
        data = self._ahead
        self._keep_ahead(b"")
        self.flow.release()
        self._read(data)
        if not self._ahead:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Wait for the next request, or begin with the one that was sent ahead."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._set_timer(self._send_timeout_s, "unread")
        elif self._body is not None:  # nobody reads it any more
            self.flow.resume_reading()
            self._await_head(self._head_timeout_s, "head_timeout")
        elif self._ahead:
            self.loop.call_soon(self._go_on)  # the other connections come first
        else:
            self.flow.resume_reading()
            self._await_head(self._idle_timeout_s, "idle")

    # What is too slow

    def _await_head(self, timeout_s: float, reason: str) -> None:
        self._connections.idle(self)
        self._set_timer(timeout_s, reason)

    def _await_rest_of_head(self) -> None:
        """Wait for the rest of a head; the time of one that is under way goes on."""
        if self._timed != "head_timeout":
            self._await_head(self._head_timeout_s, "head_timeout")

    def _set_timer(self, timeout_s: float, reason: str) -> None:
        self._stop_timer()
        self._timed = reason
        self._timer = self.loop.call_later(timeout_s, self._end, reason)

    def _stop_timer(self) -> None:
        self._timed = ""
        if self._timer is not None:
            self._timer.cancel()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()

    def _end(self, reason: str) -> None:
        """End a connection whose client has taken too long."""
        if self.unread_bytes or self.transport.is_closing():  # closing would wait for him to read
            self.abort("unread")
        else:
            self._connections.ended(reason)
            self.transport.close()

    def pause_writing(self) -> None:
        """Give the client so long to read."""
        super().pause_writing()
        self._connections.unread(self)
        self._stop_send_timer()
        self._watch_reading()

    def _watch_reading(self) -> None:
        self._send_timer = self.loop.call_later(
            self._send_timeout_s, self._check_reading, self._unsent_bytes()
        )

    def _check_reading(self, unread_before: int) -> None:
        """Go on with a client that reads, however slowly; end one that does not."""
        if unread_before - self._unsent_bytes() < _LEAST_READ_BYTES:
            self.abort("unread")
        else:
            self._watch_reading()

    def _unsent_bytes(self) -> int:
        """Give what the client has not taken, the kernel's part too: that goes in large steps."""
        held = bytearray(4)
        with suppress(OSError, ValueError):
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        return self.unread_bytes + int.from_bytes(held, sys.byteorder)

    def resume_writing(self) -> None:
        """Take note that he did."""
        super().resume_writing()
        self._connections.read(self)
        self._stop_send_timer()

    # What is wrong

    def _refuse(self, reason: problems.RequestError) -> None:
        """Say what is wrong and close, with time for the client to read it."""
        problem_type = problems.problem_type_of(reason)
        told = _seldom.times(problem_type.code)
        if told:
            log.warning("request_refused", code=problem_type.code, times=told)
        self._connections.ended(problem_type.code)
        if self._answering:
            self._leave_cycle()
        if self.transport.is_closing():
            return
        answer = problems.bare_answer(reason, uuid.uuid4().hex)
        self.transport.write(STATUS_LINE[problem_type.status] + answer)
        self._lingered_bytes = 0
        self._connections.idle(self)
        self._stop_timer()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _leave_cycle(self) -> None:
        """Take the connection from a request that is under way; its answer may have begun."""
        if self.cycle.response_started:
            self.transport.abort()
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _linger(self, more_bytes: int) -> None:
        """Read what a refused client still sends, up to a bound: a reset would hide the answer."""
        self._lingered_bytes = (self._lingered_bytes or 0) + more_bytes
        if self._lingered_bytes > _LINGER_BYTES:
            self.transport.abort()
