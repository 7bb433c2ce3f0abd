"""A real server in this process, on a socket, with the connections that the service has."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

from app import server as app_server
from app.settings import Settings
from app.web.connections import Connections


class Server(app_server._Server):
    """The server of the service, and what a test looks at."""

    port: int
    connections: Connections


@contextlib.asynccontextmanager
async def listening(app: FastAPI, **settings: Any) -> AsyncIterator[Server]:
    """Serve an app; give the server, whose ``port`` and ``connections`` a test looks at."""
    chosen = Settings(**{**app.state.app_state.settings.model_dump(), **settings})
    connections = app_server._connections(chosen, app.state.app_state.metrics)
    config = app_server._uvicorn_config(app, chosen, connections)
    config.lifespan = "off"
    bound = socket.create_server(("127.0.0.1", 0))
    server = Server(config, connections)
    server.port, server.connections = bound.getsockname()[1], connections
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started:  # noqa: ASYNC110 - it does not say when
        await asyncio.sleep(0.001)
    try:
        yield server
    finally:
        server.should_exit = True
        await asyncio.wait_for(serving, 20)


class Client:
    """A connection that sends what a test says, byte by byte if need be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.001)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: its status, its fields and its body."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().split("\r\n")[:-2]
            fields = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        return int(status.split()[1]), fields, body

    async def ended(self) -> bool:
        """Say whether the server ends the connection within ten seconds, whatever it says first."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while await self.reader.read(65536):
                    pass
        return True


@contextlib.asynccontextmanager
async def connected(port: int, *, receive_bytes: int | None = None) -> AsyncIterator[Client]:
    """Give a client of a port; ``receive_bytes`` bounds what its kernel takes unread."""
    connection = socket.socket()
    connection.setblocking(False)
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**22)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
