"""Figures of large runs: what is aggregated is true, small and said; what went wrong is never aggregated away."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

import altlas_core as altlas
from altlas_core import figures
from altlas_core.figures import crowd, style
from altlas_core.figures.crowd import Grid, busy_slots
from altlas_core.result import Result

MOST_BYTES_PER_PAGE = 600_000


@cache
def large() -> Result:
    """1,000 GPUs, of which two are lost, and 6,000 tasks, of which many run out of time or are cancelled."""
    settings = altlas.load_config(None, {"gpu.devices": "1000x H100", "gpu.selection.default_strategy": "random"}, {})
    records = [
        {"submit_s": i / 1000, "duration_s": 1.0 + i % 7, "priority": ("high", "normal", "low")[i % 3]}
        | ({"timeout_s": 3.5} if i % 10 == 0 else {})
        | ({"cancel_s": 6.5} if i % 22 == 0 else {})
        for i in range(6000)
    ]
    losses = [altlas.Fault(4.0, 17, "lose_gpu"), altlas.Fault(5.0, 700, "lose_gpu")]
    return altlas.run(settings, altlas.Workload.from_records(records), faults=losses)


@cache
def drawn(name: str) -> dict[str, Any]:
    figure: dict[str, Any] = getattr(figures, name)(large())
    copy = json.loads(json.dumps(figure, allow_nan=False))
    pytest.importorskip("plotly.graph_objects").Figure(copy)  # raises on anything plotly.js does not know
    return figure


def told(figure: dict[str, Any]) -> str:
    title = figure["layout"]["title"]
    return f"{title['text']} | {title['subtitle']['text']}".replace("<br>", " ")


def traces(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"]}


# --- the map of a crowd -------------------------------------------------------------------------------------------


def test_busy_slots_are_the_mean_of_what_ran() -> None:
    attempts = large().log.attempts()
    grid = Grid(1000, large().virtual_s)
    found = busy_slots(large(), attempts, grid)
    assert found.shape == (125, style.MOST_POINTS)
    for row, place in [(0, 0), (2, 130), (87, 120), (124, 200), (60, 239)]:
        low, high = place * grid.bin_s, (place + 1) * grid.bin_s
        held = sum(
            max(0.0, min(a.ended_s or 0.0, high) - max(a.started_s, low)) for a in attempts if a.gpu_id // 8 == row
        )
        assert found[row, place] == pytest.approx(held / grid.bin_s, abs=1e-9)


def test_nothing_that_ran_is_missing_in_the_map() -> None:
    attempts = large().log.attempts()
    grid = Grid(1000, large().virtual_s)
    worked = sum((a.ended_s or 0.0) - a.started_s for a in attempts)
    assert busy_slots(large(), attempts, grid).sum() * grid.bin_s == pytest.approx(worked)


def test_every_attempt_that_did_not_finish_is_a_mark_at_its_gpu_and_end() -> None:
    attempts = large().log.attempts()
    marks = traces(drawn("timeline"))
    for words, outcome in (
        ("timed out", "timeout"),
        ("cancelled", "cancelled"),
        ("lost with their GPU", "device_lost"),
    ):
        own = [a for a in attempts if figures.outcomes.outcome_of(a) == outcome]
        assert own
        shown = marks[words]
        assert sorted(shown["customdata"]) == sorted(a.task.index for a in own)
        assert shown["y"] == [a.gpu_id for a in own]
        assert shown["x"] == style.numbers(a.ended_s for a in own)
    assert marks["GPU lost"]["y"] == [17, 700]
    assert marks["GPU lost"]["x"] == [4, 5]


def test_too_many_marks_are_shared_by_neighbours_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sum(a.outcome != "finished" for a in large().log.attempts())
    monkeypatch.setattr(crowd, "MOST_MARKS", 100)
    figure = figures.timeline(large())
    named = {"timed out", "cancelled", "lost with their GPU"}
    counts = [pair[1] for trace in figure["data"] if trace["name"] in named for pair in trace["customdata"]]
    assert len(counts) <= 100
    assert sum(counts) == whole
    assert f"neighbours by one mark ({whole:,} by {len(counts)})" in told(figure)


def test_the_map_says_what_it_aggregated() -> None:
    count = len(large().log.attempts())
    text = told(drawn("timeline"))
    assert f"1,000 GPUs in 125 rows of 8, {count:,} attempts in 240 bins of" in text
    assert "mean share of busy slots" in text
    assert drawn("timeline")["layout"]["meta"]["figure"] == "timeline"


def test_a_lost_gpu_stays_empty_in_the_map() -> None:
    settings = altlas.load_config(None, {"gpu.devices": "20x T4", "gpu.workload.timeout": 900}, {})
    records = [{"duration_s": 1.0, "gpu_id": i % 20} for i in range(3000)]
    result = altlas.run(settings, altlas.Workload.from_records(records), faults=[altlas.Fault(5.0, 3, "lose_gpu")])
    heat = traces(figures.timeline(result))["busy slots"]
    half = int(5.0 / (heat["dx"])) + 1
    assert set(heat["z"][3][: half - 1]) == {100}
    assert set(heat["z"][3][half:]) == {0}
    assert set(heat["z"][4][: half - 1]) == {100}


@pytest.mark.parametrize("devices", ["2x T4", "1000x T4"])
def test_a_run_in_which_nothing_ran_is_drawn_and_says_so(devices: str) -> None:
    settings = altlas.load_config(None, {"gpu.devices": devices}, {})
    result = altlas.run(settings, altlas.Workload.from_records([{"duration_s": 1.0, "memory_bytes": 2**50}]))
    figure = figures.timeline(result)
    json.dumps(figure, allow_nan=False)
    assert told(figure).startswith("No task ever started")
    assert told(figures.readings(result, "power_w")).startswith("Power per GPU stayed at 11.5 W")


def test_medium_runs_keep_a_bar_for_each_attempt() -> None:
    settings = altlas.load_config(None, {"gpu.devices": "64x A100", "gpu.selection.default_strategy": "random"}, {})
    records = [{"duration_s": 1.0 + i % 3, "submit_s": i / 100} for i in range(2000)]
    figure = figures.timeline(altlas.run(settings, altlas.Workload.from_records(records)))
    assert sum(len(trace["x"]) for trace in figure["data"] if trace["type"] == "bar") == 2000
    assert len(json.dumps(figure)) < 200_000


def test_a_page_of_a_large_run_stays_small() -> None:
    own = [drawn(name) for name in ("timeline", "queue_depth", "waits", "latency_over_time", "machine", "memory_bars")]
    own += [figures.readings(large(), column) for column in ("utilization_pct", "memory_used_bytes", "power_w")]
    assert sum(len(json.dumps(figure, separators=(",", ":"))) for figure in own) < MOST_BYTES_PER_PAGE - 150_000


def test_the_same_large_run_draws_the_same_bytes() -> None:
    assert json.dumps(figures.timeline(large.__wrapped__())) == json.dumps(drawn("timeline"))


# --- densities and percentiles over time ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["waits", "latency_over_time"])
def test_a_density_counts_every_task(name: str) -> None:
    heat = drawn(name)["data"][0]
    assert heat["type"] == "heatmap"
    tasks = [t for t in large().task_list if (t.started_s is not None if name == "waits" else t.state == "COMPLETED")]
    assert sum(n or 0 for row in heat["customdata"] for n in row) == len(tasks)
    assert f"{len(tasks):,} tasks, counted in cells of" in told(drawn(name))


def test_percentiles_over_time_are_nearest_ranks() -> None:
    done = [t for t in large().task_list if t.state == "COMPLETED"]
    ends = np.array([t.finished_s for t in done], dtype=float)
    took = ends - np.array([t.submitted_s for t in done])
    lines = traces(drawn("latency_over_time"))
    width = ends.max() / 60
    own = np.sort(took[(ends >= 30 * width) & (ends < 31 * width)])
    place = lines["p50"]["x"].index(style.number(30.5 * width))
    for percent in (50, 95, 99):
        rank = int(np.ceil(percent / 100 * len(own))) - 1
        assert lines[f"p{percent}"]["y"][place] == style.number(own[rank], 4)


def test_a_thinned_queue_keeps_its_peak() -> None:
    settings = altlas.load_config(None, {"gpu.devices": "T4"}, {})
    records = [{"duration_s": 0.1, "submit_s": 0.1 * (i // 5)} for i in range(1500)]  # one of five has to wait
    records += [{"duration_s": 0.01, "submit_s": 13.33} for _ in range(40)]  # a short peak
    result = altlas.run(settings, altlas.Workload.from_records(records))
    figure = figures.queue_depth(result)
    trace = figure["data"][0]
    assert len(trace["x"]) <= 2 * style.MOST_POINTS + 1
    assert max(trace["y"]) == int(told(figure).split()[2])
    assert trace["y"][-1] == 0
    assert "the most in each of 480 steps" in told(figure)
