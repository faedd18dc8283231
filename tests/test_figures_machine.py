"""The machine as a grid, waiting and latency over time: small runs, where every GPU and task can be seen."""

from __future__ import annotations

import json
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core import figures
from altlas_core.result import Result


def run(records: list[dict[str, Any]], devices: str = "2x T4", faults: Any = (), **overrides: Any) -> Result:
    changed = {"gpu.devices": devices, **{name.replace("__", "."): value for name, value in overrides.items()}}
    return altlas.run(altlas.load_config(None, changed, {}), altlas.Workload.from_records(records), faults=faults)


def title(figure: dict[str, Any]) -> str:
    json.dumps(figure, allow_nan=False)
    pytest.importorskip("plotly.graph_objects").Figure(figure)  # raises on anything plotly.js does not know
    return str(figure["layout"]["title"]["text"]).replace("<br>", " ")


# --- the machine --------------------------------------------------------------------------------------------------


def half_lost() -> Result:
    return run([{"duration_s": 8.0, "gpu_id": gpu} for gpu in (0, 1)], "4x T4", [altlas.Fault(4.0, 1, "lose_gpu")])


def test_the_machine_at_a_time_shows_who_worked_and_who_was_lost() -> None:
    before, after = figures.machine(half_lost(), 3.0), figures.machine(half_lost(), 6.0)
    assert title(before) == "2 of 4 GPUs at work at 3 s, busy 50 % on average"
    assert before["data"][0]["z"] == [[100, 100, 0, 0]]
    assert title(after) == "1 of 4 GPUs at work at 6 s, busy 33.3 % on average; GPU 1 lost"
    assert after["data"][0]["z"] == [[100, None, 0, 0]]
    assert after["data"][1]["text"][1].endswith("LOST")
    assert after["data"][2]["name"] == "lost"


def test_the_machine_over_a_run_shows_means_peaks_and_the_health_at_its_end() -> None:
    figure = figures.machine(half_lost())
    assert "GPU 1 lost" in title(figure)
    gpu, busy, memory, warmth, watts, size, state = figure["data"][0]["customdata"][0][0]
    assert (gpu, busy, state) == (0, pytest.approx(100, abs=15), "AVAILABLE")
    assert memory <= size
    assert warmth > 30
    assert watts > 20
    assert "highest memory and temperature" in figure["layout"]["title"]["subtitle"]["text"]


def test_a_grid_that_is_not_full_ends_with_nothing() -> None:
    heat = figures.machine(run([{"duration_s": 1.0}], "10x T4"))["data"][0]
    assert [len(row) for row in heat["z"]] == [4, 4, 4]
    assert heat["customdata"][2][2:] == [None, None]


def test_a_machine_that_tells_nothing_is_drawn_all_the_same() -> None:
    result = run([{"duration_s": 1.0}])
    for name in ("utilization_pct", "memory_used_bytes", "temperature_c", "power_w"):
        readings = getattr(result.sampled, name)
        setattr(result.sampled, name, type(readings)("d", [float("nan")] * len(readings)))
    figure = figures.machine(result)
    assert title(figure) == "No GPU told its utilization"
    assert figure["data"][1]["text"] == ["<b>GPU 0</b><br>N/A", "<b>GPU 1</b><br>N/A"]


# --- waiting and latency ------------------------------------------------------------------------------------------


def test_waits_are_exact_and_by_priority() -> None:
    records = [{"duration_s": 2.0, "priority": p} for p in ("low", "high", "high")]
    figure = figures.waits(run(records, "T4", gpu__workload__max_concurrent_tasks_per_gpu=1))
    marks = {trace["name"]: trace for trace in figure["data"]}
    assert sorted(marks["high priority"]["y"] + marks["low priority"]["y"]) == [0, 2, 4]
    assert marks["high priority"]["customdata"] == [[1, 0], [2, 0]]
    assert marks["high priority"]["marker"]["symbol"] != marks["low priority"]["marker"]["symbol"]
    assert "the longest wait was" in title(figure)


def test_waits_say_where_nothing_waited_and_what_never_started() -> None:
    assert title(figures.waits(run([{"duration_s": 1.0}]))) == "No task had to wait"
    never = figures.waits(run([{"duration_s": 1.0, "memory_bytes": 2**50}]))
    assert title(never) == "No task ever started"
    assert "1 task that never started left out" in never["layout"]["title"]["subtitle"]["text"]


def test_latencies_over_time_are_exact() -> None:
    records = [{"duration_s": 2.0}, {"duration_s": 3.0, "submit_s": 1.0}]
    figure = figures.latency_over_time(run(records))
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == ([2, 4], [2, 3])
    assert title(figures.latency_over_time(run([{"duration_s": 9.0, "cancel_s": 1.0}]))) == "No task completed"


def test_figures_of_one_run_have_its_name_in_common() -> None:
    result, other = run([{"duration_s": 2.0}]), run([{"duration_s": 3.0}])
    own = [figures.timeline(result), figures.queue_depth(result), figures.waits(result)]
    own.append(figures.readings(result, "power_w"))
    assert len({figure["layout"]["meta"]["run"] for figure in own}) == 1
    assert all(figure["layout"]["meta"]["time_axis"] for figure in own)
    assert len({json.dumps(figure["layout"]["xaxis"]["range"]) for figure in own}) == 1
    assert figures.timeline(other)["layout"]["meta"]["run"] != own[0]["layout"]["meta"]["run"]
