"""Deaths of real workers: what is reported, and that they are replaced."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
from workers import DEVICES, GRACE_S, Bench, Recorder, gone, wait_for

import altlas_core as altlas
from altlas_core.backends.supervision.backend import TorchBackend
from altlas_core.errors import RunError
from altlas_core.events import (
    AttemptFailed,
    AttemptFinished,
    DeviceLost,
    DeviceReturned,
    DeviceSampled,
    WorkerCrashed,
)
from altlas_core.faults import Fault
from altlas_core.model import Call
from altlas_core.replay import replay

SPARES = 1


def test_a_killed_worker_reports_what_ran_there_and_is_replaced(bench: Bench) -> None:
    running = [bench.start(gpu_id=1, kind="sleep", duration_s=600) for _ in range(2)]
    pid = bench.backend.worker_pids()[1]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    crash = bench.mail.next()
    assert crash == WorkerCrashed(1, tuple((a.task.index, 1) for a in running), "signal 9 (SIGKILL)", blamed=True)
    early = bench.start(gpu_id=1, at_once=True, kind="sleep", duration_s=600)
    back = bench.mail.next()  # there is nobody to run it, and its time would pass
    assert isinstance(back, WorkerCrashed)
    assert (back.gpu_id, back.attempts, back.blamed) == (1, ((early.task.index, 1),), False)
    told = bench.mail.next()  # so that it is given no other
    assert isinstance(told, DeviceSampled)
    assert told.sample.problem == "its worker died (signal 9 (SIGKILL)); a new one takes its place"
    bench.start(gpu_id=1, kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)


def test_a_crashing_task_takes_its_worker_with_it(bench: Bench) -> None:
    attempt = bench.start(kind="crash_worker")
    assert bench.mail.next() == WorkerCrashed(0, ((attempt.task.index, 1),), "signal 9 (SIGKILL)", blamed=True)


def test_a_lost_device_says_so_once_and_takes_nothing_until_it_returns(bench: Bench) -> None:
    pid = bench.backend.worker_pids()[1]
    bench.start(gpu_id=1, kind="sleep", duration_s=600)
    bench.backend.inject(0.0, Fault(0.0, 1, "lose_gpu"))
    bench.backend.inject(0.0, Fault(0.0, 1, "lose_gpu"))
    lost = bench.mail.next()
    assert isinstance(lost, DeviceLost)
    assert lost.gpu_id == 1
    assert bench.backend.sample(0.0, 1) is None
    assert pid is not None
    wait_for(lambda: gone(pid))
    bench.start(gpu_id=1, kind="noop")  # goes nowhere: DeviceLost speaks for it
    bench.start(gpu_id=0, kind="noop")
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFinished)
    assert fact.task_index == bench.index - 1
    bench.backend.inject(0.0, Fault(1.0, 1, "return_gpu"))
    assert bench.mail.next() == DeviceReturned(1)
    bench.start(gpu_id=1, kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)


def test_a_worker_that_cannot_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    backend = TorchBackend(DEVICES[:1], 1, 42, GRACE_S)
    with pytest.raises(RunError, match=r"worker of GPU 0 \(cpu:0\) did not start: exit status 1"):
        backend.open(Recorder())
    assert backend.worker_pids() == [None]


def test_a_device_may_be_lost_and_return_while_its_worker_is_starting(bench: Bench) -> None:
    bench.start(kind="crash_worker", gpu_id=1)
    assert isinstance(bench.mail.next(), WorkerCrashed)
    bench.backend.lose_device(1, "test")
    bench.backend.return_device(1)
    assert bench.mail.next() == DeviceLost(1, "test")
    assert bench.mail.next() == DeviceReturned(1)


def test_a_worker_killed_by_a_fault_of_one_run_is_no_news_in_the_next(bench: Bench) -> None:
    bench.backend.crash_worker(1)
    bench.open()
    bench.start(kind="noop", gpu_id=1)
    assert isinstance(bench.mail.next(), AttemptFinished)


def test_a_spare_worker_takes_over_and_another_is_started_for_it(bench: Bench) -> None:
    (spare,) = bench.backend.spare_pids()
    bench.start(kind="crash_worker")
    assert isinstance(bench.mail.next(), WorkerCrashed)
    bench.start(kind="noop")
    assert isinstance(bench.mail.next(), AttemptFinished)
    assert bench.pid() == spare
    wait_for(bench.backend.spare_pids)
    assert bench.backend.spare_pids() != [spare]


def test_a_worker_that_does_not_answer_is_killed_and_replaced() -> None:
    bench = Bench(DEVICES[:1], spare_workers=1, heartbeat_timeout_s=0.5)
    hang = Fault(0.0, 0, "hang_task")
    try:
        pid = bench.pid()
        bench.backend.inject(0.0, hang)  # nothing runs there, so nothing happens
        bench.start(kind="noop")
        assert isinstance(bench.mail.next(), AttemptFinished)
        attempt = bench.start(kind="sleep", duration_s=600)
        bench.backend.inject(0.0, hang)
        assert bench.mail.next() == WorkerCrashed(0, ((attempt.task.index, 1),), "did not answer for 0.5 s")
        bench.start(kind="sleep", duration_s=2.5)  # longer than the timeout: silent, but it answers when asked
        assert isinstance(bench.mail.next(), AttemptFinished)
        assert gone(pid)
    finally:
        bench.backend.close()


def test_a_device_that_keeps_killing_its_workers_takes_nothing_for_a_while(bench: Bench) -> None:
    for why in (
        "its worker died (signal 9 (SIGKILL)); a new one takes its place",
        "its worker died 2 times in a row (signal 9 (SIGKILL)); a new one starts in 0.5 s",
    ):
        bench.start(kind="crash_worker")
        assert isinstance(bench.poll_until_next(), WorkerCrashed)
        for problem in (why, None):
            fact = bench.poll_until_next()
            assert isinstance(fact, DeviceSampled)
            assert (fact.gpu_id, fact.sample.problem) == (0, problem)
    bench.start(kind="noop")
    assert isinstance(bench.poll_until_next(), AttemptFinished)


@pytest.mark.parametrize(
    ("how", "cause"), [("exit", "exit status 3"), ("segfault", "signal 11 (SIGSEGV)")], ids=["exit", "segfault"]
)
def test_ways_to_die_are_told_apart(bench: Bench, how: str, cause: str) -> None:
    bench.start(kind="call", call=Call("leaving:crash", json.dumps({"how": how})))
    fact = bench.mail.next()
    assert isinstance(fact, WorkerCrashed)
    assert fact.error == cause


@pytest.mark.parametrize(
    ("how", "words"),
    [("unspeakable", "whose text cannot be made (ValueError)"), ("long", "(1000014 characters)"), ("surrogate", "?")],
)
def test_however_a_task_fails_it_gets_an_answer(bench: Bench, how: str, words: str) -> None:
    pid = bench.pid()
    bench.start(kind="call", call=Call("leaving:fail", json.dumps({"how": how})))
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFailed)
    assert fact.error.endswith(words)
    assert len(fact.error) < 5000
    assert bench.pid() == pid


def test_what_looks_like_plain_numbers_and_texts_comes_back_as_such(bench: Bench) -> None:
    bench.start(kind="call", call=Call("leaving:answer"))
    fact = bench.mail.next()
    assert isinstance(fact, AttemptFinished)
    assert fact.detail is not None
    assert fact.detail["result"] == {"loss": 0.5, "colour": "red", "name": "n", "flag": True}
    assert {type(value) for value in fact.detail["result"].values()} == {float, str, bool}


def test_a_task_that_keeps_its_worker_from_answering_is_found() -> None:
    bench = Bench([replace(DEVICES[0], gpu_id=5)], heartbeat_timeout_s=0.5)  # others of the pool are of another kind
    try:
        call = Call("leaving:hold_the_interpreter", '{"seconds": 600}')
        attempt = bench.start(gpu_id=5, kind="call", call=call)
        assert bench.mail.next() == WorkerCrashed(5, ((attempt.task.index, 1),), "did not answer for 0.5 s")
    finally:
        bench.backend.close()


def test_a_run_waits_out_a_device_that_keeps_killing_its_workers_and_its_log_replays() -> None:
    overrides = {"gpu.backend": "cpu", "gpu.devices": ["cpu:1"], "gpu.workload.spare_workers": 1}
    records = [{"kind": "crash_worker"}, {"kind": "noop", "submit_s": 0.5}]
    result = altlas.run(altlas.load_config(None, overrides, {}), altlas.Workload.from_records(records))
    assert list(result.tasks.error_code) == ["worker_crashed", None]
    assert result.tasks.attempts[0] == 3
    told = [e.sample.problem for e in result.log.entries if isinstance(e, DeviceSampled) and e.sample.problem]
    times = ("", " 2 times in a row", " 3 times in a row")
    assert [text.split(" (")[0] for text in told] == [f"its worker died{more}" for more in times]
    assert replay(result.event_lines()).difference is None
