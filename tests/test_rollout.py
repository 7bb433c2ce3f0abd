"""A rolling restart under load, behind a balancer that never retries: nobody notices."""

import asyncio
import contextlib
import signal

import httpx
import pytest

from support.photos import photo
from support.service_process import Process

PROBE_EVERY_S = 0.2
CALLERS = 3


class Balancer:
    """Passes each request to a backend that said it was ready, once."""

    def __init__(self, ports):
        self.ports = ports
        self.ready = []
        self.served = dict.fromkeys(ports, 0)

    async def probe(self):
        async with httpx.AsyncClient(timeout=2) as client:
            while True:
                said = [await self._is_ready(client, port) for port in self.ports]
                self.ready = [port for port, ok in zip(self.ports, said, strict=True) if ok]
                await asyncio.sleep(PROBE_EVERY_S)

    async def _is_ready(self, client, port):
        with contextlib.suppress(httpx.HTTPError):
            return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        return False

    async def serve_one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(httpx.Headers(_fields(head))["content-length"])
        port = min(self.ready, key=self.served.get)
        self.served[port] += 1
        from_backend, to_backend = await asyncio.open_connection("127.0.0.1", port)
        to_backend.write(head + await reader.readexactly(length))
        writer.write(await from_backend.read())  # the caller asked for "connection: close"
        await writer.drain()
        for end in (writer, to_backend):
            end.close()


def _fields(head):
    return [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")[1:] if line]


async def call_until(stop, url, statuses):
    body, headers = photo(), {"content-type": "image/png", "connection": "close"}
    async with httpx.AsyncClient(timeout=30) as client:
        while not stop.is_set():
            try:
                answer = await client.post(f"{url}/v1/captions", content=body, headers=headers)
                statuses.append(answer.status_code)
            except httpx.HTTPError as error:
                statuses.append(repr(error))


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - other processes change it
            await asyncio.sleep(0.05)


async def restart(old, new, statuses):
    balancer, stop = Balancer([old.port, new.port]), asyncio.Event()
    await asyncio.to_thread(old.wait_for, "/readyz", 200)
    probing = asyncio.create_task(balancer.probe())
    server = await asyncio.start_server(balancer.serve_one, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await until(lambda: balancer.ready)
    callers = [asyncio.create_task(call_until(stop, url, statuses)) for _ in range(CALLERS)]
    await asyncio.to_thread(new.wait_for, "/readyz", 200)
    await until(lambda: balancer.served[new.port] >= 5)
    old.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(old.process.wait, 60)
    ended_at = balancer.served[new.port]
    await until(lambda: balancer.served[new.port] >= ended_at + 5)
    stop.set()
    await asyncio.gather(*callers)
    probing.cancel()
    server.close()
    return code, balancer.served


@pytest.mark.long
@pytest.mark.timeout(200)
def test_a_restart_under_load_loses_no_request(checkpoint, tmp_path):
    statuses = []
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with (
        Process(checkpoint, tmp_path / "old", DRAIN_DELAY_S=2) as old,
        Process(checkpoint, tmp_path / "new") as new,
    ):
        code, served = asyncio.run(restart(old, new, statuses))
    assert code == 0
    assert all(served.values())
    print(len(statuses), "requests", served)
    assert [status for status in statuses if status != 200] == []
    assert len(statuses) == sum(served.values()) >= 10
