"""Figures: drawn from results, valid for plotly, small, and true to what happened."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import altlas_core as altlas
from altlas_core import figures
from altlas_core.figures import style
from altlas_core.figures.outcomes import outcome_of
from altlas_core.figures.priorities import latency_by_priority
from altlas_core.figures.timeline import lanes_of
from altlas_core.model import GIB
from altlas_core.result import Result
from altlas_core.words import memory_text, seconds_text

FIGURE_MIME = "application/vnd.plotly.v1+json"
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0[1-9]_*.ipynb"))
MOST_BYTES_PER_PAGE = 600_000


def run(records: list[dict[str, Any]], devices: str = "2x T4", faults: Any = (), **overrides: Any) -> Result:
    changed = {"gpu.devices": devices, **{name.replace("__", "."): value for name, value in overrides.items()}}
    return altlas.run(altlas.load_config(None, changed, {}), altlas.Workload.from_records(records), faults=faults)


@cache
def busy() -> Result:
    """A little of everything: finished, cancelled, timed out, raised, lost."""
    records = [{"duration_s": 4.0, "strategy": "round_robin", "submit_s": 0.5 * i} for i in range(6)]
    records += [{"duration_s": 9.0, "cancel_s": 2.0}, {"duration_s": 9.0, "timeout_s": 3.0}]
    records += [{"kind": "raise_error", "duration_s": 0.5, "retry_count": 1}]
    return run(records, "3x T4", [altlas.Fault(3.0, 1, "lose_gpu")])


def all_figures(result: Result) -> list[dict[str, Any]]:
    drawn = [figures.timeline(result), figures.queue_depth(result), figures.memory_bars(result)]
    return drawn + [figures.readings(result, column) for column in ("utilization_pct", "power_w", "temperature_c")]


def committed(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output["data"][FIGURE_MIME] for output in outputs if FIGURE_MIME in output.get("data", {})]


# --- every figure -------------------------------------------------------------------------------------------------


def test_drawing_loads_no_plotly() -> None:
    code = "import sys, altlas_core.figures; print('plotly' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_figures_are_valid_and_small(path: Path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    drawn = committed(path)
    assert len(drawn) >= 3
    for figure in drawn:
        graph_objects.Figure(figure)  # raises on anything plotly.js does not know
    assert len(json.dumps(drawn)) < MOST_BYTES_PER_PAGE


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_figures_say_what_they_show(path: Path) -> None:
    for figure in committed(path):
        layout = figure["layout"]
        assert re.search(r"\w+ \w+", layout["title"]["text"])
        source = layout["title"]["subtitle"]["text"]
        assert re.search("simulated|measured|GPU catalog|assumed from the models", source)
        values = [axis["title"]["text"] for axis in (layout["xaxis"], layout["yaxis"])]
        assert any(values) or figure["data"][0]["type"] == "heatmap"
        assert any("hovertemplate" in trace for trace in figure["data"])


def test_no_figure_holds_anything_but_plain_json() -> None:
    for figure in all_figures(busy()):
        json.dumps(figure, allow_nan=False)


def test_the_same_run_draws_the_same_bytes() -> None:
    again = busy.__wrapped__()
    assert json.dumps(all_figures(busy())) == json.dumps(all_figures(again))


def test_a_thousand_gpus_become_middle_and_spread() -> None:
    records = [{"duration_s": 3.0, "strategy": "least_loaded", "submit_s": i / 500} for i in range(3000)]
    figure = figures.readings(run(records, "1024x H100"), "utilization_pct")
    assert "middle and spread over 1,024 GPUs" in figure["layout"]["title"]["text"].replace("<br>", " ")
    assert len(figure["data"]) == 3
    assert len(json.dumps(figure)) < 40_000


def test_every_figure_is_named_for_what_it_shows() -> None:
    names = [figure["layout"]["meta"]["figure"] for figure in all_figures(busy())]
    assert names[:3] == ["timeline", "queue_depth", "memory_bars"]
    assert names[3] == "readings.utilization_pct"


def test_long_runs_are_thinned() -> None:
    result = run([{"duration_s": 5000.0}], gpu__workload__timeout=9000)
    figure = figures.readings(result, "power_w")
    assert len(figure["data"][0]["x"]) <= style.MOST_POINTS + 1
    assert re.search(r"; each point the mean of \d+ samples; ", figure["layout"]["title"]["subtitle"]["text"])


# --- timeline -----------------------------------------------------------------------------------------------------


def test_every_attempt_has_a_bar_coloured_by_its_end() -> None:
    figure = figures.timeline(busy())
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    counts = {trace["name"]: len(trace["x"]) for trace in bars}
    assert counts["cancelled"] == 1
    assert counts["timed out"] == 1
    assert counts["raised an error"] == 2
    assert counts["lost with their GPU"] >= 1
    assert sum(counts.values()) == len(busy().log.attempts())
    looks = {(trace["marker"]["color"], trace["marker"].get("pattern", {}).get("shape")) for trace in bars}
    assert len(looks) == len(bars)


def test_hovering_a_bar_tells_the_task_its_gpu_and_its_times() -> None:
    trace = figures.timeline(run([{"duration_s": 2.0, "submit_s": 1.0, "memory_bytes": GIB}], "T4"))["data"][0]
    assert trace["customdata"] == [[0, 0, 3]]
    assert (trace["base"], trace["x"]) == ([1], [2])
    assert trace["hovertemplate"].startswith("task-%{customdata[0]:06d}: linear, normal, 1 GiB on GPU %{customdata[1]}")
    assert "%{base:.5~g} to %{customdata[2]:.5~g} s, finished" in trace["hovertemplate"]


def test_a_lost_gpu_is_marked_when_it_went() -> None:
    (lost,) = [trace for trace in figures.timeline(busy())["data"] if trace["name"] == "GPU lost"]
    assert (lost["x"], lost["customdata"]) == ([3], [1])


def test_bars_of_one_lane_never_overlap() -> None:
    attempts = busy().log.attempts()
    lanes = lanes_of(attempts)
    by_lane: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for attempt in attempts:
        lane = lanes[attempt.gpu_id, (attempt.task.index, attempt.number)]
        assert attempt.ended_s is not None
        by_lane.setdefault((attempt.gpu_id, lane), []).append((attempt.started_s, attempt.ended_s))
    assert len(by_lane) < len(attempts)
    for spans in by_lane.values():
        ordered = sorted(spans)
        assert all(before[1] <= after[0] for before, after in pairwise(ordered))


def test_a_stop_is_told_by_its_reason() -> None:
    ends = {a.task.index: outcome_of(a) for a in busy().log.attempts()}
    assert ends[1 + 5] in ("cancelled", "timeout", "finished")
    assert sorted(end for end in ends.values() if end in ("cancelled", "timeout")) == ["cancelled", "timeout"]


def test_mostly_idle_machines_show_the_gpus_that_worked_and_say_so() -> None:
    figure = figures.timeline(run([{"duration_s": 1.0}], "8x T4"))
    assert figure["layout"]["yaxis"]["ticktext"] == ["GPU 0"]
    assert "7 idle GPUs left out" in figure["layout"]["title"]["subtitle"]["text"]


def test_phases_are_named_over_the_plot() -> None:
    figure = figures.timeline(busy(), [(0.0, "first_part"), (3.0, "second")])
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["first<br>part", "second"]


# --- readings and queue -------------------------------------------------------------------------------------------


def test_gpus_with_the_same_readings_share_a_line() -> None:
    figure = figures.readings(run([{"duration_s": 3.0}], "4x T4"), "utilization_pct")
    assert [trace["name"] for trace in figure["data"]] == ["GPU 0", "GPUs 1-3"]


def test_a_lost_gpu_leaves_a_gap_and_no_zero() -> None:
    figure = figures.readings(busy(), "temperature_c")
    lost = next(trace for trace in figure["data"] if trace["name"] == "GPU 1")
    assert None in lost["y"]
    assert 0 not in lost["y"]
    assert lost["connectgaps"] is False


def test_the_title_of_a_reading_tells_its_range() -> None:
    result = run([{"duration_s": 3.0, "memory_bytes": 4 * GIB}])
    assert figures.readings(result, "memory_used_bytes")["layout"]["title"]["text"].endswith("from 0 to 4 GiB")


def test_a_machine_without_a_reading_says_so() -> None:
    result = run([{"duration_s": 1.0}])
    result.sampled.power_w = type(result.sampled.power_w)("d", [float("nan")] * len(result.sampled.power_w))
    assert figures.readings(result, "power_w")["layout"]["title"]["text"] == "No reading of power on this machine"


def test_queue_depth_is_exact() -> None:
    figure = figures.queue_depth(run([{"duration_s": 2.0, "gpu_id": 0}] * 10))
    trace = figure["data"][0]
    assert list(zip(trace["x"], trace["y"], strict=True)) == [(0, 6), (2, 2), (4, 0)]
    assert figure["layout"]["title"]["text"] == "At most 6 tasks waited, at 0 s; the queue was empty again after 4 s"


def test_an_empty_queue_is_told() -> None:
    assert figures.queue_depth(run([{"duration_s": 2.0}]))["layout"]["title"]["text"] == "Nothing ever had to wait"


# --- comparisons --------------------------------------------------------------------------------------------------


def test_latencies_end_at_all_tasks_and_equal_curves_share_a_line() -> None:
    figure = figures.latencies({"single_gpu": [2, 4], "random": [2, 2], "round_robin": [2, 2]}, "simulated")
    assert [trace["name"] for trace in figure["data"]] == ["single GPU", "random, round robin"]
    assert all(trace["y"][-1] == 100 for trace in figure["data"])


def test_a_long_distribution_is_thinned_and_keeps_its_tail() -> None:
    seconds = [i / 1000 for i in range(100_000)]
    figure = figures.latencies({"high": seconds}, "simulated")
    trace = figure["data"][0]
    assert len(trace["x"]) <= 210
    assert trace["y"][-1] == 100
    assert all(abs(y - x) < 0.01 for x, y in zip(trace["x"][1:], trace["y"][1:], strict=True))
    assert sum(y > 99 for y in trace["y"]) > 30
    assert "about 200 points of each curve" in figure["layout"]["title"]["subtitle"]["text"]


def test_balance_names_the_narrowest_and_the_widest() -> None:
    figure = figures.balance({"single_gpu": [4, 0], "random": [2, 2]}, "simulated")
    assert figure["layout"]["title"]["text"] == "single GPU used 1 GPU, random 2 of 2"


def test_scaling_shows_speedup_and_efficiency() -> None:
    figure = figures.scaling({"small": {1: 1.0, 2: 1.5}}, "measured")
    assert figure["data"][1]["text"] == ["", "75 %"]
    assert "1.5 times as fast, 75 % efficiency" in figure["layout"]["title"]["text"]


def test_makespans_equal_to_the_bound_are_called_so() -> None:
    spans = {"single_gpu": 10.0, "random": 2.0}
    assert "exactly as list scheduling" in figures.makespans(spans, spans, "simulated")["layout"]["title"]["text"]
    other = figures.makespans(spans, {"single_gpu": 9.0, "random": 2.0}, "measured")
    assert "exactly" not in other["layout"]["title"]["text"]


def test_links_tell_nvlink_from_pcie() -> None:
    from altlas_core.backends.discover import discover

    machine = discover(altlas.load_config(None, {"gpu.devices": ["2x A100", "2x T4"]}, {}))
    assert machine.topology is not None
    figure = figures.links(machine.topology, 4)
    assert figure["layout"]["title"]["text"] == "1 of 6 pairs of GPUs are joined by NVLink, the rest by PCIe"
    assert figure["data"][0]["z"][0][:3] == [None, 1, 0]


@pytest.mark.parametrize(
    ("value", "written"), [(1.0, 1), (float("nan"), None), (None, None), (0.123456789, 0.12346), (1e20, 1e20)]
)
def test_numbers_are_short_and_never_nan(value: Any, written: Any) -> None:
    assert style.number(value) == written


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (seconds_text(235_987.4), "235,987 s"),
        (seconds_text(999.7, 3), "1,000 s"),
        (seconds_text(8.25), "8.25 s"),
        (seconds_text(0.0042), "4.2 ms"),
        (memory_text(6 * 2**20), "6 MiB"),
        (memory_text(6 * 2**20, 24 * 2**20), "6 to 24 MiB"),
        (memory_text(1023 * 2**20), "1,023 MiB"),
        (memory_text(GIB / 2, 3 * GIB), "0.5 to 3 GiB"),
        (memory_text(GIB, GIB), "1 GiB"),
        (memory_text(0, 0), "0 GiB"),
    ],
)
def test_seconds_and_bytes_have_a_unit_that_fits_and_no_exponent(told: str, text: str) -> None:
    assert told == text


def test_a_long_run_of_little_memory_is_told_in_whole_seconds_and_mib() -> None:
    result = run([{"duration_s": 236_000.0, "submit_s": 0.0, "memory_bytes": 24 * 2**20, "priority": "high"}], "T4")
    title = figures.readings(result, "memory_used_bytes")["layout"]["title"]["text"]
    assert title.endswith("from 0 to 24 MiB")
    assert figures.readings(result, "memory_used_bytes")["layout"]["yaxis"]["title"]["text"].endswith("(MiB)")
    latency = latency_by_priority({"high": [236_000.0]}, "simulated")["layout"]["title"]["text"]
    assert "within 236,000 s (high)" in latency


def test_a_timeline_names_its_subject_and_carries_the_depth_of_the_queue() -> None:
    made = figures.timeline(run([{"duration_s": 2.0, "submit_s": 0.0}] * 3, "T4"), subject="Three at once")
    assert made["layout"]["title"]["text"].startswith("Three at once: 3 tasks")
    depths = figures.queue_depth(run([{"duration_s": 2.0, "submit_s": 0.0}] * 3, "T4"))["data"][0]
    assert made["layout"]["meta"]["waiting"] == {"x": depths["x"], "y": depths["y"], "most": False}
