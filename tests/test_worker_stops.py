"""Stopping a task on a real worker: asked first, then its worker is killed and replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from workers import DEVICES, Bench, gone, wait_for

import altlas_core as altlas
from altlas_core.events import AttemptFinished, AttemptStopped, WorkerCrashed
from altlas_core.replay import replay

SPARES = 1


def test_a_running_task_stops_when_asked(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[0]
    attempt = bench.start(kind="sleep", duration_s=600)
    bench.stop(attempt)
    assert bench.mail.next() == AttemptStopped(attempt.task.index, 1, 0.0)
    assert bench.backend.worker_pids()[0] == pid


def test_a_task_that_does_not_stop_is_killed_and_its_neighbours_are_not_blamed(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[0]
    hanging = bench.start(kind="hang", duration_s=600)
    neighbour = bench.start(kind="sleep", duration_s=600)
    bench.stop(hanging)
    facts = [bench.poll_until_next(), bench.mail.next()]
    assert facts[0] == AttemptStopped(hanging.task.index, 1)
    why = "killed: a task in it did not stop when asked"
    assert facts[1] == WorkerCrashed(0, ((neighbour.task.index, 1),), why, blamed=False)
    bench.start(kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)
    assert pid is not None
    assert gone(pid)
    assert bench.backend.worker_pids()[0] not in (None, pid)


def test_the_time_of_a_task_does_not_pass_while_its_device_has_no_worker() -> None:
    overrides = {"gpu.devices": ["cpu:1"], "gpu.workload.kill_grace": 0.1, "gpu.workload.spare_workers": 0}
    hang = {"kind": "hang", "duration_s": 600, "timeout_s": 0.3, "retry_count": 0}
    neighbour = {"kind": "sleep", "duration_s": 0.6, "timeout_s": 0.9}  # less than a worker takes to start
    result = altlas.run(altlas.load_config(None, overrides, {}), altlas.Workload.from_records([hang, neighbour]))
    assert list(result.tasks.state) == ["FAILED", "COMPLETED"]
    assert "worker_replaced" in list(result.attempts.outcome)
    assert replay(result.event_lines()).difference is None


def test_a_module_in_the_working_directory_does_not_stand_in_for_one_of_pythons_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('not the real one')")
    monkeypatch.chdir(tmp_path)
    bench = Bench(DEVICES[:1])
    bench.backend.close()


def test_stopping_what_has_ended_changes_nothing(bench: Bench) -> None:
    attempt = bench.start(kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)
    bench.stop(attempt)
    bench.start(kind="noop")
    assert bench.mail.next() == AttemptFinished(attempt.task.index + 1, 1, 0.0, None)


def test_opening_again_ends_what_an_earlier_run_left_and_waits_for_new_workers(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[0]
    bench.start(kind="hang", duration_s=600)
    bench.start(kind="crash_worker", gpu_id=1)
    assert isinstance(bench.mail.next(), WorkerCrashed)
    bench.start(kind="sleep", gpu_id=1, duration_s=600)  # waits for a worker that is still starting
    bench.open()
    assert pid is not None
    wait_for(lambda: gone(pid))
    bench.start(kind="noop", gpu_id=0)
    bench.start(kind="noop", gpu_id=1)
    facts = [bench.mail.next(), bench.mail.next()]
    assert all(isinstance(fact, AttemptFinished) for fact in facts)
