"""The path of a request as the routes know it. Pure ASGI.

A proxy may leave its prefix in the path or take it away, and a trailing slash means the same path.
"""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def _reads(scope: Scope) -> bool:
    return scope["method"] in {"GET", "HEAD"}


class Paths:
    """Outermost ASGI layer: takes away the prefix, and one slash at the end.

    Args:
        app: What sees the path then.
        root_path: The prefix under which clients find the service; empty where there is none.
    """

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            if self._root_path and scope["path"] == self._root_path and _reads(scope):
                # the page's links are relative: without the slash they would leave the prefix
                await RedirectResponse(f"{self._root_path}/", 308)(scope, receive, send)
                return
            scope["path"] = self._inner(scope["path"])
            raw_path: bytes | None = scope.get("raw_path")
            if raw_path is not None:
                scope["raw_path"] = self._inner(raw_path.decode("latin-1")).encode("latin-1")
            scope["root_path"] = self._root_path
        await self.app(scope, receive, send)

    def _inner(self, path: str) -> str:
        if self._root_path and path.startswith(f"{self._root_path}/"):
            path = path[len(self._root_path) :]
        elif self._root_path and path == self._root_path:
            path = "/"
        return path[:-1] if len(path) > 1 and path.endswith("/") else path
