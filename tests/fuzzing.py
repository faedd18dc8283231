"""What the tests that send nonsense share: how often, what may be answered, and whether the server bore with it."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from hypothesis import HealthCheck, Phase, settings
from serving import FAST, Served, serving

from altlas_core.api.errors import STATUS_OF_CODE

BODY_BYTES: Final = 1 << 16
BATCH: Final = "/api/v1/predict/batch"
# A request that may be answered as if nothing had been odd about it, or refused.
ANSWERS: Final = {200, 304, *STATUS_OF_CODE.values()} - {401, 500, 503}


@contextmanager
def fuzzed(folder: Path) -> Iterator[Served]:
    """A server with one finished task and a small limit on bodies."""
    with serving(folder, *FAST, "--devices", "2x A100", "--set", f"api.max_body_bytes={BODY_BYTES}") as served:
        served.client.post(BATCH, json={"texts": ["a"], "max_length": 1}, params={"wait": 20})
        yield served


def tries(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


def checked(status: int, content: bytes) -> int:
    """The status, of an answer that is either good or an error as documented."""
    assert status in ANSWERS, content
    if status >= 400:
        told = json.loads(content)
        assert set(told) == {"error", "code"}
        assert STATUS_OF_CODE[told["code"]] == status
        assert told["error"]
        assert "Traceback" not in told["error"]
    return status


def exchange(server: Served, sent: bytes) -> list[int]:
    """Sends bytes on a connection of its own, then the end; returns the statuses of what comes back, checked."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        try:
            connection.sendall(sent)
            server.client.get("/health")  # by then the server has looked at it
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                received += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass  # it had refused us already
    return list(answers_in(received))


def answers_in(received: bytes) -> Iterator[int]:
    """The statuses of the answers, as far as they are complete."""
    while received:
        head, ended, rest = received.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert status is not None, received[:100]
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if status[1] == b"100":
            received = rest
            continue
        if not ended or length is None or len(rest) < int(length[1]):
            assert int(status[1]) in ANSWERS
            return
        yield checked(int(status[1]), rest[: int(length[1])])
        received = rest[int(length[1]) :]


def logged(server: Served, request_id: str) -> list[str]:
    """The log once it tells of this request: it is written a few times a second."""
    until = time.monotonic() + 10.0
    while time.monotonic() < until:
        lines = server.lines
        if any(request_id in line for line in lines):
            return lines
        time.sleep(0.02)
    raise AssertionError(f"the log does not tell of {request_id}")


def unharmed(server: Served) -> None:
    """It lives, works, and has had no fault of its own."""
    assert server.process.poll() is None
    with httpx.Client(base_url=server.base, timeout=60.0) as fresh:
        assert fresh.get("/ready").status_code == 200
    assert server.predict("after all that", wait=20, max_length=2)["status"] == "COMPLETED"
    counted = re.findall(r'altlas_http_requests_total\{[^}]*status="(\d+)"', server.client.get("/metrics").text)
    assert "200" in counted
    assert not [status for status in counted if status.startswith("5")]
    assert server.client.get("/health", headers={"X-Request-ID": "the-end"}).status_code == 200
    lines = logged(server, "the-end")
    assert [entry for entry in map(json.loads, lines) if entry["level"] not in ("info", "warning")] == []
    assert not [line for line in lines if "Traceback" in line]
