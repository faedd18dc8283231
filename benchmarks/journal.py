"""What the journal of `altlas serve` costs: commits beside a busy thread, and reads of a journal of a million tasks.

    python -m benchmarks.journal [--quick]

The busy thread stands for an event loop that is never idle: it writes a task, and an end for an earlier one, after each
50 microseconds of work in Python. With so many in flight as a full server has, the rate is what both threads reach
together; with a few writes per second, the time from `write` to `done` is what a client waits.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

from altlas_core.api.journal import FinalTask, Journal, NewBatch, NewTask
from benchmarks.timing import script

PARAMS = json.dumps({"text": "Once upon a time there was a GPU that", "max_length": 128, "temperature": 0.7})
OPTIONS = json.dumps({"strategy": None, "gpu_id": None})
RESULT = json.dumps({"text": "was never idle, and that was that. " * 8, "tokens": 100})
PRIORITIES = ("low", "normal", "high")
WORK_S = 50e-6
IN_FLIGHT = 1000
RARE = 3  # tasks that a filter finds few of


def task(number: int, batch_id: int | None = None, priority: str | None = None) -> NewTask:
    created_at = 1.7e9 + number * 1e-3
    return NewTask(number, priority or PRIORITIES[number % 3], batch_id, created_at, PARAMS, OPTIONS)


def final(number: int, status: str = "COMPLETED", gpu_id: int | None = None) -> FinalTask:
    begin = 1.7e9 + number * 1e-3 + 0.1
    return FinalTask(
        number, status, number % 8 if gpu_id is None else gpu_id, begin, begin + 0.5, 0, RESULT, None, None
    )


def opened(path: Path, full_sync: bool) -> Journal:
    return Journal(path, retention_age_s=1e11, retention_count=10**9, full_sync=full_sync)


def work(seconds: float) -> None:
    """Keep the interpreter busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 for name, share in at.items()}


def flood(journal: Journal, seconds: float) -> dict[str, Any]:
    """As fast as the busy thread can, IN_FLIGHT writes under way: tasks per second, each of them written twice."""
    room = Semaphore(IN_FLIGHT)
    waits: list[float] = []
    first = number = journal.next_task_id
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        work(WORK_S)
        for what in ({"tasks": [task(number)]}, {"finals": [final(number - 1)]}):
            room.acquire()
            journal.write(**what, done=_stopwatch(waits, room.release))  # type: ignore[arg-type]
        number += 1
    for _ in range(IN_FLIGHT):
        room.acquire()
    wall_s = time.perf_counter() - begin
    return {"tasks_per_s": (number - first) / wall_s, "commit_ms": quantiles_ms(waits)}


def trickle(journal: Journal, first: int, seconds: float, busy: bool, rate_per_s: float = 200.0) -> dict[str, float]:
    """Milliseconds from `write` to `done` at a low rate, with the writing thread busy or asleep in between."""
    waits: list[float] = []
    begin = time.perf_counter()
    count = int(seconds * rate_per_s)
    for place in range(count):
        left_s = begin + place / rate_per_s - time.perf_counter()
        if busy:
            work(left_s)
        else:
            time.sleep(max(0.0, left_s))
        journal.write(tasks=[task(first + place)], done=_stopwatch(waits))
    ended = Event()
    journal.write(done=lambda _: ended.set())
    ended.wait()
    return quantiles_ms(waits)


def _stopwatch(waits: list[float], then: Callable[[], object] = lambda: None) -> Callable[[BaseException | None], None]:
    begin = time.perf_counter()

    def done(error: BaseException | None) -> None:
        if error is not None:
            raise error
        waits.append(time.perf_counter() - begin)
        then()

    return done


def writes(folder: Path, full_sync: bool, seconds: float) -> dict[str, Any]:
    journal = opened(folder / f"writes-{full_sync}.sqlite3", full_sync)
    found = flood(journal, seconds)
    for name, busy in (("busy_commit_ms", True), ("idle_commit_ms", False)):
        found[name] = trickle(journal, 10**7 * (1 + busy), seconds, busy)
    journal.close()
    return found


def build(journal: Journal, count: int) -> float:
    """Tasks in batches of 100, finished but for the last thousandth; returns seconds."""
    begin = time.perf_counter()
    room = Semaphore(4)
    for start in range(1, count + 1, 1000):
        ids = range(start, start + 1000)
        rare = start == 1  # the oldest are the only ones that failed, were of that priority, on that GPU
        tasks = [task(i, i // 100, "critical" if rare and i <= RARE else None) for i in ids]
        finals = [final(i, "FAILED", 9) if rare and i <= RARE else final(i) for i in ids if i <= count - count // 1000]
        batches = [NewBatch(i // 100, 1.7e9, 100, "normal") for i in ids if i % 100 == 0]
        room.acquire()
        journal.write(tasks=tasks, finals=finals, batches=batches, done=lambda _: room.release())
    for _ in range(4):
        room.acquire()
    return time.perf_counter() - begin


def median_s(call: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def reads(folder: Path, count: int) -> dict[str, Any]:
    path = folder / "large.sqlite3"
    journal = opened(path, full_sync=True)
    build_s = build(journal, count)
    journal.close()
    begin = time.perf_counter()
    journal = opened(path, full_sync=True)
    open_s = time.perf_counter() - begin
    lists: dict[str, dict[str, Any]] = {
        "no filter": {},
        "no filter, from the middle": {"before": count // 2},
        "status COMPLETED": {"status": "COMPLETED"},
        f"status FAILED ({RARE} match)": {"status": "FAILED"},
        "status CANCELLED (none)": {"status": "CANCELLED"},
        f"priority critical ({RARE} match)": {"priority": "critical"},
        "batch_id (100 match)": {"batch_id": count // 300},
        f"gpu_id 9 ({RARE} match)": {"gpu_id": 9},
        "gpu_id 77 (none)": {"gpu_id": 77},
    }
    return {
        "tasks": count,
        "build_s": build_s,
        "open_s": open_s,
        "bytes_per_task": path.stat().st_size / count,
        "list_s": {
            name: median_s(lambda what=what: journal.tasks(limit=100, **what), 20) for name, what in lists.items()
        },
        "batches_s": median_s(lambda: journal.batches(limit=100), 20),
        "task_s": median_s(lambda: journal.task(count // 3), 2000),
        "busy_commit_ms": trickle(journal, count + 1, 5.0, busy=True),
        "flood": flood(opened_again(journal, path), 5.0),
    }


def opened_again(journal: Journal, path: Path) -> Journal:
    journal.close()
    return opened(path, full_sync=True)


def measure(quick: bool) -> dict[str, Any]:
    seconds = 1.0 if quick else 5.0
    with tempfile.TemporaryDirectory() as folder:
        return {
            "writes": {name: writes(Path(folder), name == "FULL", seconds) for name in ("FULL", "NORMAL")},
            "reads": reads(Path(folder), 20_000 if quick else 1_000_000),
        }


if __name__ == "__main__":
    script(__doc__, measure)
