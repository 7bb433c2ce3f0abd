"""Which port answers what, where operators have one of their own. Pure ASGI."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from app.web.page import assets

OPERATORS_PATHS: Final = frozenset({"/metrics", "/openapi.json", *assets.DOCS_PATHS})
"""What callers have no need of: it moves to the operators' port, where there is one."""


class Ports:
    """ASGI layer: what is the operators' is on their port alone, which has all else as well.

    Args:
        app: What answers.
        admin_port: Their port. It is that of the socket, whatever the request calls its host.
    """

    def __init__(self, app: ASGIApp, *, admin_port: int) -> None:
        self.app = app
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            HTTPException: 404, for what is on the other port.
        """
        if scope["type"] == "http" and scope["path"] in OPERATORS_PATHS:
            _, port = scope.get("server") or (None, None)
            if port != self._admin_port:
                raise HTTPException(404)
        await self.app(scope, receive, send)
