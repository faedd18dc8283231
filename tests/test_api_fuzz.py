"""Whatever a client sends: an answer of the documented kind, never a 5xx, never a server that is gone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_from_bytes

import pytest
from fuzzing import ANSWERS, BATCH, BODY_BYTES, checked, exchange, fuzzed, tries, unharmed
from hypothesis import example, given
from hypothesis import strategies as st
from serving import Served

JSON = {"content-type": "application/json"}
PREDICT = "/api/v1/predict"
OPTIONS = {"strategy": "round_robin", "gpu_id": 1, "specific_gpu_id": 1, "batch_split": False}
FIELDS = {"max_length": 3, "temperature": 0.5, "priority": "low", "duration": 1.5, "gpu_options": OPTIONS}
VALID = {PREDICT: {"text": "def f", **FIELDS}, BATCH: {"texts": ["a", "b"], **FIELDS}}
GETS = [
    "/", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/assets/page.js", "/api/v1/tasks",
    "/api/v1/tasks/task-000001", "/api/v1/batches", "/api/v1/batches/batch-000001", "/api/v1/gpus", "/api/v1/gpus/0",
    "/api/v1/telemetry", "/api/v1/status", "/api/v1/events",
]  # fmt: skip
PARAMETERS = ["limit", "before", "status", "priority", "batch", "gpu", "wait", "key", ""]
HEADERS = [
    "Content-Type", "Idempotency-Key", "X-Request-ID", "Authorization", "Accept", "Accept-Encoding", "If-None-Match",
    "Sec-Fetch-Site", "Origin", "Range", "Cookie", "Forwarded", "X-Forwarded-For", "X-Http-Method-Override", "Upgrade",
    "Connection", "Expect", "Host", "Content-Length", "Transfer-Encoding", "Content-Encoding", "TE",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with fuzzed(tmp_path_factory.mktemp("fuzz")) as served:
        yield served


def ask(server: Served, method: str, path: str, **more: Any) -> int:
    """Sends it; reads the answer, but of the event stream the status only."""
    with server.client.stream(method, path, **more) as answer:
        streams = answer.headers.get("content-type", "").startswith("text/event-stream")
        return checked(answer.status_code, b"" if streams else answer.read())


# --- bodies -----------------------------------------------------------------------------------------------------------

numbers = st.one_of(st.integers(), st.floats(), st.integers(-(10**400), 10**400), st.sampled_from([-0.0, 1e308, 2**63]))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20), st.characters(categories=["Cs"]))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
names = st.sampled_from(
    ["text", "texts", *FIELDS, *OPTIONS, "Text", "text ", "__class__", "model_config", "priority\0"]
)


@st.composite
def changed(draw: st.DrawFn, path: str) -> Any:
    """A body that was valid before one to three of its fields, at any depth, were changed, taken away or added."""
    body = json.loads(json.dumps(VALID[path]))
    for _ in range(draw(st.integers(1, 3))):
        inner = body["gpu_options"] if draw(st.booleans()) and isinstance(body.get("gpu_options"), dict) else body
        name = draw(st.one_of(st.sampled_from(sorted(inner)) if inner else names, names))
        if draw(st.integers(0, 4)) == 0:
            inner.pop(name, None)
        else:
            inner[name] = draw(values)
    return body


@pytest.mark.parametrize("path", [PREDICT, BATCH])
def test_any_json_is_taken_or_refused_in_good_order(server: Served, path: str) -> None:
    seen: set[int] = set()

    @tries(150)
    @given(body=st.one_of(values, changed(path), changed(path)), ascii_only=st.booleans())
    def send(body: Any, ascii_only: bool) -> None:
        content = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        seen.add(ask(server, "POST", path, content=content, headers=JSON))

    send()
    assert seen >= {200, 400, 422}


@pytest.mark.parametrize("path", [PREDICT, BATCH])
def test_a_good_body_with_damaged_bytes_is_taken_or_refused(server: Served, path: str) -> None:
    good = json.dumps(VALID[path]).encode()

    @tries(100)
    @given(damage=st.lists(st.tuples(st.integers(0, len(good)), st.integers(0, 6), st.binary(max_size=4)), min_size=1))
    def send(damage: list[tuple[int, int, bytes]]) -> None:
        content = good
        for start, length, put in damage:
            content = content[:start] + put + content[start + length :]
        ask(server, "POST", path, content=content, headers=JSON)

    send()


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "a", "max_length": ' + b"9" * 5000 + b"}",
        b'{"text": "a", "temperature": 1e999999}',
        b'{"text": "a", "temperature": -1e-999999}',
        b'{"text": "a", "text": 5}',
        b'{"text": "a", "max_length": 1, "max_length": 2}',
        b'{"a":' * 20_000,
        b"[" * 60_000,
        b'{"text": "a", "gpu_options": ' + b"[" * 60_000,
        b'{"text": "' + b"\\u0000" * 9000 + b'"}',
        b'\xef\xbb\xbf{"text": "a"}',
        '{"text": "a"}'.encode("utf-16"),
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "\\ud83e\\udd8a"}',
        b'{"' + b"x" * 60_000 + b'": 1}',
        b"{" + b",".join(b'"f%d": 1' % place for place in range(5000)) + b"}",
        b'{"texts": [' + b",".join([b"1"] * 20_000) + b"]}",
        b" " * (BODY_BYTES + 1),
        b"\0" * 1000,
    ],
    ids=lambda content: content[:24].decode("latin-1"),
)
def test_known_troublemakers_are_taken_or_refused_with_a_short_answer(server: Served, content: bytes) -> None:
    for path in (PREDICT, BATCH):
        answer = server.client.post(path, content=content, headers=JSON)
        checked(answer.status_code, answer.content)
        assert len(answer.content) < 4000


# --- queries, paths and headers ---------------------------------------------------------------------------------------

pieces = st.one_of(
    st.binary(max_size=12).map(quote_from_bytes),
    st.text(max_size=8).map(lambda text: quote(text, errors="replace")),
    st.integers(0, 10**7).map(str),
    st.sampled_from(
        ["1", "0", "-1", "7", "1e3", "NaN", "inf", "task-000001", "batch-000001", "COMPLETED", "high", "9" * 40]
    ),
)
queries = st.lists(st.tuples(st.one_of(st.sampled_from(PARAMETERS), pieces), pieces), max_size=4).map(
    lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
)


@pytest.mark.parametrize("path", GETS)
def test_any_query_is_answered_or_refused(server: Served, path: str) -> None:
    @tries(30)
    @given(query=st.one_of(queries, pieces))
    def send(query: str) -> None:
        ask(server, "GET", f"{path}?{query}")

    send()


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST", "PUT", "HEAD", "OPTIONS", "PATCH", "TRACE"])
def test_any_path_is_answered_or_refused(server: Served, method: str) -> None:
    begins = st.sampled_from(["", "/api/v1", "/api/v1/tasks", "/api/v1/batches", "/api/v1/gpus", "/assets/docs"])

    @tries(120)
    @given(begin=begins, parts=st.lists(pieces, max_size=3))
    @example(begin="/api/v1/gpus", parts=["7"])
    def send(begin: str, parts: list[str]) -> None:
        path = "/".join([begin, *parts])
        answer = server.client.request(method, path if path.startswith("/") else f"/{path}")
        if method == "HEAD":
            assert answer.status_code in ANSWERS
        else:
            checked(answer.status_code, answer.content)

    send()


@pytest.mark.parametrize(
    ("method", "path"), [("POST", PREDICT), ("POST", BATCH), ("GET", "/"), ("GET", "/api/v1/tasks")]
)
def test_any_header_is_taken_or_refused(server: Served, method: str, path: str) -> None:
    """Sent as raw bytes: no client library would."""
    content = json.dumps(VALID[path]).encode() if method == "POST" else b""
    value = st.one_of(
        st.binary(max_size=30).map(lambda text: re.sub(rb"[\r\n\0]", b"", text)),
        st.sampled_from(
            [b"application/json", b"gzip;q=", b"chunked", b"close", b"0", b"-1", b"cross-site", b"x" * 9000]
        ),
    )

    @tries(80)
    @given(headers=st.lists(st.tuples(st.sampled_from(HEADERS), value), max_size=4))
    def send(headers: list[tuple[str, bytes]]) -> None:
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n".encode()
        lines = b"".join(name.encode() + b": " + text + b"\r\n" for name, text in [*headers, ("Content-Type", b"")])
        exchange(server, head + lines + b"\r\n" + content)

    send()


# --- and after all that -----------------------------------------------------------------------------------------------


def test_the_server_is_unharmed(server: Served) -> None:
    unharmed(server)
