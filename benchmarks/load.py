"""Load for the servers under test, and what came of it.

Closed loop: so many connections, each asks again once it has its answer; wrk where it is installed,
else Python. Open loop: requests arrive by the clock, whether the server keeps up or not.
"""

import asyncio
import io
import json
import math
import random
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import httptools
import numpy as np
import uvloop
from PIL import Image

HOST = "127.0.0.1"
TIMEOUT_S = 60.0
_BOUNDARY = "0f4c1d2e9b7a"
_WRK_SCRIPT = """
local requests, turn = {}, 0
function init(files)
  for i, name in ipairs(files) do
    local file = assert(io.open(name, "rb"))
    requests[i] = wrk.format("POST", wrk.path, {["Content-Type"] = "%(kind)s"}, file:read("*a"))
    file:close()
  end
end
function request()
  turn = turn %% #requests + 1
  return requests[turn]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\n{"answers": %%d, "seconds": %%f, "refused": %%d, "broken": %%d, ' ..
    '"p50_ms": %%f, "p99_ms": %%f}\\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


# --- photos and requests ------------------------------------------------------------------------


def photos(paths: Sequence[Path], long_side_px: int) -> list[bytes]:
    """Give each photo as a JPEG of this long side; without paths, two that are drawn."""
    images = [Image.open(path).convert("RGB") for path in paths] or [_drawn(0), _drawn(1)]
    return [_jpeg(image, long_side_px) for image in images]


def _drawn(seed: int) -> Image.Image:
    """Clouds of colour with detail at every scale, so that the file weighs what a photo weighs."""
    random_ = np.random.default_rng(seed)
    width, height = 1600, 1200
    sum_HWC = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        noise = random_.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        sum_HWC += np.asarray(layer, np.float32) / math.sqrt(cells)
    return Image.fromarray((sum_HWC * (255 / sum_HWC.max())).astype(np.uint8))


def _jpeg(image: Image.Image, long_side_px: int) -> bytes:
    scale = long_side_px / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


class Post(NamedTuple):
    """A request that waits to be sent."""

    path: str
    content_type: str
    body: bytes
    headers: tuple[str, ...] = ()  # further ones; wrk does not send them


def post(photo: bytes, path: str, form: Literal["raw", "multipart"]) -> Post:
    """Wrap a photo into the form that a server takes."""
    if form == "raw":
        return Post(path, "image/jpeg", photo)
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Post(path, f"multipart/form-data; boundary={_BOUNDARY}", body)


def key(*keys: str) -> tuple[str, ...]:
    """Give the headers that tell who is calling; none without a key."""
    return tuple(f"X-API-Key: {each}" for each in keys)


def free_port() -> int:
    """Give a port on loopback that nobody listens on."""
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
    return port


# --- one request --------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection to the server; it is opened when it is needed.

    It costs the cores little, since the server under test has the same ones.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parts: list[bytes] = []

    async def ask(self, post: Post) -> tuple[int, bytes]:
        """Send one request; give the status and the body of the answer.

        Raises:
            OSError: the connection broke, or what came was not HTTP.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, HOST, self._port)
        if self._transport is None:
            raise ConnectionResetError("the server hung up")
        self._answer = loop.create_future()
        self._transport.writelines([_head(post, self._port), post.body])
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()
        self._transport = None

    # what asyncio and httptools call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._transport = None
        self._fail(exc or ConnectionResetError("the server hung up"))

    def on_message_begin(self) -> None:  # noqa: D102
        self._parts = []

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self._parts.append(body)

    def on_message_complete(self) -> None:  # noqa: D102
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._parts)))
        if not self._parser.should_keep_alive():
            self.close()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()


def _head(post: Post, port: int) -> bytes:
    lines = (
        f"POST {post.path} HTTP/1.1",
        f"Host: {HOST}:{port}",
        f"Content-Type: {post.content_type}",
        f"Content-Length: {len(post.body)}",
        *post.headers,
    )
    return "\r\n".join((*lines, "\r\n")).encode()


def ask(port: int, post: Post, *, timeout_s: float = TIMEOUT_S) -> tuple[int, bytes]:
    """Send one request over a connection of its own.

    Raises:
        OSError: nobody listens, the connection broke, or no answer came in time.
    """

    async def once() -> tuple[int, bytes]:
        connection = Connection(port)
        try:
            return await asyncio.wait_for(connection.ask(post), timeout_s)
        finally:
            connection.close()

    return uvloop.run(once())


def let_it_rest(port: int, post: Post, *, patience_s: float = TIMEOUT_S) -> None:
    """Wait until a server is done with what it was asked before, by who has left as well.

    Most servers work off abandoned requests, and whoever asks next waits for them. A request alone
    is answered after them; the second one in a row surely is.

    Raises:
        TimeoutError: it captions none however often it is asked.
    """
    for _ in range(5):
        with suppress(OSError):
            answers = [ask(port, post, timeout_s=patience_s) for _ in range(2)]
            if all(status == 200 for status, _ in answers):
                return
    raise TimeoutError("is still busy with what it was asked before")


def caption_of(body: bytes) -> str:
    """Find the caption in the answer of any of the servers; empty where there is none."""
    said = json.loads(body)
    while not isinstance(said, str):
        if isinstance(said, list):
            said = said[0]
        else:
            said = said.get("caption") or said.get("results") or ""
    return said


# --- closed loop --------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a closed loop saw.

    Attributes:
        answers: those with status 200.
        seconds: how long it ran.
        errors: other statuses, broken connections, no answer within a minute.
        p50_ms: median latency.
        p99_ms: 99th percentile.
    """

    answers: int
    seconds: float
    errors: int
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


def closed_loop(port: int, posts: Sequence[Post], *, concurrency: int, seconds: float) -> Outcome:
    """Keep ``concurrency`` requests under way; the posts take turns."""
    if wrk := shutil.which("wrk"):
        return _with_wrk(wrk, port, posts, concurrency, seconds)
    return uvloop.run(_with_python(port, posts, concurrency, seconds))


def generator() -> str:
    """Name what makes the closed loop's load."""
    return "wrk" if shutil.which("wrk") else "python"


def _with_wrk(
    wrk: str, port: int, posts: Sequence[Post], concurrency: int, seconds: float
) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(_WRK_SCRIPT % {"kind": posts[0].content_type}, encoding="utf-8")
        files = [Path(folder) / str(index) for index in range(len(posts))]
        for file, each in zip(files, posts, strict=True):
            file.write_bytes(each.body)
        load = [f"-t1 -c{concurrency} -d{math.ceil(seconds)}s --timeout {TIMEOUT_S:.0f}s"]
        url = f"http://{HOST}:{port}{posts[0].path}"
        command = [wrk, *load[0].split(), "-s", script, url, "--", *files]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return read_wrk(ran.stdout + ran.stderr)


def read_wrk(printed: str) -> Outcome:
    """Read the JSON line that our script makes wrk print at its end.

    Raises:
        ValueError: there is none.
    """
    for line in reversed(printed.splitlines()):
        if line.startswith("{"):
            said = json.loads(line)
            errors = said["refused"] + said["broken"]
            answers = said["answers"] - said["refused"]
            return Outcome(answers, said["seconds"], errors, said["p50_ms"], said["p99_ms"])
    raise ValueError(f"wrk printed no JSON line: {printed[-200:]!r}")


async def _with_python(
    port: int, posts: Sequence[Post], concurrency: int, seconds: float
) -> Outcome:
    started_s = time.perf_counter()
    taken_ms: list[float] = []
    errors = 0

    async def user(number: int) -> None:
        nonlocal errors
        connection, turn = Connection(port), number
        while (began_s := time.perf_counter()) < started_s + seconds:
            each, turn = posts[turn % len(posts)], turn + 1
            if await _accepted(connection, each):
                taken_ms.append((time.perf_counter() - began_s) * 1e3)
            else:
                errors += 1
        connection.close()

    await asyncio.gather(*(user(number) for number in range(concurrency)))
    lasted_s = time.perf_counter() - started_s
    return Outcome(
        len(taken_ms), lasted_s, errors, percentile(taken_ms, 50), percentile(taken_ms, 99)
    )


async def _accepted(connection: Connection, each: Post) -> bool:
    try:
        status, _ = await asyncio.wait_for(connection.ask(each), TIMEOUT_S)
    except OSError:
        connection.close()
        await asyncio.sleep(0.05)
        return False
    return status == 200


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that ``percent`` of them do not exceed; not a number without any."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


# --- open loop ----------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What became of one arrival: status 0 for a broken connection or none within the patience."""

    status: int
    taken_s: float


def arrivals(rate_per_s: float, seconds: float, *, seed: int, even: bool) -> list[float]:
    """Give the moments of arrival: even, or of a Poisson process with that seed."""
    if even:
        return [index / rate_per_s for index in range(int(rate_per_s * seconds))]
    random_, moments, moment = random.Random(seed), [], 0.0
    while (moment := moment + random_.expovariate(rate_per_s)) < seconds:
        moments.append(moment)
    return moments


def open_loop(
    port: int, posts: Sequence[Post], moments: Sequence[float], *, patience_s: float
) -> list[Answer]:
    """Send one request at each moment, each over its own connection; wait so long for each."""

    async def arrival(index: int, started_s: float) -> Answer:
        at_s = started_s + moments[index]
        await asyncio.sleep(at_s - time.perf_counter())
        connection = Connection(port)
        try:
            asking = connection.ask(posts[index % len(posts)])
            status, _ = await asyncio.wait_for(asking, patience_s)
        except OSError:
            status = 0
        finally:
            connection.close()
        return Answer(status, time.perf_counter() - at_s)

    async def everybody() -> list[Answer]:
        started_s = time.perf_counter()
        return await asyncio.gather(*(arrival(index, started_s) for index in range(len(moments))))

    return uvloop.run(everybody())


# --- numbers --------------------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """Give the median; not a number without values."""
    return statistics.median(values) if values else math.nan


def without_nan(value: Any) -> Any:
    """Put null where there is no number, so that every JSON reader takes the line."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(
    first: str, columns: Mapping[str, tuple[str, str]], rows: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Give the lines of a table.

    Args:
        first: title of the column of the rows' names.
        columns: title and format by the key of a value.
        rows: values by name.
    """
    width = max(map(len, (first, *rows))) + 1
    titles = "".join(heading(title, form) for title, form in columns.values())
    lines = [
        f"{name:{width}}" + "".join(format(row[key], form) for key, (_, form) in columns.items())
        for name, row in rows.items()
    ]
    return [f"{first:{width}}{titles}", *lines]


def heading(title: str, form: str) -> str:
    """Right-align a title above the numbers of a format such as ``9.2f``."""
    return title.rjust(int(form.partition(".")[0]))
