"""Requests to the API, and what an answer has to look like."""

import asyncio
import base64
from collections.abc import Iterable
from typing import Any

import httpx
from starlette.types import ASGIApp, Message

from app.web.schemas import Problem

RAW = {"content-type": "image/jpeg"}


def as_json(*images: bytes, **options: Any) -> dict[str, Any]:
    return {"images": [{"data": base64.b64encode(image).decode()} for image in images], **options}


def as_files(*images: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{n}.jpg", image, "image/jpeg")) for n, image in enumerate(images)]


def captions(answer: httpx.Response) -> list[str | None]:
    assert answer.status_code == 200, answer.text
    return [result.get("caption") for result in answer.json()["results"]]


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check a problem down to its headers and give its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert "0x" not in answer.text
    body = Problem.model_validate(answer.json()).model_dump()
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


async def ask(
    app: ASGIApp,
    *messages: Message,
    headers: Iterable[tuple[bytes, bytes]] = (),
    hold: asyncio.Event | None = None,
) -> tuple[int | None, int]:
    """Send ASGI messages one by one, then wait for ``hold``; give the status and what was read."""
    left = list(messages)
    sent: list[Message] = []

    async def receive() -> Message:
        if left:
            return left.pop(0)
        await (hold or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/captions",
        "query_string": b"",
        "headers": [(b"content-type", b"image/jpeg"), *headers],
    }
    await app(scope, receive, send)
    return (sent[0]["status"] if sent else None), len(messages) - len(left)


def piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}
