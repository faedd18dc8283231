"""Kinds, number formats and functions on simulated GPUs: what they cost there, and what the event log says of them."""

from __future__ import annotations

from typing import Any

import pytest

import altlas_core as altlas
from altlas_core.gpu_model.catalog import find_model
from altlas_core.model import COMPLETED, GIB
from altlas_core.replay import replay


def run(*records: dict[str, Any], **over: Any) -> altlas.Result:
    keys = {"gpu.backend": "simulated", "gpu.devices": ["A100"], **over}
    return altlas.run(altlas.load_config(None, keys, environ={}), altlas.Workload.from_records(records))


def submitted(result: altlas.Result) -> list[dict[str, Any]]:
    return [event for event in result.events if event.get("fact") == "TaskSubmitted"]


def test_the_log_names_format_and_function_only_where_they_were_asked_for() -> None:
    plain, half, call, bare = submitted(
        run(
            {"duration_s": 1},
            {"duration_s": 1, "dtype": "bf16"},
            {"call": "jobs:f", "args": {"text": 'a "b"\n', "n": [1]}, "duration_s": 1},
            {"call": "jobs:f"},
        )
    )
    assert "dtype" not in plain
    assert "call" not in plain
    assert half == plain | {"task": 1, "dtype": "bf16", "memory_bytes": half["memory_bytes"]}
    assert half["memory_bytes"] * 2 == plain["memory_bytes"]
    assert (call["call"], call["args"]) == ("jobs:f", {"n": [1], "text": 'a "b"\n'})
    assert (bare["call"], bare["args"], bare["duration_s"]) == ("jobs:f", {}, None)


def test_a_log_with_formats_and_functions_replays_to_the_same_decisions() -> None:
    tasks = [
        {"duration_s": 1.5, "submit_s": 0.1 * index, **more}
        for index, more in enumerate(
            [{"dtype": "bf16"}, {"dtype": "fp16", "kind": "mlp"}, {"call": "jobs:f", "args": {"n": 1}}, {}] * 4
        )
    ]
    result = run(*tasks, {"kind": "attention", "iterations": 5, "batch": 4}, {"kind": "transfer", "iterations": 9})
    assert {task.state for task in result.task_list} == {COMPLETED}
    again = replay(result.event_lines())
    assert again.same
    for task in result.task_list:
        twin = again.distributor.tasks[task.index].spec
        assert (twin.dtype, twin.call) == (task.spec.dtype, task.spec.call)


def test_a_task_runs_as_fast_as_its_format_allows() -> None:
    size = {"input_size": 8192, "output_size": 8192, "batch": 8192, "iterations": 100}
    rates = find_model("A100").peak_flops
    whole, half = run(size).virtual_s, run(size | {"dtype": "bf16"}).virtual_s
    assert whole / half == pytest.approx(rates["bf16"] / rates["fp32"])


def test_tasks_alike_but_for_their_format_are_not_the_same_want() -> None:
    result = run(*({"duration_s": 1, "dtype": dtype, "memory_bytes": GIB} for dtype in ("fp32", "bf16", "fp32")))
    demands = [task.demand for task in result.task_list]
    assert demands[0] is demands[2] is not demands[1]
    iterations = [attempt.iterations for attempt in result.log.attempts()]
    assert iterations[0] == iterations[2] < iterations[1]


def test_a_function_on_a_simulated_gpu_is_a_sleep_that_holds_its_memory() -> None:
    result = run(
        {"call": "nowhere:f", "duration_s": 3, "memory_bytes": 70 * GIB}, {"duration_s": 1, "memory_bytes": 5 * GIB}
    )
    first, second = result.task_list
    assert (first.started_s, first.finished_s) == (0.0, 3.0)
    assert second.started_s == 3.0  # it did not fit beside it
