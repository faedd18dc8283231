"""How `altlas serve` ends, and what keeps it from starting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import FAST, Served, free_port, serving

# A task of 512 tokens takes about a second of real time.
SLOW = ("--backend", "simulated", "--devices", "1x A100", "--pace", "0.1")
ONE_ROW = ("--set", "gpu.workload.max_concurrent_tasks_per_gpu=1", "--set", "gpu.workload.batch_size=1")
ENDLESS = ("--backend", "simulated", "--devices", "1x A100", "--pace", "0.001", *ONE_ROW)


def grace(seconds: float) -> tuple[str, str]:
    return ("--set", f"api.shutdown_grace={seconds}")


def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def started(server: Served, task_id: str) -> None:
    until(lambda: server.task(task_id)["status"] == "RUNNING")


def logged(server: Served, words: str) -> bool:
    return any(words in line for line in server.lines)


def asked(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Have it done by another thread; the list gets what it returns, or what it raises."""
    answers: list[Any] = []

    def act() -> None:
        try:
            answers.append(function())
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread, answers


def no_complaint(server: Served) -> None:
    for message in server.messages():
        assert message["level"] in ("info", "warning") or message.get("status") == 503, message


# --- in good order ----------------------------------------------------------------------------------------------------


def test_while_it_drains_nothing_new_is_taken_and_what_is_there_can_be_read(tmp_path: Path) -> None:
    with serving(tmp_path, *ENDLESS, *grace(20)) as server:
        first = server.predict("a", max_length=512)["task_id"]
        second = server.predict("b", max_length=512)["task_id"]
        started(server, first)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.client.get("/ready").status_code == 503)
        ready = server.client.get("/ready")
        assert (ready.json()["code"], "retry-after" in ready.headers) == ("shutting_down", True)
        for path, body in [("/predict", {"text": "c"}), ("/predict/batch", {"texts": ["c"]})]:
            refused = server.client.post(f"/api/v1{path}", json=body, headers={"Idempotency-Key": "k"})
            assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
            assert int(refused.headers["retry-after"]) > 0
        assert server.client.delete(f"/api/v1/tasks/{second}").status_code == 503
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/metrics").status_code == 200
        assert server.task(first)["status"] == "RUNNING"
        assert server.task(second)["status"] == "QUEUED"
        assert server.get("/status")["ready"] is False
        assert len(server.get("/tasks")["tasks"]) == 2
        server.process.send_signal(signal.SIGTERM)  # enough seen
        assert server.process.wait(10) == 0
    no_complaint(server)


def test_what_runs_is_finished_within_the_grace_and_a_client_that_waits_gets_it(tmp_path: Path) -> None:
    with serving(tmp_path, *SLOW, *ONE_ROW, *grace(30)) as server:
        first = server.predict("a", max_length=512)["task_id"]
        started(server, first)
        thread, answers = asked(lambda: server.task(first, wait=50))
        second = server.predict("b", max_length=512)["task_id"]
        assert server.terminate() == 0
        thread.join(10)
        (task,) = answers
        assert task["status"] == "COMPLETED"
    no_complaint(server)
    with serving(tmp_path, *FAST) as server:
        assert server.task(first) == task
        assert server.task(second, wait=20)["status"] == "COMPLETED"


def test_what_does_not_finish_within_the_grace_runs_after_the_restart(tmp_path: Path) -> None:
    with serving(tmp_path, *ENDLESS, *grace(0.2)) as server:
        ids = [server.predict(text, max_length=512)["task_id"] for text in ("a", "b")]
        started(server, ids[0])
        waiting = [asked(lambda name=name: server.task(name, wait=50)) for name in ids]  # type: ignore[misc]
        posting = asked(lambda: httpx.post(f"{server.base}/api/v1/predict?wait=50", json={"text": "c"}, timeout=30))
        until(lambda: len(server.get("/tasks")["tasks"]) == 3)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)  # Ctrl-C
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 10
        for (thread, answers), status in zip(waiting, ["RUNNING", "QUEUED"], strict=True):
            thread.join(10)
            assert answers[0]["status"] == status
        posting[0].join(10)
        answer = posting[1][0]
        assert (answer.status_code, answer.json()["task"]["status"]) == (200, "QUEUED")
    no_complaint(server)
    with serving(tmp_path, *FAST) as server:
        for name in [*ids, answer.json()["task_id"]]:
            assert server.task(name, wait=20)["status"] == "COMPLETED"


def test_event_streams_end(tmp_path: Path) -> None:
    with serving(tmp_path, *ENDLESS, *grace(0)) as server:
        begun = threading.Event()

        def listen() -> str:
            read = []
            with httpx.stream("GET", f"{server.base}/api/v1/events", timeout=30) as stream:
                for text in stream.iter_text():
                    read.append(text)
                    begun.set()
            return "".join(read)  # the stream was ended in good order, else this raises

        thread, answers = asked(listen)
        assert begun.wait(20)
        assert server.terminate(10) == 0
        thread.join(10)
        assert answers[0].startswith("event: status\n")
    no_complaint(server)


def test_clients_that_say_nothing_or_never_end_or_never_read_cannot_keep_it_from_ending(tmp_path: Path) -> None:
    arguments = ("--backend", "simulated", "--devices", "1024x A100", "--set", "telemetry.interval=0.25", *grace(0))
    with serving(tmp_path, *arguments) as server:
        silent, halting, deaf = (socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(3))
        with silent, halting, deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            deaf.recv(1)
            head = b"POST /api/v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            halting.sendall(head + b'Content-Length: 100\r\n\r\n{"text"')
            time.sleep(1)  # so that more events have been sent than fit in between
            assert server.terminate(20) == 0
            assert silent.recv(1000) == b""
            answer = halting.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"shutting_down"' in answer


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, *ENDLESS, *grace(600)) as server:
        name = server.predict("a", max_length=512)["task_id"]
        started(server, name)
        thread, answers = asked(lambda: server.task(name, wait=50))
        server.get("/tasks")  # an answer after the one that waits was sent
        server.process.send_signal(signal.SIGTERM)
        until(lambda: logged(server, "taking nothing new"))
        assert thread.is_alive()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        thread.join(10)
        assert answers[0]["status"] == "RUNNING"
    no_complaint(server)
    with serving(tmp_path, *FAST) as server:
        assert server.task(name, wait=20)["status"] == "COMPLETED"


def test_a_signal_while_it_starts_ends_it_in_good_order(tmp_path: Path) -> None:
    for wait_s in (0.4, 0.6, 0.8):
        server = Served(tmp_path, *FAST)
        time.sleep(wait_s)
        server.process.terminate()
        assert server.process.wait(20) in (0, -signal.SIGTERM)
        server.close()
        assert not logged(server, "Traceback")


# --- what keeps it from starting --------------------------------------------------------------------------------------


def refused(folder: Path, *arguments: str, **more: Any) -> str:
    """What a server says that does not start, because of a mistake of its user's."""
    done = subprocess.run(
        [sys.executable, "-m", "altlas_core.cli", "serve", *FAST, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("running"), *FAST) as server:
        yield server


def test_a_port_in_use_is_named_and_no_journal_is_made(running: Served, tmp_path: Path) -> None:
    told = refused(tmp_path, "--port", str(running.port))
    assert told == (
        f"altlas: --host 127.0.0.1 --port {running.port}: cannot listen there: Address already in use; "
        "take another port"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_journal_named_by_two_servers_is_refused_to_the_second(running: Served, tmp_path: Path) -> None:
    journal = running.folder / "altlas.sqlite3"
    told = refused(tmp_path, "--port", str(free_port()), "--set", f"api.journal={journal}")
    assert f"journal {journal} is in use by process {running.process.pid}" in told
    assert "name another journal" in told
    assert running.predict("still here", wait=20)["status"] == "COMPLETED"


def test_a_second_server_in_a_folder_takes_a_journal_of_its_own(running: Served) -> None:
    with serving(running.folder, *FAST) as second:
        mine = running.predict("a", wait=20)["task_id"]
        other = second.predict("b", wait=20)["task_id"]
        assert second.task(other)["params"]["text"] == "b"
        assert running.task(mine)["params"]["text"] == "a"
    names = sorted(path.name for path in running.folder.glob("*.sqlite3"))
    assert names == ["altlas-2.sqlite3", "altlas.sqlite3"]
    with serving(running.folder, *FAST) as third:  # the second one's is free again
        assert third.task(other)["params"]["text"] == "b"


def test_a_folder_that_is_not_there_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    told = refused(tmp_path, "--port", str(free_port()), "--set", f"api.journal={tmp_path}/none/j.sqlite3")
    assert f"there is no folder {tmp_path}/none" in told
    told = refused(tmp_path, "--port", str(free_port()), "--set", f"api.journal={tmp_path}")
    assert str(tmp_path) in told
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write anywhere")
    told = refused(locked, "--port", str(free_port()))
    assert "altlas.sqlite3" in told
    assert "Permission denied" in told


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "altlas.sqlite3"
    notes.write_text(json.dumps({"mine": True}))
    assert "is not a journal" in refused(tmp_path, "--port", str(free_port()))
    assert json.loads(notes.read_text()) == {"mine": True}
