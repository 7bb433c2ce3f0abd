"""Asks the service for its health over a connection of its own, as an orchestrator does.

How late the event loop comes to a call tells little of what a client waits for: its connection
waits to be accepted, its bytes to be read, its request to be begun, and each takes a turn of the
loop.
"""

import socket
import threading
import time
from collections.abc import Callable

_EVERY_S = 1.0
_TIMEOUT_S = 30.0
_REQUEST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised here, not bound


class SelfProbe:
    """Probes for as long as it is entered.

    Args:
        listening: Where the service listens.
        on_wait: Told from a thread how many seconds the first byte of the answer took; of what
            does not come, how long it was waited for.
    """

    def __init__(self, listening: socket.socket, on_wait: Callable[[float], None]) -> None:
        host, port, *_ = listening.getsockname()
        self._address = _EVERY_ADDRESS.get(host, host), port
        self._on_wait = on_wait
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="self-probe", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()  # it may be waiting for an answer: a daemon is left to itself

    def _run(self) -> None:
        while not self._closed.wait(_EVERY_S):
            began_s = time.monotonic()
            if self._ask() and not self._closed.is_set():
                self._on_wait(time.monotonic() - began_s)

    def _ask(self) -> bool:
        """Ask once; say whether the time that it took tells anything."""
        try:
            with socket.create_connection(self._address, timeout=_TIMEOUT_S) as connection:
                connection.sendall(_REQUEST)
                return bool(connection.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False
