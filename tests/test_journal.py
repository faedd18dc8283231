"""The journal: what is committed comes back exactly, in order, is found fast, and is forgotten when it is old."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altlas_core.api import journal as journal_module
from altlas_core.api.journal import (
    FinalTask,
    Idempotent,
    Journal,
    JournalError,
    JournalInUseError,
    NewBatch,
    NewTask,
    StoredTask,
)
from altlas_core.api.journal_reads import BATCH, TASK
from altlas_core.api.journal_retention import STEP, SWEEP_S

DAY_S = 86_400.0


class Clock:
    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def opened(path: Path, **settings: Any) -> Journal:
    return Journal(path, **{"retention_age_s": DAY_S, "retention_count": 10**6, "clock": Clock(), **settings})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = opened(path)
    yield journal
    journal.close()


def commit(journal: Journal, **what: Sequence[Any]) -> None:
    """Write it and wait; raises the error it ended with."""
    ended = threading.Event()
    errors: list[BaseException | None] = []

    def done(error: BaseException | None) -> None:
        errors.append(error)
        ended.set()

    journal.write(done=done, **what)
    assert ended.wait(30)
    if errors[0] is not None:
        raise errors[0]


def new(task_id: int, **changed: Any) -> NewTask:
    return replace(NewTask(task_id, "normal", None, 1_000.0, '{"text": "a"}', "{}"), **changed)


def final(task_id: int, **changed: Any) -> FinalTask:
    return replace(FinalTask(task_id, "COMPLETED", 0, 1_001.0, 1_002.5, 0, '{"text": "b"}', None, None), **changed)


def stored(task: NewTask, end: FinalTask) -> StoredTask:
    where = (task.id, end.status, task.priority, task.batch_id, end.gpu_id)
    when = (task.created_at, end.started_at, end.completed_at)
    return StoredTask(
        *where, *when, end.retry_count, end.error_code, task.params, task.options, end.result, end.error
    )  # fmt: skip


def idle_until(holds: Callable[[], bool]) -> None:
    """What the writer does by itself when it is idle has no callback to wait for."""
    for _ in range(3_000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within 30 s")


class Plug:
    """Holds the writer inside a callback, so that all that is written meanwhile becomes its next group."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._held = threading.Event()
        self._free = threading.Event()

    def __enter__(self) -> None:
        def done(error: BaseException | None) -> None:
            self._held.set()
            self._free.wait(30)

        self._journal.write(done=done)
        assert self._held.wait(30)

    def __exit__(self, *error: object) -> None:
        self._free.set()


# --- what comes back --------------------------------------------------------------------------------------------------

times = st.floats(0.001, 1e11)
json_text = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]))
free_text = st.text(st.characters(exclude_categories=[]))  # NUL, lone surrogates, all of it
counts = st.integers(0, 2**53)
ends = st.builds(
    FinalTask,
    id=st.just(0),
    status=st.sampled_from(["COMPLETED", "FAILED", "CANCELLED"]),
    gpu_id=st.none() | counts,
    started_at=st.none() | times,
    completed_at=times,
    retry_count=counts,
    result=st.none() | json_text,
    error=st.none() | free_text,
    error_code=st.none() | st.sampled_from(["timeout", "device_lost"]),
)
news = st.builds(
    NewTask,
    id=st.just(0),
    priority=st.sampled_from(["low", "normal", "high"]),
    batch_id=st.none() | counts,
    created_at=times,
    params=json_text,
    options=json_text,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    journal = opened(tmp_path_factory.mktemp("shared") / "journal.sqlite3", retention_age_s=float("inf"))
    yield journal
    journal.close()


@given(st.lists(st.tuples(news, ends), min_size=1, max_size=20))
def test_a_task_comes_back_bit_by_bit_as_it_was_written(
    shared: Journal, pairs: list[tuple[NewTask, FinalTask]]
) -> None:
    first = max((task.id for task in shared.tasks(limit=1)), default=0) + 1
    tasks = [replace(task, id=first + place) for place, (task, _) in enumerate(pairs)]
    finals = [replace(end, id=first + place) for place, (_, end) in enumerate(pairs)]
    commit(shared, tasks=tasks, finals=finals)
    expected = [stored(task, end) for task, end in zip(tasks, finals, strict=True)]
    assert shared.tasks(limit=len(tasks)) == expected[::-1]
    assert [shared.task(task.id) for task in tasks] == expected


@given(free_text, free_text, free_text, times)
def test_an_idempotency_key_comes_back_with_its_answer(
    shared: Journal, key: str, fingerprint: str, answer: str, created_at: float
) -> None:
    record = Idempotent(key, fingerprint, answer, created_at)
    commit(shared, idempotent=[record])
    assert shared.idempotent(key) == record
    assert shared.idempotent(key + "x") != record


def test_the_latest_answer_of_a_key_stays(journal: Journal) -> None:
    commit(journal, idempotent=[Idempotent("k", "1", "{}", 1.0), Idempotent("k", "2", "[]", 2.0)])
    assert journal.idempotent("k") == Idempotent("k", "2", "[]", 2.0)
    assert journal.idempotent("other") is None


def test_an_unfinished_task_is_queued_and_holds_nothing_of_an_end(journal: Journal) -> None:
    commit(journal, tasks=[new(1, batch_id=4)])
    expected = StoredTask(
        1, "QUEUED", "normal", 4, None, 1_000.0, None, None, 0, None, '{"text": "a"}', "{}", None, None
    )  # fmt: skip
    assert journal.task(1) == expected
    assert journal.task(2) is None


def test_a_batch_counts_the_states_of_its_tasks(journal: Journal) -> None:
    commit(
        journal,
        batches=[NewBatch(7, 5.5, 3, "high"), NewBatch(8, 6.5, 1, "low")],
        tasks=[new(1, batch_id=7), new(2, batch_id=7), new(3, batch_id=7), new(4, batch_id=8), new(5)],
        finals=[final(1), final(3, status="FAILED")],
    )
    batch = journal.batch(7)
    assert batch is not None
    assert (batch.id, batch.created_at, batch.size, batch.priority) == (7, 5.5, 3, "high")
    assert batch.counts == {"QUEUED": 1, "COMPLETED": 1, "FAILED": 1, "CANCELLED": 0}
    assert [each.id for each in journal.batches(limit=10)] == [8, 7]
    assert [each.id for each in journal.batches(limit=1)] == [8]
    assert journal.batches(limit=10, before=8) == [batch]
    assert journal.batch_task_ids(7) == [1, 2, 3]
    assert journal.batch(9) is None
    assert journal.counts() == {"QUEUED": 3, "COMPLETED": 1, "FAILED": 1, "CANCELLED": 0}


def test_lists_are_newest_first_and_filtered_by_each_column(journal: Journal) -> None:
    priorities = ["low", "high"]
    tasks = [new(i, priority=priorities[i % 2], batch_id=i % 3 or None) for i in range(1, 31)]
    finals = [final(i, gpu_id=i % 4, status="FAILED" if i % 5 else "COMPLETED") for i in range(1, 21)]
    commit(journal, tasks=tasks, finals=finals)
    everything = journal.tasks(limit=100)
    assert [task.id for task in everything] == list(range(30, 0, -1))
    for column in ("status", "priority", "batch_id", "gpu_id"):
        for value in {getattr(task, column) for task in everything} - {None}:
            matching = [task for task in everything if getattr(task, column) == value]
            assert journal.tasks(limit=100, **{column: value}) == matching
            assert journal.tasks(limit=2, before=17, **{column: value}) == [t for t in matching if t.id < 17][:2]
    both = [task for task in everything if task.status == "FAILED" and task.gpu_id == 0]
    assert journal.tasks(limit=100, status="FAILED", gpu_id=0) == both
    assert journal.tasks(limit=100, gpu_id=99) == []


@pytest.mark.parametrize(
    ("column", "index"),
    [
        ("status", "tasks_by_status"),
        ("priority", "tasks_by_priority"),
        ("batch_id", "tasks_by_batch"),
        ("gpu_id", "tasks_by_gpu"),
    ],
)
def test_a_filtered_list_reads_an_index_in_order(journal: Journal, path: Path, column: str, index: str) -> None:
    plan = _plan(path, f"{TASK} WHERE {column} = ? AND id < ? ORDER BY id DESC LIMIT ?", ("1", 9, 9))
    assert len(plan) == 1
    assert f"USING INDEX {index} ({column}=? AND " in plan[0]


def test_counts_of_a_batch_read_its_index_alone(journal: Journal, path: Path) -> None:
    assert any("USING COVERING INDEX tasks_by_batch" in step for step in _plan(path, f"{BATCH} WHERE id = ?", (1,)))


def _plan(path: Path, sql: str, values: tuple[Any, ...]) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    finally:
        connection.close()


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_was_queued_meanwhile_is_one_commit_and_is_told_in_order(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    really = journal_module.write_group

    def counted(connection: sqlite3.Connection, tasks: Sequence[NewTask], *rest: Any) -> int:
        groups.append(len(tasks))
        return really(connection, tasks, *rest)

    monkeypatch.setattr(journal_module, "write_group", counted)
    told: list[int] = []
    with Plug(journal):
        for number in range(1, 101):
            journal.write(tasks=[new(number)], done=lambda error, number=number: told.append(number))
    commit(journal)
    assert told == list(range(1, 101))
    assert groups[:2] == [0, 100]


def test_a_read_in_the_callback_sees_what_was_written(journal: Journal) -> None:
    seen: list[tuple[str, str] | None] = []

    def look(_: BaseException | None) -> None:
        task = journal.task(1)
        seen.append(None if task is None else (task.status, task.params))

    journal.write(tasks=[new(1)], done=look)
    journal.write(finals=[final(1)], done=look)
    commit(journal)
    assert seen[0] is not None
    assert seen[1] == ("COMPLETED", '{"text": "a"}')


def test_the_first_final_state_stays_and_others_are_counted(journal: Journal) -> None:
    commit(journal, tasks=[new(1), new(2)])
    with Plug(journal):
        for status in ("CANCELLED", "COMPLETED"):
            journal.write(finals=[final(1, status=status)], done=lambda error: None)
    commit(journal)  # so that what follows is another group
    commit(journal, finals=[final(1, status="FAILED"), final(2), final(77)])
    assert [task.status for task in journal.tasks(limit=9)] == ["COMPLETED", "CANCELLED"]
    assert journal.duplicates == 3


def test_a_write_that_cannot_be_does_not_spoil_those_beside_it(journal: Journal) -> None:
    commit(journal, tasks=[new(1)])
    told: list[bool] = []
    with Plug(journal):
        for tasks in ([new(2)], [new(3), new(1)], [new(4, created_at=float("nan"))], [new(5)]):
            journal.write(tasks=tasks, done=lambda error: told.append(isinstance(error, JournalError)))
    commit(journal)
    assert told == [False, True, True, False]
    assert [task.id for task in journal.tasks(limit=9)] == [5, 2, 1]
    assert journal.problem is None


def test_a_callback_that_raises_is_logged_and_the_writer_goes_on(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(error: BaseException | None) -> None:
        raise RuntimeError("from the callback")

    journal.write(tasks=[new(1)], done=broken)
    commit(journal, tasks=[new(2)])
    assert "from the callback" in caplog.text


def test_closing_commits_what_is_queued_and_ends_writing(path: Path) -> None:
    journal = opened(path)
    told: list[BaseException | None] = []
    with Plug(journal):
        for number in range(1, 51):
            journal.write(tasks=[new(number)], done=told.append)
    journal.close()
    journal.close()
    assert told == [None] * 50
    with pytest.raises(JournalError, match="closed"):
        journal.write(tasks=[new(51)], done=told.append)
    again = opened(path)
    assert len(again.tasks(limit=100)) == 50
    again.close()


def test_a_second_opening_finds_ids_and_unfinished_tasks_in_order(path: Path) -> None:
    journal = opened(path)
    assert (journal.next_task_id, journal.next_batch_id) == (1, 1)
    commit(journal, tasks=[new(i) for i in range(1, 2_501)], batches=[NewBatch(3, 1.0, 1, "low")], finals=[final(8)])
    journal.close()
    again = opened(path, full_sync=False)
    assert (again.next_task_id, again.next_batch_id) == (2_501, 4)
    assert [task.id for task in again.unfinished()] == [i for i in range(1, 2_501) if i != 8]
    again.close()


# --- forgetting -------------------------------------------------------------------------------------------------------


def test_what_is_old_and_finished_goes_and_its_ids_are_not_used_again(path: Path) -> None:
    clock = Clock()
    journal = opened(path, clock=clock)
    number = 2 * STEP + 10
    commit(
        journal,
        batches=[NewBatch(1, 1_000.0, 5, "low"), NewBatch(2, 1_000.0, 2, "low")],
        tasks=[new(i, batch_id=1 if i <= 5 else 2 if i <= 7 else None) for i in range(1, number + 1)],
        finals=[final(i) for i in range(1, number + 1) if i not in (6, 300)],
        idempotent=[Idempotent(f"{i}", "", "{}", 1_000.0 + i) for i in range(600)],
    )
    clock.now += DAY_S + SWEEP_S
    commit(journal)
    idle_until(lambda: len(journal.tasks(limit=9)) == 2 and journal.idempotent("59") is None)
    assert [task.id for task in journal.unfinished()] == [6, 300]
    assert [batch.id for batch in journal.batches(limit=9)] == [2]
    assert journal.idempotent("61") is not None
    journal.close()
    again = opened(path, clock=clock)
    assert (again.next_task_id, again.next_batch_id) == (number + 1, 3)
    again.close()


def test_ids_are_not_used_again_when_all_is_gone(path: Path) -> None:
    clock = Clock()
    journal = opened(path, clock=clock, retention_count=0)
    commit(journal, batches=[NewBatch(4, 1.0, 1, "low")], tasks=[new(9, batch_id=4)], finals=[final(9)])
    commit(journal)
    idle_until(lambda: not journal.tasks(limit=9) and not journal.batches(limit=9))
    journal.close()
    again = opened(path)
    assert (again.next_task_id, again.next_batch_id) == (10, 5)
    again.close()


def test_the_newest_finished_tasks_stay_and_unfinished_ones_do_not_count(path: Path) -> None:
    journal = opened(path, retention_count=100)
    commit(journal, tasks=[new(i) for i in range(1, 1_001)], finals=[final(i) for i in range(1, 1_001) if i % 10])
    commit(journal)
    idle_until(lambda: len(journal.tasks(limit=1_000, status="COMPLETED")) == 100)
    assert [task.id for task in journal.unfinished()] == list(range(10, 1_001, 10))
    newest = [i for i in range(1, 1_001) if i % 10][-100:]
    assert sorted(task.id for task in journal.tasks(limit=1_000, status="COMPLETED")) == newest
    journal.close()


def test_a_task_that_was_unfinished_when_others_went_goes_when_it_ends(path: Path) -> None:
    journal = opened(path, retention_count=0)
    commit(journal, tasks=[new(1), new(2)], finals=[final(2)])
    idle_until(lambda: journal.task(2) is None)
    commit(journal, finals=[final(1)])
    idle_until(lambda: journal.task(1) is None)
    journal.close()


def test_the_file_does_not_grow_while_as_much_goes_as_comes(path: Path) -> None:
    journal = opened(path, retention_count=500)
    text = '{"text": "' + "x" * 2_000 + '"}'
    pages = []
    for start in range(1, 20_001, 500):
        ids = range(start, start + 500)
        commit(journal, tasks=[new(i, params=text) for i in ids], finals=[final(i) for i in ids])
        pages.append(_pages(path))
    assert pages[-1] <= 1.2 * pages[len(pages) // 4]
    journal.close()


def _pages(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA page_count").fetchone()[0])
    finally:
        connection.close()


# --- files that will not do -------------------------------------------------------------------------------------------


def test_a_journal_in_use_names_the_process_that_has_it(journal: Journal, path: Path) -> None:
    with pytest.raises(JournalInUseError, match=rf"{path.name} is in use by process {os.getpid()}"):
        opened(path)
    code = f"""
from altlas_core.api.journal import Journal
Journal({str(path)!r}, retention_age_s=1.0, retention_count=1)
"""
    other = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert f"JournalInUseError: journal {path} is in use by process {os.getpid()}" in other.stderr.splitlines()[-1]


def test_a_lock_whose_process_is_gone_does_not_matter(path: Path) -> None:
    path.with_name(path.name + ".lock").write_text("1\n")
    opened(path).close()
    opened(path).close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=rf"there is no folder {tmp_path}/missing"):
        opened(tmp_path / "missing" / "journal.sqlite3")


def test_a_folder_in_the_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JournalError, match=f"journal {path} cannot be used: it is not a file"):
        opened(path)


@pytest.mark.parametrize("content", [b"x", b"not a database\n" * 1_000, os.urandom(8_192)])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalError, match=f"{path} is not a journal"):
        opened(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_as_it_is(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY)")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(JournalError, match=f"{path} is a database of another program"):
        opened(path)
    assert path.read_bytes() == content


def test_a_journal_of_another_version_is_refused(path: Path) -> None:
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(JournalError, match=r"version 2; this program reads version 1"):
        opened(path)


def test_a_journal_that_was_cut_short_is_refused(path: Path) -> None:
    journal = opened(path)
    commit(journal, tasks=[new(i) for i in range(1, 1_001)])
    journal.close()
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(JournalError, match=f"{path}.*damaged"):
        opened(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(JournalError, match=r"cannot be used: .*Permission denied"):
            opened(path)
    finally:
        path.parent.chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_cannot_be_written_is_refused(path: Path) -> None:
    opened(path).close()
    path.chmod(0o400)
    with pytest.raises(JournalError, match=r"cannot be used: .*readonly"):
        opened(path)
