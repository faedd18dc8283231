"""The gate behind a real server and real sockets: what a client gets to read when it is cut off."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from altlas_core.api.access_log import LineLog
from altlas_core.api.gate import Gate
from altlas_core.api.keys import HostNames, Keys

LIMIT_BYTES = 1 << 16


async def length(request: Request) -> Response:
    return JSONResponse(len(await request.body()))


class Served:
    """A server on a free port of this machine, in a thread."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.log = LineLog(self.stream)
        gate = Middleware(
            Gate,
            keys=Keys([]),
            hosts=HostNames("127.0.0.1"),
            log=self.log,
            max_body_bytes=LIMIT_BYTES,
            body_timeout_s=0.3,
        )
        app = Starlette(routes=[Route("/length", length, methods=["POST"])], middleware=[gate])
        listening = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = listening.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}/length"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self.thread = threading.Thread(target=self.server.run, args=([listening],))
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            time.sleep(0.005)

    def stop(self) -> list[dict[str, object]]:
        self.server.should_exit = True
        self.thread.join()
        self.log.close()
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


def test_a_client_that_sends_far_too_much_reads_its_answer_and_no_reset(served: Served) -> None:
    for body in (b"x" * (LIMIT_BYTES + 1), b"x" * (16 << 20)):
        answer = httpx.post(served.url, content=body)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    answer = httpx.post(served.url, content=iter([b"x" * LIMIT_BYTES] * 64))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert httpx.post(served.url, content=b"x" * LIMIT_BYTES).json() == LIMIT_BYTES


def test_a_client_that_stalls_is_answered_and_its_connection_closed(served: Served) -> None:
    with socket.create_connection(served.address, timeout=20.0) as client:
        client.sendall(b"POST /length HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nabc")
        answer = b""
        while part := client.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code": "body_timeout"' in answer


def test_a_path_with_line_ends_is_one_line_of_the_log(served: Served) -> None:
    httpx.get(served.url + "%0d%0a%7b%22level%22:%22forged%22%7d%1b")
    (line,) = served.stop()
    assert line["path"] == '/length\r\n{"level":"forged"}\x1b'
