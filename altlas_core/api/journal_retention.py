"""What the journal forgets: finished tasks that are too old or too many, in steps that take a few milliseconds each."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from altlas_core.api.journal_records import QUEUED
from altlas_core.api.journal_schema import encode

STEP = 256  # tasks looked at in one step
SWEEP_S = 60.0  # from one look at the ages of all that is old to the next

LOOK = "SELECT id, batch_id, status, created_at, completed_at FROM tasks WHERE id > ? ORDER BY id LIMIT ?"


class Retention:
    """Walks the tasks in order of id, oldest first, on the writer's connection and thread. Unfinished ones stay.

    A task finishes after it was created, so a sweep ends where tasks were created too lately to be old. That needs no
    index on times. When only the number is too large, the walk goes on from where it was: what it passed was
    unfinished, and is seen again by the next sweep.
    """

    def __init__(
        self, connection: sqlite3.Connection, age_s: float, count: int, finished: int, clock: Callable[[], float]
    ) -> None:
        """`count`: how many finished tasks are kept at most; `finished`: how many there are."""
        self._connection = connection
        self._age_s = age_s
        self._count = count
        self.finished = finished
        self._clock = clock
        self._swept_at = float("-inf")
        self._sweeping = False
        self._after = 0  # the id that the walk has come to

    def work(self, slack: int = 0) -> bool:
        """Whether there is something to do; of tasks that are too many, more than `slack`."""
        now = self._clock()
        if not self._sweeping and abs(now - self._swept_at) >= SWEEP_S:  # abs: clocks are set back
            self._swept_at = now
            self._sweeping = True
            self._after = 0
        return self._sweeping or self.finished - self._count > slack

    def step(self) -> int:
        """Delete what is due of the next STEP tasks, and old idempotency keys; return how many tasks went."""
        before = self._clock() - self._age_s
        surplus = self.finished - self._count
        walked = False  # to where nothing is old
        tasks: list[int] = []
        batches: set[int] = set()
        rows = self._connection.execute(LOOK, (self._after, STEP)).fetchall()
        for task_id, batch_id, status, created_at, completed_at in rows:
            if surplus <= len(tasks) and created_at >= before:
                walked = True
                break
            self._after = task_id
            if status != QUEUED and (completed_at < before or surplus > len(tasks)):
                tasks.append(task_id)
                batches.add(batch_id)
        else:
            if len(rows) < STEP:
                walked = True
                self._after = 0
        deleted = [encode(tasks), encode([batch for batch in batches if batch is not None]), before]
        self._connection.execute("INSERT INTO delete_group VALUES (?, ?, ?)", deleted)
        self.finished -= len(tasks)
        if walked:
            (oldest,) = self._connection.execute("SELECT min(created_at) FROM idempotent").fetchone()
            self._sweeping = oldest is not None and oldest < before
        return len(tasks)
