"""Transports of httpx that answer by a script."""

from collections.abc import Callable

import httpx

Scripted = httpx.Response | Exception | Callable[[], httpx.Response]


def answering(*answers: Scripted) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """Give a transport that answers in order, the last for ever, and what it was asked."""
    left, asked = list(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        given = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(given, Exception):
            raise given
        if isinstance(given, httpx.Response):
            return httpx.Response(given.status_code, headers=given.headers, content=given.content)
        return given()

    return httpx.MockTransport(answer), asked
