"""Runs in virtual time: ties, lengths, sharing, readings, faults. Everything here is exact unless it says otherwise."""

from __future__ import annotations

import heapq
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import altlas_core as altlas
from altlas_core.gpu_model.catalog import find_model
from altlas_core.gpu_model.power import thermal_model
from altlas_core.gpu_model.roofline import kernel_cost
from altlas_core.model import GIB, TaskSpec

LEAST = "least_loaded"


def run(
    records: list[dict[str, Any]], gpus: str = "1x A100", faults: list[altlas.Fault] | None = None, **over: Any
) -> altlas.Result:
    """Keywords are keys of gpu.workload; those with dots full ones."""
    keys: dict[str, Any] = {"gpu.backend": "simulated", "gpu.devices": [gpus]}
    keys["gpu.selection.default_strategy"] = LEAST
    keys.update({name if "." in name else f"gpu.workload.{name}": value for name, value in over.items()})
    settings = altlas.load_config(None, keys, environ={})
    return altlas.run(settings, altlas.Workload.from_records(records), faults=faults or [])


def ends(result: altlas.Result) -> list[tuple[str, float]]:
    return list(zip(result.tasks.state, result.tasks.finished_s, strict=True))


def facts(result: altlas.Result, *names: str) -> list[dict[str, Any]]:
    return [event for event in result.events if event.get("fact") in names or event.get("action") in names]


def fault(
    time_s: float, kind: str, gpu_id: int = 0, duration_s: float | None = None, value: Any = None
) -> altlas.Fault:
    return altlas.Fault(time_s, gpu_id, kind, duration_s, value)


# --- ties -------------------------------------------------------------------------------------------------------------


def test_a_task_that_ends_exactly_at_its_deadline_has_completed() -> None:
    assert ends(run([{"duration_s": 300.0}])) == [("COMPLETED", 300.0)]
    assert ends(run([{"duration_s": 300.0000001}])) == [("FAILED", 300.0)]


def test_a_task_cancelled_exactly_when_it_ends_has_completed() -> None:
    result = run([{"duration_s": 5.0, "cancel_s": 5.0}, {"duration_s": 9.0}])
    assert ends(result) == [("COMPLETED", 5.0), ("COMPLETED", 9.0)]
    assert result.stale == {"CancelRequested": 1}


def test_a_task_cancelled_exactly_at_its_deadline_is_cancelled() -> None:
    assert ends(run([{"duration_s": 310.0, "cancel_s": 300.0}])) == [("CANCELLED", 300.0)]


def test_a_task_cancelled_at_the_instant_it_is_submitted_never_starts() -> None:
    result = run([{"submit_s": 2.0, "duration_s": 5.0, "cancel_s": 2.0}])
    assert ends(result) == [("CANCELLED", 2.0)]
    assert list(result.tasks.attempts) == [0]


def test_a_place_that_is_freed_and_a_task_that_arrives_at_one_instant_meet() -> None:
    result = run([{"duration_s": 5.0}, {"submit_s": 5.0, "duration_s": 1.0}], max_concurrent_tasks_per_gpu=1)
    assert list(result.tasks.started_s) == [0.0, 5.0]


def test_what_arrives_when_a_place_is_freed_goes_by_priority_not_by_who_waited() -> None:
    records = [{"duration_s": 5.0}, {"duration_s": 1.0}, {"submit_s": 5.0, "duration_s": 1.0, "priority": "high"}]
    assert list(run(records, max_concurrent_tasks_per_gpu=1).tasks.started_s) == [0.0, 6.0, 5.0]


def test_all_that_arrive_at_one_instant_are_known_before_anything_is_decided() -> None:
    records = [{"duration_s": 1.0, "priority": name} for name in ("low", "normal", "high")]
    assert list(run(records, max_concurrent_tasks_per_gpu=1).tasks.started_s) == [2.0, 1.0, 0.0]


def test_a_task_that_ends_exactly_when_its_device_is_lost_has_completed() -> None:
    result = run([{"duration_s": 5.0}], faults=[fault(5.0, "lose_gpu")])
    assert ends(result) == [("COMPLETED", 5.0)]


def test_a_task_submitted_exactly_when_the_last_device_is_lost_fails() -> None:
    result = run([{"submit_s": 5.0, "duration_s": 1.0}], faults=[fault(5.0, "lose_gpu")])
    assert ends(result) == [("FAILED", 5.0)]
    assert list(result.tasks.attempts) == [0]


def test_a_task_cancelled_exactly_when_its_device_is_lost_is_cancelled_where_others_are_left() -> None:
    result = run([{"duration_s": 9.0, "cancel_s": 5.0}], "2x A100", [fault(5.0, "lose_gpu")])
    assert ends(result) == [("CANCELLED", 5.0)]
    assert list(result.tasks.attempts) == [1]


def test_a_task_whose_device_is_lost_exactly_at_its_deadline_starts_anew() -> None:
    result = run([{"duration_s": 310.0, "timeout_s": 305.0}], "2x A100", [fault(305.0, "lose_gpu")])
    assert ends(result) == [("FAILED", 610.0)]
    assert list(result.tasks.error_code) == ["timeout"]


def test_a_hot_reading_comes_before_what_arrives_at_the_same_instant() -> None:
    result = run([{"submit_s": 60.0, "duration_s": 1.0}], "2x A100", [fault(50.0, "overheat", value=99.0)])
    assert list(result.tasks.gpu_id) == [1]


def test_a_clean_reading_comes_before_what_arrives_at_the_same_instant() -> None:
    faults = [fault(50.0, "overheat", duration_s=20.0, value=99.0)]
    result = run([{"submit_s": 119.0, "duration_s": 1.0}, {"submit_s": 120.0, "duration_s": 1.0}], faults=faults)
    assert list(result.tasks.started_s) == [120.0, 120.0]


def test_a_task_that_ends_when_its_gpu_is_found_too_hot_is_followed_by_none() -> None:
    records = [{"duration_s": 60.0}, {"duration_s": 1.0}]
    faults = [fault(50.0, "overheat", duration_s=20.0, value=99.0)]
    assert list(run(records, faults=faults, max_concurrent_tasks_per_gpu=1).tasks.started_s) == [0.0, 120.0]


def test_a_timeout_frees_the_place_for_one_that_arrives_then() -> None:
    records = [{"duration_s": 99.0, "timeout_s": 5.0}, {"submit_s": 5.0, "duration_s": 1.0}]
    result = run(records, max_concurrent_tasks_per_gpu=1)
    assert ends(result) == [("FAILED", 5.0), ("COMPLETED", 6.0)]


def test_a_cancelled_task_frees_its_place_at_that_instant() -> None:
    records = [{"duration_s": 99.0, "cancel_s": 5.0}, {"duration_s": 1.0}]
    result = run(records, max_concurrent_tasks_per_gpu=1)
    assert ends(result) == [("CANCELLED", 5.0), ("COMPLETED", 6.0)]
    assert [(e["t"], e["task"]) for e in facts(result, "AttemptStopped")] == [(5.0, 0)]


def test_two_that_end_at_one_instant_both_free_their_place_before_anybody_starts() -> None:
    records = [{"duration_s": 5.0}, {"duration_s": 5.0}, {"duration_s": 1.0, "memory_bytes": 60 * GIB}]
    records = [{**record, "memory_bytes": record.get("memory_bytes", 36 * GIB)} for record in records]
    assert list(run(records).tasks.started_s) == [0.0, 0.0, 5.0]


def test_a_device_lost_and_returned_at_one_instant_has_let_go_of_what_ran_there() -> None:
    faults = [fault(3.0, "lose_gpu"), fault(3.0, "return_gpu")]
    result = run([{"duration_s": 9.0}], "2x A100", faults)
    assert list(result.tasks.attempts) == [2]
    assert ends(result) == [("COMPLETED", 12.0)]


def test_the_order_of_facts_of_one_instant_is_ended_device_submit_cancel_timer() -> None:
    records = [
        {"duration_s": 60.0},
        {"duration_s": 99.0, "cancel_s": 60.0},
        {"duration_s": 99.0, "timeout_s": 60.0},
        {"submit_s": 60.0, "duration_s": 99.0, "cancel_s": 70.0},
    ]
    at_60 = [event["fact"] for event in run(records).events if event.get("t") == 60.0 and "fact" in event]
    assert at_60 == [
        "AttemptFinished",
        "DeviceSampled",
        "TaskSubmitted",
        "CancelRequested",
        "AttemptStopped",
        "TimerFired",
        "AttemptStopped",
    ]


# --- lengths ----------------------------------------------------------------------------------------------------------


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.floats(0.0, 250.0), min_size=1, max_size=12),
    arrivals=st.lists(st.floats(0.0, 50.0), min_size=12, max_size=12),
)
def test_a_duration_is_exact_whatever_the_neighbours_do(lengths: list[float], arrivals: list[float]) -> None:
    records = [
        {"submit_s": at, "duration_s": length} for length, at in zip(lengths, arrivals[: len(lengths)], strict=True)
    ]
    records.append({"submit_s": 1.0, "iterations": 2_000_000})
    order = sorted(records, key=lambda record: record["submit_s"])
    tasks = run(records, max_concurrent_tasks_per_gpu=3).tasks
    for record, start, end in zip(order, tasks.started_s, tasks.finished_s, strict=True):
        if "duration_s" in record:
            assert end == start + record["duration_s"]


def alone_s(iterations: float, **sizes: int) -> float:
    return iterations * kernel_cost(TaskSpec(**sizes), find_model("A100")).seconds


SMALL = {"input_size": 1024, "output_size": 1024}
BIG = {"input_size": 4096, "output_size": 4096}


def test_iterations_alone_take_what_the_gpu_model_says() -> None:
    model = find_model("A100")
    cost = kernel_cost(TaskSpec(), model)
    flops, moved = 2.0 * 256 * 1024 * 1024, 4.0 * (1024 * 1024 + 2 * 256 * 1024)
    assert cost.seconds == max(flops / model.peak_flops["fp32"], moved / model.memory_bandwidth_bytes_per_s)
    (end,) = run([{"iterations": 1000}]).tasks.finished_s
    assert end == pytest.approx(1000 * cost.seconds, rel=1e-12)


def test_two_equal_tasks_on_one_gpu_take_twice_as_long() -> None:
    tasks = run([{"iterations": 100_000}] * 2).tasks
    assert list(tasks.finished_s) == pytest.approx([2 * alone_s(100_000)] * 2, rel=1e-12)


def test_two_equal_tasks_on_two_gpus_do_not_slow_each_other() -> None:
    tasks = run([{"iterations": 100_000}] * 2, "2x A100").tasks
    assert list(tasks.finished_s) == pytest.approx([alone_s(100_000)] * 2, rel=1e-12)


def test_processor_sharing_with_staggered_starts_is_as_computed_by_hand() -> None:
    """Work of 6 s (from 0), 2 s (from 2), 1 s (from 3): 2 s alone, then halves, then thirds.

    From 0: A has 4 left at 2. Halves until 3: A 3.5, B 1.5. Thirds until C is done: 3 s, at 6: A 2.5, B 0.5.
    Halves until B is done: 1 s, at 7: A 2. Alone: A done at 9.
    """
    per_s = 1.0 / alone_s(1.0)
    work = [(0.0, 6.0), (2.0, 2.0), (3.0, 1.0)]
    records = [{"submit_s": at, "iterations": round(seconds * per_s)} for at, seconds in work]
    assert list(run(records).tasks.finished_s) == pytest.approx([9.0, 7.0, 6.0], abs=1e-3)


def test_sharing_is_equal_in_time_also_between_different_kernels() -> None:
    """The small one's 1 s and the big one's 3 s: together until 2 s, then the big one alone until 4 s."""
    small, big = round(1.0 / alone_s(1.0, **SMALL)), round(3.0 / alone_s(1.0, **BIG))
    tasks = run([{"iterations": small, **SMALL}, {"iterations": big, **BIG}]).tasks
    assert list(tasks.finished_s) == pytest.approx([2.0, 4.0], abs=0.01)


@hypothesis_settings(max_examples=60, deadline=None)
@given(jobs=st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.01, 5.0), st.booleans()), min_size=1, max_size=8))
def test_processor_sharing_is_that_of_a_small_step_by_step_reference(jobs: list[tuple[float, float, bool]]) -> None:
    """Some jobs are of a fixed duration: they take their share of the rate as long as they are there."""
    jobs.sort(key=lambda job: job[0])
    unit = alone_s(1.0)
    records = [
        {"submit_s": at, "duration_s": length}
        if timed
        else {"submit_s": at, "iterations": max(1, round(length / unit))}
        for at, length, timed in jobs
    ]
    tasks = run(records, max_concurrent_tasks_per_gpu=99).tasks
    expected = shared([(r["submit_s"], r.get("duration_s"), r.get("iterations", 0) * unit) for r in records])
    assert list(tasks.finished_s) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def shared(jobs: list[tuple[float, float | None, float]]) -> list[float]:
    """When each (arrival, duration or None, work in s alone) ends on one processor shared equally."""
    left = {i: work for i, (_, _, work) in enumerate(jobs)}
    end = [math.inf] * len(jobs)
    now = 0.0
    while any(value == math.inf for value in end):
        there = [i for i, (at, _, _) in enumerate(jobs) if at <= now and end[i] == math.inf]
        ahead = [at for at, _, _ in jobs if at > now]
        ahead += [jobs[i][0] + jobs[i][1] for i in there if jobs[i][1] is not None]  # type: ignore[operator]
        ahead += [now + left[i] * len(there) for i in there if jobs[i][1] is None]
        then = min(ahead)
        for i in there:
            at, duration, _ = jobs[i]
            if duration is None:
                left[i] -= (then - now) / len(there)
                if left[i] <= 1e-12:
                    end[i] = then
            elif at + duration <= then:
                end[i] = at + duration
        now = then
    return end


def test_neighbours_change_how_many_iterations_fit_into_a_duration() -> None:
    attempts = run([{"duration_s": 4.0}, {"submit_s": 2.0, "duration_s": 4.0}]).attempts
    full = 1.0 / alone_s(1.0)
    assert list(attempts.iterations) == pytest.approx([3 * full, 3 * full], rel=1e-9)
    assert list(attempts.flops) == pytest.approx([3 * full * 2 * 256 * 1024 * 1024] * 2, rel=1e-9)


def test_a_kind_without_a_kernel_takes_no_share_of_the_rate() -> None:
    tasks = run([{"iterations": 100_000}, {"kind": "sleep", "duration_s": 9.0}]).tasks
    assert tasks.finished_s[0] == pytest.approx(alone_s(100_000), rel=1e-12)


def test_a_stopped_neighbour_gives_its_share_back() -> None:
    """2 s of work, half speed until the other is cancelled at 1 s, then alone: done at 2.5 s."""
    tasks = run([{"iterations": round(2.0 / alone_s(1.0))}, {"duration_s": 99.0, "cancel_s": 1.0}]).tasks
    assert tasks.finished_s[0] == pytest.approx(2.5, abs=1e-3)


@pytest.mark.parametrize("kind", ["noop", "sleep", "linear", "raise_error", "crash_worker", "hang"])
def test_tasks_of_no_length_begin_and_end_at_once_and_take_a_slot_for_it(kind: str) -> None:
    result = run([{"kind": kind, "duration_s": 0.0, "submit_s": 1.0}] * 10, retry_count=1)
    assert set(result.tasks.finished_s) == {1.0}
    assert result.tasks.state.nunique() == 1
    assert [check.name for check in result.checks if not check.passed] == []


def test_the_slot_check_of_a_result_sees_a_real_excess() -> None:
    """Five tasks, four slots; in the log the start of the fifth is moved before the end of the first."""
    result = run([{"duration_s": 2.0}] * 5)
    assert all(check.passed for check in result.checks)
    result = run([{"duration_s": 2.0}] * 5)
    fifth = result.log.attempts()[4]
    result.log.entries.remove(fifth)
    result.log.entries.insert(result.log.entries.index(result.log.attempts()[3]) + 1, fifth)
    assert [check.name for check in result.checks if not check.passed] == ["slots per GPU are never exceeded"]


def test_an_empty_workload_ends_at_zero_with_one_reading_of_each_gpu() -> None:
    result = run([], "3x A100")
    assert (result.virtual_s, len(result.tasks), len(result.attempts)) == (0.0, 0, 0)
    assert list(result.telemetry.time_s) == [0.0] * 3
    assert all(check.passed for check in result.checks)
    assert result.metrics["tasks"] == 0
    assert len(result.events) == 1  # the header


def test_300_idle_seconds_cost_few_events() -> None:
    result = run([{"duration_s": 1.0}, {"submit_s": 300.0, "duration_s": 1.0}])
    assert len(result.events) <= 20


# --- readings ---------------------------------------------------------------------------------------------------------


def test_rows_are_at_0_then_each_interval_then_the_end() -> None:
    result = run([{"duration_s": 3.25}], "2x A100")
    assert list(result.telemetry.time_s) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.25, 3.25]
    assert list(result.telemetry.gpu_id) == [0, 1] * 5
    assert list(run([{"duration_s": 2.0}]).telemetry.time_s) == [0.0, 1.0, 2.0]
    times = list(run([{"duration_s": 100.0}], **{"telemetry.interval": 0.1}).telemetry.time_s)
    assert times == [i * 0.1 for i in range(1001)]  # products, no growing error of sums


def test_utilization_is_the_share_of_the_period_in_which_a_kernel_ran() -> None:
    records = [
        {"submit_s": 0.25, "duration_s": 0.5},
        {"submit_s": 0.5, "duration_s": 1.0},
        {"submit_s": 3.0, "duration_s": 1.0},
    ]
    table = run(records).telemetry
    assert list(table.utilization_pct) == pytest.approx([0.0, 75.0, 50.0, 0.0, 100.0])


def test_work_without_a_kernel_is_no_utilization_and_no_power() -> None:
    table = run([{"kind": "sleep", "duration_s": 3.0, "memory_bytes": GIB}]).telemetry
    assert set(table.utilization_pct) == {0.0}
    assert set(table.power_w) == {find_model("A100").idle_w}
    assert list(table.memory_used_bytes) == [GIB, GIB, GIB, 0]


def test_memory_used_is_what_is_reserved_and_running_tasks_are_counted() -> None:
    records = [{"duration_s": 2.5, "memory_bytes": GIB}, {"submit_s": 0.5, "duration_s": 1.0, "memory_bytes": 3 * GIB}]
    table = run(records).telemetry
    assert list(table.memory_used_bytes) == [GIB, 4 * GIB, GIB, 0]
    assert list(table.running_tasks) == [1, 2, 1, 0]


@pytest.mark.parametrize("model", ["A100", "T4", "RTX-4090-24GB", "H100", "L4"])
def test_power_lies_between_idle_and_limit_and_temperature_rises_towards_steady(model: str) -> None:
    table = run([{"duration_s": 200.0, **BIG, "batch": 2048}], f"1x {model}").telemetry
    gpu = find_model(model)
    assert table.power_w.min() >= gpu.idle_w_or_estimate
    assert table.power_w.max() <= gpu.power_limit_w
    assert table.power_w.max() > gpu.idle_w_or_estimate + 0.4 * (gpu.power_limit_w - gpu.idle_w_or_estimate)
    warm = table.temperature_c
    assert (warm.diff().dropna() >= 0.0).all()
    assert warm.iloc[0] == 30.0
    assert warm.iloc[-1] > 60.0
    assert warm.iloc[-1] - warm.iloc[-20] < 0.1  # it has settled


def test_a_gpu_cools_down_when_it_rests() -> None:
    records = [{"duration_s": 100.0, **BIG}, {"submit_s": 250.0, "duration_s": 0.0}]
    table = run(records).telemetry.set_index("time_s").temperature_c
    resting = table[100.0:250.0]
    assert (resting.diff().dropna() <= 0.0).all()
    assert resting.iloc[-1] < 31.0


@pytest.mark.parametrize("limit", [20.0, 31.0, 40.0, 55.5, 74.0, 85.0])
def test_own_load_never_makes_a_gpu_unhealthy_however_low_max_temperature_is(limit: float) -> None:
    records = [{"submit_s": 1.5, "duration_s": 250.0, **BIG, "batch": 8192}] * 6
    over = {"gpu.detection.max_temperature": limit, "gpu.detection.health_check_interval": 1.0}
    result = run(records, "2x A100", **over)
    assert result.telemetry.temperature_c.max() <= limit
    assert set(result.tasks.state) == {"COMPLETED"}
    assert {device.state for device in result.pool} == {"AVAILABLE"}


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    limit=st.floats(1.0, 200.0),
    steps=st.lists(st.tuples(st.floats(1e-9, 500.0), st.floats(0.0, 1.0)), max_size=20),
)
def test_no_course_of_load_heats_the_model_past_max_temperature(limit: float, steps: list[tuple[float, float]]) -> None:
    """Only rounding may show: health compares with `>`, so what is read must not pass it either."""
    model = thermal_model(find_model("A100"), limit)
    warm = min(30.0, limit)
    for seconds, active in steps:
        warm = model.after(seconds, warm, active)
        assert warm <= limit


def test_without_faults_there_is_no_foreign_load_and_every_reading_is_clean() -> None:
    result = run([{"duration_s": 250.0, **BIG}] * 20, "2x A100", **{"gpu.detection.health_check_interval": 5.0})
    samples = [event["sample"] for event in facts(result, "DeviceSampled")]
    assert len(samples) > 50
    assert {(s["foreign_memory_bytes"], s["foreign_utilization_pct"]) for s in samples} == {(0, 0.0)}


# --- faults -----------------------------------------------------------------------------------------------------------

CHECK_1S = {"gpu.detection.health_check_interval": 1.0}


def test_a_gpu_lost_under_its_tasks_moves_them_and_shows_no_readings_afterwards() -> None:
    result = run([{"duration_s": 5.0}] * 2, "2x A100", [fault(2.0, "lose_gpu")])
    tasks = result.tasks
    assert list(tasks.gpu_id) == [1, 1]
    assert list(tasks.finished_s) == [7.0, 5.0]
    assert list(tasks.attempts) == [2, 1]
    gone = result.telemetry[(result.telemetry.gpu_id == 0) & (result.telemetry.time_s >= 2.0)]
    assert gone[["utilization_pct", "memory_used_bytes", "temperature_c", "power_w"]].isna().all(axis=None)
    assert list(result.attempts.outcome) == ["device_lost", "finished", "finished"]


def test_a_gpu_lost_for_a_while_comes_back() -> None:
    records = [{"duration_s": 1.0}, {"submit_s": 20.0, "duration_s": 1.0}]
    result = run(records, faults=[fault(5.0, "lose_gpu", duration_s=10.0)], **CHECK_1S)
    assert [(e["t"], e["fact"]) for e in facts(result, "DeviceLost", "DeviceReturned")] == [
        (5.0, "DeviceLost"),
        (15.0, "DeviceReturned"),
    ]
    assert ends(result) == [("COMPLETED", 1.0), ("COMPLETED", 21.0)]


def test_a_gpu_lost_comes_back_with_return_gpu_and_a_clean_check() -> None:
    records = [{"duration_s": 1.0, "gpu_id": 1}, {"submit_s": 20.0, "duration_s": 1.0, "gpu_id": 0}]
    result = run(records, "2x A100", [fault(5.0, "lose_gpu"), fault(10.5, "return_gpu")], **CHECK_1S)
    assert ends(result)[1] == ("COMPLETED", 21.0)


def test_a_task_pinned_to_a_gpu_that_is_lost_fails_at_that_instant() -> None:
    result = run([{"duration_s": 9.0, "gpu_id": 0}], "2x A100", [fault(2.0, "lose_gpu", duration_s=1.0)])
    assert ends(result) == [("FAILED", 2.0)]
    assert list(result.tasks.error_code) == ["device_lost"]


def test_overheating_keeps_new_tasks_away_and_ends_with_the_next_check() -> None:
    records = [{"submit_s": at, "duration_s": 0.5} for at in (1.75, 2.5, 4.25)]
    result = run(records, faults=[fault(2.0, "overheat", duration_s=2.0, value=90.0)], **CHECK_1S)
    assert list(result.tasks.started_s) == [1.75, 4.0, 4.25]


def test_heat_below_the_limit_harms_nobody_but_is_read() -> None:
    result = run([{"duration_s": 5.0}], faults=[fault(2.0, "overheat", value=80.0)], **CHECK_1S)
    assert result.telemetry.temperature_c.max() == 80.0
    assert {device.state for device in result.pool} == {"AVAILABLE"}


def test_a_gpus_own_heat_goes_on_under_an_overheat_fault() -> None:
    record = {"duration_s": 200.0, **BIG}
    calm = run([record]).telemetry.set_index("time_s").temperature_c
    hot = run([record], faults=[fault(5.0, "overheat", duration_s=100.0, value=60.0)]).telemetry
    hot_c = hot.set_index("time_s").temperature_c
    assert hot_c[6.0] == 60.0
    assert list(hot_c[110.0:]) == pytest.approx(list(calm[110.0:]), abs=0.01)


def test_foreign_memory_takes_room_until_it_is_gone() -> None:
    records = [{"submit_s": at, "duration_s": 0.5, "memory_bytes": 40 * GIB} for at in (1.0, 2.5, 7.5)]
    result = run(records, faults=[fault(2.0, "foreign_memory", duration_s=4.0, value=50 * GIB)], **CHECK_1S)
    assert list(result.tasks.started_s) == [1.0, 6.0, 7.5]
    used = result.telemetry.set_index("time_s").memory_used_bytes
    assert used[3.0] == 50 * GIB


def test_foreign_memory_over_the_threshold_makes_a_gpu_unhealthy() -> None:
    faults = [fault(1.0, "foreign_memory", duration_s=5.0, value=79 * GIB)]
    result = run([{"submit_s": 2.5, "kind": "noop"}], faults=faults, **CHECK_1S)
    assert list(result.tasks.started_s) == [6.0]


@pytest.mark.parametrize(("percent", "start"), [(95.0, 2.5), (96.0, 6.0)])
def test_foreign_load_over_the_threshold_keeps_new_tasks_away(percent: float, start: float) -> None:
    result = run(
        [{"submit_s": 2.5, "duration_s": 1.0}],
        faults=[fault(1.0, "foreign_load", duration_s=5.0, value=percent)],
        **CHECK_1S,
    )
    assert list(result.tasks.started_s) == [start]
    assert result.telemetry.utilization_pct.max() >= percent


def test_our_own_full_load_is_no_foreign_load() -> None:
    result = run([{"duration_s": 10.0}] * 8, **CHECK_1S)
    assert list(result.tasks.started_s) == [0.0] * 4 + [10.0] * 4


@pytest.mark.parametrize("kind", ["overheat", "foreign_memory", "foreign_load"])
def test_a_fault_without_an_end_lasts_and_all_gpus_unhealthy_ends_with_a_reason(kind: str) -> None:
    value = {"overheat": 95.0, "foreign_memory": 79 * GIB, "foreign_load": 100.0}[kind]
    faults = [fault(1.0, kind, gpu, None, value) for gpu in (0, 1)]
    result = run([{"submit_s": 70.0, "duration_s": 1.0}, {"submit_s": 75.0, "duration_s": 1.0}], "2x A100", faults)
    assert list(result.tasks.state) == ["FAILED"] * 2
    assert set(result.tasks.error_code) == {"device_lost"}
    assert all("no usable GPU" in text and "GPU 1" in text for text in result.tasks.error)
    assert result.virtual_s <= 70.0 + 101 * 60.0


def test_the_end_of_hope_does_not_wait_for_timers_of_tasks_long_gone() -> None:
    records = [{"duration_s": 1.0, "timeout_s": 1e6}, {"submit_s": 70.0, "duration_s": 1.0}]
    result = run(records, faults=[fault(2.0, "overheat", value=99.0)], **{"telemetry.interval": 1e4})
    assert list(result.tasks.state) == ["COMPLETED", "FAILED"]
    assert result.virtual_s <= 70.0 + 101 * 60.0


def test_a_long_rest_is_no_reason_to_lose_hope() -> None:
    records = [{"duration_s": 1.0}, {"submit_s": 20_000.0, "duration_s": 1.0}]
    result = run(records, **{"telemetry.interval": 1e4})
    assert facts(result, "HopeLost") == []
    assert set(result.tasks.state) == {"COMPLETED"}


def test_short_tasks_between_the_checks_are_no_reason_to_lose_hope() -> None:
    records = [{"submit_s": 10.0 + 60.0 * i, "duration_s": 1.0, "timeout_s": 5.0} for i in range(150)]
    result = run(records, **{"telemetry.interval": 1e4})
    assert facts(result, "HopeLost") == []


def test_who_waits_for_a_gpu_gets_all_the_checks_however_long_nobody_did_before() -> None:
    faults = [fault(1.0, "overheat", value=99.0)]
    result = run([{"submit_s": 5_000.0, "duration_s": 1.0}], faults=faults, **{"telemetry.interval": 1e4})
    assert result.tasks.finished_s[0] >= 5_000.0 + 99 * 60.0


def test_a_gpu_that_recovers_after_many_checks_still_gets_its_tasks() -> None:
    faults = [fault(1.0, "overheat", duration_s=5_000.0, value=99.0)]
    result = run([{"submit_s": 70.0, "duration_s": 1.0}], faults=faults, **{"telemetry.interval": 1e4})
    assert ends(result) == [("COMPLETED", 5_041.0)]


def test_a_crashing_worker_takes_all_on_its_gpu_with_it_and_they_start_again() -> None:
    result = run([{"duration_s": 5.0}] * 3, "1x A100", [fault(2.0, "crash_worker")])
    assert list(result.tasks.attempts) == [2] * 3
    assert list(result.tasks.finished_s) == [7.0] * 3


def test_a_task_that_crashes_its_worker_fails_at_the_third_and_its_neighbour_lives() -> None:
    result = run([{"kind": "crash_worker", "duration_s": 1.0}, {"duration_s": 1.5}, {"duration_s": 8.0}])
    assert list(result.tasks.state) == ["FAILED", "COMPLETED", "COMPLETED"]
    assert list(result.tasks.error_code)[:1] == ["worker_crashed"]
    assert result.tasks.attempts[0] == 3


def test_a_task_that_raises_gets_its_attempts_and_then_its_error() -> None:
    result = run([{"kind": "raise_error", "duration_s": 1.0, "retry_count": 2}])
    assert ends(result) == [("FAILED", 3.0)]
    assert list(result.tasks.error_code) == ["task_error"]
    assert "RuntimeError" in result.tasks.error[0]
    assert list(result.attempts.started_s) == [0.0, 1.0, 2.0]


def test_a_task_that_hangs_ends_by_its_timeout() -> None:
    result = run([{"kind": "hang", "duration_s": 1e6}])
    assert ends(result) == [("FAILED", 300.0)]


def test_a_fault_on_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(altlas.AltlasError, match="3 is not there"):
        run([{"duration_s": 1.0}], faults=[fault(1.0, "lose_gpu", 3)])


def test_a_machine_without_devices_is_refused() -> None:
    with pytest.raises(altlas.AltlasError):
        altlas.run(altlas.load_config(None, {}, environ={}), altlas.Workload.from_records([]), devices=())


def test_a_threshold_that_leaves_no_memory_still_gives_a_result() -> None:
    result = run([{"kind": "noop"}, {"duration_s": 1.0}], **{"gpu.detection.memory_threshold": 1e-12})
    assert list(result.tasks.state) == ["COMPLETED", "FAILED"]
    assert all(check.passed for check in result.checks)


# --- against an independent schedule ----------------------------------------------------------------------------------


def list_schedule(jobs: list[tuple[float, float, int]], servers: int) -> list[float]:
    """List scheduling of (arrival, length, level) on equal servers, strict priority, FCFS: when each starts."""
    starts = [math.nan] * len(jobs)
    now = 0.0
    free = [0.0] * servers
    heapq.heapify(free)
    waiting: list[tuple[int, int]] = []
    arrived = 0
    while arrived < len(jobs) or waiting:
        now = max(now, heapq.heappop(free))
        if not waiting and arrived < len(jobs):
            now = max(now, jobs[arrived][0])
        while arrived < len(jobs) and jobs[arrived][0] <= now:
            heapq.heappush(waiting, (jobs[arrived][2], arrived))
            arrived += 1
        _, job = heapq.heappop(waiting)
        starts[job] = now
        heapq.heappush(free, now + jobs[job][1])
    return starts


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(0.01, 40.0), st.integers(0, 2)), min_size=1, max_size=40),
    gpus=st.integers(1, 5),
    slots=st.integers(1, 3),
    strategy=st.sampled_from(["round_robin", "least_loaded", "memory_optimized", "random"]),
)
def test_starts_are_those_of_list_scheduling_under_every_work_conserving_strategy(
    jobs: list[tuple[float, float, int]], gpus: int, slots: int, strategy: str
) -> None:
    jobs.sort(key=lambda job: job[0])
    names = ("high", "normal", "low")
    records = [{"submit_s": at, "duration_s": length, "priority": names[level]} for at, length, level in jobs]
    over = {"gpu.selection.default_strategy": strategy}
    result = run(records, f"{gpus}x A100", max_concurrent_tasks_per_gpu=slots, priority_aging=1e9, **over)
    assert list(result.tasks.started_s) == list_schedule(jobs, gpus * slots)
    assert all(check.passed for check in result.checks)


@pytest.mark.parametrize("seed", ["x", -1, True, 1.5])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(altlas.AltlasError, match=r"seed: .*allowed"):
        altlas.run(None, altlas.Workload.from_records([]), seed=seed)


def test_what_is_no_workload_or_no_settings_is_refused() -> None:
    records: Any = [{"duration_s": 1.0}]
    with pytest.raises(altlas.AltlasError, match=r"list is no workload: give a Workload.*from_records"):
        altlas.run(None, records)
    with pytest.raises(altlas.AltlasError, match="dict is no settings: give what load_config returns"):
        altlas.run({}, altlas.Workload.from_records(records))  # type: ignore[arg-type]


def test_a_check_can_be_read_like_that_of_results_json() -> None:
    check = run([{"duration_s": 1.0}], "1x A100").checks[0]
    assert (check["name"], check["passed"]) == (check.name, check.passed)
