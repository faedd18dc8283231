"""What every request passes before the app sees it, and every answer on its way out. Pure ASGI, a few microseconds.

Put it where exceptions of the app still reach it: `app.add_middleware(Gate, ...)`, or around a bare router. Around a
whole Starlette app it would meet the answer that app has already made of an exception.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from asyncio import CancelledError
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from altlas_core.api.access_log import LineLog
from altlas_core.api.bodies import Body, Deadlines, too_large
from altlas_core.api.errors import ApiError
from altlas_core.api.keys import KEY_VARIABLE, HostNames, Keys
from altlas_core.api.metrics import Metrics

OPEN_PATHS: Final = frozenset({"/", "/health", "/ready"})  # and all under /assets/: no key is asked for there
LEFT_STATUS: Final = 499  # in the log only: the client left before there was an answer
LINGER_S: Final = 2.0  # how long the rest of a body that is too large is read and thrown away
SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
)

_READ = frozenset({b"host", b"authorization", b"x-request-id", b"sec-fetch-site", b"content-length"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger("altlas.api")


class Gate:
    """Middleware: request id, Host, cross-site, key, size and time of the body, security headers, access log, 500."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        hosts: HostNames,
        log: LineLog,
        max_body_bytes: int,
        body_timeout_s: float = 30.0,
        metrics: Metrics | None = None,
    ) -> None:
        self.app = app
        self.log = log
        self.metrics = metrics
        self._keys = keys
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes
        self._deadlines = Deadlines(body_timeout_s)
        self._id_prefix = os.urandom(4).hex()
        self._ids = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        seen: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _READ:  # one that comes twice becomes a value that no check accepts
                seen[name] = seen[name] + b", " + value if name in seen else value
        given_id = seen.get(b"x-request-id")
        if given_id is not None and _REQUEST_ID.fullmatch(given_id):
            request_id = given_id.decode("ascii")
        else:
            request_id = f"{self._id_prefix}-{next(self._ids)}"
        scope.setdefault("state", {})["request_id"] = request_id
        body = Body(receive, self._max_body_bytes, self._deadlines)
        exchange = _Exchange(self, scope, send, body, request_id)
        try:
            refusal = self._refusal(scope["method"], scope["path"], seen)
            if refusal is None:
                refusal = await exchange.run()
            if refusal is not None and not exchange.status:
                await exchange.refuse(refusal)
        finally:
            body.finish()
            exchange.finish()

    async def _not_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none here; one added later must not come past the keys unnoticed
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    def _refusal(self, method: str, path: str, seen: dict[bytes, bytes]) -> ApiError | None:
        """Why this request is refused before the app sees it, judged by its headers alone; None: it is not."""
        host = seen.get(b"host")
        if host is None or not self._hosts.allows(host):
            return _bad_host(host)
        if b"sec-fetch-site" in seen and b"cross-site" in seen[b"sec-fetch-site"] and method not in _SAFE_METHODS:
            return ApiError(
                "cross_site", "a page of another site may not do this; use a page of this server, or no browser"
            )
        if self._keys and path not in OPEN_PATHS and not path.startswith("/assets/"):
            authorization = seen.get(b"authorization")
            if not self._keys.match(authorization):
                return _unauthorized(authorization is not None)
        length = seen.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                return ApiError("bad_length", "Content-Length must be one whole number", {"connection": "close"})
            if len(length) > 18 or int(length) > self._max_body_bytes:
                return too_large(self._max_body_bytes)
        return None


class _Exchange:
    """One request and its answer: adds the headers, counts the bytes, writes the line."""

    __slots__ = ("_body", "_gate", "_refusing", "_request_id", "_scope", "_send", "_size_bytes", "_started", "status")

    def __init__(self, gate: Gate, scope: Scope, send: Send, body: Body, request_id: str) -> None:
        self._gate: Gate | None = gate
        self._scope = scope
        self._send = send
        self._body = body
        self._request_id = request_id
        self._started = time.perf_counter()
        self._size_bytes = 0
        self._refusing = False
        self.status = 0  # until an answer has begun

    async def run(self) -> ApiError | None:
        """Call the app; return how to answer where it has not done so itself."""
        assert self._gate is not None
        failure: Exception | None = None
        try:
            await self._gate.app(self._scope, self._body, self.send)
        except CancelledError:  # the server ends and has waited long enough; unanswered, it would tell a bare 500
            if not self.status:
                text = "the server has shut down before this was done; send it again to the next one"
                await self.refuse(ApiError("shutting_down", text, {"Retry-After": "5", "connection": "close"}))
            raise
        except Exception as error:
            failure = error
        if failure is None and self.status:
            return None
        if self._body.refusal is not None:
            return self._body.refusal
        if isinstance(failure, ApiError):
            return failure
        if self._body.left and (failure is None or isinstance(failure, ClientDisconnect)):
            return None
        extra = {"request_id": self._request_id}
        logger.error("%s", failure or "the app gave no answer", exc_info=failure, extra=extra)
        text = f"something broke inside the server; its log says more under the request id {self._request_id}"
        return ApiError("internal", text)

    async def send(self, message: Message) -> None:
        if self._body.refusal is not None and not self.status and not self._refusing:
            return  # the app made its own answer of an error that is ours to tell
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            names = {name for name, _ in headers}
            headers += [header for header in SECURITY_HEADERS if header[0] not in names]
            headers.append((b"x-request-id", self._request_id.encode("ascii")))
            await self._send({**message, "headers": headers})
            return
        await self._send(message)
        if kind == "http.response.body":
            self._size_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.finish()

    async def refuse(self, error: ApiError) -> None:
        self._refusing = True
        response = error.response()
        await self.send(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        if error.code == "too_large":
            await self.send({"type": "http.response.body", "body": response.body, "more_body": True})
            await self._body.drain(LINGER_S)
            await self.send({"type": "http.response.body", "body": b""})
        else:
            await self.send({"type": "http.response.body", "body": response.body})

    def finish(self) -> None:
        """The answer is complete, or nobody waits for it any more: write the line, once."""
        gate, self._gate = self._gate, None
        if gate is None:
            return
        scope = self._scope
        duration_s = time.perf_counter() - self._started
        client = scope.get("client")
        method, status = scope["method"], self.status or LEFT_STATUS
        size_bytes = 0 if method == "HEAD" else self._size_bytes
        now = time.time()
        gate.log.access(
            self._request_id, method, scope["path"], status, duration_s, size_bytes, client[0] if client else None, now
        )
        if gate.metrics is not None:
            gate.metrics.count_request(method, getattr(scope.get("route"), "path", None), status, duration_s)


def _bad_host(host: bytes | None) -> ApiError:
    if host is None:
        return ApiError("bad_host", "a Host header is needed")
    name = host[:100].decode("latin-1")
    text = (
        f"this server does not answer to the name {name!r}; use its IP address or localhost, or add it to the settings"
    )
    return ApiError("bad_host", text)


def _unauthorized(key_was_sent: bool) -> ApiError:
    challenge = 'Bearer realm="altlas"' + (', error="invalid_token"' if key_was_sent else "")
    what = "this API key is not one of the server's" if key_was_sent else "an API key is needed"
    text = f"{what}; send the header Authorization: Bearer KEY with a key of {KEY_VARIABLE} or of the server's key file"
    return ApiError("unauthorized", text, {"www-authenticate": challenge})
