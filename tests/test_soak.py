"""Thousands of requests, good and bad mixed: everyone is answered, and nothing piles up.

``SOAK_REQUESTS`` makes it longer than the tests need.
"""

import asyncio
import base64
import contextlib
import os
import struct
import time
import zlib
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from support.photos import photo
from support.service_process import Process

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "3600"))
WARM_UP = REQUESTS // 6
CALLERS = 8
LOOKS = 12
LEAK_MIB = 1
MAX_UPLOAD_BYTES = 100_000
GAUGES = ("queue_depth ", "inflight_requests ", "inflight_bytes ")


def bomb():
    """A photo whose header promises 30000 x 30000 pixels."""
    png = bytearray(photo())
    png[16:24] = struct.pack(">II", 30_000, 30_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def raw(content, kind="image/png", **headers):
    return {"content": content, "headers": {"content-type": kind, **headers}}


async def in_pieces(content):
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


def kinds():
    """Pair ways to ask with the status each must get."""
    good, jpeg = photo(), photo(1, width=400, height=300, kind="JPEG")
    two = [("image", ("a.png", good)), ("image", ("b.png", good[:300]))]
    data = base64.b64encode(jpeg).decode()
    return [
        (lambda: raw(good), 200),
        (lambda: raw(jpeg, "image/jpeg"), 200),
        (lambda: raw(in_pieces(jpeg)), 200),
        (lambda: {"files": two}, 200),
        (lambda: {"json": {"images": [{"data": data}], "n_best": 3}}, 200),
        (lambda: raw(good[:300]), 422),
        (lambda: raw(b""), 422),
        (lambda: raw(b"%PDF-1.4" + bytes(100)), 415),
        (lambda: raw(bomb()), 413),
        (lambda: raw(bytes(MAX_UPLOAD_BYTES + 1)), 413),
        (lambda: raw(in_pieces(bytes(MAX_UPLOAD_BYTES + 1))), 413),
        (lambda: raw(good, **{"content-encoding": "gzip"}), 415),
        (lambda: raw(b"[" * 5000, "application/json"), 422),
        (lambda: raw(b"--x\r\n" * 500, "multipart/form-data; boundary=x"), 422),
        (lambda: raw(good, **{"x-request-timeout": "0.000001"}), 504),
    ]


class Callers:
    """Several callers who work through one row of numbered requests."""

    def __init__(self, service):
        self.service = service
        self.answered, self.left, self.wrong, self.looks = 0, 0, [], []

    async def run(self, numbers, *, callers=CALLERS):
        row = iter(numbers)
        await asyncio.gather(*(self._call(row) for _ in range(callers)))

    async def _call(self, row):
        ways = kinds()
        async with httpx.AsyncClient(base_url=self.service.url, timeout=60) as client:
            for number in row:
                if number % 20 == 7:
                    await self._leave(number)
                    continue
                ask, status = ways[number % len(ways)]
                answer = await client.post("/v1/captions", **ask())
                self.answered += 1
                # with others ahead, who has no time is refused before his body is read
                # or while it is read
                allowed = {408, 503, 504} if status == 504 else {status}
                if answer.status_code not in allowed:
                    self.wrong.append((number % len(ways), answer.status_code, answer.text))
                if number % (REQUESTS // LOOKS) == 0:
                    self.looks.append(resident_mib(self.service.process.pid))

    async def _leave(self, number):
        """Send half a request, or all of it, and hang up."""
        body = photo()
        sent = body[: len(body) // (1 + number % 3)]
        head = (
            f"POST /v1/captions HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        _, writer = await asyncio.open_connection("127.0.0.1", self.service.port)
        writer.write(head.encode() + sent)
        await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.left += 1


def resident_mib(pid):
    (line,) = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line
    ]
    return int(line.split()[1]) / 1024


def held(pid):
    """Count the threads and open files of a process."""
    process = Path(f"/proc/{pid}")
    return {name: len(list((process / name).iterdir())) for name in ("task", "fd")}


def metric(service, name, label=""):
    lines = service.client.get("/metrics").text.splitlines()
    ours = [line for line in lines if line.startswith(f"caption_{name}") and label in line]
    return sum(float(line.split()[-1]) for line in ours)


def wait_until_idle(service):
    """Let those who hung up be noticed."""
    for _ in range(100):
        if not any(metric(service, gauge) for gauge in GAUGES):
            return
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.timeout(max(300, REQUESTS))
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_soak_of_good_and_bad_requests_leaves_nothing_behind(checkpoint, tmp_path):
    limits = {"MAX_UPLOAD_BYTES": MAX_UPLOAD_BYTES, "LOG_LEVEL": "error"}
    with Process(checkpoint, tmp_path, **limits) as service:
        service.wait_for("/readyz", 200)
        callers = Callers(service)
        asyncio.run(callers.run(range(WARM_UP), callers=4 * CALLERS))
        wait_until_idle(service)
        holds = [held(service.process.pid)]
        for start, stop in pairwise((WARM_UP, (WARM_UP + REQUESTS) // 2, REQUESTS)):
            asyncio.run(callers.run(range(start, stop)))
            wait_until_idle(service)
            holds.append(held(service.process.pid))
        counted = metric(service, "requests_total{", 'route="/v1/captions"')
        waiting = [metric(service, gauge) for gauge in GAUGES]
    print(callers.answered, "answered", callers.left, "left", holds, callers.looks)
    assert callers.wrong[:3] == []
    assert callers.answered + callers.left == REQUESTS
    assert callers.answered <= counted <= REQUESTS  # who left may have been gone too soon
    assert waiting == [0, 0, 0]
    for what in ("task", "fd"):  # a pool makes a thread in one half, a leak shows in both
        assert min(after[what] - before[what] for before, after in pairwise(holds)) <= 0
    assert min(growth_mib(callers.looks)) < LEAK_MIB


def growth_mib(looks):
    """Give what each third of the looks grew by: a leak shows in all, a new arena in one."""
    third = len(looks) // 3
    return [looks[start + third - 1] - looks[start] for start in range(0, 3 * third, third)]
