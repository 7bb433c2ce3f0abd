"""What is the operators' is on a port of their own, where they have one."""

import socket

import httpx
import pytest
from pydantic import ValidationError

from app.settings import Settings
from support.api import RAW, captions, problem
from support.fake import serving
from support.service_process import Process

OPERATORS = ("/metrics", "/docs", "/docs/docs.js", "/openapi.json")
CALLERS = ("/", "/page/app.js", "/readyz", "/livez", "/v1/models")
ADMIN = "http://test:9999"


@pytest.mark.parametrize("path", [*OPERATORS, "/metrics/", "/%6detrics", "/docs/"])
async def test_callers_find_nothing_of_the_operators(path):
    async with serving(admin_port=9999) as client:
        answer = await client.get(path)
        problem(answer, 404, "not_found")
        # what a request calls its host moves no door
        problem(await client.get(path, headers={"host": "test:9999"}), 404, "not_found")


async def test_the_operators_port_has_all():
    async with serving(admin_port=9999) as client:
        for path in (*OPERATORS, *CALLERS):
            assert (await client.get(f"{ADMIN}{path}")).status_code == 200, path
        for url in ("/v1/captions", f"{ADMIN}/v1/captions"):
            assert captions(await client.post(url, content=b"a dog", headers=RAW)) == ["a dog"]
        for path in CALLERS:
            assert (await client.get(path)).status_code == 200, path


async def test_the_page_does_not_lead_to_what_is_elsewhere():
    async with serving(admin_port=9999) as client:
        page = (await client.get("/")).text
    assert 'href="docs"' not in page
    assert "see its API" in page
    async with serving() as client:
        assert 'href="docs"' in (await client.get("/")).text


async def test_without_one_all_is_on_one_port():
    async with serving() as client:
        for path in (*OPERATORS, *CALLERS):
            assert (await client.get(path)).status_code == 200, path


def test_the_two_ports_must_differ():
    with pytest.raises(ValidationError, match="CAPTION_ADMIN_PORT: expected another port"):
        Settings(port=8000, admin_port=8000)


def test_a_service_listens_on_both(checkpoint, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Process(checkpoint, tmp_path, ADMIN_PORT=port) as service:
        service.wait_for("/readyz", 200)
        assert service.client.get("/metrics").status_code == 404
        assert "caption_ready 1.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        taken = Process(checkpoint, tmp_path, ADMIN_PORT=port)
        with taken:
            assert taken.process.wait(30) == 1
        told = taken.log.read_text()
    assert f"port {port} is taken by another program: choose another with --admin-port" in told
