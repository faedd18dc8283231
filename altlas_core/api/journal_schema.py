"""The journal's tables, how a group of writes reaches them in one statement, and opening the file safely.

Python's sqlite3 lets go of the GIL in every step of a statement and, beside a busy thread, waits up to the switch
interval (5 ms) to have it back. So a group is ONE statement that commits itself: an INSERT into a temporary view whose
trigger takes the rows of each table out of one JSON text.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from json import JSONEncoder
from pathlib import Path

from altlas_core.api.journal_records import FinalTask, Idempotent, JournalError, JournalInUseError, NewBatch, NewTask

MAGIC = b"SQLite format 3\0"
APPLICATION_ID = 0x414C544A  # "ALTJ", in the header of the file
VERSION = 1
# A checkpoint happens inside a commit and stalls it for 10 to 30 ms, however large the log is: the larger, the fewer
# requests wait for one.
CHECKPOINT_PAGES = 16_000
LOG_BYTES = 128 * 1024**2  # to which the log is cut after it has grown beyond

# Few indexes, as each costs writes; each ends in the id, so that newest first needs no sorting. The long columns stand
# last: SQLite reads a row from its start. A batch's index holds the status too, so that counts never look at the rows.
TABLES = """
CREATE TABLE tasks (
  id INTEGER PRIMARY KEY, status TEXT NOT NULL, priority TEXT NOT NULL, batch_id INTEGER, gpu_id INTEGER,
  created_at REAL NOT NULL, started_at REAL, completed_at REAL, retry_count INTEGER NOT NULL, error_code TEXT,
  params TEXT NOT NULL, options TEXT NOT NULL, result TEXT, error TEXT
);
CREATE INDEX tasks_by_status ON tasks (status);
CREATE INDEX tasks_by_priority ON tasks (priority);
CREATE INDEX tasks_by_batch ON tasks (batch_id, id, status) WHERE batch_id IS NOT NULL;
CREATE INDEX tasks_by_gpu ON tasks (gpu_id) WHERE gpu_id IS NOT NULL;
CREATE TABLE batches (
  id INTEGER PRIMARY KEY, created_at REAL NOT NULL, count INTEGER NOT NULL, priority TEXT NOT NULL
);
CREATE TABLE idempotent (
  key TEXT NOT NULL UNIQUE, fingerprint TEXT NOT NULL, answer TEXT NOT NULL, created_at REAL NOT NULL
);
CREATE INDEX idempotent_by_age ON idempotent (created_at);
CREATE TABLE counters (next_task_id INTEGER NOT NULL, next_batch_id INTEGER NOT NULL, probes INTEGER NOT NULL);
INSERT INTO counters VALUES (1, 1, 0);
"""
MARK = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"

# "+status" keeps the planner from walking the index of all queued tasks for each row.
WRITES = """
CREATE TEMP VIEW write_group AS SELECT NULL AS tasks, NULL AS batches, NULL AS finals, NULL AS idempotent;
CREATE TEMP TRIGGER write_group_rows INSTEAD OF INSERT ON write_group BEGIN
  INSERT INTO batches (id, created_at, count, priority)
    SELECT value ->> '$[0]', (value ->> '$[1]') * 1.0 / (value ->> '$[2]'), value ->> '$[3]', value ->> '$[4]'
    FROM json_each(NEW.batches);
  INSERT INTO tasks (id, status, priority, batch_id, created_at, retry_count, params, options)
    SELECT value ->> '$[0]', 'QUEUED', value ->> '$[1]', value ->> '$[2]',
      (value ->> '$[3]') * 1.0 / (value ->> '$[4]'), 0, value ->> '$[5]', value ->> '$[6]'
    FROM json_each(NEW.tasks);
  UPDATE tasks SET status = final.value ->> '$[1]', gpu_id = final.value ->> '$[2]',
      started_at = (final.value ->> '$[3]') * 1.0 / (final.value ->> '$[4]'),
      completed_at = (final.value ->> '$[5]') * 1.0 / (final.value ->> '$[6]'),
      retry_count = final.value ->> '$[7]', result = final.value ->> '$[8]', error = final.value ->> '$[9]',
      error_code = final.value ->> '$[10]'
    FROM json_each(NEW.finals) AS final
    WHERE tasks.id = final.value ->> '$[0]' AND +tasks.status = 'QUEUED';
  INSERT INTO idempotent (key, fingerprint, answer, created_at)
    SELECT value ->> '$[0]', value ->> '$[1]', value ->> '$[2]', (value ->> '$[3]') * 1.0 / (value ->> '$[4]')
    FROM json_each(NEW.idempotent) WHERE TRUE
    ON CONFLICT (key) DO UPDATE
      SET fingerprint = excluded.fingerprint, answer = excluded.answer, created_at = excluded.created_at;
END;
CREATE TEMP VIEW delete_group AS SELECT NULL AS tasks, NULL AS batches, NULL AS before;
CREATE TEMP TRIGGER delete_group_rows INSTEAD OF INSERT ON delete_group BEGIN
  UPDATE counters SET next_task_id = max(next_task_id, 1 + coalesce((SELECT max(id) FROM tasks), 0)),
    next_batch_id = max(next_batch_id, 1 + coalesce((SELECT max(id) FROM batches), 0))
    WHERE NEW.tasks <> '[]';
  DELETE FROM tasks WHERE id IN (SELECT value FROM json_each(NEW.tasks));
  DELETE FROM batches WHERE id IN (SELECT value FROM json_each(NEW.batches))
    AND NOT EXISTS (SELECT 1 FROM tasks WHERE batch_id = batches.id);
  DELETE FROM idempotent WHERE rowid IN
    (SELECT rowid FROM idempotent WHERE created_at < NEW.before ORDER BY created_at LIMIT 256);
END;
"""

encode = JSONEncoder(check_circular=False, separators=(",", ":")).encode


def write_group(
    connection: sqlite3.Connection,
    tasks: Sequence[NewTask],
    batches: Sequence[NewBatch],
    finals: Sequence[FinalTask],
    idempotent: Sequence[Idempotent],
) -> int:
    """Commit all of it or none; return how many finals took effect.

    A time travels as the fraction of two integers that it is, which SQLite divides exactly; its reading of decimals is
    right to the last bit in some versions only. Free text travels as JSON text: SQLite's JSON ends a string at a NUL.
    """
    task_rows = [
        (t.id, t.priority, t.batch_id, *t.created_at.as_integer_ratio(), t.params, t.options) for t in tasks
    ]  # fmt: skip
    batch_rows = [(b.id, *b.created_at.as_integer_ratio(), b.count, b.priority) for b in batches]
    final_rows = [_final_row(final) for final in finals]
    idempotent_rows = [
        (encode(i.key), encode(i.fingerprint), encode(i.answer), *i.created_at.as_integer_ratio()) for i in idempotent
    ]
    before = connection.total_changes
    connection.execute(
        "INSERT INTO write_group VALUES (?, ?, ?, ?)",
        [encode(rows) if rows else None for rows in (task_rows, batch_rows, final_rows, idempotent_rows)],
    )
    return connection.total_changes - before - len(task_rows) - len(batch_rows) - len(idempotent_rows)


def _final_row(final: FinalTask) -> tuple[object, ...]:
    started = (None, None) if final.started_at is None else final.started_at.as_integer_ratio()
    error = None if final.error is None else encode(final.error)
    completed = final.completed_at.as_integer_ratio()
    key = (final.id, final.status, final.gpu_id)
    return (*key, *started, *completed, final.retry_count, final.result, error, final.error_code)


def take_lock(path: Path) -> int:
    """Hold PATH.lock until the returned descriptor is closed, or the process ends however it ends.

    Raises JournalInUseError if another journal, of this process or another one, holds it; JournalError if it cannot be
    made.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JournalError(f"journal {path} cannot be used: {lock}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        holder = f"process {pid}" if pid.isdigit() else "another process"
        text = f"journal {path} is in use by {holder}; stop that one, or name another journal"
        raise JournalInUseError(text) from error
    except OSError as error:
        os.close(descriptor)
        raise JournalError(f"journal {path} cannot be used: {lock}: {error.strerror}") from error
    return descriptor


def open_writer(path: Path, full_sync: bool) -> sqlite3.Connection:
    """The one connection that writes; makes the tables in a file that is new. Raises JournalError."""
    connection = None
    try:
        _check_start(path)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        if _is_new(connection, path):
            connection.executescript(f"BEGIN IMMEDIATE; {TABLES} {MARK} COMMIT;")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalError(f"journal {path}: its file system cannot hold a write-ahead log; name a local folder")
        connection.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cache_size = -16384")  # KiB
        probe(connection)
        connection.executescript(WRITES)
    except (OSError, sqlite3.Error, JournalError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, JournalError):
            raise
        advice = "; it is damaged: move it away, or bring back a copy" if "malformed" in str(error) else ""
        raise JournalError(f"journal {path} cannot be used: {error}{advice}") from error
    return connection


def _check_start(path: Path) -> None:
    """SQLite itself would write over a file of a few bytes. An empty one is as good as none."""
    if not path.exists():
        return
    if not path.is_file():
        raise JournalError(f"journal {path} cannot be used: it is not a file")
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start not in (b"", MAGIC):
        raise JournalError(f"{path} is not a journal, nor any SQLite database; name another file")


def probe(connection: sqlite3.Connection) -> None:
    """Commit a small change. Raises sqlite3.Error while the file cannot be written."""
    connection.execute("UPDATE counters SET probes = probes + 1")


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == APPLICATION_ID and version != VERSION:
        raise JournalError(f"journal {path} is of version {version}; this program reads version {VERSION} only")
    if application != APPLICATION_ID and (application, version, objects) != (0, 0, 0):
        raise JournalError(f"{path} is a database of another program, not a journal; name another file")
    return bool(objects == 0)
