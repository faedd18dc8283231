"""What every request passes: names, keys, bodies, headers of answers, the line in the log, and no traceback."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from altlas_core.api.access_log import LineLog
from altlas_core.api.bodies import Body, Deadlines
from altlas_core.api.errors import STATUS_OF_CODE, ApiError, error_response
from altlas_core.api.gate import SECURITY_HEADERS, Gate
from altlas_core.api.keys import HostNames, Keys
from altlas_core.api.metrics import Metrics

KEY = "correct-horse-battery"
HOST = (b"host", b"127.0.0.1:8000")
AUTH = (b"authorization", b"Bearer " + KEY.encode())
Headers = Iterable[tuple[bytes, bytes]]


async def reading_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body and answers with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await Response(str(size))(scope, receive, send)


async def never() -> Message:
    """A `receive` to which nothing comes."""
    await asyncio.Event().wait()
    raise AssertionError("woken")


async def careful_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body as Starlette does: a client that leaves is an exception."""
    await Response(str(len(await Request(scope, receive).body())))(scope, receive, send)


@dataclass
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    lines: list[dict[str, Any]]

    def header(self, name: bytes) -> bytes | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def code(self) -> str:
        content = json.loads(self.body)
        assert list(content) == ["error", "code"]
        assert self.status == STATUS_OF_CODE[content["code"]]
        return content["code"]


class Stand:
    """A gate before an app; `ask` sends one request as a bare ASGI scope."""

    def __init__(
        self, app: ASGIApp = reading_app, *, keys: Iterable[str] = (), limit: int = 100, timeout_s: float = 30.0
    ):
        self.stream = io.StringIO()
        self.metrics = Metrics()
        self.unread: list[tuple[int, bytes]] = []
        self.gate = Gate(
            app, keys=Keys(keys), hosts=HostNames("127.0.0.1"), log=LineLog(self.stream), max_body_bytes=limit,
            body_timeout_s=timeout_s, metrics=self.metrics,
        )  # fmt: skip

    def ask(self, method: str = "GET", path: str = "/x", headers: Headers = (HOST,), chunks: Iterable[bytes] = (b"",),
            ends: str = "complete") -> Answer:  # fmt: skip
        return asyncio.run(asyncio.wait_for(self._ask(method, path, headers, list(chunks), ends), 20.0))

    async def _ask(self, method: str, path: str, headers: Headers, chunks: list[bytes], ends: str) -> Answer:
        """`ends`: the body is complete after its chunks, or the client "leaves", or it "stalls"."""
        sent: list[Message] = []
        left = self.unread = list(enumerate(chunks, 1))

        async def receive() -> Message:
            if left:
                number, chunk = left.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": ends != "complete" or number < len(chunks)}
            if ends == "stalls":
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "client": ("10.0.0.9", 5)}
        await self.gate(scope, receive, send)
        self.gate.log.flush()
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        if not sent:
            return Answer(0, [], b"", lines)
        start, *bodies = sent
        assert start["type"] == "http.response.start"
        return Answer(start["status"], start["headers"], b"".join(body.get("body", b"") for body in bodies), lines)


def test_a_request_passes_with_an_id_security_headers_and_one_line() -> None:
    answer = Stand().ask("POST", "/x", [HOST], [b"12345"])
    assert (answer.status, answer.body) == (200, b"5")
    for name, value in SECURITY_HEADERS:
        assert answer.header(name) == value
    (line,) = answer.lines
    request_id = answer.header(b"x-request-id")
    assert request_id is not None
    assert line["request_id"] == request_id.decode()
    assert {name: line[name] for name in ("method", "path", "status", "bytes", "client", "level")} == {
        "method": "POST", "path": "/x", "status": 200, "bytes": 1, "client": "10.0.0.9", "level": "info",
    }  # fmt: skip


def test_ids_are_the_clients_if_they_are_short_and_plain_and_else_new_and_different() -> None:
    stand = Stand()
    for good in (b"a", b"A-1_b.c", b"x" * 64):
        assert stand.ask(headers=[HOST, (b"x-request-id", good)]).header(b"x-request-id") == good
    bad = [b"", b"x" * 65, b"a b", b'"', b"a\n", "é".encode(), b"a,b"]
    made = [stand.ask(headers=[HOST, (b"x-request-id", value)]).header(b"x-request-id") for value in bad]
    made.append(stand.ask(headers=[HOST, (b"x-request-id", b"a"), (b"x-request-id", b"b")]).header(b"x-request-id"))
    made.append(stand.ask().header(b"x-request-id"))
    assert len(set(made)) == len(made) == 9
    assert not set(made) & {*bad, None}


def test_the_app_finds_the_id_in_its_state() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["request_id"])
        await Response()(scope, receive, send)

    Stand(app).ask(headers=[HOST, (b"x-request-id", b"mine")])
    assert seen == ["mine"]


def test_headers_that_the_app_sets_stay_as_they_are() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(headers={"Cache-Control": "max-age=60", "X-Frame-Options": "SAMEORIGIN"})(scope, receive, send)

    answer = Stand(app).ask()
    assert answer.header(b"cache-control") == b"max-age=60"
    assert answer.header(b"x-frame-options") == b"SAMEORIGIN"
    assert answer.header(b"x-content-type-options") == b"nosniff"


@pytest.mark.parametrize(
    "hosts", [[], [b"evil.example"], [b"127.0.0.1", b"127.0.0.1"], [b"localhost", b"evil.example"]]
)
def test_a_host_that_is_missing_foreign_or_given_twice_is_refused(hosts: list[bytes]) -> None:
    answer = Stand().ask(path="/", headers=[(b"host", host) for host in hosts])
    assert answer.code == "bad_host"
    assert answer.lines[0]["status"] == 400


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/assets/page.js"])
def test_open_paths_need_no_key(path: str) -> None:
    assert Stand(keys=[KEY]).ask(path=path).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/api/v1/tasks", "/metrics", "/docs", "/assets", "/health/", "//", "/Health"])
def test_everything_else_needs_one_whatever_the_method(method: str, path: str) -> None:
    stand = Stand(keys=["another-key-of-ours", KEY])
    answer = stand.ask(method, path)
    assert answer.status == 401
    assert answer.header(b"www-authenticate") == b'Bearer realm="altlas"'
    wrong = stand.ask(method, path, [HOST, (b"authorization", b"Bearer wrong-horse-battery")])
    assert wrong.code == "unauthorized"
    assert wrong.header(b"www-authenticate") == b'Bearer realm="altlas", error="invalid_token"'
    assert stand.ask(method, path, [HOST, AUTH, AUTH]).status == 401
    assert stand.ask(method, path, [HOST, AUTH]).status == 200


def test_a_key_never_comes_into_the_log() -> None:
    answer = Stand(keys=[KEY]).ask(headers=[HOST, AUTH], path="/api/v1/tasks")
    answer.lines += Stand(keys=["another-key-of-ours"]).ask(headers=[HOST, AUTH]).lines
    assert [line["status"] for line in answer.lines] == [200, 401]
    assert KEY not in json.dumps(answer.lines)


def test_a_page_of_another_site_may_link_here_but_read_nothing_and_change_nothing() -> None:
    stand = Stand()
    cross = [HOST, (b"origin", b"https://evil.example"), (b"sec-fetch-site", b"cross-site")]
    for method in ("POST", "DELETE"):
        assert stand.ask(method, headers=cross).code == "cross_site"
        for site in (b"same-origin", b"none"):
            assert stand.ask(method, headers=[HOST, (b"sec-fetch-site", site)]).status == 200
    assert stand.ask("GET", headers=cross).status == 200  # a link, which its own page cannot read
    for method in ("GET", "OPTIONS", "POST"):
        answer = stand.ask(method, headers=[*cross, (b"access-control-request-method", b"POST")])
        assert not [name for name, _ in answer.headers if name.startswith(b"access-control")]


def test_a_body_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    stand = Stand(limit=10)
    assert stand.ask("POST", headers=[HOST, (b"content-length", b"10")], chunks=[b"x" * 10]).body == b"10"
    answer = stand.ask("POST", headers=[HOST, (b"content-length", b"11")], chunks=[b"x" * 11])
    assert answer.code == "too_large"
    assert answer.header(b"connection") == b"close"
    assert "10 bytes" in json.loads(answer.body)["error"]


def test_an_announced_body_that_is_too_large_never_reaches_the_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("called")

    answer = Stand(app, limit=10).ask("POST", headers=[HOST, (b"content-length", b"9" * 5000)])
    assert answer.code == "too_large"


@pytest.mark.parametrize("value", [b"ten", b"", b"-1", b"+1", b"1_0", b"1.0", b" 1", "²".encode(), b"5, 5"])
def test_a_content_length_that_is_no_number_is_refused(value: bytes) -> None:
    answer = Stand().ask("POST", headers=[HOST, (b"content-length", value)])
    assert answer.code == "bad_length"
    assert answer.header(b"connection") == b"close"


def test_two_content_lengths_are_refused() -> None:
    length = (b"content-length", b"5")
    assert Stand().ask("POST", headers=[HOST, length, length]).code == "bad_length"


def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_limit_and_the_rest_is_thrown_away() -> None:
    taken = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            taken.append(len((await receive())["body"]))

    stand = Stand(app, limit=10)
    answer = stand.ask("POST", headers=[HOST, (b"transfer-encoding", b"chunked")], chunks=[b"abcd"] * 50)
    assert answer.code == "too_large"
    assert answer.header(b"connection") == b"close"
    assert taken == [4, 4]
    assert stand.unread == []


def test_an_app_that_makes_its_own_answer_of_the_refusal_is_overruled() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await reading_app(scope, receive, send)
        except Exception:
            await Response("could not parse", 400)(scope, receive, send)

    answer = Stand(app, limit=10).ask("POST", headers=[HOST], chunks=[b"x" * 11])
    assert answer.code == "too_large"
    assert [line["status"] for line in answer.lines] == [413]


def test_a_body_that_is_too_large_after_the_answer_has_begun_ends_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await reading_app(scope, receive, send)

    answer = Stand(app, limit=10).ask("POST", headers=[HOST], chunks=[b"x" * 11])
    assert (answer.status, answer.body) == (200, b"")
    assert len(answer.lines) == 1
    assert caplog.records == []


def test_a_body_that_stalls_is_refused_after_the_time_limit() -> None:
    answer = Stand(timeout_s=0.05).ask(
        "POST", headers=[HOST, (b"content-length", b"50")], chunks=[b"abc"], ends="stalls"
    )
    assert answer.code == "body_timeout"
    assert answer.header(b"connection") == b"close"


def test_the_time_limit_is_of_the_body_and_not_of_the_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.1)
        await receive()  # that the client has left
        await Response("done")(scope, receive, send)

    assert Stand(app, timeout_s=0.02).ask("POST", headers=[HOST], chunks=[b"abc"]).body == b"done"


def test_every_body_has_its_own_time_limit_and_a_cancelled_request_stays_cancelled() -> None:
    stand = Stand(timeout_s=0.05)

    async def several() -> list[Any]:
        asked = [asyncio.ensure_future(stand._ask("POST", "/x", [HOST], [b"a"], "stalls")) for _ in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(several())
    assert (first.code, third.code) == ("body_timeout", "body_timeout")
    assert isinstance(second, asyncio.CancelledError)
    statuses = sorted(json.loads(line)["status"] for line in stand.stream.getvalue().splitlines())
    assert statuses == [400, 400, 503]


def test_a_body_that_began_later_is_ended_later_by_the_same_timer() -> None:
    async def two() -> None:
        deadlines = Deadlines(0.05)
        bodies = [Body(never, 10, deadlines), Body(never, 10, deadlines)]
        for body in bodies:
            deadlines.watch(body)
            await asyncio.sleep(0.02)
        while any(body.refusal is None for body in bodies):
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(two(), 10.0))


def test_a_request_cancelled_while_its_time_is_over_stays_cancelled() -> None:
    async def both() -> None:
        body = Body(never, 10, Deadlines(30.0))
        task = asyncio.ensure_future(body())
        await asyncio.sleep(0)
        body.expire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(both())


def test_a_body_that_the_app_does_not_read_to_its_end_is_not_kept() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await Response("enough")(scope, receive, send)

    stand = Stand(app)
    assert stand.ask("POST", headers=[HOST], chunks=[b"a", b"b"]).body == b"enough"
    assert stand.gate._deadlines._due == {}


def test_a_client_that_leaves_is_one_line_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def read(request: Request) -> Response:
        return JSONResponse(len(await request.body()))

    router = Starlette(routes=[Route("/x", read, methods=["POST"])]).router
    answer = Stand(router).ask("POST", headers=[HOST], chunks=[b"abc"], ends="leaves")
    assert answer.status == 0
    assert [line["status"] for line in answer.lines] == [499]
    assert caplog.records == []


def failing(error: Exception) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


def test_an_error_of_the_app_is_told_to_the_log_and_not_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    answer = Stand(failing(ValueError("secret detail"))).ask(headers=[HOST, (b"x-request-id", b"r-7")])
    assert answer.code == "internal"
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    assert "r-7" in json.loads(answer.body)["error"]
    assert answer.lines[0]["level"] == "error"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    assert record.__dict__["request_id"] == "r-7"


def test_an_app_that_answers_nothing_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    assert Stand(app).ask().code == "internal"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_an_error_after_the_answer_has_begun_is_logged_once_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("broke")

    answer = Stand(app).ask()
    assert (answer.status, answer.body, len(answer.lines)) == (200, b"", 1)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("code", STATUS_OF_CODE)
def test_an_api_error_is_answered_with_its_status_code_and_headers(code: str) -> None:
    answer = Stand(failing(ApiError(code, "what “and” what to do", {"Retry-After": "7"}))).ask()
    assert answer.code == code
    assert answer.header(b"retry-after") == b"7"
    assert json.loads(answer.body)["error"] == "what “and” what to do"
    assert answer.body.isascii()


@given(st.text(), st.text())
def test_an_error_body_is_ascii_json_whatever_is_said(code: str, message: str) -> None:
    body = error_response(400, code, message).body
    assert bytes(body).isascii()
    assert json.loads(bytes(body)) == {"error": message, "code": code}


def test_a_head_request_has_no_bytes_and_requests_are_counted_by_route() -> None:
    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    stand = Stand(Starlette(routes=[Route("/tasks/{id}", hello)]).router)
    assert stand.ask("HEAD", "/tasks/5").lines[-1]["bytes"] == 0
    assert stand.ask("GET", "/tasks/5").lines[-1]["bytes"] == 5
    assert stand.ask("GET", "/tasks/6/7").status == 404
    assert stand.metrics._requests == {
        ("HEAD", "/tasks/{id}", 200): 1,
        ("GET", "/tasks/{id}", 200): 1,
        ("GET", "unmatched", 404): 1,
    }


def test_websockets_are_refused_and_lifespan_passes() -> None:
    called, sent = [], []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    gate = Stand(app).gate
    for kind in ("websocket", "lifespan"):
        asyncio.run(gate({"type": kind}, receive, send))
    assert (called, sent) == (["lifespan"], ["websocket.close"])


NAMES = st.sampled_from(
    "host authorization x-request-id sec-fetch-site content-length transfer-encoding origin cookie expect".split()
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
VALUES = st.sampled_from([HOST[1], AUTH[1], b"5", b"0", b"99999", b"chunked", b"cross-site"]) | st.binary(max_size=80)


@given(
    headers=st.lists(st.tuples(NAMES.map(lambda name: name.lower().encode()), VALUES), max_size=8),
    hosted=st.booleans(),
    method=st.sampled_from(["GET", "POST", "DELETE", "OPTIONS"]) | st.text(max_size=5),
    path=st.text(max_size=20).map(lambda text: "/" + text),
    chunks=st.lists(st.binary(max_size=80), min_size=1, max_size=4),
    ends=st.sampled_from(["complete", "leaves"]),
)
def test_no_headers_paths_or_bodies_break_the_gate(
    headers: list[tuple[bytes, bytes]], hosted: bool, method: str, path: str, chunks: list[bytes], ends: str
) -> None:
    given_headers = [HOST, *headers] if hosted else headers
    answer = Stand(careful_app, keys=[KEY]).ask(method, path, given_headers, chunks, ends)
    assert answer.status in {200, 400, 401, 413} or (ends, answer.status) == ("leaves", 0)
    assert len(answer.lines) == 1
    if answer.status > 200:
        assert answer.code in STATUS_OF_CODE
    assert all(b"\n" not in value and b"\r" not in value for _, value in answer.headers)


# Through a whole app


async def items(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body()), "id": request.state.request_id})


async def broken(request: Request) -> Response:
    raise RuntimeError("secret detail")


async def stream(request: Request) -> Response:
    async def parts() -> Any:
        for part in ("a", "b", "c"):
            yield part

    return StreamingResponse(parts())


@pytest.fixture
def client() -> Iterator[TestClient]:
    log = LineLog(io.StringIO())
    gate = Middleware(Gate, keys=Keys([KEY]), hosts=HostNames("127.0.0.1"), log=log, max_body_bytes=1000)
    routes = [Route("/items", items, methods=["POST"]), Route("/broken", broken), Route("/stream", stream)]
    headers = {"Authorization": f"Bearer {KEY}"}
    app = Starlette(routes=routes, middleware=[gate])
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False, headers=headers) as client:
        yield client


def test_an_app_behind_the_gate_answers(client: TestClient) -> None:
    answer = client.post("/items", content=b"x" * 1000)
    assert answer.json() == {"bytes": 1000, "id": answer.headers["X-Request-ID"]}
    assert client.get("/stream").text == "abc"
    assert client.post("/items", content=b"x" * 1001).json()["code"] == "too_large"
    assert client.post("/items", content=iter([b"x" * 600] * 5)).json()["code"] == "too_large"
    assert client.post("/items", headers={"Host": "evil.example"}).json()["code"] == "bad_host"
    assert client.post("/items", headers={"Authorization": "Bearer no"}).status_code == 401


def test_an_error_of_a_route_is_answered_as_json(client: TestClient) -> None:
    answer = client.get("/broken")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
