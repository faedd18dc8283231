"""The state machine alone: facts in, actions out. No driver, no backend, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from scheduling import (
    Bench,
    cancel,
    crashed,
    deep_snapshot,
    failed,
    finished,
    fired,
    lost,
    returned,
    sampled,
    stopped,
)

from altlas_core.errors import StateError
from altlas_core.events import Fact, HopeLost
from altlas_core.model import DeviceSample

# --- the life of a task -----------------------------------------------------------------------------------------------


def test_a_task_is_queued_then_running_then_completed_with_its_times() -> None:
    bench = Bench()
    assert list(bench.distributor.on_event(1.0, bench.submit())) == []
    assert (bench[0].state, bench[0].submitted_s, bench.distributor.open_tasks) == ("QUEUED", 1.0, 1)
    assert bench.at(2.0) == ["start 0.1 on 0"]
    assert (bench[0].state, bench[0].started_s, bench[0].gpu_id, bench[0].attempts) == ("RUNNING", 2.0, 0, 1)
    assert bench.at(7.0, finished(0)) == []
    task = bench[0]
    assert (task.state, task.finished_s, task.error_code, task.error) == ("COMPLETED", 7.0, None, None)
    assert task.attempt is not None
    assert (task.attempt.outcome, task.attempt.ended_s, task.attempt.iterations) == ("finished", 7.0, 5.0)
    assert bench.distributor.open_tasks == 0


def test_nothing_starts_before_dispatch_is_asked() -> None:
    bench = Bench()
    for _ in range(3):
        assert list(bench.distributor.on_event(0.0, bench.submit())) == []
    assert bench.states() == ["QUEUED"] * 3
    assert len(bench.at(0.0)) == 3
    assert bench.at(0.0) == []  # asked again, nothing more


def test_a_place_given_back_is_used_in_the_same_decision() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit())
    assert bench.running() == [0]
    assert bench.at(5.0, finished(0)) == ["start 1.1 on 0"]


# --- order ------------------------------------------------------------------------------------------------------------


def starts_in_order(bench: Bench, now: float, count: int) -> list[int]:
    """Let one after the other through a machine of one slot that is busy with task 0."""
    order, running = [], 0
    for _ in range(count):
        said = bench.at(now, finished(running))
        assert len(said) == 1
        running = int(said[0].split()[1].split(".")[0])
        order.append(running)
    return order


def test_priority_is_strict_and_first_come_first_served_inside_each() -> None:
    bench = Bench(slots=1)
    names = ["normal", "low", "normal", "high", "low", "high", "normal"]
    bench.at(0.0, bench.submit())
    bench.at(1.0, *(bench.submit(priority=name) for name in names))
    assert starts_in_order(bench, 2.0, len(names)) == [4, 6, 1, 3, 7, 2, 5]


def test_priority_holds_across_different_sizes_pins_and_strategies() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit())
    bench.at(
        1.0,
        bench.submit(gib=1, priority="low"),
        bench.submit(gib=2, priority="normal", strategy="round_robin"),
        bench.submit(gib=3, priority="high"),
        bench.submit(gib=4, priority="normal", gpu_id=0),
        bench.submit(gib=5, priority="high", strategy="random"),
    )
    assert starts_in_order(bench, 2.0, 5) == [3, 5, 2, 4, 1]


@pytest.mark.parametrize(
    ("waited", "first"),
    [(59.75, 2), (60.0, 1), (60.25, 1)],
)
def test_a_full_priority_aging_lifts_a_task_one_level(waited: float, first: int) -> None:
    """A normal task that has waited that long stands with the high ones, where age decides."""
    bench = Bench(slots=1, priority_aging=60)
    bench.at(0.0, bench.submit())
    bench.at(1.0, bench.submit(priority="normal"))
    assert bench.at(1.0 + waited, bench.submit(priority="high"), finished(0)) == [f"start {first}.1 on 0"]


@pytest.mark.parametrize(("waited", "first"), [(60.0, 2), (119.75, 2), (120.0, 1)])
def test_a_low_task_is_as_good_as_a_high_one_only_after_two_full_periods(waited: float, first: int) -> None:
    bench = Bench(slots=1, priority_aging=60)
    bench.at(0.0, bench.submit())
    bench.at(1.0, bench.submit(priority="low"))
    assert bench.at(1.0 + waited, bench.submit(priority="high"), finished(0)) == [f"start {first}.1 on 0"]


def test_after_one_period_a_low_task_goes_before_younger_normal_ones() -> None:
    bench = Bench(slots=1, priority_aging=60)
    bench.at(0.0, bench.submit())
    bench.at(1.0, bench.submit(priority="low"))
    assert bench.at(61.0, bench.submit(priority="normal"), finished(0)) == ["start 1.1 on 0"]


def test_an_endless_stream_of_high_tasks_does_not_starve_a_low_one() -> None:
    bench = Bench(slots=1, priority_aging=60)
    bench.at(0.0, bench.submit(), bench.submit(priority="low"))
    running, now = 0, 0.0
    while bench[1].state == "QUEUED" and now < 1000.0:
        now += 10.0  # two arrive for each that leaves
        said = bench.at(now, finished(running), bench.submit(priority="high"), bench.submit(priority="high"))
        running = int(said[0].split()[1].split(".")[0])
    assert bench[1].started_s == 120.0


def test_without_a_full_period_the_stream_of_high_tasks_goes_first() -> None:
    bench = Bench(slots=1, priority_aging=1e9)
    bench.at(0.0, bench.submit(), bench.submit(priority="low"))
    running, now = 0, 0.0
    for _ in range(50):
        now += 10.0
        said = bench.at(now, finished(running), bench.submit(priority="high"))
        running = int(said[0].split()[1].split(".")[0])
    assert bench[1].state == "QUEUED"


# --- slots, memory, pins ----------------------------------------------------------------------------------------------


def test_no_gpu_gets_more_tasks_than_it_has_slots() -> None:
    bench = Bench(10, 10, slots=3)
    assert len(bench.at(0.0, *(bench.submit(gib=0) for _ in range(10)))) == 6
    assert [gpu.running for gpu in bench.gpus] == [3, 3]
    assert [gpu.state for gpu in bench.gpus] == ["BUSY", "BUSY"]


def test_no_gpu_gets_more_memory_than_it_offers_and_the_last_byte_is_used() -> None:
    bench = Bench(10)
    assert bench.at(0.0, bench.submit(gib=4), bench.submit(gib=6), bench.submit(gib=0.000001)) == [
        "start 0.1 on 0",
        "start 1.1 on 0",
    ]
    assert bench.gpus[0].free_bytes == 0
    assert bench.gpus[0].state == "AVAILABLE"  # there are slots
    assert bench.at(1.0, finished(0)) == ["start 2.1 on 0"]


def test_memory_threshold_and_memory_limit_bound_what_is_reserved() -> None:
    bench = Bench(10, slots=99, overrides={"gpu.detection.memory_threshold": 0.55})
    assert len(bench.at(0.0, *(bench.submit(gib=1) for _ in range(9)))) == 5
    bench = Bench(10, slots=99, overrides={"gpu.memory_limit_bytes": 3 << 30})
    assert len(bench.at(0.0, *(bench.submit(gib=1) for _ in range(9)))) == 3


def test_a_pinned_task_waits_for_its_gpu_while_others_are_free() -> None:
    bench = Bench(10, 10, slots=1)
    assert bench.at(0.0, bench.submit(gpu_id=1), bench.submit(gpu_id=1)) == ["start 0.1 on 1"]
    assert bench.gpus[0].state == "AVAILABLE"
    assert bench.at(3.0, finished(0)) == ["start 1.1 on 1"]


def test_what_no_gpu_could_ever_hold_fails_at_once_and_says_by_how_much() -> None:
    bench = Bench(10, 12)
    assert bench.at(1.0, bench.submit(gib=14.5)) == []
    task = bench[0]
    assert (task.state, task.error_code, task.finished_s, task.attempts) == ("FAILED", "too_large", 1.0, 0)
    assert task.started_s is None
    assert task.gpu_id is None
    for part in ("14.50 GiB", "12.00 GiB", "2.50 GiB"):
        assert part in str(task.error)
    assert bench.distributor.open_tasks == 0


def test_what_only_another_gpu_could_hold_fails_at_once_when_pinned() -> None:
    bench = Bench(4, 12)
    bench.at(0.0, bench.submit(gib=5, gpu_id=0), bench.submit(gib=5))
    assert (bench[0].error_code, bench[1].gpu_id) == ("too_large", 1)
    assert "pinned to GPU 0" in str(bench[0].error)
    assert "4.00 GiB" in str(bench[0].error)


def test_exactly_what_a_gpu_offers_is_not_too_large() -> None:
    bench = Bench(10)
    assert bench.at(0.0, bench.submit(gib=10)) == ["start 0.1 on 0"]


def test_room_taken_by_others_now_is_no_reason_to_fail() -> None:
    bench = Bench(10)
    bench.at(0.0, sampled(foreign_memory_bytes=5 << 30))
    assert bench.at(1.0, bench.submit(gib=8)) == []
    assert bench[0].state == "QUEUED"
    assert bench.at(60.0, sampled()) == ["start 0.1 on 0"]


# --- a task that fits nowhere now -------------------------------------------------------------------------------------


def test_a_task_that_fits_nowhere_now_does_not_block_smaller_ones() -> None:
    bench = Bench(10)
    assert bench.at(0.0, bench.submit(gib=6), bench.submit(gib=6), bench.submit(gib=4)) == [
        "start 0.1 on 0",
        "start 2.1 on 0",
    ]


def test_nor_does_one_of_higher_priority() -> None:
    bench = Bench(10)
    bench.at(0.0, bench.submit(gib=6))
    assert bench.at(1.0, bench.submit(gib=6, priority="high"), bench.submit(gib=4, priority="low")) == [
        "start 2.1 on 0"
    ]


def test_small_tasks_do_not_starve_it_after_priority_aging_it_holds_a_gpu() -> None:
    """A stream of small tasks that always leaves 1 GiB too little; after 60 s they no longer get in."""
    bench = Bench(10, slots=9, priority_aging=60)
    bench.at(0.0, bench.submit(gib=5), bench.submit(gib=5))
    bench.at(0.5, bench.submit(gib=6))  # the one in question
    running, now = [0, 1], 0.5
    while bench[2].state == "QUEUED" and now < 500.0:
        now += 5.0
        said = bench.at(now, finished(running.pop(0)), bench.submit(gib=5, priority="high"))
        running += [int(text.split()[1].split(".")[0]) for text in said if not text.startswith("start 2.")]
    assert bench[2].started_s == 65.5  # at 60.5 s one leaves and nobody comes in, at 65.5 s the other leaves


def test_before_priority_aging_it_holds_nothing() -> None:
    bench = Bench(10, slots=9, priority_aging=60)
    bench.at(0.0, bench.submit(gib=6), bench.submit(gib=6))
    assert bench.at(59.75, bench.submit(gib=1)) == ["start 2.1 on 0"]


def test_exactly_at_priority_aging_it_holds() -> None:
    bench = Bench(10, slots=9, priority_aging=60)
    bench.at(0.0, bench.submit(gib=6), bench.submit(gib=6))
    assert bench.at(60.0, bench.submit(gib=1)) == []


def held_bench(*sizes: float) -> Bench:
    """Every GPU has a task of 6 GiB; task n (of 8) has waited long enough to hold the GPU with most room."""
    bench = Bench(*sizes, slots=9, priority_aging=60)
    bench.at(0.0, *(bench.submit(gib=6, gpu_id=i) for i in range(len(sizes))), bench.submit(gib=8))
    assert bench.at(60.0, sampled()) == []
    return bench


def test_only_one_gpu_is_held_the_one_nearest_to_having_room() -> None:
    bench = held_bench(10, 13, 11)
    assert bench.at(
        61.0, bench.submit(gib=1, gpu_id=1), bench.submit(gib=1, gpu_id=0), bench.submit(gib=1, gpu_id=2)
    ) == [
        "start 5.1 on 0",
        "start 6.1 on 2",
    ]
    assert bench.at(62.0, finished(1)) == ["start 3.1 on 1", "start 4.1 on 1"]  # held no more: both fit


def test_the_one_held_for_may_still_go_elsewhere_and_then_the_hold_ends() -> None:
    bench = held_bench(10, 13)
    assert bench.at(61.0, bench.submit(gib=1, gpu_id=1)) == []
    assert bench.at(62.0, finished(0)) == ["start 2.1 on 0", "start 3.1 on 1"]


def test_a_hold_ends_when_its_task_is_cancelled() -> None:
    bench = held_bench(10)
    bench.at(61.0, bench.submit(gib=1))
    assert bench[2].state == "QUEUED"
    assert bench.at(62.0, cancel(1)) == ["start 2.1 on 0"]


def test_a_hold_ends_when_its_gpu_is_unhealthy_and_another_is_held() -> None:
    bench = held_bench(10, 13)
    assert bench.at(61.0, bench.submit(gib=1)) == ["start 3.1 on 0"]  # GPU 1 is the held one
    assert bench.at(62.0, sampled(1, temperature_c=99.0), bench.submit(gib=1)) == []  # now GPU 0 is
    assert bench.at(63.0, sampled(1)) == ["start 4.1 on 1"]


def test_a_hold_ends_when_its_gpu_is_lost() -> None:
    bench = held_bench(10, 13)
    bench.at(61.0, lost(1))  # task 1 was pinned there
    assert bench[1].error_code == "device_lost"
    assert bench.at(62.0, bench.submit(gib=1)) == []  # GPU 0 is held now
    assert bench.at(63.0, finished(0)) == ["start 2.1 on 0", "start 3.1 on 0"]


def test_a_hold_ends_when_its_task_starts() -> None:
    bench = held_bench(10)
    bench.at(61.0, finished(0))
    assert bench.running() == [1]
    assert bench.at(61.5, failed(1), bench.submit(gib=2)) == ["start 1.2 on 0", "start 2.1 on 0"]


def test_a_hold_does_not_come_back_with_its_task() -> None:
    """It started and failed before anybody else was looked at; on its return it holds nothing until it misses again."""
    bench = held_bench(10, 13)
    assert bench.at(61.0, finished(1)) == ["start 2.1 on 1"]
    assert bench.at(62.0, bench.submit(gib=1, gpu_id=1, priority="high"), failed(2)) == [
        "start 2.2 on 1",
        "start 3.1 on 1",
    ]


def test_a_gpu_that_others_have_filled_for_good_is_not_held_against_tasks_that_fit() -> None:
    bench = Bench(10, slots=9, priority_aging=60)
    bench.at(0.0, sampled(foreign_memory_bytes=5 << 30), bench.submit(gib=8))
    assert bench.at(60.0, bench.submit(gib=1)) == ["start 1.1 on 0"]
    assert bench.at(120.0, bench.submit(gib=4)) == ["start 2.1 on 0"]


def test_the_gpu_held_is_one_that_can_come_to_have_room() -> None:
    """GPU 0 has more left than GPU 1, but others hold so much of it that only GPU 1 can ever empty far enough."""
    bench = Bench(10, 10, slots=9, priority_aging=60)
    bench.at(0.0, sampled(0, foreign_memory_bytes=3 << 30), bench.submit(gib=6, gpu_id=1), bench.submit(gib=8))
    assert bench.at(60.0, bench.submit(gib=1, gpu_id=1), bench.submit(gib=1, gpu_id=0)) == ["start 3.1 on 0"]
    assert bench.at(61.0, finished(0)) == ["start 1.1 on 1", "start 2.1 on 1"]


def test_a_hold_ends_when_a_reading_shows_that_the_gpu_can_no_longer_hold_the_task() -> None:
    bench = held_bench(10)
    assert bench.at(61.0, bench.submit(gib=1)) == []
    assert bench.at(120.0, sampled(foreign_memory_bytes=3 << 30)) == ["start 2.1 on 0"]


# --- timeouts ---------------------------------------------------------------------------------------------------------


def test_a_timeout_fails_the_task_at_exactly_its_start_plus_the_timeout() -> None:
    bench = Bench(slots=1, timeout=300)
    assert bench.timers(2.5, bench.submit()) == ["timer 302.5"]
    assert bench.at(302.5, fired()) == ["stop 0.1 timeout"]
    task = bench[0]
    assert (task.state, task.error_code, task.finished_s) == ("FAILED", "timeout", 302.5)
    assert "300 s" in str(task.error)
    assert bench.distributor.open_tasks == 0


def test_a_timer_that_fires_late_still_names_the_deadline() -> None:
    bench = Bench(timeout=300)
    bench.at(1.0, bench.submit())
    bench.at(301.75, fired())
    assert bench[0].finished_s == 301.0


def test_what_a_timed_out_task_holds_is_kept_until_the_end_is_confirmed() -> None:
    bench = Bench(slots=1, timeout=300)
    bench.at(0.0, bench.submit(), bench.submit())
    assert bench.at(300.0, fired()) == ["stop 0.1 timeout"]
    assert (bench.gpus[0].running, bench.gpus[0].state) == (1, "BUSY")
    assert bench.at(301.0) == []
    assert bench.at(302.0, stopped(0)) == ["start 1.1 on 0"]
    assert (bench[0].finished_s, bench[0].attempt.ended_s) == (300.0, 302.0)  # type: ignore[union-attr]


def test_a_task_that_finishes_exactly_at_its_deadline_has_completed() -> None:
    bench = Bench(timeout=300)
    bench.at(0.0, bench.submit())
    assert bench.at(300.0, finished(0), fired()) == []
    assert bench[0].state == "COMPLETED"


def test_a_timeout_is_not_retried() -> None:
    bench = Bench(timeout=300, retry_count=3)
    bench.at(0.0, bench.submit())
    bench.at(300.0, fired(), stopped(0))
    assert (bench.states(), bench[0].attempts) == (["FAILED"], 1)


def test_the_timeout_counts_from_the_start_of_each_attempt() -> None:
    bench = Bench(timeout=300, retry_count=3)
    bench.at(0.0, bench.submit())
    bench.at(200.0, failed(0))
    assert bench.timers(300.0, fired()) == ["timer 500"]
    assert bench[0].state == "RUNNING"
    assert bench.at(500.0, fired()) == ["stop 0.2 timeout"]
    assert bench[0].finished_s == 500.0


def test_waiting_does_not_count_towards_the_timeout() -> None:
    bench = Bench(slots=1, timeout=10)
    bench.at(0.0, bench.submit(timeout_s=1000), bench.submit())
    bench.at(500.0, finished(0))
    assert bench[1].started_s == 500.0
    assert bench.at(510.0, fired(10.0)) == ["stop 1.1 timeout"]


def test_each_timeout_of_many_is_kept_whatever_the_order() -> None:
    bench = Bench(slots=9)
    bench.at(0.0, bench.submit(timeout_s=30), bench.submit(timeout_s=10))
    bench.at(5.0, bench.submit(timeout_s=10), bench.submit(timeout_s=30))
    assert bench.at(10.0, fired(10.0)) == ["stop 1.1 timeout"]
    assert bench.at(15.0, fired(10.0)) == ["stop 2.1 timeout"]
    assert bench.at(30.0, fired(30.0)) == ["stop 0.1 timeout"]
    assert bench.at(35.0, fired(30.0)) == ["stop 3.1 timeout"]


def test_a_timer_always_stands_for_the_nearest_deadline_of_running_tasks() -> None:
    """Whatever ends in between: driven by timers alone, no deadline is missed."""
    bench = Bench(slots=99, timeout=10)
    planned: list[float] = []

    def apply(now: float, *facts: Fact) -> None:
        planned.extend(float(text.split()[1]) for text in bench.timers(now, *facts))

    for i in range(20):
        apply(float(i) / 4, bench.submit(gib=0))
    for i in range(0, 20, 3):
        apply(5.0, finished(i))
    while planned:
        now = min(planned)
        planned.remove(now)
        apply(now, fired(10.0))
    for i in range(20):
        expected = 5.0 if i % 3 == 0 else i / 4 + 10.0
        assert bench[i].finished_s == expected


# --- failures and retries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_task_that_fails_of_its_own_gets_one_plus_retry_count_attempts(retries: int) -> None:
    bench = Bench(retry_count=retries)
    said = bench.at(0.0, bench.submit())
    for attempt in range(1, retries + 2):
        assert said == [f"start 0.{attempt} on 0"]
        said = bench.at(float(attempt), failed(0, attempt))
    assert said == []
    task = bench[0]
    assert (task.state, task.error_code, task.attempts) == ("FAILED", "task_error", retries + 1)
    assert task.error == "it failed (task_error)"
    assert task.finished_s == retries + 1
    assert bench.gpus[0].running == 0


def test_the_tasks_own_retry_count_goes_before_the_settings() -> None:
    bench = Bench(retry_count=3)
    bench.at(0.0, bench.submit(retry_count=0))
    bench.at(1.0, failed(0))
    assert bench[0].state == "FAILED"


def test_out_of_memory_is_retried_and_then_is_the_error_code() -> None:
    bench = Bench(retry_count=1)
    bench.at(0.0, bench.submit())
    assert bench.at(1.0, failed(0, 1, "out_of_memory")) == ["start 0.2 on 0"]
    bench.at(2.0, failed(0, 2, "out_of_memory"))
    assert (bench[0].state, bench[0].error_code) == ("FAILED", "out_of_memory")


def test_the_error_code_is_that_of_the_last_attempt() -> None:
    bench = Bench(retry_count=1)
    bench.at(0.0, bench.submit())
    bench.at(1.0, failed(0, 1, "out_of_memory"))
    bench.at(2.0, failed(0, 2, "task_error"))
    assert bench[0].error_code == "task_error"


def test_a_failed_task_comes_back_to_its_old_place_in_the_queue() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit(), bench.submit())
    assert bench.at(1.0, failed(0)) == ["start 0.2 on 0"]
    assert bench.at(2.0, finished(0, 2)) == ["start 1.1 on 0"]


def test_a_retry_may_succeed_and_leaves_no_error() -> None:
    bench = Bench()
    bench.at(0.0, bench.submit())
    bench.at(1.0, failed(0))
    bench.at(2.0, finished(0, 2))
    assert (bench[0].state, bench[0].error_code, bench[0].error) == ("COMPLETED", None, None)


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_the_third_worker_crash_ends_a_task() -> None:
    bench = Bench(retry_count=0)
    bench.at(0.0, bench.submit())
    assert bench.at(1.0, crashed((0, 1))) == ["start 0.2 on 0"]
    assert bench.at(2.0, crashed((0, 2))) == ["start 0.3 on 0 alone"]
    assert bench.at(3.0, crashed((0, 3))) == []
    task = bench[0]
    assert (task.state, task.error_code, task.finished_s, task.attempts) == ("FAILED", "worker_crashed", 3.0, 3)
    assert "3 times" in str(task.error)
    assert "signal 9" in str(task.error)


def test_a_crash_costs_everyone_in_that_worker_one_and_nobody_else() -> None:
    bench = Bench(10, 10, slots=2)
    bench.at(0.0, *(bench.submit(gpu_id=i // 2) for i in range(4)))
    assert bench.at(1.0, crashed((0, 1), (1, 1))) == ["start 0.2 on 0", "start 1.2 on 0"]
    assert [bench[i].crashes for i in range(4)] == [1, 1, 0, 0]


def test_an_unblamed_crash_costs_a_task_nothing_however_often() -> None:
    bench = Bench(retry_count=0)
    bench.at(0.0, bench.submit())
    for attempt in range(1, 8):
        assert bench.at(float(attempt), crashed((0, attempt), blamed=False)) == [f"start 0.{attempt + 1} on 0"]
    assert (bench[0].crashes, bench[0].failures) == (0, 0)


def test_crashes_do_not_use_up_retries_nor_failures_crashes() -> None:
    bench = Bench(retry_count=1)
    bench.at(0.0, bench.submit())
    bench.at(1.0, crashed((0, 1)))
    bench.at(2.0, failed(0, 2))
    bench.at(3.0, crashed((0, 3)))
    assert bench.running() == [0]
    bench.at(4.0, failed(0, 4))
    assert (bench[0].state, bench[0].error_code) == ("FAILED", "task_error")


def test_the_third_attempt_has_a_gpu_to_itself_and_waits_for_an_empty_one() -> None:
    bench = Bench(10, 10, slots=4)
    bench.at(0.0, bench.submit(gpu_id=0), bench.submit(gpu_id=0))
    bench.at(1.0, crashed((0, 1), (1, 1)))
    assert bench.at(2.0, crashed((0, 2), (1, 2))) == ["start 0.3 on 0 alone"]  # both are pinned to GPU 0
    assert bench.gpus[0].state == "BUSY"
    assert bench.at(3.0, bench.submit(gpu_id=0), bench.submit()) == ["start 3.1 on 1"]
    assert bench.at(4.0, finished(0, 3)) == ["start 1.3 on 0 alone"]
    assert bench.at(5.0, finished(1, 3)) == ["start 2.1 on 0"]
    assert bench.gpus[0].state == "AVAILABLE"


def test_a_task_that_wants_a_gpu_alone_is_not_starved_by_small_ones() -> None:
    bench = Bench(10, slots=4, priority_aging=60)
    bench.at(0.0, bench.submit(), bench.submit())
    bench.at(1.0, crashed((0, 1)))
    said = bench.at(2.0, crashed((0, 2)))
    assert said == []  # task 1 is there
    now, running = 2.0, [1]
    while bench[0].state == "QUEUED" and now < 500.0:
        now += 5.0
        said = bench.at(now, bench.submit(priority="high"), *([finished(running.pop(0))] if len(running) > 2 else []))
        running += [int(text.split()[1].split(".")[0]) for text in said if not text.startswith("start 0.")]
        if now >= 60.0 and running:
            bench.at(now + 1.0, finished(running.pop(0)))
    assert bench[0].attempt is not None
    assert bench[0].attempt.solo
    assert 60.0 <= bench[0].started_s <= 150.0  # type: ignore[operator]


# --- devices lost and returned ----------------------------------------------------------------------------------------


def test_what_ran_on_a_lost_device_goes_elsewhere_and_it_costs_nothing() -> None:
    bench = Bench(10, 10, retry_count=0)
    bench.at(0.0, bench.submit(strategy="single_gpu"), bench.submit(strategy="single_gpu"))
    assert bench.at(5.0, lost(0)) == ["start 0.2 on 1", "start 1.2 on 1"]
    assert [(bench[i].failures, bench[i].crashes) for i in (0, 1)] == [(0, 0), (0, 0)]
    assert bench.gpus[0].state == "LOST"
    assert bench.gpus[0].running == 0


def test_a_device_may_be_lost_under_a_task_any_number_of_times() -> None:
    bench = Bench(10, 10, retry_count=0)
    bench.at(0.0, bench.submit())
    for attempt in range(1, 12):
        gpu = bench[0].gpu_id
        assert gpu is not None
        assert bench.at(float(attempt), lost(gpu)) == [f"start 0.{attempt + 1} on {1 - gpu}"]
        bench.at(attempt + 0.5, returned(gpu), sampled(gpu))
    assert bench[0].state == "RUNNING"


def test_with_no_device_left_running_and_waiting_tasks_fail_with_device_lost() -> None:
    bench = Bench(10, slots=1)
    bench.at(0.0, bench.submit(), bench.submit())
    assert bench.at(5.0, lost()) == []
    for i in (0, 1):
        assert (bench[i].state, bench[i].error_code, bench[i].finished_s) == ("FAILED", "device_lost", 5.0)
        assert "fell off the bus" in str(bench[i].error)
    bench.at(6.0, bench.submit())
    assert (bench[2].state, bench[2].error_code, bench[2].finished_s) == ("FAILED", "device_lost", 6.0)
    assert bench.distributor.open_tasks == 0


def test_a_task_pinned_to_a_lost_device_fails_with_device_lost_though_others_are_left() -> None:
    bench = Bench(10, 10, slots=1)
    bench.at(0.0, bench.submit(gpu_id=0), bench.submit(gpu_id=0), bench.submit())
    bench.at(5.0, lost(0))
    assert [bench[i].error_code for i in range(3)] == ["device_lost", "device_lost", None]
    assert "pinned to GPU 0" in str(bench[1].error)


def test_a_task_bigger_than_what_is_left_fails_and_says_so() -> None:
    bench = Bench(20, 10, slots=1)
    bench.at(0.0, bench.submit(gib=15), bench.submit(gib=15), bench.submit(gib=5))
    bench.at(5.0, lost(0))
    for i in (0, 1):
        assert (bench[i].state, bench[i].finished_s) == ("FAILED", 5.0)
        assert bench[i].error_code in ("too_large", "device_lost")
        assert "15.00 GiB" in str(bench[i].error)
        assert "10.00 GiB" in str(bench[i].error)
    assert bench[2].state == "RUNNING"


def test_what_arrives_late_from_a_lost_device_is_dropped_and_counted() -> None:
    bench = Bench(10, 10)
    bench.at(0.0, bench.submit(strategy="single_gpu"))
    bench.at(5.0, lost(0))
    bench.at(6.0, finished(0, 1), sampled(0), lost(0), crashed((0, 1)))
    assert (bench[0].state, bench[0].attempts, bench[0].gpu_id) == ("RUNNING", 2, 1)
    assert bench.distributor.stale == {"AttemptFinished": 1, "DeviceSampled": 1, "DeviceLost": 1, "WorkerCrashed": 1}


def test_a_returned_device_takes_work_only_after_a_clean_sample() -> None:
    bench = Bench(10, 10, slots=1)
    bench.at(0.0, bench.submit(gpu_id=1), lost(0))
    bench.at(1.0, bench.submit())
    assert bench.at(2.0, returned(0)) == []
    assert bench.gpus[0].state == "UNHEALTHY"
    assert bench.at(3.0, sampled(0, temperature_c=99.0)) == []
    assert bench.at(4.0, sampled(0)) == ["start 1.1 on 0"]


def test_what_only_a_lost_device_could_hold_is_taken_again_once_it_has_returned() -> None:
    bench = Bench(20, 10)
    bench.at(0.0, lost(0))
    bench.at(1.0, bench.submit(gib=15))
    assert bench[0].state == "FAILED"
    bench.at(2.0, returned(0))
    bench.at(3.0, bench.submit(gib=15))
    assert bench[1].state == "QUEUED"
    assert bench.at(4.0, sampled(0)) == ["start 1.1 on 0"]


def test_a_device_that_was_never_lost_cannot_return() -> None:
    bench = Bench(10)
    bench.at(0.0, returned(0))
    assert bench.distributor.stale["DeviceReturned"] == 1
    assert bench.gpus[0].state == "AVAILABLE"


def test_a_stopping_attempt_on_a_lost_device_is_not_queued_again() -> None:
    bench = Bench(10, 10)
    bench.at(0.0, bench.submit(gpu_id=0), bench.submit(gpu_id=0))
    bench.at(1.0, cancel(0))
    bench.at(2.0, lost(0))
    assert (bench[0].state, bench[0].finished_s) == ("CANCELLED", 1.0)
    assert bench.gpus[0].running == 0


# --- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readings", "healthy"),
    [
        ({"temperature_c": 85.0}, True),
        ({"temperature_c": 85.0001}, False),
        ({"foreign_utilization_pct": 95.0}, True),
        ({"foreign_utilization_pct": 95.5}, False),
        ({"foreign_memory_bytes": 9 * 2**30}, True),
        ({"foreign_memory_bytes": 9 * 2**30 + 4096}, False),
        ({"utilization_pct": 100.0}, True),
        ({"memory_used_bytes": 10 * 2**30}, True),
        ({"temperature_c": None, "foreign_utilization_pct": None, "foreign_memory_bytes": None}, True),
    ],
)
def test_a_gpu_over_a_threshold_of_load_not_ours_takes_no_new_task(readings: dict[str, Any], healthy: bool) -> None:
    bench = Bench(10, overrides={"gpu.detection.memory_threshold": 0.9})
    bench.at(0.0, sampled(**readings))
    assert bench.gpus[0].state == ("AVAILABLE" if healthy else "UNHEALTHY")
    assert len(bench.at(1.0, bench.submit(gib=0))) == int(healthy)
    if not healthy:
        assert bench.gpus[0].reason
        assert bench.at(2.0, sampled()) == ["start 0.1 on 0"]
        assert bench.gpus[0].reason is None


def test_what_runs_on_a_gpu_that_turns_unhealthy_runs_on() -> None:
    bench = Bench(10)
    bench.at(0.0, bench.submit())
    assert bench.at(1.0, sampled(temperature_c=99.0)) == []
    assert bench.at(2.0, finished(0)) == []
    assert bench[0].state == "COMPLETED"
    assert bench.at(3.0, sampled(), bench.submit()) == ["start 1.1 on 0"]


def test_foreign_memory_shrinks_what_is_reserved() -> None:
    bench = Bench(10, slots=99, overrides={"gpu.detection.memory_threshold": 0.9})
    bench.at(0.0, sampled(foreign_memory_bytes=4 << 30))
    assert len(bench.at(1.0, *(bench.submit(gib=1) for _ in range(10)))) == 5  # 0.9 x 10 - 4
    assert len(bench.at(2.0, sampled(foreign_memory_bytes=2 << 30))) == 2
    assert bench.at(3.0, sampled(foreign_memory_bytes=6 << 30)) == []  # over-full, which only time can cure
    assert bench.at(4.0, *(finished(i) for i in range(5))) == ["start 7.1 on 0"]


def test_a_task_that_needs_no_memory_runs_on_a_gpu_that_is_over_full() -> None:
    bench = Bench(10)
    bench.at(0.0, bench.submit(gib=9))
    bench.at(1.0, sampled(foreign_memory_bytes=4 << 30))
    assert bench.at(2.0, bench.submit(gib=0), bench.submit(gib=0.001)) == ["start 1.1 on 0"]


def test_a_sample_that_is_silent_about_foreign_memory_gives_the_room_back() -> None:
    bench = Bench(10)
    bench.at(0.0, sampled(foreign_memory_bytes=9 << 30))
    assert bench.at(1.0, bench.submit(gib=5)) == []
    assert bench.at(2.0, sampled(foreign_memory_bytes=None)) == ["start 0.1 on 0"]


def test_a_sample_with_no_reading_at_all_is_clean() -> None:
    bench = Bench(10)
    bench.at(0.0, sampled(temperature_c=99.0))
    from altlas_core.events import DeviceSampled

    bench.at(1.0, DeviceSampled(0, DeviceSample()))
    assert bench.gpus[0].state == "AVAILABLE"


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_a_queued_task_is_cancelled_at_once_and_never_starts() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit(), bench.submit())
    bench.at(1.0, cancel(1))
    assert (bench[1].state, bench[1].finished_s, bench[1].error_code) == ("CANCELLED", 1.0, None)
    assert bench.at(2.0, finished(0)) == ["start 2.1 on 0"]


@pytest.mark.parametrize("position", range(5))
def test_any_queued_task_can_be_cancelled_and_the_rest_keep_their_order(position: int) -> None:
    bench = Bench(slots=1)
    bench.at(0.0, *(bench.submit() for _ in range(6)))
    bench.at(1.0, cancel(1 + position))
    rest = [i for i in range(1, 6) if i != 1 + position]
    assert starts_in_order(bench, 2.0, 4) == rest
    assert bench.distributor.queue.count == 0


def test_a_running_task_is_cancelled_at_once_but_holds_its_place_until_it_has_stopped() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit())
    assert bench.at(1.0, cancel(0)) == ["stop 0.1 cancelled"]
    assert (bench[0].state, bench[0].finished_s) == ("CANCELLED", 1.0)
    assert bench.gpus[0].running == 1
    assert bench.at(3.0, stopped(0)) == ["start 1.1 on 0"]


@pytest.mark.parametrize("late", [finished(0), failed(0), crashed((0, 1))])
def test_a_cancelled_task_stays_cancelled_whatever_still_arrives(late: Fact) -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit())
    bench.at(1.0, cancel(0))
    assert bench.at(2.0, late) == ["start 1.1 on 0"]  # it has let go
    assert (bench[0].state, bench[0].finished_s, bench[0].error_code) == ("CANCELLED", 1.0, None)


def test_a_late_result_is_counted() -> None:
    bench = Bench()
    bench.at(0.0, bench.submit())
    bench.at(1.0, cancel(0))
    bench.at(2.0, finished(0))
    assert bench.distributor.stale["late result"] == 1
    bench.at(3.0, stopped(0))
    assert bench.distributor.stale["AttemptStopped"] == 1


@pytest.mark.parametrize("late", [finished(0), failed(0)])
def test_every_kind_of_late_result_is_counted(late: Fact) -> None:
    bench = Bench()
    bench.at(0.0, bench.submit())
    bench.at(1.0, cancel(0))
    bench.at(2.0, late)
    assert bench.distributor.stale == {"late result": 1}


def test_cancelling_what_is_final_changes_nothing_and_is_counted() -> None:
    bench = Bench()
    bench.at(0.0, bench.submit())
    bench.at(1.0, finished(0))
    assert bench.at(2.0, cancel(0)) == []
    assert (bench[0].state, bench[0].finished_s) == ("COMPLETED", 1.0)
    assert bench.distributor.stale["CancelRequested"] == 1


def test_a_task_waiting_for_its_retry_can_be_cancelled() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit())
    bench.distributor.on_event(1.0, failed(0))
    bench.distributor.on_event(1.0, cancel(0))
    assert bench.at(1.0) == []
    assert (bench[0].state, bench.distributor.open_tasks) == ("CANCELLED", 0)


# --- facts that come twice, late, or cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize("again", [finished(0), failed(0), stopped(0)])
def test_a_fact_about_an_ended_attempt_is_dropped_and_counted(again: Any) -> None:
    bench = Bench()
    bench.at(0.0, bench.submit())
    bench.at(1.0, failed(0))
    assert bench.running() == [0]
    bench.at(2.0, again)
    assert (bench[0].state, bench[0].attempts) == ("RUNNING", 2)
    assert bench.distributor.stale == {type(again).__name__: 1}


def illegal_facts() -> list[tuple[str, Fact, str]]:
    return [
        ("finished, never submitted", finished(99), "never submitted"),
        ("failed, never submitted", failed(99), "never submitted"),
        ("stopped, never submitted", stopped(99), "never submitted"),
        ("cancelled, never submitted", cancel(99), "never submitted"),
        ("an attempt that was never made", finished(0, 2), "task-000000 is RUNNING"),
        ("attempt 0", finished(0, 0), "task-000000 is RUNNING"),
        ("a queued task finishes", finished(1), "task-000001 is QUEUED"),
        ("stopped, not asked for", stopped(0), "nobody asked"),
        ("a GPU that is not there is lost", lost(7), "GPU 7"),
        ("a GPU that is not there is sampled", sampled(-1), "GPU -1"),
        ("a GPU that is not there returns", returned(7), "GPU 7"),
        ("a crash on a GPU that is not there", crashed((0, 1), gpu_id=7), "GPU 7"),
        ("a crash of a task never submitted", crashed((99, 1)), "never submitted"),
        ("a crash of an attempt never made", crashed((0, 9)), "task-000000 is RUNNING"),
        ("a crash of which one attempt was never made", crashed((0, 1), (0, 9)), "task-000000"),
    ]


@pytest.mark.parametrize(
    ("fact", "tells"), [case[1:] for case in illegal_facts()], ids=[case[0] for case in illegal_facts()]
)
def test_an_illegal_fact_raises_with_the_story_and_changes_nothing(fact: Fact, tells: str) -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit(), bench.submit(gib=3, priority="low"))
    before = deep_snapshot(bench.distributor)
    with pytest.raises(StateError, match=tells):
        bench.distributor.on_event(1.0, fact)
    assert deep_snapshot(bench.distributor) == before


def test_submitting_twice_raises_and_changes_nothing() -> None:
    bench = Bench(slots=1)
    fact = bench.submit()
    bench.at(0.0, fact, bench.submit())
    before = deep_snapshot(bench.distributor)
    with pytest.raises(StateError, match="task-000000 was submitted before: task-000000 is RUNNING, submitted at 0 s"):
        bench.distributor.on_event(1.0, fact)
    assert deep_snapshot(bench.distributor) == before


def test_something_that_is_no_fact_raises_state_error() -> None:
    bench = Bench()
    with pytest.raises(StateError):
        bench.distributor.on_event(0.0, "finished")  # type: ignore[arg-type]


def test_the_snapshot_does_see_a_change() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit())
    before = deep_snapshot(bench.distributor)
    assert deep_snapshot(bench.distributor) == before
    bench.at(1.0, cancel(1))
    assert deep_snapshot(bench.distributor) != before


# --- the bounded queue ------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_the_latest_of_an_instant_after_the_free_places_are_used() -> None:
    bench = Bench(slots=2, max_queue=3)
    said = bench.at(0.0, *(bench.submit() for _ in range(8)))
    assert said == ["start 0.1 on 0", "start 1.1 on 0"]
    assert bench.states() == ["RUNNING"] * 2 + ["QUEUED"] * 3 + ["FAILED"] * 3
    assert {bench[i].error_code for i in (5, 6, 7)} == {"queue_full"}
    assert "max_queue" in str(bench[5].error)
    assert bench.distributor.open_tasks == 5


def test_those_who_wait_already_are_never_refused() -> None:
    bench = Bench(slots=1, max_queue=2)
    bench.at(0.0, bench.submit(), bench.submit(priority="low"), bench.submit(priority="low"))
    bench.at(1.0, bench.submit(priority="high"))
    assert bench.states() == ["RUNNING", "QUEUED", "QUEUED", "FAILED"]


def test_room_in_the_queue_is_room_again() -> None:
    bench = Bench(slots=1, max_queue=1)
    bench.at(0.0, bench.submit(), bench.submit())
    bench.at(1.0, cancel(1), bench.submit())
    assert bench[2].state == "QUEUED"
    bench.at(2.0, finished(0), bench.submit())
    assert bench[3].state == "QUEUED"


def test_what_comes_back_for_a_retry_is_never_refused() -> None:
    bench = Bench(slots=1, max_queue=1)
    bench.at(0.0, bench.submit(priority="low"), bench.submit(priority="high"))
    assert bench.states() == ["QUEUED", "RUNNING"]
    bench.distributor.on_event(1.0, failed(1))
    bench.at(1.0, bench.submit(priority="high"))
    assert bench[1].state == "RUNNING"
    assert bench[0].state == "QUEUED"
    assert bench[2].error_code == "queue_full"


def test_no_bound_refuses_nobody() -> None:
    bench = Bench(slots=1, max_queue=0)
    bench.at(0.0, *(bench.submit() for _ in range(50)))
    assert bench.distributor.queue.count == 49


def test_one_cancelled_at_the_instant_it_arrives_takes_no_place_in_the_queue() -> None:
    bench = Bench(slots=1, max_queue=1)
    bench.at(0.0, bench.submit())
    bench.at(1.0, bench.submit(), bench.submit(), cancel(1))
    assert bench.states() == ["RUNNING", "CANCELLED", "QUEUED"]


# --- no hope ----------------------------------------------------------------------------------------------------------


def test_when_hope_is_lost_all_who_wait_fail_with_the_reason_and_those_who_run_run_on() -> None:
    bench = Bench(10, 10, slots=1)
    bench.at(0.0, bench.submit(gpu_id=0), sampled(1, temperature_c=99.0), bench.submit(), bench.submit(priority="low"))
    bench.at(50.0, HopeLost("nothing can change any more"))
    assert bench.states() == ["RUNNING", "FAILED", "FAILED"]
    assert {bench[i].error_code for i in (1, 2)} == {"device_lost"}
    assert bench[1].error == "nothing can change any more"
    assert (bench.distributor.open_tasks, bench.distributor.queue.count) == (1, 0)


# --- a service without end --------------------------------------------------------------------------------------------


def test_changed_holds_the_tasks_that_ended_or_were_queued_again() -> None:
    bench = Bench(slots=2)
    changed = bench.distributor.changed = []
    bench.at(0.0, bench.submit(), bench.submit(), bench.submit())
    assert changed == []
    bench.at(1.0, finished(0), failed(1), cancel(2))
    assert [(task.index, task.state) for task in changed] == [(0, "COMPLETED"), (1, "RUNNING"), (2, "CANCELLED")]


def test_a_task_that_has_ended_can_be_forgotten_and_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.at(0.0, bench.submit(), bench.submit())
    bench.at(1.0, finished(0))
    bench.distributor.forget(bench[0])
    assert list(bench.distributor.tasks) == [1]
    bench.at(2.0, finished(1))
    assert bench[1].state == "COMPLETED"


def test_a_task_is_not_forgotten_while_it_waits_or_runs_or_holds_its_device() -> None:
    bench = Bench(slots=1)
    bench.at(0.0, bench.submit(), bench.submit())
    for index in (0, 1):
        with pytest.raises(StateError, match="cannot be forgotten yet"):
            bench.distributor.forget(bench[index])
    bench.at(1.0, cancel(0))
    with pytest.raises(StateError, match="still holds it"):
        bench.distributor.forget(bench[0])
    bench.at(2.0, stopped(0))
    bench.distributor.forget(bench[0])
    assert bench.states() == ["RUNNING"]


def test_a_fact_about_a_forgotten_task_is_stale_and_one_about_a_task_that_never_was_is_impossible() -> None:
    bench = Bench()
    bench.at(0.0, bench.submit(), bench.submit())
    bench.at(1.0, finished(0), finished(1))
    bench.distributor.forget(bench[1])
    bench.at(2.0, finished(1), failed(1), stopped(1), cancel(1), crashed((1, 1)))
    assert sum(bench.distributor.stale.values()) == 5
    for fact in (finished(2), cancel(2), crashed((2, 1))):
        with pytest.raises(StateError):
            bench.at(3.0, fact)
