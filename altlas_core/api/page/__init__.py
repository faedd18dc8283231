"""The live page of `altlas serve`: one HTML page, its style, its modules and plotly.js, all served by us.

The page asks no other host for anything, and its Content-Security-Policy says so.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

HERE: Final = Path(__file__).parent
TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
PAGE_TYPE: Final = "text/html; charset=utf-8"
REVALIDATE: Final = "no-cache"  # kept, but asked about by its ETag: a new version is never missed
GZIP_LEVEL: Final = 6  # 1.47 MB of plotly.js instead of 4.82 MB; level 9 saves 3 kB more
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; "  # plotly.js styles its elements in place
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class StaticFile:
    """A file kept in memory, gzipped, with an ETag that follows from its content."""

    __slots__ = ("etag", "gzipped", "media_type", "plain")

    def __init__(self, content: bytes, media_type: str) -> None:
        self.media_type = media_type
        self.plain = content
        self.gzipped = gzip.compress(content, GZIP_LEVEL, mtime=0)
        self.etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'

    def answer(self, request: Request, more_headers: dict[str, str]) -> Response:
        """The content in an encoding the client takes, or 304 where the client has it already."""
        from starlette.responses import Response

        headers = {"ETag": self.etag, "Cache-Control": REVALIDATE, "Vary": "Accept-Encoding", **more_headers}
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or self.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        if not _takes_gzip(request.headers.get("accept-encoding", "")):
            return Response(self.plain, headers=headers, media_type=self.media_type)
        headers["Content-Encoding"] = "gzip"
        return Response(self.gzipped, headers=headers, media_type=self.media_type)


def _takes_gzip(accept_encoding: str) -> bool:
    for entry in accept_encoding.lower().split(","):
        name, _, weight = entry.replace(" ", "").partition(";")
        if name in ("gzip", "*"):
            return weight not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def page_routes() -> list[Route]:
    """`/`, `/assets/NAME` for each style sheet and module in this folder, and `/assets/plotly.min.js`.

    Our own files are read now. plotly.js (5 MB) is read and gzipped when it is first asked for.
    """
    from starlette.routing import Route

    policy = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    index = StaticFile((HERE / "index.html").read_bytes(), PAGE_TYPE)
    files = {"/assets/" + path.name: path for path in sorted(HERE.iterdir()) if path.suffix in TYPES}
    return [
        Route("/", _serve(index, policy), name="page"),
        *(Route(url, _serve(StaticFile(path.read_bytes(), TYPES[path.suffix]), {})) for url, path in files.items()),
        Route("/assets/plotly.min.js", _serve_plotly()),
    ]


def _serve(file: StaticFile, more_headers: dict[str, str]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return file.answer(request, more_headers)

    return endpoint


def _serve_plotly() -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:  # not async: starlette calls it on a thread, so gzip holds nobody up
        return plotly_file().answer(request, {})

    return endpoint


@cache
def plotly_file() -> StaticFile:
    """plotly.js as the installed plotly package has it."""
    source = resources.files("plotly") / "package_data" / "plotly.min.js"
    return StaticFile(source.read_bytes(), TYPES[".js"])
