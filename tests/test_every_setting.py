"""Every key of the original's gpu section does something: changing it changes the tasks, the log or what is detected.

So does every key of its test section: each changes what happens in its scenario, or leaves it out.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from fake_nvml import FakeGpu, FakeNvml, installed

import altlas_core as altlas
from altlas_core.backends.discover import discover
from altlas_core.backends.host import Host
from altlas_core.backends.simulated import SimulatedBackend
from altlas_core.config import all_keys, load_config
from altlas_core.distributor import Distributor
from altlas_core.drivers.realtime import RealtimeDriver
from altlas_core.events import RANK_SUBMIT, TaskSubmitted
from altlas_core.intake import make_tasks
from altlas_core.model import GIB, TaskSpec
from altlas_core.scenarios import SCENARIOS, Scenario, enabled_scenarios

Outcome = Any


def run(overrides: dict[str, Any], records: list[dict[str, Any]], faults: Any = ()) -> altlas.Result:
    keys = {"gpu.backend": "simulated", "gpu.devices": ["2x A100"], **overrides}
    return altlas.run(load_config(None, keys, environ={}), altlas.Workload.from_records(records), faults=faults)


def tasks_and_log(overrides: dict[str, Any], records: list[dict[str, Any]], faults: Any = ()) -> Outcome:
    """The task table, and the log without its header line."""
    result = run(overrides, records, faults)
    return result.tasks.to_dict("list"), list(result.event_lines())[1:]


def of(records: list[dict[str, Any]], *faults: altlas.Fault) -> Callable[[dict[str, Any]], Outcome]:
    return lambda overrides: tasks_and_log(overrides, records, faults)


def refused(overrides: dict[str, Any]) -> Outcome:
    """Whether a task may name round_robin."""
    try:
        return list(run(overrides, [{"duration_s": 1.0, "strategy": "round_robin"}]).tasks.state)
    except altlas.AltlasError as error:
        return type(error).__name__


FOUR = [{"duration_s": 5.0} for _ in range(4)]
LATE = [{"submit_s": 61.0, "duration_s": 1.0}]

CASES: dict[str, tuple[Any, Any, Callable[[dict[str, Any]], Outcome]]] = {
    "gpu.detection.memory_threshold": (0.9, 0.4, of([{"duration_s": 5.0, "memory_bytes": 20 * GIB} for _ in range(4)])),
    "gpu.detection.utilization_threshold": (0.95, 0.5, of(LATE, altlas.Fault(50.0, 0, "foreign_load", None, 80.0))),
    "gpu.detection.max_temperature": (85.0, 70.0, of(LATE, altlas.Fault(50.0, 0, "overheat", None, 80.0))),
    "gpu.detection.health_check_interval": (60.0, 5.0, of(LATE, altlas.Fault(50.0, 0, "overheat", 9.5, 99.0))),
    "gpu.selection.default_strategy": ("single_gpu", "round_robin", of(FOUR)),
    "gpu.selection.strategies": (["single_gpu", "round_robin"], ["single_gpu"], refused),
    "gpu.workload.max_concurrent_tasks_per_gpu": (4, 2, of(FOUR)),
    "gpu.workload.batch_size": (8, 3, of([{"duration_s": 1.0, "items": 12}])),
    "gpu.workload.timeout": (300.0, 30.0, of([{"duration_s": 40.0}])),
    "gpu.workload.retry_count": (3, 1, of([{"kind": "raise_error"}])),
    # new keys that decide
    "gpu.devices": (["2x A100"], ["2x T4"], of([{"iterations": 1000}])),
    "gpu.memory_limit_bytes": (None, 10 * GIB, of([{"duration_s": 1.0, "memory_bytes": 20 * GIB}])),
    "gpu.workload.max_queue": (0, 1, of([{"duration_s": 1.0} for _ in range(9)])),
    "gpu.workload.priority_aging": (
        60.0,
        10.0,
        of(
            [
                {"duration_s": 30.0, "gpu_id": 0, "memory_bytes": 50 * GIB},
                {"submit_s": 1.0, "duration_s": 1.0, "gpu_id": 0, "memory_bytes": 50 * GIB, "priority": "normal"},
                {"submit_s": 20.0, "duration_s": 1.0, "gpu_id": 0, "memory_bytes": 50 * GIB, "priority": "high"},
            ]
        ),
    ),
}


@pytest.mark.parametrize("key", list(CASES))
def test_changing_the_key_changes_what_happens(key: str) -> None:
    usual, other, happens = CASES[key]
    assert happens({key: usual}) == happens({key: usual})
    assert happens({key: usual}) != happens({key: other})


def test_no_key_of_the_original_is_left_out() -> None:
    elsewhere = {  # in this file, below
        "gpu.detection.enabled",
        "gpu.detection.min_compute_capability",
        "gpu.workload.queue_processing_interval",
    }
    of_workers = {"gpu.workload.kill_grace", "gpu.workload.spare_workers", "gpu.workload.heartbeat_timeout"}
    new = {"gpu.backend", *of_workers}  # test_discover.py, test_worker_stops.py, test_supervisor.py
    assert {key for key in all_keys() if key.startswith("gpu.")} == CASES.keys() | elsewhere | new


def test_the_first_value_of_each_case_is_the_default() -> None:
    """So that the default itself is what is shown to matter."""
    settings = load_config(None, {}, environ={})
    for key, (usual, _, _) in CASES.items():
        if key in ("gpu.devices", "gpu.selection.strategies"):
            continue
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name)
        assert value == usual, key


# --- what is detected -------------------------------------------------------------------------------------------------


def detected(overrides: dict[str, Any]) -> Outcome:
    """The devices, and those left out, where NVML finds a GPU of compute capability 7.5 and one of 8.0."""
    found = [FakeGpu(b"Tesla T4", b"GPU-a", 1, (7, 5)), FakeGpu(b"NVIDIA A100-SXM4-80GB", b"GPU-b", 2, (8, 0))]
    settings = load_config(None, overrides, environ={})
    with installed(FakeNvml(found)):
        machine = discover(settings, environ={}, host=Host(cores=8, memory_bytes=64 * GIB, cpu_name="A Processor 9000"))
    names = [(device.kind, device.name) for device in machine.devices]
    return machine.backend, names, [left.name for left in machine.excluded]


def test_gpus_under_min_compute_capability_are_left_out() -> None:
    both = [("cuda", "Tesla T4"), ("cuda", "NVIDIA A100-SXM4-80GB")]
    assert detected({"gpu.detection.min_compute_capability": 7.0}) == ("cuda", both, [])
    assert detected({"gpu.detection.min_compute_capability": 8.0}) == ("cuda", both[1:], ["Tesla T4"])


def test_with_detection_off_the_gpus_that_are_there_are_not_looked_for() -> None:
    assert detected({"gpu.detection.enabled": True})[0] == "cuda"
    backend, names, _ = detected({"gpu.detection.enabled": False})
    assert backend == "simulated"
    assert len(names) == 8


# --- the real-time driver ---------------------------------------------------------------------------------------------


class PatientClock:
    """Counts how long the driver was ready to sleep; nobody wakes it, so each sleep lasts as long as it wished."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.wished: list[float] = []

    def monotonic(self) -> float:
        return self.time_s

    def wait(self, inbox: queue.SimpleQueue[Any], timeout_s: float) -> Any:
        self.wished.append(timeout_s)
        self.time_s = max(self.time_s + timeout_s, math.nextafter(self.time_s, math.inf))
        return None


def longest_sleep(interval_s: float) -> float:
    settings = load_config(
        None,
        {
            "gpu.backend": "simulated",
            "gpu.devices": ["1x A100"],
            "gpu.workload.queue_processing_interval": interval_s,
        },
        environ={},
    )
    specs = discover(settings).devices
    distributor = Distributor(settings.gpu, specs, 42)
    clock = PatientClock()
    driver = RealtimeDriver(
        distributor,
        SimulatedBackend(specs, 85.0),
        clock=clock,
        queue_processing_interval_s=settings.gpu.workload.queue_processing_interval,
        health_check_interval_s=60.0,
    )
    (task,) = make_tasks([TaskSpec(duration_s=3.0)], settings.gpu, 1)
    driver.run([(0.0, RANK_SUBMIT, TaskSubmitted(task))])
    assert (task.state, task.finished_s) == ("COMPLETED", 3.0)
    return max(clock.wished)


def test_queue_processing_interval_is_the_longest_the_real_time_driver_sleeps() -> None:
    assert longest_sleep(0.1) == pytest.approx(0.1)
    assert longest_sleep(0.75) == pytest.approx(0.75)


# --- the keys of the scenarios ----------------------------------------------------------------------------------------

SCENARIO_KEYS = {
    "test.basic_functionality.input_size": ("basic_functionality", 512),
    "test.basic_functionality.output_size": ("basic_functionality", 512),
    "test.basic_functionality.duration": ("basic_functionality", 3),
    "test.concurrent_processing.concurrent_tasks": ("concurrent_processing", 2),
    "test.concurrent_processing.task_count": ("concurrent_processing", 12),
    "test.concurrent_processing.input_size": ("concurrent_processing", 512),
    "test.concurrent_processing.output_size": ("concurrent_processing", 512),
    "test.concurrent_processing.duration": ("concurrent_processing", 1),
    "test.performance.scenarios": (
        "performance",
        [{"name": "tiny", "input_size": 256, "output_size": 256, "duration": 1}],
    ),
    "test.error_handling.scenarios": (
        "error_handling",
        [
            {"name": "gpu_overload", "concurrent_tasks": 6, "input_size": 8192, "output_size": 8192, "duration": 4},
            {"name": "task_timeout", "input_size": 1024, "output_size": 1024, "duration": 320},
        ],
    ),
}


@cache
def facts_of(scenario: str) -> list[str]:
    """The event log of a scenario with the default settings, without the header lines."""
    return without_headers(SCENARIOS[scenario].run(load_config(None, None, {})).event_log)


def without_headers(log: str) -> list[str]:
    return [line for line in log.splitlines() if '"format"' not in line]


@pytest.mark.parametrize("key", SCENARIO_KEYS)
def test_a_scenario_key_changes_what_happens_in_its_scenario(key: str) -> None:
    scenario, value = SCENARIO_KEYS[key]
    changed = SCENARIOS[scenario].run(load_config(None, {key: value}, {}))
    assert all(check.passed for check in changed.checks)
    assert without_headers(changed.event_log) != facts_of(scenario)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_enabled_false_leaves_a_scenario_out(scenario: Scenario) -> None:
    left = enabled_scenarios(load_config(None, {f"test.{scenario.section}.enabled": False}, {}))
    assert scenario not in left
    assert len(left) == len(SCENARIOS) - 1


def test_no_key_of_a_scenario_is_forgotten() -> None:
    covered = set(SCENARIO_KEYS) | {f"test.{scenario.section}.enabled" for scenario in SCENARIOS.values()}
    assert {key for key in all_keys() if key.startswith("test.")} == covered
