"""The journal in a process that is killed, and on a disk that is full: what was told to be committed is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from altlas_core.api.journal import Journal

# Writes as fast as it can, tasks and then their ends, and says what was committed once it was.
WRITER = """
import os, sys
from threading import Semaphore
from altlas_core.api.journal import FinalTask, Journal, NewBatch, NewTask

journal = Journal(sys.argv[1], retention_age_s=1e11, retention_count=10**9, full_sync=sys.argv[2] == "full")
room = Semaphore(200)

def tell(word, number):
    def done(error):
        assert error is None, error
        os.write(1, f"{word} {number}\\n".encode())
        room.release()
    return done

number = journal.next_task_id
while True:
    room.acquire()
    batch = [NewBatch(number, 1.0, 1, "low")] if number % 7 == 0 else []
    task = NewTask(number, "low", number if batch else None, 1.0, '{"text": "' + "x" * 300 + '"}', "{}")
    journal.write(tasks=[task], batches=batch, done=tell("task", number))
    room.acquire()
    final = FinalTask(number, "COMPLETED", 0, 1.0, 2.0, 0, '{"text": "%d"}' % number, None, None)
    journal.write(finals=[final], done=tell("final", number))
    number += 1
"""


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_all_that_was_told_is_there_after_kill_9(tmp_path: Path, sync: str) -> None:
    path = tmp_path / "journal.sqlite3"
    told: dict[str, set[int]] = {"task": set(), "final": set()}
    for lines in (300, 1_500, 4_000):  # the same file again and again: a killed journal opens and goes on
        _write_and_kill(path, sync, lines, told)
    with closing(Journal(path, retention_age_s=1e11, retention_count=10**9)) as journal:
        for number in told["task"]:
            task = journal.task(number)
            assert task is not None
            assert len(task.params) == len('{"text": ""}') + 300
            assert number % 7 or journal.batch(number) is not None
        for number in told["final"]:
            task = journal.task(number)
            assert task is not None
            assert (task.status, task.result) == ("COMPLETED", f'{{"text": "{number}"}}')
        counts = journal.counts()
        assert sum(counts.values()) >= len(told["task"])
        assert counts["QUEUED"] == len(list(journal.unfinished()))
        assert journal.next_task_id == max(task.id for task in journal.tasks(limit=1)) + 1


def _write_and_kill(path: Path, sync: str, lines: int, told: dict[str, set[int]]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), sync], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        seen = 0
        for line in process.stdout:
            if line.endswith(b"\n"):
                word, number = line.split()
                told[word.decode()].add(int(number))
            seen += 1
            if seen == lines:
                process.send_signal(signal.SIGKILL)  # what it still told before it died is read to the end
        assert seen >= lines, process.stderr.read().decode()
    process.wait()


# Fills what room there is, makes room again, and says what it was told.
FILLER = """
import os, resource, sys, time
from queue import SimpleQueue
from pathlib import Path
from altlas_core.api.journal import FinalTask, Journal, NewBatch, NewTask

path, how = Path(sys.argv[1]), sys.argv[2]
ballast = path.with_name("ballast")
if how == "full":
    ballast.write_bytes(b"x" * 2_500_000)
journal = Journal(path, retention_age_s=1e11, retention_count=10**9)
answers = SimpleQueue()

def write(number):
    params = '{"text": "' + "x" * 5_000 + '"}'
    tasks = [NewTask(10 * number + i, "low", number, 1.0, params, "{}") for i in range(5)]
    finals = [FinalTask(10 * number, "COMPLETED", 0, 1.0, 2.0, 0, "{}", None, None)]
    journal.write(tasks=tasks, batches=[NewBatch(number, 1.0, 5, "low")], finals=finals, done=answers.put)
    return answers.get()

if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
good, bad = [], []
for number in range(1, 200):
    error = write(number)
    (good if error is None else bad).append(number)
    if error is not None:
        print(error)
        assert str(error) == journal.problem, journal.problem
        assert journal.task(10 * number) is None
        if len(bad) == 3:
            break
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
else:
    ballast.unlink()
for _ in range(3000):  # it finds out by itself
    if journal.problem is None:
        break
    time.sleep(0.01)
assert journal.problem is None
assert write(1000) is None
good.append(1000)
journal.close()

again = Journal(path, retention_age_s=1e11, retention_count=10**9)
assert [batch.id for batch in again.batches(limit=1000)] == good[::-1], good
assert {task.id for task in again.tasks(limit=5000)} == {10 * number + i for number in good for i in range(5)}
assert again.counts()["COMPLETED"] == len(good)
again.close()
print("good", len(good), "bad", len(bad))
"""


def test_a_write_that_fails_halfway_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILLER, str(tmp_path / "journal.sqlite3"), "limit"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "could not be written: disk I/O error" in ended.stdout
    assert ended.stdout.endswith("bad 3\n")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    inside = f'mount -t tmpfs -o size=4m tmpfs {disk} && exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", inside, "sh"]
    if not _works([*unshare, "true"]):
        pytest.skip("no small file system can be mounted here (unshare, mount)")
    command = [*unshare, sys.executable, "-c", FILLER, str(disk / "journal.sqlite3"), "full"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "could not be written: database or disk is full" in ended.stdout
    assert ended.stdout.endswith("bad 3\n")


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
