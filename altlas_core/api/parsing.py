"""Bodies, ids and filters of requests: checked, or refused with what is wrong and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from altlas_core.api.errors import ApiError
from altlas_core.api.records import number_of

T = TypeVar("T", bound=BaseModel)
REQUIRED: Final = ("text", "texts")  # whose absence the first clients knew as 400
LONGEST_WAIT_S: Final = 300.0
LONGEST_KEY: Final = 255  # characters
WAIT_PARAMETER: Final[dict[str, Any]] = {
    "name": "wait",
    "in": "query",
    "description": "seconds to wait for the end",
    "schema": {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT_S, "default": 0},
}
KEY_PARAMETER: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "a repeated POST with the same key and body gets the first answer and starts nothing",
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": "^[!-~]+$"},
}
_KEY = re.compile(rb"[!-~]{1,255}")


@dataclass(slots=True, frozen=True)
class Body(Generic[T]):
    model: T
    raw: bytes


@dataclass(slots=True, frozen=True)
class TaskFilter:
    """Of a list of tasks; None: all. `before` and `batch` are numbers."""

    before: int | None = None
    status: str | None = None
    priority: str | None = None
    batch: int | None = None
    gpu: int | None = None


def header(request: Request, name: bytes) -> bytes:
    """The first header of this name (in lower case), empty where there is none. Cheaper than the request's own."""
    for key, value in request.scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


def wait_of(request: Request) -> float:
    """?wait in seconds, 0 where it is not asked for. Raises ApiError."""
    if not request.scope["query_string"]:
        return 0.0
    text = request.query_params.get("wait", "0")
    try:
        wait = float(text) if text.isascii() else math.nan
    except ValueError:
        wait = math.nan
    if not 0.0 <= wait <= LONGEST_WAIT_S:
        raise ApiError("invalid_field", f"wait: {text[:30]!r}; allowed: seconds from 0 to {LONGEST_WAIT_S:g}")
    return wait


def key_of(request: Request) -> str | None:
    """The Idempotency-Key; None where there is none. Raises ApiError."""
    for name, value in request.scope["headers"]:
        if name == b"idempotency-key":
            if _KEY.fullmatch(value) is None:
                allowed = f"1 to {LONGEST_KEY} printable ASCII characters without blanks"
                raise ApiError("invalid_field", f"Idempotency-Key: allowed: {allowed}")
            key: bytes = value
            return key.decode("ascii")
    return None


async def parsed(request: Request, model: type[T]) -> Body[T]:
    """The body as a model. Raises ApiError."""
    kind = header(request, b"content-type").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        said = f"Content-Type is {kind[:60].decode('latin-1')!r}" if kind else "there is no Content-Type"
        raise ApiError("invalid_json", f"{said}; send JSON, with Content-Type: application/json")
    raw = await request.body()
    try:
        return Body(model.model_validate_json(raw), raw)
    except ValidationError as error:
        raise refused(error.errors(include_url=False, include_context=False)) from None


def refused(problems: Sequence[Any]) -> ApiError:
    """pydantic's findings as one error that names every field (the first ten of them)."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError("invalid_json", f"the body is no JSON: {first['msg']}; send an object with the fields of /docs")
    told = [_told(problem) for problem in problems[:10]]
    if len(problems) > 10:
        told.append(f"and {len(problems) - 10} more")
    text = "; ".join(told)
    for problem in problems:
        where = problem["loc"]
        if len(where) == 1 and where[0] in REQUIRED and problem["type"] == "missing":
            return ApiError("missing_field", text)
        if where == ("texts",) and problem["type"] == "list_type":
            return ApiError("missing_field", text)
    return ApiError("invalid_field", text)


def _told(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path", "header"))
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = "is no field of this request; /docs lists them"
    elif problem["type"] == "missing":
        text = "is missing"
    return f"{where[:100] or 'body'}: {text[0].lower()}{text[1:]}"


def checked(field: str, name: str | None, what: str) -> int | None:
    """The number of a task or batch named in a query. Raises ApiError."""
    if name is None:
        return None
    number = number_of(name, what)
    if number is None:
        raise ApiError("invalid_field", f"{field}: {name[:60]!r} is no id of a {what}; allowed: such as {what}-000012")
    return number
