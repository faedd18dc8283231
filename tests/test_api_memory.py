"""A server that has answered much is no larger than one that has answered little, and keeps only what it is told to."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from serving import Served, serving

BATCH = 1000
WARM = 30_000  # tasks after which the caches are full: SQLite's pages, the latest finished ones, free lists
GROWTH_KIB = 6 * 1024  # for as many again, readings of a longer time included; a leak of 300 bytes a task is more
POOL = ("--backend", "simulated", "--devices", "8x A100", "--pace", "1000")
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from /proc")


def resident_kib(server: Served) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def until(true: Callable[[], bool], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def finish(server: Served, tasks: int) -> list[str]:
    """Have so many done, a batch after the other; returns the ids."""
    ids: list[str] = []

    def over() -> bool:
        counts: dict[str, int] = server.get("/status")["tasks"]
        return counts["QUEUED"] == counts["RUNNING"] == 0

    for number in range(tasks // BATCH):
        texts = [f"def function_{number}_{place}(" + "x" * 100 for place in range(BATCH)]
        answer = server.client.post("/api/v1/predict/batch", json={"texts": texts, "max_length": 64})
        assert answer.status_code == 200, answer.text
        ids += answer.json()["task_ids"]
        until(over)
    return ids


def status_of(server: Served, path: str) -> int:
    return server.client.get(f"/api/v1{path}").status_code


def rows(server: Served, table: str) -> int:
    with closing(sqlite3.connect(f"file:{server.folder}/altlas.sqlite3?mode=ro", uri=True)) as journal:
        count: int = journal.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


@needs_proc
def test_memory_stays_flat_however_many_tasks_have_finished(tmp_path: Path) -> None:
    with serving(tmp_path, *POOL) as server:
        finish(server, WARM)
        before = resident_kib(server)
        finish(server, WARM)
        grown = resident_kib(server) - before
        print(f"resident after {WARM} tasks {before} KiB, after as many again {grown} KiB more")
        assert server.get("/status")["tasks"]["COMPLETED"] == 2 * WARM
        assert grown < GROWTH_KIB


def test_only_so_many_finished_tasks_are_kept_and_older_ids_are_unknown(tmp_path: Path) -> None:
    with serving(tmp_path, *POOL, "--set", "api.retention_count=500") as server:
        ids = finish(server, 5000)
        until(lambda: rows(server, "tasks") <= 500)
        assert rows(server, "batches") == 1
        for name in (ids[0], ids[2500], ids[-501]):
            assert status_of(server, f"/tasks/{name}") == 404
        assert status_of(server, f"/tasks/{ids[-1]}") == status_of(server, f"/tasks/{ids[-500]}") == 200
        assert [task["id"] for task in server.get("/tasks", limit=500)["tasks"]] == ids[:-501:-1]
        assert server.get("/tasks", limit=500)["next"] is None
        assert server.predict("one more", wait=20)["task_id"] not in ids
        until(lambda: status_of(server, f"/tasks/{ids[-500]}") == 404)


def test_finished_tasks_and_their_keys_are_kept_for_so_long_and_unfinished_ones_until_they_end(tmp_path: Path) -> None:
    slow = ("--backend", "simulated", "--devices", "1x A100", "--pace", "0.001", "--set", "api.shutdown_grace=0")

    def post(server: Served) -> Any:
        asked = {"json": {"text": "a", "max_length": 1}, "headers": {"Idempotency-Key": "key"}}
        return server.client.post("/api/v1/predict", **asked).json()["task_id"]

    with serving(tmp_path, *POOL) as server:
        old = post(server)
        assert server.task(old, wait=20)["status"] == "COMPLETED"
        assert post(server) == old
    with serving(tmp_path, *slow) as server:
        waiting = server.predict("b", max_length=512)["task_id"]
    time.sleep(1.0)
    with serving(tmp_path, *slow, "--set", "api.retention_age=1") as server:
        until(lambda: status_of(server, f"/tasks/{old}") == 404)
        assert server.task(waiting)["status"] in ("QUEUED", "RUNNING")
        until(lambda: rows(server, "idempotent") == 0)
        assert post(server) not in (old, waiting)
