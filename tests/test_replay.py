"""A recorded log, fed to a fresh state machine, gives the same decisions; a log that was changed is found out."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import altlas_core as altlas
from altlas_core.model import GIB
from altlas_core.replay import replay
from altlas_core.scenarios import SCENARIOS

BUILTIN = ["single_gpu", "round_robin", "least_loaded", "memory_optimized", "random"]


def run(records: list[dict[str, Any]], faults: Any = (), **over: Any) -> altlas.Result:
    keys = {"gpu.backend": "simulated", "gpu.devices": ["3x A100"], "gpu.selection.default_strategy": "least_loaded"}
    keys.update({name.replace("__", "."): value for name, value in over.items()})
    return altlas.run(altlas.load_config(None, keys, environ={}), altlas.Workload.from_records(records), faults=faults)


RECORD = st.fixed_dictionaries(
    {
        "submit_s": st.one_of(st.sampled_from([0.0, 1.0, 60.0]), st.floats(0.0, 150.0)),
        "kind": st.sampled_from(["linear", "linear", "linear", "sleep", "raise_error", "crash_worker", "hang"]),
        "duration_s": st.one_of(st.sampled_from([0.0, 1.0, 59.0]), st.floats(0.0, 80.0)),
        "memory_bytes": st.sampled_from([0, GIB, 20 * GIB, 40 * GIB, 60 * GIB, 71 * GIB, 90 * GIB]),
        "priority": st.sampled_from(["high", "normal", "low"]),
        "strategy": st.sampled_from(BUILTIN),
        "timeout_s": st.sampled_from([5.0, 30.0, 60.0, 300.0]),
        "retry_count": st.integers(0, 3),
        "gpu_id": st.sampled_from([None, None, None, 0, 2]),
    }
)
FAULT = st.builds(
    lambda time_s, gpu, kind, lasts: altlas.Fault(time_s, gpu, kind[0], lasts if kind[2] else None, kind[1]),
    st.one_of(st.sampled_from([60.0, 61.0]), st.floats(0.0, 150.0)),
    st.integers(0, 2),
    st.sampled_from(
        [
            ("lose_gpu", None, True),
            ("return_gpu", None, False),
            ("overheat", 95.0, True),
            ("foreign_memory", 30 * GIB, True),
            ("foreign_load", 99.0, True),
            ("crash_worker", None, False),
            ("hang_task", None, False),
        ]
    ),
    st.sampled_from([None, 10.0, 60.0]),
)


@hypothesis_settings(max_examples=250, deadline=None)
@given(
    records=st.lists(RECORD, min_size=3, max_size=40),
    iterations=st.lists(st.floats(0.0, 100.0), max_size=8),
    cancels=st.lists(st.floats(0.0, 100.0), max_size=25),
    faults=st.lists(FAULT, max_size=5),
    max_queue=st.sampled_from([0, 0, 3]),
    aging=st.sampled_from([5.0, 60.0]),
)
def test_a_recorded_log_replays_to_the_same_decisions(
    records: list[dict[str, Any]],
    iterations: list[float],
    cancels: list[float],
    faults: list[altlas.Fault],
    max_queue: int,
    aging: float,
) -> None:
    for record, after in zip(records, cancels, strict=False):
        record["cancel_s"] = record["submit_s"] + after
    records = records + [{"submit_s": at, "iterations": 500_000, "memory_bytes": GIB} for at in iterations]
    over = {"gpu__workload__max_queue": max_queue, "gpu__workload__priority_aging": aging, "telemetry__interval": 1e5}
    result = run(records, faults, gpu__detection__health_check_interval=7.0, **over)
    again = replay(result.event_lines())
    assert again.difference is None
    assert again.same
    lines = result.events[1:]
    assert again.decisions == sum("action" in line for line in lines)
    assert again.facts == len(lines) - again.decisions
    for task in result.task_list:
        twin = again.distributor.tasks[task.index]
        for name in ("state", "gpu_id", "attempts", "submitted_s", "started_s", "finished_s", "error_code", "error"):
            assert getattr(twin, name) == getattr(task, name)


@pytest.mark.parametrize("pace", [0.0, 2000.0], ids=["in virtual time", "in real time"])
def test_a_decision_is_never_taken_at_an_instant_of_which_the_log_knows_nothing(pace: float) -> None:
    """At 61 s only a fault of the readings begins, which is no fact; the hold must be taken at 62 s, in both."""
    records = [
        {"duration_s": 100.0, "memory_bytes": 40 * GIB},
        {"duration_s": 1.0, "memory_bytes": 60 * GIB, "priority": "low"},
        {"submit_s": 62.0, "duration_s": 1.0, "memory_bytes": GIB, "priority": "high"},
    ]
    faults = [altlas.Fault(61.0, 0, "foreign_load", 1.0, 5.0)]
    result = run(
        records, faults, gpu__devices=["1x A100"], gpu__detection__health_check_interval=1000.0, run__pace=pace
    )
    assert replay(result.event_lines()).difference is None


def sample_log() -> list[str]:
    records = [
        {"duration_s": 5.0},
        {"duration_s": 2.0, "priority": "high", "memory_bytes": 40 * GIB, "strategy": "random"},
        {"submit_s": 1.0, "kind": "raise_error", "retry_count": 1, "strategy": "round_robin"},
        {"submit_s": 1.0, "duration_s": 400.0, "cancel_s": 90.0},
        {"submit_s": 1.0, "duration_s": 400.0},
    ]
    return list(run(records, [altlas.Fault(3.0, 0, "lose_gpu", 30.0)]).event_lines())


def tampered(line: str, **changes: Any) -> str:
    return json.dumps({**json.loads(line), **changes}, separators=(",", ":")) + "\n"


def test_every_decision_that_is_changed_is_found_at_its_line() -> None:
    lines = sample_log()
    assert replay(lines).same
    changed = 0
    for number, line in enumerate(lines, start=1):
        record = json.loads(line)
        change = {"StartAttempt": {"gpu_id": 99}, "StopAttempt": {"reason": "x"}, "SetTimer": {"time_s": 1.5}}
        if record.get("action") in change:
            changed += 1
            forged = [*lines[: number - 1], tampered(line, **change[record["action"]]), *lines[number:]]
            assert str(replay(forged).difference).startswith(f"line {number}: the log has ")
    assert changed >= 9


def test_a_decision_that_is_left_out_is_found_before_the_next_line_of_another_time() -> None:
    lines = sample_log()
    for number, line in enumerate(lines, start=1):
        if '"action":"StartAttempt"' in line:
            again = replay([*lines[: number - 1], *lines[number:]])
            assert not again.same
            found = (
                int(str(again.difference).split()[1].rstrip(":"))
                if "end of the log" not in str(again.difference)
                else number
            )
            assert number <= found <= number + 4


def test_a_decision_that_is_added_is_found_at_its_line() -> None:
    lines = sample_log()
    place = next(number for number, line in enumerate(lines) if "AttemptFinished" in line)
    extra = tampered(next(line for line in lines if "StartAttempt" in line), t=json.loads(lines[place])["t"])
    assert str(replay([*lines[: place + 1], extra, *lines[place + 1 :]]).difference).startswith(f"line {place + 2}:")


def test_facts_that_cannot_be_are_found_at_their_line() -> None:
    lines = sample_log()
    number = next(number for number, line in enumerate(lines, start=1) if "AttemptFinished" in line)
    forged = [*lines[: number - 1], tampered(lines[number - 1], task=77), *lines[number:]]
    again = replay(forged)
    assert str(again.difference).startswith(f"line {number}: ")
    assert "never submitted" in str(again.difference)


def test_another_seed_in_the_header_decides_otherwise() -> None:
    records = [{"duration_s": 1.0, "strategy": "random"}] * 12
    lines = list(run(records).event_lines())
    assert replay(lines).same
    assert not replay([tampered(lines[0], seed=43), *lines[1:]]).same


@pytest.mark.parametrize(
    "key",
    [
        "gpu.workload.max_concurrent_tasks_per_gpu",
        "gpu.detection.memory_threshold",
        "gpu.detection.max_temperature",
        "gpu.detection.utilization_threshold",
        "gpu.workload.max_queue",
        "gpu.workload.priority_aging",
        "gpu.memory_limit_bytes",
    ],
)
def test_every_setting_in_the_header_decides(key: str) -> None:
    """The header holds what the decisions depend on: each value, changed, gives others."""
    records = [{"duration_s": 70.0, "memory_bytes": 15 * GIB, "priority": "high"} for _ in range(5)]
    records += [{"submit_s": 1.0, "duration_s": 1.0, "memory_bytes": GIB, "priority": "low"}]
    records += [
        {"submit_s": 65.0 + i, "duration_s": 30.0, "memory_bytes": 15 * GIB, "priority": "high"} for i in range(9)
    ]
    faults = [altlas.Fault(130.0, 0, "overheat", 100.0, 80.0), altlas.Fault(260.0, 0, "foreign_load", 90.0, 90.0)]
    records += [{"submit_s": 245.0, "duration_s": 1.0}, {"submit_s": 305.0, "duration_s": 1.0}]
    records += [{"submit_s": 185.0, "duration_s": 1.0}]
    lines = list(run(records, faults, gpu__devices=["1x A100"]).event_lines())
    assert replay(lines).same
    header = json.loads(lines[0])
    other = {
        "gpu.workload.max_concurrent_tasks_per_gpu": 3,
        "gpu.detection.memory_threshold": 0.2,
        "gpu.detection.max_temperature": 75.0,
        "gpu.detection.utilization_threshold": 0.5,
        "gpu.workload.max_queue": 1,
        "gpu.workload.priority_aging": 40.0,
        "gpu.memory_limit_bytes": 20 * GIB,
    }
    header["settings"][key] = other[key]
    assert not replay([json.dumps(header) + "\n", *lines[1:]]).same


def header_with(**changes: Any) -> str:
    return tampered(sample_log()[0], **changes)


SUBMITTED = sample_log()[1]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [""],
        ["nonsense"],
        ["[]"],
        ["{}"],
        ['{"format":1}'],
        ['{"format":1,"devices":[]}'],
        [header_with(format=2)],
        [header_with(devices=5)],
        [header_with(devices=[{"gpu_id": 0, "colour": "red"}])],
        [header_with(settings={"gpu.nonsense": 1})],
        [header_with(settings=None)],
        [header_with(), "nonsense"],
        [header_with(), "5"],
        [header_with(), "{}"],
        [header_with(), '{"t":0.0}'],
        [header_with(), '{"t":0.0,"fact":"Nonsense"}'],
        [header_with(), '{"t":0.0,"fact":"AttemptFinished"}'],
        [header_with(), '{"t":0.0,"fact":"AttemptFinished","task":0,"attempt":1,"colour":"red"}'],
        [header_with(), '{"t":0.0,"fact":"DeviceSampled","gpu_id":0,"sample":{"colour":1}}'],
        [header_with(), '{"t":0.0,"fact":"DeviceSampled","gpu_id":0,"sample":5}'],
        [header_with(), '{"t":0.0,"fact":"WorkerCrashed","gpu_id":0,"attempts":5,"error":"","blamed":true}'],
        [header_with(), '{"fact":"TimerFired","timeout_s":1.0}'],
        [header_with(), '{"t":0.0,"fact":["TimerFired"],"timeout_s":1.0}'],
        [header_with(), tampered(SUBMITTED, priority="urgent")],
        [header_with(), tampered(SUBMITTED, gpu_id=99)],
        [header_with(), tampered(SUBMITTED, gpu_id=-1)],
        [header_with(), tampered(SUBMITTED, memory_bytes="much")],
        [
            header_with(),
            tampered(SUBMITTED, strategy="nobody_registered_this"),
            '{"t":1.0,"fact":"TimerFired","timeout_s":1.0}',
        ],
    ],
)
def test_garbage_is_an_error_with_its_line_not_a_traceback(lines: list[str]) -> None:
    with pytest.raises(altlas.AltlasError, match=r"line \d|strategy"):
        replay(lines)


def test_a_run_in_real_time_replays_and_decides_as_virtual_time_does() -> None:
    """Simulated devices played 2,000 times faster than real; the log keeps every planned instant's own time."""
    records = [{"submit_s": i * 1.5, "duration_s": 10.0 + i, "memory_bytes": 20 * GIB} for i in range(20)]
    records += [{"submit_s": 7.0, "kind": "raise_error", "duration_s": 3.0}, {"submit_s": 3.0, "iterations": 100_000}]
    faults = [
        altlas.Fault(12.0, 1, "lose_gpu", 20.0),
        altlas.Fault(21.0, 2, "overheat", 10.0, 95.0),
        altlas.Fault(33.3, 0, "crash_worker"),
    ]
    over = {"gpu__detection__health_check_interval": 9.0}
    before = time.monotonic()
    paced = run(records, faults, run__pace=2000.0, **over)
    assert time.monotonic() - before < 30.0
    assert replay(paced.event_lines()).difference is None
    virtual = run(records, faults, **over)
    assert list(paced.event_lines())[1:] == list(virtual.event_lines())[1:]


def test_the_log_of_a_run_on_real_workers_replays_to_the_same_decisions() -> None:
    settings = altlas.load_config(
        None, {"gpu.backend": "cpu", "gpu.devices": ["cpu:2"], "gpu.workload.kill_grace": 0.1}, {}
    )
    records: list[dict[str, Any]] = [
        {"duration_s": 0.1, "input_size": 64, "output_size": 64, "strategy": "round_robin"} for _ in range(6)
    ]
    records += [
        {"kind": "raise_error", "retry_count": 1, "strategy": "random"},
        {"kind": "hang", "duration_s": 30.0, "timeout_s": 0.2, "strategy": "least_loaded"},
        {"kind": "sleep", "duration_s": 5.0, "cancel_s": 0.3, "strategy": "memory_optimized"},
        {"kind": "noop", "submit_s": 0.1, "priority": "high"},
    ]
    faults = [altlas.Fault(0.05, 1, "crash_worker")]
    result = altlas.run(settings, altlas.Workload.from_records(records), faults=faults)
    assert result.provenance == "measured"
    assert set(result.tasks.state) == {"COMPLETED", "FAILED", "CANCELLED"}
    again = replay(result.event_lines())
    assert again.difference is None
    assert again.decisions > len(records)


@pytest.mark.parametrize("scenario", ["basic_functionality", "error_handling"])
def test_the_log_of_a_whole_scenario_replays_run_by_run(scenario: str) -> None:
    log = SCENARIOS[scenario].run(altlas.load_config(None, {}, {})).event_log
    lines = log.splitlines(keepends=True)
    assert sum('"format"' in line for line in lines) > 1
    assert replay(lines).difference is None
    started = next(i for i, line in enumerate(lines) if '"StartAttempt"' in line)
    assert str(replay(lines[:started] + lines[started + 1 :]).difference).startswith(f"line {started + 1}:")
