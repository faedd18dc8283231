"""Fault plans: each kind takes what it needs and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

import altlas_core as altlas
from altlas_core.errors import WorkloadError
from altlas_core.faults import Fault, check_gpu_ids, from_records


@pytest.mark.parametrize(
    "record",
    [
        {"time_s": 0, "gpu_id": 0, "kind": "lose_gpu"},
        {"time_s": 1.5, "gpu_id": 7, "kind": "lose_gpu", "duration_s": 10},
        {"time_s": 1, "gpu_id": 0, "kind": "return_gpu"},
        {"time_s": 1, "gpu_id": 0, "kind": "overheat", "value": 95, "duration_s": 30},
        {"time_s": 1, "gpu_id": 0, "kind": "foreign_memory", "value": 2**33},
        {"time_s": 1, "gpu_id": 0, "kind": "foreign_load", "value": 100},
        {"time_s": 1, "gpu_id": 0, "kind": "crash_worker", "value": None},
        {"time_s": 1, "gpu_id": 0, "kind": "hang_task"},
    ],
)
def test_a_good_fault_is_taken_as_given(record: dict[str, Any]) -> None:
    (fault,) = from_records([record])
    assert all(getattr(fault, name) == value for name, value in record.items())


def test_faults_come_in_order_of_time_then_position() -> None:
    faults = from_records(
        [
            {"time_s": 2, "gpu_id": 0, "kind": "lose_gpu"},
            {"time_s": 1, "gpu_id": 1, "kind": "lose_gpu"},
            {"time_s": 1, "gpu_id": 0, "kind": "lose_gpu"},
        ]
    )
    assert [(fault.time_s, fault.gpu_id) for fault in faults] == [(1, 1), (1, 0), (2, 0)]


def test_the_end_follows_from_the_duration() -> None:
    assert Fault(5.0, 0, "lose_gpu", duration_s=2.0).end_s == 7.0
    assert Fault(5.0, 0, "lose_gpu").end_s is None


GOOD = {"time_s": 1.0, "gpu_id": 0, "kind": "lose_gpu"}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"kind": "lose_gpus"}, ("kind", "'lose_gpus'", "Did you mean 'lose_gpu'?")),
        ({"kind": 3}, ("kind", "3", "foreign_memory")),
        ({"kind": None}, ("kind is missing",)),
        ({"time_s": -1}, ("time_s", "-1", "from 0 to")),
        ({"time_s": float("nan")}, ("time_s", "nan")),
        ({"time_s": float("inf")}, ("time_s", "inf")),
        ({"time_s": None}, ("time_s is missing",)),
        ({"time_s": True}, ("time_s", "True is not a number")),
        ({"gpu_id": -1}, ("gpu_id", "-1")),
        ({"gpu_id": 0.5}, ("gpu_id", "0.5 is not a whole number")),
        ({"gpu_id": "0"}, ("gpu_id", "'0'")),
        ({"duration_s": 0}, ("duration_s", "above 0")),
        ({"value": 3}, ("value", "3", "leave it out")),
        ({"kind": "return_gpu", "duration_s": 3}, ("duration_s", "leave it out")),
        ({"kind": "crash_worker", "duration_s": 3}, ("duration_s", "leave it out")),
        ({"kind": "hang_task", "duration_s": 3}, ("duration_s", "leave it out")),
        ({"kind": "overheat"}, ("value", "null", "degrees C")),
        ({"kind": "overheat", "value": 1000}, ("value", "1000", "to 200")),
        ({"kind": "foreign_memory", "value": 0}, ("value", "0", "bytes")),
        ({"kind": "foreign_memory", "value": 1.5}, ("value", "1.5")),
        ({"kind": "foreign_load", "value": 101}, ("value", "101", "percent")),
        ({"gpu": 1}, ("'gpu'", "Did you mean 'gpu_id'?")),
    ],
)
def test_a_bad_fault_is_refused_with_record_field_value_and_what_is_allowed(
    change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(WorkloadError) as caught:
        from_records([GOOD, GOOD | change])
    assert str(caught.value).startswith("fault record 1: ")
    for part in parts:
        assert part in str(caught.value)


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(WorkloadError, match="fault record 0: 3 is not a record"):
        from_records([3])  # type: ignore[list-item]


def test_a_fault_on_a_device_that_is_not_there_is_refused() -> None:
    faults = [Fault(1.0, 3, "lose_gpu"), Fault(2.0, 4, "lose_gpu")]
    check_gpu_ids(faults, 5)
    with pytest.raises(WorkloadError, match=r"lose_gpu at 2 s: gpu_id: 4 is not there; allowed: from 0 to 3"):
        check_gpu_ids(faults, 4)


# --- hang_task on a simulated GPU -------------------------------------------------------------------------------------


def hanging(records: list[dict[str, Any]], *faults: Fault, slots: int = 4, gpus: str = "1x A100") -> altlas.Result:
    keys = {"gpu.devices": [gpus], "gpu.workload.max_concurrent_tasks_per_gpu": slots, "telemetry.interval": 0.5}
    settings = altlas.load_config(overrides=keys, environ={})
    return altlas.run(settings, altlas.Workload.from_records(records), faults=faults)


def test_what_started_last_hangs_until_its_timeout_and_keeps_its_memory_and_its_slot() -> None:
    records = [{"duration_s": 4.0}, {"submit_s": 1.0, "duration_s": 4.0, "timeout_s": 10.0, "memory_bytes": 2**30}]
    waiting = {"submit_s": 6.0, "duration_s": 1.0}
    result = hanging([*records, waiting], Fault(2.0, 0, "hang_task"), Fault(20.0, 0, "hang_task"), slots=2)
    assert list(result.tasks.finished_s) == [4.0, 11.0, 7.0]
    assert list(result.tasks.error_code) == [None, "timeout", None]
    readings = result.telemetry.set_index("time_s")
    assert readings.utilization_pct[5.0] == 0.0  # it computes nothing
    assert readings.memory_used_bytes[5.0] == 2**30
    assert readings.running_tasks[5.0] == 1
    assert readings.memory_used_bytes.iloc[-1] == 0


def test_who_shares_the_gpu_with_a_hung_kernel_has_it_to_himself() -> None:
    work = {"iterations": 40_000, "input_size": 8192, "output_size": 8192}
    alone_s = float(hanging([work]).tasks.finished_s[0])
    result = hanging([work, {**work, "timeout_s": 5 * alone_s}], Fault(alone_s, 0, "hang_task"))
    assert result.tasks.finished_s[0] == pytest.approx(1.5 * alone_s)  # half of it was done by then
    assert result.tasks.state[1] == "FAILED"
    assert result.attempts.iterations[1] == pytest.approx(20_000)


@pytest.mark.parametrize(
    ("fault", "state", "finished_s"),
    [("lose_gpu", "COMPLETED", 9.0), ("crash_worker", "COMPLETED", 9.0), (None, "CANCELLED", 30.0)],
)
def test_a_hung_attempt_ends_with_its_gpu_its_worker_or_when_its_owner_cancels(
    fault: str | None, state: str, finished_s: float
) -> None:
    faults = [Fault(1.0, 0, "hang_task")]
    if fault is not None:
        faults.append(Fault(4.0, 0, fault))
    result = hanging([{"duration_s": 5.0, "cancel_s": 30.0}], *faults, gpus="2x A100")
    assert (result.tasks.state[0], result.tasks.finished_s[0]) == (state, finished_s)
    assert result.telemetry.memory_used_bytes.dropna().iloc[-1] == 0


def test_a_second_fault_hangs_the_one_that_started_before_and_where_nothing_runs_none_does() -> None:
    records = [{"duration_s": 5.0, "timeout_s": 20.0}, {"submit_s": 1.0, "duration_s": 5.0, "timeout_s": 20.0}]
    hang = [Fault(time_s, 0, "hang_task") for time_s in (0.0, 2.0, 2.5, 3.0)]
    result = hanging(records, *hang[:1])
    assert list(result.tasks.finished_s) == [5.0, 6.0]
    assert list(hanging(records, *hang[1:]).tasks.finished_s) == [20.0, 21.0]
