"""A task that runs out of memory: tried again where there is more room, or FAILED with what it needed."""

from __future__ import annotations

import pytest
from scheduling import Bench, crashed, failed, finished, fired, settings

from altlas_core.distributor import Distributor
from altlas_core.event_log import EventLog
from altlas_core.events import AttemptFailed, Fact, TaskSubmitted
from altlas_core.experiment import log_header
from altlas_core.intake import make_tasks
from altlas_core.model import GIB, DeviceSpec, TaskSpec
from altlas_core.replay import replay


def short(index: int, attempt: int = 1, needed_gib: float | None = None, free_gib: float = 0.5) -> Fact:
    """The attempt ran out of memory on a device that says what was free."""
    needed = None if needed_gib is None else int(needed_gib * GIB)
    return AttemptFailed(
        index, attempt, "out_of_memory", "out of memory: told", needed_bytes=needed, free_bytes=int(free_gib * GIB)
    )


def test_it_reserves_what_it_needs_and_moves_to_a_device_that_has_it() -> None:
    bench = Bench(10, 40, overrides={"gpu.selection.default_strategy": "single_gpu"})
    bench.at(0.0, bench.submit(2))
    assert bench.at(1.0, short(0, needed_gib=12)) == ["start 0.2 on 1"]
    assert bench[0].memory_bytes == 12 * GIB
    assert [gpu.free_bytes / GIB for gpu in bench.gpus] == [10, 28]
    bench.at(2.0, finished(0, 2))
    assert [gpu.free_bytes / GIB for gpu in bench.gpus] == [10, 40]
    assert (bench[0].state, bench[0].failures) == ("COMPLETED", 1)


def test_it_waits_until_that_much_is_free_on_the_only_device() -> None:
    bench = Bench(10)
    bench.at(0.0, bench.submit(4), bench.submit(2))
    assert bench.at(1.0, short(1, needed_gib=7)) == []
    assert bench[1].state == "QUEUED"
    assert bench.at(2.0, finished(0)) == ["start 1.2 on 0"]


def test_what_no_device_has_fails_at_once_and_says_how_much() -> None:
    bench = Bench(10, 40, retry_count=3)
    bench.at(0.0, bench.submit(2))
    assert bench.at(1.0, short(0, needed_gib=50)) == []
    task = bench[0]
    assert (task.state, task.error_code, task.attempts, task.finished_s) == ("FAILED", "out_of_memory", 1, 1.0)
    assert task.error == (
        "out of memory: told; needs 50.00 GiB, but at most 40.00 GiB are available on one GPU: 10.00 GiB too much"
    )


def test_a_pinned_task_does_not_move() -> None:
    bench = Bench(10, 40)
    bench.at(0.0, bench.submit(2, gpu_id=0))
    bench.at(1.0, short(0, needed_gib=12))
    assert (bench[0].state, bench[0].error_code) == ("FAILED", "out_of_memory")
    assert "(it is pinned to GPU 0)" in (bench[0].error or "")


@pytest.mark.parametrize("needed_gib", [None, 1.5, 2])
def test_one_whose_memory_others_used_is_alone_the_next_time(needed_gib: float | None) -> None:
    """It had reserved what it needed, or nobody knows what it needed."""
    bench = Bench(10)
    bench.at(0.0, bench.submit(2), bench.submit(2))
    assert bench.at(1.0, short(1, needed_gib=needed_gib)) == []
    assert bench[1].memory_bytes == 2 * GIB
    assert bench.at(2.0, finished(0), bench.submit(1)) == ["start 1.2 on 0 alone"]
    assert bench.at(3.0, finished(1, 2)) == ["start 2.1 on 0"]


def test_it_fails_no_more_often_than_any_task_may() -> None:
    bench = Bench(10, retry_count=2)
    bench.at(0.0, bench.submit(1))
    for attempt, needed_gib in ((1, 2), (2, 3)):
        assert bench.at(float(attempt), short(0, attempt, needed_gib)) == [f"start 0.{attempt + 1} on 0"]
    bench.at(3.0, short(0, 3, needed_gib=4))
    assert (bench[0].state, bench[0].error_code, bench[0].error) == ("FAILED", "out_of_memory", "out of memory: told")


def test_what_it_has_learnt_stays_through_crashes_and_other_errors() -> None:
    bench = Bench(10)
    bench.at(0.0, bench.submit(1))
    bench.at(1.0, short(0, needed_gib=6))
    bench.at(2.0, crashed((0, 2)))
    bench.at(3.0, failed(0, 3))
    bench.at(4.0, crashed((0, 4)))
    assert bench[0].attempt is not None
    assert (bench[0].attempt.number, bench[0].attempt.solo, bench[0].memory_bytes) == (5, True, 6 * GIB)
    assert bench.gpus[0].free_bytes == 4 * GIB


def test_every_attempt_remembers_what_it_had_reserved_itself() -> None:
    bench = Bench(10)
    bench.at(0.0, bench.submit(1))
    first = bench[0].attempt
    bench.at(1.0, crashed((0, 1)))
    second = bench[0].attempt
    bench.at(2.0, short(0, 2, needed_gib=6))
    third = bench[0].attempt
    assert [None if a is None else a.reserved_bytes / GIB for a in (first, second, third)] == [1, 1, 6]


def test_a_stopped_attempt_teaches_nothing() -> None:
    bench = Bench(10)
    bench.at(0.0, bench.submit(1, timeout_s=5.0))
    bench.at(5.0, fired(5.0))
    bench.at(6.0, short(0, needed_gib=6))
    assert (bench[0].error_code, bench[0].memory_bytes) == ("timeout", GIB)


def test_a_log_with_shortages_replays_to_the_same_decisions() -> None:
    """The log says what was asked for at submission, although the task has come to reserve more since."""
    config = settings(retry_count=3)
    specs = [DeviceSpec(i, "cpu", f"cpu:{i}", size * GIB, index=i, cores=1) for i, size in enumerate((10, 40))]
    core, log = Distributor(config.gpu, specs, 42), EventLog(log_header(config, specs, 42))

    def at(now: float, *facts: Fact) -> None:
        actions = []
        for fact in facts:
            log.fact(now, fact)
            actions += core.on_event(now, fact)
        for action in [*actions, *core.dispatch(now)]:
            log.action(now, action)

    requests = [TaskSpec(memory_bytes=size * GIB, duration_s=1.0) for size in (6, 6, 3)]
    at(0.0, *(TaskSubmitted(task) for task in make_tasks(requests, config.gpu, 2)))
    at(1.0, short(0, needed_gib=30))
    at(2.0, short(2, needed_gib=2))
    at(3.0, finished(1))
    at(4.0, short(0, 2, needed_gib=41))
    at(5.0, finished(2, 2))
    assert [task.state for task in core.tasks.values()] == ["FAILED", "COMPLETED", "COMPLETED"]
    lines = list(log.lines())
    assert f'"memory_bytes":{6 * GIB}' in lines[1]
    played = replay(lines)
    assert played.same, played.difference
    assert [task.error for task in played.distributor.tasks.values()] == [task.error for task in core.tasks.values()]
