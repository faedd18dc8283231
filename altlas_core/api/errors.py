"""The one error body of the API: {"error": "what and what to do", "code": "..."}."""

from __future__ import annotations

from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import Final

from starlette.responses import Response

STATUS_OF_CODE: Final = {
    "invalid_http": 400,
    "invalid_json": 400,
    "missing_field": 400,
    "bad_host": 400,
    "bad_length": 400,
    "body_timeout": 400,
    "cross_site": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "idempotency_key_reused": 409,
    "too_large": 413,
    "invalid_field": 422,
    "queue_full": 429,
    "internal": 500,
    "not_ready": 503,
    "shutting_down": 503,
}


class ApiError(Exception):
    """A request that is refused. The status follows from the code; `headers` go out with the answer."""

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = STATUS_OF_CODE[code]
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    def response(self) -> Response:
        return error_response(self.status, self.code, self.message, self.headers)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a refused request: ASCII JSON, whatever is in the message."""
    body = f'{{"error": {encode_basestring_ascii(message)}, "code": {encode_basestring_ascii(code)}}}'
    return Response(body, status, headers, media_type="application/json")
