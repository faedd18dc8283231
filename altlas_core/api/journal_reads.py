"""Reading the journal, beside its writer: a second connection, which sees all that was committed when it asks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from altlas_core.api.journal_records import QUEUED, STATUSES, Idempotent, JournalError, StoredBatch, StoredTask
from altlas_core.api.journal_schema import encode

TASK = (
    "SELECT id, status, priority, batch_id, gpu_id, created_at, started_at, completed_at, retry_count, error_code, "
    "params, options, result, error FROM tasks"
)
# One statement for all batches of a page: the index tasks_by_batch holds all that is counted.
BATCH = (
    "SELECT id, created_at, count, priority, (SELECT json_group_object(status, number) FROM "
    "(SELECT status, count(*) AS number FROM tasks WHERE batch_id = batches.id GROUP BY status)) FROM batches"
)
PAGE = 1000  # rows; a read that is left half done would keep the log from being cut


class Reads:
    """Raises JournalError when the file cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._ask("PRAGMA query_only = 1")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def task(self, task_id: int) -> StoredTask | None:
        rows = self._ask(f"{TASK} WHERE id = ?", task_id)
        return _task(rows[0]) if rows else None

    def tasks(self, limit: int, before: int | None, filters: Mapping[str, object]) -> list[StoredTask]:
        """Newest first, of ids below `before`, those whose columns have the values in `filters`; None is any."""
        wanted: dict[str, object] = {f"{column} = ?": value for column, value in filters.items() if value is not None}
        if before is not None:
            wanted["id < ?"] = before
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        return [_task(row) for row in self._ask(f"{TASK}{where} ORDER BY id DESC LIMIT ?", *wanted.values(), limit)]

    def unfinished(self) -> Iterator[StoredTask]:
        last = 0
        while rows := self._ask(f"{TASK} WHERE status = ? AND id > ? ORDER BY id LIMIT ?", QUEUED, last, PAGE):
            yield from map(_task, rows)
            last = rows[-1][0]

    def batch(self, batch_id: int) -> StoredBatch | None:
        rows = self._ask(f"{BATCH} WHERE id = ?", batch_id)
        return _batch(rows[0]) if rows else None

    def batches(self, limit: int, before: int | None) -> list[StoredBatch]:
        if before is None:
            return [_batch(row) for row in self._ask(f"{BATCH} ORDER BY id DESC LIMIT ?", limit)]
        return [_batch(row) for row in self._ask(f"{BATCH} WHERE id < ? ORDER BY id DESC LIMIT ?", before, limit)]

    def batch_task_ids(self, batch_id: int) -> list[int]:
        return [row[0] for row in self._ask("SELECT id FROM tasks WHERE batch_id = ? ORDER BY id", batch_id)]

    def idempotent(self, key: str) -> Idempotent | None:
        asked = "SELECT key, fingerprint, answer, created_at FROM idempotent WHERE key = ?"
        rows = self._ask(asked, encode(key))
        if not rows:
            return None
        key, fingerprint, answer, created_at = rows[0]
        return Idempotent(json.loads(key), json.loads(fingerprint), json.loads(answer), created_at)

    def counts(self) -> dict[str, int]:
        return _counts(dict(self._ask("SELECT status, count(*) FROM tasks GROUP BY status")))

    def next_ids(self) -> tuple[int, int]:
        """The first task id and the first batch id that were never used."""
        rows = self._ask(
            "SELECT max(next_task_id, 1 + coalesce((SELECT max(id) FROM tasks), 0)), "
            "max(next_batch_id, 1 + coalesce((SELECT max(id) FROM batches), 0)) FROM counters"
        )
        return rows[0][0], rows[0][1]

    def _ask(self, sql: str, *values: object) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"journal {self._path} cannot be read: {error}") from error


def _task(row: tuple[Any, ...]) -> StoredTask:
    error = None if row[-1] is None else json.loads(row[-1])
    return StoredTask(*(*row[:-1], error))


def _batch(row: tuple[Any, ...]) -> StoredBatch:
    return StoredBatch(*(*row[:-1], _counts(json.loads(row[-1]))))


def _counts(found: dict[str, int]) -> dict[str, int]:
    return {status: found.get(status, 0) for status in STATUSES}
