"""Same settings, same seed: the same bytes, whatever the hash seed and the load. And tables of the shape promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import altlas_core as altlas

ROOT = Path(altlas.__file__).parents[1]

VARIED = """
import sys, hashlib
import altlas_core as altlas
GIB = 2**30
keys = {"gpu.backend": "simulated", "gpu.devices": ["3x A100", "2x T4", "1x H100"],
        "gpu.selection.default_strategy": "random", "gpu.detection.health_check_interval": 5.0}
settings = altlas.load_config(None, keys, environ={})
work = altlas.Workload.poisson(3.0, 400, seed=7, duration_mean_s=8.0, priority=["high", "normal", "low"],
    memory_bytes=[GIB, 3 * GIB, 9 * GIB, 40 * GIB],
    strategy=["random", "round_robin", "memory_optimized", "least_loaded"],
    kind=["linear", "linear", "sleep", "raise_error", "crash_worker"], timeout_s=[5.0, 20.0, 60.0])
faults = [altlas.Fault(20, 0, "lose_gpu", 30.0), altlas.Fault(31.0, 1, "overheat", 12.0, 95.0),
          altlas.Fault(40, 2, "foreign_memory", 20.0, 50 * GIB), altlas.Fault(50, 5, "crash_worker"),
          altlas.Fault(55, 4, "foreign_load", None, 99.0)]
result = altlas.run(settings, work, seed=int(sys.argv[1]), faults=faults)
text = "".join(result.event_lines())
assert hashlib.sha256(text.encode()).hexdigest() == result.event_log_sha256
print(result.event_log_sha256, hashlib.sha256(result.telemetry.to_csv().encode()).hexdigest(), len(text))
"""


def start(seed: int, hash_seed: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", VARIED, str(seed)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_the_event_log_is_the_same_bytes_under_any_hash_seed_and_any_load() -> None:
    first = outcome(start(42, "0"))
    assert int(first.split()[2]) > 100_000  # it is a log worth comparing
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        loaded = [start(42, "1"), start(42, "4711")]
        assert [outcome(process) for process in loaded] == [first, first]
    finally:
        for process in burning:
            process.kill()
            process.wait()


def run(seed: int, strategy: str, **record: object) -> altlas.Result:
    keys = {"gpu.backend": "simulated", "gpu.devices": ["8x A100"], "gpu.selection.default_strategy": strategy}
    workload = altlas.Workload.uniform(40, duration_s=3.0, **record)
    return altlas.run(altlas.load_config(None, keys, environ={}), workload, seed=seed)


def test_the_same_run_twice_in_one_process_gives_the_same_bytes() -> None:
    assert run(1, "random").event_log_sha256 == run(1, "random").event_log_sha256


def body(result: altlas.Result) -> list[str]:
    return list(result.event_lines())[1:]


def test_another_seed_decides_otherwise_only_where_chance_is_asked() -> None:
    assert body(run(1, "random")) != body(run(2, "random"))
    for strategy in ("single_gpu", "round_robin", "least_loaded", "memory_optimized"):
        assert body(run(1, strategy)) == body(run(2, strategy))


def test_without_a_seed_the_settings_seed_counts() -> None:
    keys = {"gpu.backend": "simulated", "gpu.selection.default_strategy": "random", "seed": 5}
    workload = altlas.Workload.uniform(40, duration_s=3.0)
    result = altlas.run(altlas.load_config(None, keys, environ={}), workload)
    assert result.seed == 5
    assert result.event_log_sha256 == run(5, "random").event_log_sha256


# --- the shape of the tables ------------------------------------------------------------------------------------------


TASKS = {
    "task_id": "str",
    "kind": "str",
    "priority": "str",
    "state": "str",
    "gpu_id": "Int64",
    "attempts": "int64",
    "submitted_s": "float64",
    "started_s": "float64",
    "finished_s": "float64",
    "error_code": "object",
    "error": "object",
    "provenance": "object",
}
TELEMETRY = {
    "time_s": "float64",
    "gpu_id": "int64",
    "utilization_pct": "float64",
    "memory_used_bytes": "Int64",
    "temperature_c": "float64",
    "power_w": "float64",
    "running_tasks": "int64",
    "provenance": "category",
}


def mixed() -> altlas.Result:
    records = [
        {"submit_s": 1.0, "duration_s": 2.0},
        {"duration_s": 9.0, "cancel_s": 1.0, "priority": "low"},
        {"submit_s": 3.0, "duration_s": 1.0, "memory_bytes": 10**12, "priority": "high"},
        {"submit_s": 1.0, "kind": "raise_error", "retry_count": 1},
    ]
    settings = altlas.load_config(None, {"gpu.backend": "simulated", "gpu.devices": ["2x A100"]}, environ={})
    return altlas.run(settings, altlas.Workload.from_records(records), faults=[altlas.Fault(2.5, 1, "lose_gpu")])


def empty() -> altlas.Result:
    settings = altlas.load_config(None, {"gpu.backend": "simulated", "gpu.devices": ["2x A100"]}, environ={})
    return altlas.run(settings, altlas.Workload.from_records([]))


@pytest.mark.parametrize("make", [mixed, empty])
def test_the_tables_have_the_columns_and_types_promised(make: object) -> None:
    result = make()  # type: ignore[operator]
    for table, columns in ((result.tasks, TASKS), (result.telemetry, TELEMETRY)):
        assert list(table.columns) == list(columns)
        assert isinstance(table.index, pd.RangeIndex)
        types = {name: str(kind) for name, kind in table.dtypes.items()}
        if not len(table):  # text columns of no rows have no type of their own
            types = {name: kind if columns[name] != "str" else "str" for name, kind in types.items()}
        assert types == columns


def test_tasks_come_in_task_id_order_which_is_by_submission_then_position() -> None:
    tasks = mixed().tasks
    assert list(tasks.task_id) == ["task-000000", "task-000001", "task-000002", "task-000003"]
    assert list(tasks.submitted_s) == [0.0, 1.0, 1.0, 3.0]
    assert list(tasks.kind) == ["linear", "linear", "raise_error", "linear"]
    assert list(tasks.state) == ["CANCELLED", "COMPLETED", "FAILED", "FAILED"]


def test_what_is_not_there_is_missing_and_never_zero() -> None:
    result = mixed()
    last = result.tasks.iloc[3]
    assert last.error_code == "too_large"
    assert last.gpu_id is pd.NA
    assert np.isnan(last.started_s)
    assert result.tasks.error_code[1] is None
    gone = result.telemetry[(result.telemetry.gpu_id == 1) & (result.telemetry.time_s > 2.5)]
    assert len(gone)
    assert gone.memory_used_bytes.isna().all()
    assert gone.temperature_c.isna().all()
    there = result.telemetry[result.telemetry.gpu_id == 0]
    assert not there.isna().any(axis=None)


def test_events_are_the_lines_of_the_log_as_dictionaries() -> None:
    result = mixed()
    assert len(result.events) == len(list(result.event_lines()))
    assert result.events[0]["seed"] == 42
    assert {"t", "fact"} <= set(result.events[1])
