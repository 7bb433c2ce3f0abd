"""HTTP/1.1 byte by byte, through a real socket and the whole application."""

import asyncio
import json
import socket

import pytest
import uvloop

from support.fake import FakeCaptioner, serving, until
from support.sockets import connected, listening

LIVEZ = b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n"
NOT_HTTP = (
    b"\x16\x03\x01\x02\x00\x01",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /livez\r\n\r\n",
    b"GET /livez HTTP/2.0\r\n\r\n",
    b"GET /livez HTTP/1.1\nhost: a\n\n",
    b"GET /livez HTTP/1.1\r\nhost : a\r\n\r\n",
    b"POST /v1/captions HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    b"POST /v1/captions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/captions HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
)
AMBIGUOUS_CHUNKS = (
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5x\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"1" * 17 + b"\r\n",
    b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
    b"\r\nhello\r\n",
    b"0\r\n" + b"a: b\r\n" * 3000,
)


def post(body, *fields, length=None):
    lines = [
        b"POST /v1/captions HTTP/1.1",
        b"host: a",
        b"content-type: image/jpeg",
        b"content-length: %d" % (len(body) if length is None else length),
        *fields,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*chunks):
    head = post(b"", length=0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


def caption(answer):
    status, _, body = answer
    assert status == 200, body
    return json.loads(body)["results"][0]["caption"]


def code(answer):
    status, fields, body = answer
    told = json.loads(body)
    assert fields["content-type"] == "application/problem+json"
    assert fields["connection"] == "close"
    assert fields["x-request-id"] == told["request_id"]
    assert told["status"] == status
    return told["code"]


async def ended_for(client, reason):
    metrics = (await client.get("/metrics")).text
    return f'caption_connections_ended_total{{reason="{reason}"}} ' in metrics


# Heads


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 50, 10_000])
async def test_a_request_is_the_same_in_whatever_pieces_it_comes(size):
    whole = post(b"one") + chunked(b"t", b"wo") + LIVEZ + post(b"three")
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    async with (
        serving() as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        await caller.send(*pieces)
        assert caption(await caller.answer()) == "one"
        assert caption(await caller.answer()) == "two"
        assert (await caller.answer())[0] == 200
        assert caption(await caller.answer()) == "three"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 101,
        b"GET /livez HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 33_000,
        b"GET /livez?" + b"y" * 33_000 + b" HTTP/1.1\r\n",
        b"POST /v1/captions HTTP/1.1\r\ncontent-type: multipart/form-data" + b";" * 300_000,
    ],
    ids=["fields", "value", "target", "content-type"],
)
async def test_a_head_without_end_is_refused_and_the_client_reads_why(head):
    async with (
        serving() as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        await caller.send(head[:20], head[20:])
        answer = await caller.answer()
        assert answer[0] == 431
        assert code(answer) == "head_too_large"
        assert await caller.ended()
        assert await ended_for(client, "head_too_large")


async def test_an_ordinary_head_of_thirty_kilobytes_and_a_hundred_fields_is_read():
    cookies = [b"x-%d: %s" % (n, b"y" * 300) for n in range(96)]
    async with (
        serving() as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        await caller.send(post(b"photo", *cookies))
        assert caption(await caller.answer()) == "photo"


async def test_what_is_not_http_is_refused_at_once():
    async with serving() as client, listening(client.app) as server:
        for request_bytes in NOT_HTTP:
            async with connected(server.port) as caller:
                await caller.send(request_bytes)
                assert code(await caller.answer()) == "malformed_request", request_bytes


@pytest.mark.parametrize("pieces", [1, 3])
async def test_an_offer_to_upgrade_is_ignored_and_the_body_is_the_body(pieces):
    inner = b"GET /v1/models HTTP/1.1\r\nx-request-id: SMUGGLED\r\n\r\n"
    async with serving() as client, listening(client.app) as server:
        for offer in (b"h2c", b"websocket", b"TLS/1.0", b"foo"):
            fields = b"connection: Upgrade, HTTP2-Settings", b"upgrade: " + offer
            in_chunks = chunked(b"in chunks").replace(
                b"host: a", b"host: a\r\n" + b"\r\n".join(fields)
            )
            whole = post(inner, *fields) + in_chunks
            size = len(whole) // pieces + 1
            async with connected(server.port) as caller:
                await caller.send(*[whole[at : at + size] for at in range(0, len(whole), size)])
                assert caption(await caller.answer()) == inner.decode()
                assert caption(await caller.answer()) == "in chunks"
                await caller.send(LIVEZ)
                assert (await caller.answer())[0] == 200


# Bodies


async def test_chunks_that_two_readers_could_take_differently_are_refused():
    async with serving() as client, listening(client.app) as server:
        for body in AMBIGUOUS_CHUNKS:
            async with connected(server.port) as caller:
                await caller.send(chunked().removesuffix(b"0\r\n\r\n") + body)
                assert code(await caller.answer()) == "malformed_request", body


async def test_extensions_and_trailers_of_chunks_are_ignored():
    async with (
        serving() as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        body = b'5;name="x y"\r\nhello\r\n0\r\nx-check: 1\r\n\r\n'
        await caller.send(chunked().removesuffix(b"0\r\n\r\n") + body + LIVEZ)
        assert caption(await caller.answer()) == "hello"
        assert (await caller.answer())[0] == 200


async def test_a_body_in_far_too_many_chunks_is_refused():
    async with (
        serving() as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        await caller.send(chunked(*[b"x"] * 20_000))
        assert code(await caller.answer()) == "malformed_request"


async def test_a_client_that_asks_first_is_told_to_go_on():
    async with (
        serving() as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        await caller.send(post(b"", b"expect: 100-continue", length=5))
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.send(b"photo")
        assert caption(await caller.answer()) == "photo"


async def test_a_body_that_no_route_reads_does_not_become_the_next_request():
    async with (
        serving() as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        inner = b"GET /v1/models HTTP/1.1\r\nx-request-id: SMUGGLED\r\n\r\n"
        await caller.send(post(b"", length=len(inner)).replace(b"/v1/captions", b"/livez"))
        assert (await caller.answer())[0] == 405
        await caller.send(inner, LIVEZ)
        status, fields, _ = await caller.answer()
        assert (status, fields["x-request-id"] != "SMUGGLED") == (200, True)


# Requests sent ahead


async def test_requests_sent_ahead_are_answered_in_order_and_one_at_a_time():
    captioner = FakeCaptioner()
    async with (
        serving(captioner) as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        captioner.gate.clear()
        await caller.send(b"".join(post(b"%d" % n) for n in range(5)))
        await asyncio.to_thread(captioner.entered.wait, 10)
        assert client.app.state.app_state.metrics.inflight_requests._value.get() == 1
        captioner.gate.set()
        assert [caption(await caller.answer()) for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert [len(batch) for batch in captioner.batches] == [1] * 5


async def test_what_is_sent_ahead_stays_in_the_socket():
    captioner = FakeCaptioner()
    async with (
        serving(captioner) as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        captioner.gate.clear()
        await caller.send(post(b"first"))
        await asyncio.to_thread(captioner.entered.wait, 10)
        caller.writer.write(post(b"x" * 10**7))
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert server.connections.ahead_bytes < 10**6
        captioner.gate.set()
        assert caption(await caller.answer()) == "first"
        assert len(caption(await caller.answer())) == 10**7
        assert server.connections.ahead_bytes == 0


async def test_what_all_send_ahead_is_bounded(monkeypatch):
    monkeypatch.setattr("app.web.connections._MOST_AHEAD_BYTES", 1000)
    captioner = FakeCaptioner()
    async with (
        serving(captioner) as client,
        listening(client.app) as server,
        connected(server.port) as caller,
    ):
        captioner.gate.clear()
        await caller.send(post(b"first"))
        await asyncio.to_thread(captioner.entered.wait, 10)
        await caller.send(post(b"x" * 2000))
        assert await caller.ended()
        captioner.gate.set()
        assert await ended_for(client, "too_much_ahead")
        assert server.connections.ahead_bytes == 0


# Who takes too long


@pytest.mark.parametrize("begun", [b"", b"GET /livez HTTP/1.1\r\nhost:", LIVEZ + b"G"])
async def test_a_head_that_does_not_come_is_given_up(begun):
    async with (
        serving() as client,
        listening(client.app, head_timeout_s=0.1) as server,
        connected(server.port) as caller,
    ):
        await caller.send(begun)
        assert await caller.ended()
        assert await ended_for(client, "head_timeout")
        assert len(server.connections) == 0


async def test_bytes_that_trickle_in_do_not_prolong_the_time_of_a_head():
    async with (
        serving() as client,
        listening(client.app, head_timeout_s=0.2) as server,
        connected(server.port) as caller,
    ):
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionError):
                await caller.send(b"GET /livez?", *[b"a"] * 20_000)


async def test_a_connection_waits_for_its_next_request(monkeypatch):
    monkeypatch.setattr("app.server._KEEP_ALIVE_S", 0.2)
    async with (
        serving() as client,
        listening(client.app, head_timeout_s=0.001) as server,
    ):
        async with connected(server.port) as caller:
            await caller.send(LIVEZ + LIVEZ)
            for _ in range(2):
                assert (await caller.answer())[0] == 200
            assert await caller.ended()
        assert await ended_for(client, "idle")


async def test_a_client_that_reads_nothing_is_given_up_and_its_place_is_free():
    captioner = FakeCaptioner()
    async with (
        serving(captioner, max_inflight_requests=1, max_queue=16) as client,
        listening(client.app, send_timeout_s=0.3) as server,
        connected(server.port, receive_bytes=2048) as caller,
    ):
        caller.reader._transport.pause_reading()
        caller.writer.write(post(b"x" * 500_000) * 30)
        await until(lambda: server.connections.unread_bytes > 0)
        inflight = client.app.state.app_state.metrics.inflight_requests
        await until(lambda: not len(server.connections) and not inflight._value.get())
        assert await ended_for(client, "unread")
        answer = await client.post(
            "/v1/captions", content=b"a", headers={"content-type": "image/jpeg"}
        )
        assert answer.status_code == 200
        assert server.connections.unread_bytes == 0


async def test_a_client_that_reads_slowly_and_steadily_gets_all_of_it():
    async with (
        serving() as client,
        listening(client.app, send_timeout_s=0.3) as server,
        connected(server.port, receive_bytes=65536) as caller,
    ):
        caller.reader._limit = 65536  # its transport pauses, as a slow client does
        caller.writer.write(post(b"x" * 3_000_000))
        head = await caller.reader.readuntil(b"\r\n\r\n")
        left, reads = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]), 0
        slow_s = asyncio.get_running_loop().time() + 1.5
        while left:
            piece = await caller.reader.read(20_000)
            assert piece, f"cut off with {left} bytes to come"
            left -= len(piece)
            reads += 1
            if asyncio.get_running_loop().time() < slow_s:
                await asyncio.sleep(0.02)
        assert reads > 50


async def test_what_nobody_reads_does_not_hold_up_the_end():
    async with (
        serving() as client,
        asyncio.timeout(10),
        listening(client.app, send_timeout_s=0.3) as server,
        connected(server.port, receive_bytes=2048) as caller,
    ):
        caller.reader._transport.pause_reading()
        caller.writer.write(post(b"x" * 500_000) * 30)
        await until(lambda: server.connections.unread_bytes > 0)
        server.should_exit = True
        await until(lambda: len(server.connections) == 0)


def test_who_hangs_up_at_once_is_not_begun():
    captioner = FakeCaptioner()

    async def hang_up_and_ask():
        async with serving(captioner) as client, listening(client.app) as server:
            for _ in range(20):
                connection = socket.create_connection(("127.0.0.1", server.port))
                connection.sendall(post(b"photo"))
                connection.close()  # all of it is there before the server looks
            async with connected(server.port) as caller:
                await caller.send(post(b"another"))
                assert caption(await caller.answer()) == "another"
            return (await client.get("/metrics")).text

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as in the service
        metrics = runner.run(hang_up_and_ask())
    assert 'outcome="client_closed",route="unmatched"} 20.0' in metrics
    assert captioner.batches == [[b"another"]]


async def test_little_that_nobody_reads_does_not_hold_up_the_end_either():
    description = b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n"
    async with serving() as client:
        async with (
            asyncio.timeout(20),
            listening(client.app, send_timeout_s=0.3) as server,
            connected(server.port, receive_bytes=2048) as caller,
        ):
            caller.reader._transport.pause_reading()
            asked = 0
            while not server.connections.unread_bytes:  # until the kernel takes no more
                asked += 1
                caller.writer.write(description)
                await until(lambda: server.server_state.total_requests == asked)  # noqa: B023
            assert server.connections.unread_bytes < 65536  # the transport thinks nothing of it
            server.should_exit = True
            await until(lambda: len(server.connections) == 0)
        assert await ended_for(client, "unread")


# Room


async def test_where_all_connections_are_taken_the_one_that_waited_longest_makes_room():
    async with (
        serving() as client,
        listening(client.app) as server,
    ):
        server.connections.most = 3
        async with (
            connected(server.port) as oldest,
            connected(server.port) as middle,
        ):
            await oldest.send(b"GET /livez")
            await until(lambda: len(server.connections) == 2)
            async with connected(server.port) as at_work:
                await at_work.send(post(b"", length=5))
                await until(lambda: len(server.connections) == 3)
                async with connected(server.port) as probe:
                    await probe.send(LIVEZ)
                    assert (await probe.answer())[0] == 200
                    assert await oldest.ended()
                    await at_work.send(b"photo")
                    assert caption(await at_work.answer()) == "photo"
            await middle.send(LIVEZ)
            assert (await middle.answer())[0] == 200
        assert await ended_for(client, "evicted")


async def test_a_thousand_that_come_and_wait_keep_no_probe_out():
    async with serving() as client, listening(client.app) as server:
        server.connections.most = 10
        waiting = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(300)]
        async with connected(server.port) as probe:
            await probe.send(LIVEZ)
            assert (await probe.answer())[0] == 200
        assert len(server.connections) <= 10
        for _, writer in waiting:
            writer.transport.abort()
