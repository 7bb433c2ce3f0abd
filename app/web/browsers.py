"""What browsers want to know: which pages may read an answer, and that none is guessed at."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = ("GET", "HEAD", "POST")
_ASKED = (
    "accept", "authorization", "content-type", "traceparent", "tracestate", "x-api-key",
    "x-request-id", "x-request-timeout",
)  # fmt: skip
_TOLD = ("retry-after", "ratelimit", "ratelimit-policy", "server-timing", "x-request-id")
_PREFLIGHT_S = 7200  # what browsers keep at most
_NO_GUESSING = (b"x-content-type-options", b"nosniff")


def with_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let the pages of some origins read answers, those of all for ``*``; problems are answers too.

    Reference: https://fetch.spec.whatwg.org/#http-cors-protocol
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=_ASKED,
        expose_headers=_TOLD,
        max_age=_PREFLIGHT_S,
    )


class Browsers:
    """ASGI layer that says for every answer that its media type is meant, and who may read it.

    Args:
        app: What answers.
        origins: Whose pages may; a preflight needs no key and goes no further.
    """

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        self.app = with_origins(app, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], _NO_GUESSING]}
            await send(message)

        await self.app(scope, receive, sent if scope["type"] == "http" else send)
