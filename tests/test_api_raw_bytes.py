"""Bytes that are no HTTP, or nearly: refused, dropped or answered, in order, and never the end of the server."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from fuzzing import answers_in, exchange, fuzzed, tries, unharmed
from hypothesis import given
from hypothesis import strategies as st
from serving import Served

from altlas_core.api.protocol import MAX_HEAD_BYTES

POST = b"POST /api/v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
REQUESTS = [
    b"GET /api/v1/tasks?limit=3 HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    POST + b'Content-Length: 13\r\n\r\n{"text": "a"}',
    CHUNKED + b'd\r\n{"text": "a"}\r\n0\r\n\r\n',
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + b"\r\n",
]
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
WAITING = REQUESTS[1].replace(b"/predict", b"/predict?wait=20")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with fuzzed(tmp_path_factory.mktemp("raw")) as served:
        yield served


def test_any_bytes_are_refused_or_dropped(server: Served) -> None:
    @tries(120)
    @given(begin=st.sampled_from([b"", b"GET /health HTTP/1.1", b"GET "]), end=st.binary(max_size=200))
    def send(begin: bytes, end: bytes) -> None:
        assert set(exchange(server, begin + end)) <= {200, 400, 404}

    send()


@pytest.mark.parametrize("request_bytes", REQUESTS, ids=["get", "length", "chunked", "upgrade"])
def test_a_request_with_damaged_bytes_is_answered_refused_or_dropped(server: Served, request_bytes: bytes) -> None:
    assert exchange(server, request_bytes)[:1] in ([200], [])

    @tries(80)
    @given(
        damage=st.lists(
            st.tuples(st.integers(0, len(request_bytes)), st.integers(0, 4), st.binary(max_size=3)),
            min_size=1,
            max_size=4,
        ),
        times=st.integers(1, 3),
    )
    def send(damage: list[tuple[int, int, bytes]], times: int) -> None:
        sent = request_bytes
        for start, length, put in damage:
            sent = sent[:start] + put + sent[start + length :]
        exchange(server, sent * times)

    send()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.7\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
    ],
    ids=["tls", "http2", "ssh", "version", "path", "smuggled", "chunk"],
)
def test_what_is_no_request_is_told_so_in_the_usual_words(server: Served, sent: bytes) -> None:
    assert exchange(server, sent) == [400]


def until_closed(server: Served, sent: bytes) -> list[int]:
    """Sends bytes and leaves the ending of the connection to the server."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    return list(answers_in(received))


@pytest.mark.parametrize("good", [HEALTH, WAITING], ids=["get", "wait"])
def test_what_is_wrong_after_a_good_request_is_not_taken_for_its_answer(server: Served, good: bytes) -> None:
    assert until_closed(server, good + b"nonsense\r\n\r\n") == [200]
    assert until_closed(server, b"nonsense\r\n\r\n" + good) == [400]


def test_a_body_that_breaks_off_into_nonsense_is_refused(server: Served) -> None:
    assert until_closed(server, CHUNKED + b'3\r\n{"t\r\nnonsense\r\n') == [400]


def test_requests_sent_in_one_go_are_answered_in_order(server: Served) -> None:
    missing = HEALTH.replace(b"/health", b"/nothing")
    last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert until_closed(server, WAITING + missing + HEALTH + missing + last) == [200, 404, 200, 404, 200]


def test_a_client_that_leaves_while_several_requests_are_under_way_is_no_error(server: Served) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(WAITING * 3)
            server.client.get("/health")


def test_headers_without_an_end_are_refused_before_they_fill_the_memory(server: Served) -> None:
    endless = b"x" * 8_000_000
    lines = b"X-Filler: " + b"x" * 8000 + b"\r\n"
    for head in (b"GET / HTTP/1.1\r\n" + lines * 1000, b"GET /" + endless, b"GET / HTTP/1.1\r\nA: " + endless):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            sent = 0
            try:
                while sent < len(head):
                    sent += connection.send(head[sent : sent + (1 << 16)])
                    server.client.get("/health")
                raise AssertionError("all of it was taken")
            except (ConnectionResetError, BrokenPipeError):
                assert sent <= 4 * MAX_HEAD_BYTES


def test_headers_of_a_usual_length_are_taken(server: Served) -> None:
    headers = {f"X-Filler-{place}": "x" * 1000 for place in range(50)}
    assert server.client.get("/health", headers=headers).status_code == 200


def test_the_server_is_unharmed(server: Served) -> None:
    unharmed(server)
