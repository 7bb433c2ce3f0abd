"""The files of the page and of the documentation, and how they are answered.

Each file is named here: no path that a caller writes is ever looked up on the disk.
"""

import gzip
import hashlib
import re
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HERE: Final = Path(__file__).parent
_SCRIPTS: Final = (
    "api", "app", "camera", "clip", "copies", "detail", "dom", "heat", "history", "intake", "keys",
    "kinds", "lines", "problems", "session", "sentence", "times", "tracks",
)  # fmt: skip
_PAGE: Final = {
    "/": "static/index.html",
    **{f"/page/{name}.js": f"static/{name}.js" for name in _SCRIPTS},
    **{f"/page/{name}": f"static/{name}" for name in ("style.css", "icon.svg", "dog.jpg")},
}
_DOCS_FILES: Final = {
    "docs.js": "docs/docs.js",
    "docs.css": "docs/docs.css",
    "icon.svg": "static/icon.svg",
    "swagger-ui.css": "docs/swagger-ui.css.gz",
    "swagger-ui-bundle.js": "docs/swagger-ui-bundle.js.gz",
}
# Addresses are relative, so that any prefix of a proxy is kept: /docs/ has its files one deeper.
_DOCS: Final = {
    "/docs": "docs/index.html",
    **{f"/docs/{name}": file for name, file in _DOCS_FILES.items()},
    **{f"/docs/docs/{name}": file for name, file in _DOCS_FILES.items()},
}
DOCS_PATHS: Final = frozenset(_DOCS)
PATHS: Final = frozenset({*_PAGE, *_DOCS})
"""Every path of this room. They need no key: they hold nothing of anybody's."""
LABELS: Final[Mapping[str, str]] = {
    path: path if path in {"/", "/docs"} else f"/{path.split('/')[1]}/*" for path in PATHS
}
"""What metrics and logs call each path."""

_DESCRIPTION: Final = b'href="openapi.json"'
_DOCS_LINK: Final = re.compile(rb'<p><a href="docs">.*?</a></p>|(?<=see )<a href="docs">(.*?)</a>')
_CLIPS: Final = re.compile(rb"(?<=hotos) (?:or|and) clips\b")
_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
)
# Photos, clips and their tracks are shown from memory, and nothing may turn text into markup.
_PAGE_POLICY: Final = (
    _POLICY + "img-src 'self' blob:; media-src blob:; require-trusted-types-for 'script'"
)
# Swagger UI draws its icons from its style sheet, and writes markup of its own.
_DOCS_POLICY: Final = _POLICY + "img-src 'self' data:"
_HEADERS: Final = {
    "cache-control": "no-cache",  # kept, and asked for with its ETag
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def routes(
    *, page: bool, root_path: str = "", links_docs: bool = True, clips: bool = True
) -> list[Route]:
    """Give the routes, with the content of their files.

    Args:
        page: Whether the page at ``/`` is served; the documentation always is.
        root_path: The prefix under which clients find the service; empty where there is none.
        links_docs: Whether the page leads to the documentation, which may be on another port.
        clips: Whether the page asks for clips beside photos.
    """
    policies = dict.fromkeys(_DOCS, _DOCS_POLICY)
    if page:
        policies |= dict.fromkeys(_PAGE, _PAGE_POLICY)
    files = {**_DOCS, **_PAGE}
    return [
        Route(
            path,
            _asset(files[path], policy, root_path, links_docs=links_docs, clips=clips).answer,
            include_in_schema=False,
        )
        for path, policy in policies.items()
    ]


@cache
def _asset(file: str, policy: str, root_path: str, *, links_docs: bool, clips: bool) -> "_Asset":
    """Give what several paths share, and several applications."""
    return _Asset(_HERE / file, policy, root_path, links_docs=links_docs, clips=clips)


class _Asset:
    """One file; what ends in ``.gz`` is sent as it is to whoever takes gzip."""

    def __init__(
        self, file: Path, policy: str, root_path: str, *, links_docs: bool, clips: bool
    ) -> None:
        data = file.read_bytes()
        if not links_docs and file.suffix == ".html":
            data = _DOCS_LINK.sub(rb"\1", data)
        if not clips and file.suffix == ".html":
            data = _CLIPS.sub(b"", data)
        if root_path and file.suffix == ".html":
            data = data.replace(_DESCRIPTION, f'href="{root_path}/openapi.json"'.encode())
        self._stored = _Content(data)
        self._is_gzip = file.suffix == ".gz"
        self._headers = {
            **_HEADERS,
            "content-type": _MEDIA_TYPES[Path(file.name.removesuffix(".gz")).suffix],
            "content-security-policy": policy,
        }
        if self._is_gzip:
            self._headers["vary"] = "accept-encoding"

    @cached_property
    def _unpacked(self) -> "_Content":
        """The content for the few who take no gzip; made once, so that they share its memory."""
        return _Content(gzip.decompress(self._stored.data))

    async def answer(self, request: Request) -> Response:
        """Answer GET and HEAD, and 304 to whoever has this content."""
        headers = dict(self._headers)
        content = self._stored
        if self._is_gzip and _takes_gzip(request.headers):
            headers["content-encoding"] = "gzip"
        elif self._is_gzip:
            content = self._unpacked
        headers["etag"] = content.etag
        if content.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content.data, headers=headers)  # of which HEAD gets the headers alone


class _Content:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def _takes_gzip(headers: Headers) -> bool:
    """Say whether gzip is among the codings that the caller takes (RFC 9110 12.5.3)."""
    for coding in headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = coding.replace(" ", "").partition(";")
        if name in {"gzip", "x-gzip"}:
            return not weight or bool(weight.removeprefix("q=").strip("0."))
    return False
