"""The journal: what the API accepted and what became of it, in one SQLite file that survives a killed process.

One thread writes. It takes all that was queued while the commit before was under way and commits it as one group, so
the busier the server, the larger the groups; nothing waits on purpose. What was reported as committed is there after a
SIGKILL; with `full_sync` after a power cut too.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import NamedTuple

from altlas_core.api.journal_reads import Reads
from altlas_core.api.journal_records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    QUEUED,
    STATUSES,
    FinalTask,
    Idempotent,
    JournalError,
    JournalInUseError,
    NewBatch,
    NewTask,
    StoredBatch,
    StoredTask,
)
from altlas_core.api.journal_retention import STEP, Retention
from altlas_core.api.journal_schema import open_writer, probe, take_lock, write_group

__all__ = [
    "CANCELLED",
    "COMPLETED",
    "FAILED",
    "QUEUED",
    "STATUSES",
    "FinalTask",
    "Idempotent",
    "Journal",
    "JournalError",
    "JournalInUseError",
    "NewBatch",
    "NewTask",
    "StoredBatch",
    "StoredTask",
]

Done = Callable[[BaseException | None], None]

GROUP_ROWS = 4096  # about 30 ms; whatever is queued beyond goes into the next group
IDLE_S = 5.0  # from one look whether something became too old to the next, while nothing is written
PROBE_S = 0.5  # from one try whether a problem is over to the next: who sees the problem may write nothing meanwhile
REST_S = 0.01  # between two steps of deleting, while nothing is written

log = logging.getLogger(__name__)


class Write(NamedTuple):
    tasks: Sequence[NewTask]
    batches: Sequence[NewBatch]
    finals: Sequence[FinalTask]
    idempotent: Sequence[Idempotent]
    done: Done

    def rows(self) -> int:
        return len(self.tasks) + len(self.batches) + len(self.finals) + len(self.idempotent)


class Journal:
    """One file, one process. Any thread may write; reads take their turns.

    `problem` says why the last group could not be committed (a full disk, say), None once one can. `duplicates`
    counts finals that found their task finished already, or not there: a task has one final state, the first.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        retention_age_s: float,
        retention_count: int,
        clock: Callable[[], float] = time.time,
        full_sync: bool = True,
    ) -> None:
        """Open the journal, or create it in a folder that is there.

        Args:
            retention_age_s: finished tasks and idempotency keys older than this are deleted.
            retention_count: so many finished tasks are kept; the oldest go first, but one that ended late may outlive
                newer ones.
            full_sync: wait for the disk at each commit; without it a power cut may take the last commits.

        Raises JournalError, which names the file, for one that is not a journal of this version or cannot be written;
        JournalInUseError for one that is in use.
        """
        self.path = Path(path)
        self.problem: str | None = None
        self.duplicates = 0
        if not self.path.parent.is_dir():
            raise JournalError(f"journal {self.path}: there is no folder {self.path.parent}; make it first")
        lock = take_lock(self.path)
        try:
            self._connection = open_writer(self.path, full_sync)
            try:
                self._reads = Reads(self.path)
                self.next_task_id, self.next_batch_id = self._reads.next_ids()
                counts = self._reads.counts()
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        finished = sum(counts.values()) - counts[QUEUED]
        self._retention = Retention(self._connection, retention_age_s, retention_count, finished, clock)
        self._queue: SimpleQueue[Write | None] = SimpleQueue()
        self._open = True
        self._gate = Lock()  # nothing is queued behind the None that ends the writer
        self._thread = Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def write(
        self,
        *,
        tasks: Sequence[NewTask] = (),
        batches: Sequence[NewBatch] = (),
        finals: Sequence[FinalTask] = (),
        idempotent: Sequence[Idempotent] = (),
        done: Done,
    ) -> None:
        """Queue it, whole or not at all; `done` is called on the writer's thread, in the order of the calls.

        `done` gets None once it is committed, else the JournalError. The sequences must not change until then. Of an
        idempotency key that is there already the new record stays. Raises JournalError after `close`.
        """
        write = Write(tasks, batches, finals, idempotent, done)
        with self._gate:
            if not self._open:
                raise JournalError(f"journal {self.path} is closed")
            self._queue.put(write)

    def close(self) -> None:
        """Commit what is queued, then close the file. A second call does nothing."""
        with self._gate:
            if not self._open:
                return
            self._open = False
            self._queue.put(None)
        self._thread.join()
        self._reads.close()
        self._connection.close()
        os.close(self._lock)

    def task(self, task_id: int) -> StoredTask | None:
        return self._reads.task(task_id)

    def tasks(
        self,
        *,
        limit: int,
        before: int | None = None,
        status: str | None = None,
        priority: str | None = None,
        batch_id: int | None = None,
        gpu_id: int | None = None,
    ) -> list[StoredTask]:
        """Newest first, those with ids below `before`. Fast for any one filter, however few match."""
        filters = {"status": status, "priority": priority, "batch_id": batch_id, "gpu_id": gpu_id}
        return self._reads.tasks(limit, before, filters)

    def unfinished(self) -> Iterator[StoredTask]:
        """In order of id."""
        return self._reads.unfinished()

    def batch(self, batch_id: int) -> StoredBatch | None:
        return self._reads.batch(batch_id)

    def batches(self, *, limit: int, before: int | None = None) -> list[StoredBatch]:
        """Newest first, those with ids below `before`."""
        return self._reads.batches(limit, before)

    def batch_task_ids(self, batch_id: int) -> list[int]:
        """In order; without those that were deleted since."""
        return self._reads.batch_task_ids(batch_id)

    def idempotent(self, key: str) -> Idempotent | None:
        return self._reads.idempotent(key)

    def counts(self) -> dict[str, int]:
        """Tasks in each status. Looks at an index of all tasks: for the start, not for each request."""
        return self._reads.counts()

    def _run(self) -> None:
        """The writer's thread."""
        while True:
            try:
                first = self._queue.get(timeout=self._pause_s())
            except Empty:
                self._idle()
                continue
            if first is None:
                return
            group = self._group(first)
            self._commit(group)
            # As many as were added, and some: what is too much must not grow under load.
            finals = sum(len(write.finals) for write in group)
            self._forget(1 + 2 * finals // STEP, slack=STEP)

    def _pause_s(self) -> float:
        if self.problem is not None:
            return PROBE_S
        return REST_S if self._retention.work() else IDLE_S

    def _idle(self) -> None:
        if self.problem is None:
            self._forget(1, slack=0)
            return
        try:
            probe(self._connection)
        except sqlite3.Error as error:
            self.problem = f"journal {self.path} could not be written: {error}"
        else:
            self.problem = None

    def _group(self, first: Write) -> list[Write]:
        """What is queued, up to GROUP_ROWS rows."""
        group = [first]
        rows = first.rows()
        while rows < GROUP_ROWS:
            try:
                write = self._queue.get_nowait()
            except Empty:
                break
            if write is None:  # the last there will be: left for the next turn
                self._queue.put(None)
                break
            group.append(write)
            rows += write.rows()
        return group

    def _commit(self, group: Sequence[Write]) -> None:
        error: JournalError | None = None
        try:
            self._write(group)
            self.problem = None
        except Exception as raised:
            mistake = _is_mistake(raised)
            if mistake and len(group) > 1:  # of one call, which must not cost the others theirs
                for write in group:
                    self._commit([write])
                return
            error = JournalError(f"journal {self.path} could not be written: {raised}")
            error.__cause__ = raised
            if not mistake:
                self.problem = str(error)
        for write in group:
            try:
                write.done(error)
            except Exception:
                log.exception("a callback of the journal failed")

    def _write(self, group: Sequence[Write]) -> None:
        finals: dict[int, FinalTask] = {}
        offered = 0
        for write in group:
            offered += len(write.finals)
            for final in write.finals:
                finals.setdefault(final.id, final)
        applied = write_group(
            self._connection,
            [task for write in group for task in write.tasks],
            [batch for write in group for batch in write.batches],
            list(finals.values()),
            [record for write in group for record in write.idempotent],
        )
        self.duplicates += offered - applied
        self._retention.finished += applied

    def _forget(self, steps: int, slack: int) -> None:
        try:
            for _ in range(steps):
                if not self._retention.work(slack):
                    return
                self._retention.step()
        except sqlite3.Error as error:
            self.problem = f"journal {self.path}: what is too old could not be deleted: {error}"


def _is_mistake(error: Exception) -> bool:
    """Whether what was to be written is at fault, and not the file or the disk."""
    return not isinstance(error, sqlite3.Error) or isinstance(
        error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError | sqlite3.ProgrammingError
    )
