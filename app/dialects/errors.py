"""Problems on a dialect's paths -> errors in its own shape. Pure ASGI.

It stands outside of all that can refuse a request, so keys, limits and deadlines need not know of
dialects.
"""

import json
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dialects.dialect import Dialect

_PROBLEM = "application/problem+json"
_OF_CONTENT = {HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY}


class DialectErrors:
    """ASGI layer that rewrites the problems on a dialect's paths.

    Args:
        app: What answers.
        dialects: Those that are switched on.
    """

    def __init__(self, app: ASGIApp, *, dialects: Sequence[Dialect]) -> None:
        self.app = app
        self._dialects = dialects
        self._prefixes = tuple(prefix for each in dialects for prefix in each.prefixes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(self._prefixes):
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        dialect = next(each for each in self._dialects if path.startswith(each.prefixes))
        await self.app(scope, receive, _Translation(dialect, send))


class _Translation:
    """Passes an answer on, and a problem in the dialect's shape."""

    def __init__(self, dialect: Dialect, send: Send) -> None:
        self._dialect = dialect
        self._send = send
        self._problem_begins: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_problem(message):
            self._problem_begins = message
        elif self._problem_begins is None:
            await self._send(message)
        else:  # the body of a problem is sent in one piece
            begins, self._problem_begins = self._problem_begins, None
            await self._send_error(begins, message)

    async def _send_error(self, begins: Message, message: Message) -> None:
        body = json.dumps(self._dialect.error(json.loads(message["body"]))).encode()
        headers = MutableHeaders(raw=list(begins["headers"]))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        status = _status(begins["status"])
        await self._send({**begins, "status": status, "headers": headers.raw})
        await self._send({**message, "body": body})


def _is_problem(message: Message) -> bool:
    return MutableHeaders(raw=list(message["headers"])).get("content-type") == _PROBLEM


def _status(status: int) -> int:
    """Give the status that the other services have: 400 for whatever is wrong with the content."""
    return HTTPStatus.BAD_REQUEST.value if status in _OF_CONTENT else status
