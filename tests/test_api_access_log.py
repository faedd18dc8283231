"""The log: JSON lines nobody can forge, written together, and never a reason for a request to wait or fail."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altlas_core.api import access_log
from altlas_core.api.access_log import LOGGERS, LineLog, setup_logging


def line_of(log: LineLog, **changed: Any) -> None:
    fields = {
        "request_id": "a-1", "method": "GET", "path": "/health", "status": 200, "duration_s": 0.0015,
        "size_bytes": 17, "client": "127.0.0.1", "now": 1_700_000_000.25,
    }  # fmt: skip
    log.access(**{**fields, **changed})


@pytest.fixture
def loggers() -> Iterator[None]:
    saved = [
        (logging.getLogger(name), *vars(logging.getLogger(name)).copy().items())
        for name in (*LOGGERS, "uvicorn.access")
    ]
    yield
    for logger, *attributes in saved:
        for name, value in attributes:
            setattr(logger, name, value)


def test_a_request_is_one_json_line() -> None:
    stream = io.StringIO()
    line_of(LineLog(stream))
    assert json.loads(stream.getvalue()) == {
        "time": "2023-11-14T22:13:20.250Z", "level": "info", "request_id": "a-1", "method": "GET", "path": "/health",
        "status": 200, "duration_ms": 1.5, "bytes": 17, "client": "127.0.0.1",
    }  # fmt: skip


def test_an_answer_of_500_or_more_is_an_error_and_a_client_may_be_unknown() -> None:
    stream = io.StringIO()
    line_of(LineLog(stream), status=500, client=None)
    line = json.loads(stream.getvalue())
    assert (line["level"], line["client"]) == ("error", None)


@given(path=st.text(), request_id=st.text(), method=st.text(), client=st.text())
def test_no_text_of_a_request_can_forge_a_line(path: str, request_id: str, method: str, client: str) -> None:
    stream = io.StringIO()
    path = '\r\n{"level": "forged"}\x1b[2J\x85\u2028' + path
    line_of(LineLog(stream), path=path, request_id=request_id, method=method, client=client)
    text = stream.getvalue()
    assert text.endswith("\n")
    assert text[:-1].isascii()
    assert text[:-1].isprintable()
    line = json.loads(text)
    assert line["path"] == path[: access_log.PATH_CHARS]
    assert line["request_id"] == request_id


def test_lines_of_a_loop_are_written_together_after_the_interval() -> None:
    stream = io.StringIO()

    async def requests() -> None:
        log = LineLog(stream, flush_interval_s=0.01)
        line_of(log)
        line_of(log)
        assert stream.getvalue() == ""
        while not stream.getvalue():
            await asyncio.sleep(0.005)
        assert stream.getvalue().count("\n") == 2
        line_of(log)
        log.close()
        assert stream.getvalue().count("\n") == 3
        line_of(log)
        assert stream.getvalue().count("\n") == 4  # after close: at once

    asyncio.run(requests())


def test_a_loop_that_ended_before_its_timer_does_not_silence_the_next_one() -> None:
    stream = io.StringIO()
    log = LineLog(stream, flush_interval_s=0.01)

    async def request() -> None:
        line_of(log)

    async def request_and_wait() -> None:
        line_of(log)
        while stream.getvalue().count("\n") < 2:
            await asyncio.sleep(0.005)

    asyncio.run(request())
    asyncio.run(asyncio.wait_for(request_and_wait(), 10.0))


def test_threads_lose_no_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        log = LineLog(stream)
        threads = [threading.Thread(target=lambda: [line_of(log) for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 2000


def test_a_closed_stream_a_missing_one_and_a_full_disk_drop_lines_and_raise_nothing() -> None:
    closed = io.StringIO()
    closed.close()
    reading, writing = os.pipe()
    os.close(reading)
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closed below, with what it could not write
    streams: list[TextIO | None] = [None, closed, os.fdopen(writing, "w"), full]
    for stream in streams:
        log = LineLog(stream)
        line_of(log)
        log.close()
        assert log.dropped == 1
    full.close()


def test_a_reader_that_stands_still_blocks_nobody_and_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "BACKLOG_LINES", 50)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb", buffering=0) as reader:
        log = LineLog(stream)
        for _ in range(2000):  # more than a pipe holds
            line_of(log)
        assert log.dropped > 0
        text = b""
        os.set_blocking(reader.fileno(), False)
        while chunk := reader.read(1 << 16):
            text += chunk
            log.flush()
        lines = [json.loads(line) for line in text.decode().splitlines()]
        told = [line["message"] for line in lines if "message" in line]
        assert told == [f"{log.dropped} log lines were dropped"]
        assert len(lines) - 1 + log.dropped == 2000


@pytest.mark.usefixtures("loggers")
def test_the_programs_loggers_write_the_same_format_with_request_id_and_traceback() -> None:
    stream = io.StringIO()
    setup_logging(stream)
    logging.getLogger("altlas.api").warning("key file %s\nis open", "k", extra={"request_id": "r-1"})
    try:
        raise ValueError("broken\npart")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("it broke")
    logging.getLogger("uvicorn.access").info("never")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert list(first) == ["time", "level", "logger", "message", "request_id"]
    assert (first["level"], first["message"], first["request_id"]) == ("warning", "key file k\nis open", "r-1")
    assert second["level"] == "error"
    assert second["traceback"].endswith("ValueError: broken\npart")


@pytest.mark.usefixtures("loggers")
def test_setting_the_log_up_again_replaces_it() -> None:
    old, new = io.StringIO(), io.StringIO()
    setup_logging(old)
    setup_logging(new)
    logging.getLogger("altlas.api").info("hello")
    assert old.getvalue() == ""
    assert new.getvalue().count("\n") == 1
