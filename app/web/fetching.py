"""Images by web address: off until hosts are named, and never from inside the network.

An address is the caller's, so what it leads to is hostile twice over: it may be a service of the
machine's own network, and it may answer without end. Each hop of a redirect is checked: scheme,
port and host against what is allowed, every resolved address, and the peer of the connected socket,
which nobody can change any more. Proxies of the environment are not used.
"""

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from importlib.metadata import version
from posixpath import basename
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from app.observability import echo
from app.settings import Settings
from app.web.forms import CaptionRequest, Upload
from app.web.problems import FetchFailed

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 4
_MOST_AT_ONCE = 8
_PIECE_BYTES = 64 * 1024
_SAFE = "/%:=&?~+!$,;'@()*[]"  # what may stay as it is in a path and a query
_NOT_PUBLIC = "the address leads to a network that is not public"

Charge = Callable[[int], None]


class Fetcher:
    """Fetches uploads by their web addresses.

    Args:
        settings: Which hosts are allowed, how long a fetch may take, and how large an upload is.
    """

    def __init__(self, settings: Settings) -> None:
        self._hosts = settings.fetch_urls
        self._timeout_s = settings.fetch_timeout_s
        self._max_bytes = settings.max_upload_bytes
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="fetch")

    @property
    def is_on(self) -> bool:
        """Whether any host is allowed."""
        return bool(self._hosts)

    async def fetched(self, asked: CaptionRequest, charge: Charge) -> CaptionRequest:
        """Put the bytes in the place of addresses; together they may be as many as one body.

        Args:
            asked: A request, some of whose uploads may be addresses.
            charge: Told how many bytes more, or fewer, the request holds; may refuse them.

        Returns:
            The request, where an upload has its bytes, or what went wrong with it.
        """
        if not any(upload.url for upload in asked.uploads):
            return asked
        charge(self._max_bytes)
        left, uploads = self._max_bytes, list[Upload]()
        for upload in asked.uploads:
            uploads.append(await self._upload(upload, left))
            left -= len(uploads[-1].data) if upload.url else 0
        charge(-left)
        return replace(asked, uploads=tuple(uploads))

    async def _upload(self, upload: Upload, max_bytes: int) -> Upload:
        if upload.url is None:
            return upload
        try:
            data = await self._fetch(upload.url, max_bytes)
        except FetchFailed as fault:
            return replace(upload, fault=fault)
        name = echo.filename(unquote(basename(urlsplit(upload.url).path)))
        return replace(upload, data=data, filename=name or None)

    async def _fetch(self, url: str, max_bytes: int) -> bytes:
        job = _Job(self._hosts, self._timeout_s, max_bytes)
        try:
            async with asyncio.timeout(self._timeout_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, partial(job.run, url))
        except TimeoutError:
            raise FetchFailed("the address did not answer in time") from None
        finally:
            job.abort()

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def fetch(url: str, settings: Settings) -> bytes:
    """Fetch one file for who has no loop, with the checks and limits of `Fetcher`.

    Raises:
        FetchFailed: It is not allowed, or does not lead to a file within the limits.
    """
    job = _Job(settings.fetch_urls, settings.fetch_timeout_s, settings.max_upload_bytes)
    alarm = threading.Timer(settings.fetch_timeout_s, job.abort)
    alarm.daemon = True
    alarm.start()
    try:
        return job.run(url)
    finally:
        alarm.cancel()


class _Target(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str


class _Job:
    """One address, with its redirects; runs in a thread and can be ended from another."""

    def __init__(self, hosts: Sequence[str], timeout_s: float, max_bytes: int) -> None:
        self._hosts = hosts
        self._ends_s = time.monotonic() + timeout_s
        self._max_bytes = max_bytes
        self._socket: socket.socket | None = None
        self._aborted = False

    def run(self, url: str) -> bytes:
        """Follow an address to its bytes.

        Raises:
            FetchFailed: It is not allowed, or does not lead to a file within the limits.
        """
        try:
            return self._followed(url)
        except (OSError, HTTPException, ValueError):  # what it says could tell of our network
            raise FetchFailed("the address cannot be reached") from None

    def abort(self) -> None:
        """End it wherever it waits."""
        self._aborted = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _followed(self, url: str) -> bytes:
        for _ in range(_MOST_REDIRECTS + 1):
            target = _target(url, self._hosts)
            with closing(_Connection(self._connected(target), target)) as connection:
                connection.request("GET", target.path, headers=_headers())
                answer = connection.getresponse()
                if answer.status not in _REDIRECTS:
                    return self._body(answer)
                url = urljoin(url, answer.getheader("location", ""))
        raise FetchFailed("the address redirects too often")

    def _connected(self, target: _Target) -> socket.socket:
        left_s = self._ends_s - time.monotonic()
        if self._aborted or left_s <= 0:
            raise TimeoutError
        connected = _public_socket(target, left_s)
        self._socket = connected
        if self._aborted:
            connected.close()
            raise TimeoutError
        if target.scheme == "https":
            context = ssl.create_default_context()
            # Not on connect: a handshake that does not go on could not be ended then.
            encrypted = context.wrap_socket(
                connected, server_hostname=target.host, do_handshake_on_connect=False
            )
            self._socket = encrypted
            encrypted.do_handshake()
            return encrypted
        return connected

    def _body(self, answer: HTTPResponse) -> bytes:
        if answer.status != 200:
            raise FetchFailed(f"the address answered {answer.status}")
        if answer.getheader("content-encoding", "identity").lower() != "identity":
            raise FetchFailed("the address answered with a Content-Encoding")
        pieces, size = list[bytes](), 0
        while piece := answer.read(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > self._max_bytes:
                raise FetchFailed("the file at the address is too large", self._max_bytes)
        if answer.length:  # bytes that are still to come
            raise FetchFailed("the answer of the address ended early")
        return b"".join(pieces)


class _Connection(HTTPConnection):
    """HTTP over a socket that is connected already."""

    def __init__(self, connected: socket.socket, target: _Target) -> None:
        super().__init__(target.host, None if _is_usual(target) else target.port)
        self.sock = connected

    def connect(self) -> None:
        """Refuse to connect again."""
        raise ConnectionError


def _is_usual(target: _Target) -> bool:
    return _PORTS.get(target.scheme) == target.port


def _headers() -> dict[str, str]:
    agent = f"caption-service/{version('caption-service')}"
    return {"accept": "image/*", "accept-encoding": "identity", "user-agent": agent,
            "connection": "close"}  # fmt: skip


def _target(url: str, hosts: Sequence[str]) -> _Target:
    """Check one address.

    Raises:
        FetchFailed: It is not one of those that are allowed.
        ValueError: It is no address.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").encode("idna").decode("ascii").lower()
    port = parts.port or _PORTS.get(parts.scheme, 0)
    if parts.scheme not in _PORTS or not host or port not in _PORTS.values() or _has_user(parts):
        raise FetchFailed("expected http:// or https:// on its usual port, without a user name")
    if not any(_matches(host, each.lower()) for each in hosts):
        raise FetchFailed("this host is not one of those in CAPTION_FETCH_URLS")
    path = quote(parts.path or "/", safe=_SAFE)
    query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
    return _Target(parts.scheme, host, port, path + query)


def _has_user(parts: SplitResult) -> bool:
    return parts.username is not None or parts.password is not None


def _matches(host: str, allowed: str) -> bool:
    if allowed == "*":
        return True
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _public_socket(target: _Target, timeout_s: float) -> socket.socket:
    """Connect to the first public address of a host that takes it.

    Raises:
        FetchFailed: It has none.
        OSError: None takes it.
    """
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    if not addresses or not all(map(_is_public, addresses)):
        raise FetchFailed(_NOT_PUBLIC)
    connected = socket.create_connection((addresses[0], target.port), timeout=timeout_s)
    if not _is_public(str(connected.getpeername()[0])):
        connected.close()
        raise FetchFailed(_NOT_PUBLIC)
    return connected


def _is_public(text: str) -> bool:
    """Say whether an address is one of the public internet, however it is wrapped up."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour
        if wrapped is not None:
            address = wrapped
        elif address.teredo is not None or address in _NAT64:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
