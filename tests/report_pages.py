"""Report pages made without a notebook: real figures of a small simulated run, a table, and every verdict."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import altlas_core as altlas
from altlas_core import figures
from altlas_core.report import folder, pages
from altlas_core.report.cells import FIGURE_MIME, read_story
from altlas_core.report.history import EarlierRun
from altlas_core.report.outcome import CheckResult, ScenarioOutcome

CHECKS = [CheckResult(f"rule {n} holds", True, f"{n} tasks", f"{n} tasks") for n in range(1, 4)]
FAILED = CheckResult("nothing <is> lost", False, "0 tasks & none", "3 tasks", "Look at task 7.")
SUMMARY = {"n": 5, "mean": 12.345, "stdev": 0.36, "ci95_low": 11.9, "ci95_high": 12.8, "min": 11.8, "max": 13.1}
REPEATS = {"count": 5, "warm_up": 1, "seeds": [42, 43, 44, 45, 46], "metrics": {"makespan_s": SUMMARY}}
TABLE = (
    "<table><thead><tr><th>strategy</th><th>wait (s)</th><th>note</th></tr></thead><tbody>"
    "<tr><td>random</td><td>10</td><td>b</td></tr><tr><td>least_loaded</td><td>N/A</td><td>a</td></tr>"
    "<tr><td>single_gpu</td><td>1,200.5</td><td>a</td></tr><tr><td>round_robin</td><td>9.5</td><td>c</td></tr>"
    "</tbody></table>"
)


def small_run() -> altlas.Result:
    """16 tasks of 2 s on two GPUs with two slots each: 8 s, with a queue."""
    overrides = {"gpu.devices": ["2x T4"], "gpu.workload.max_concurrent_tasks_per_gpu": 2}
    settings = altlas.load_config(None, {"gpu.backend": "simulated", "telemetry.interval": 1, **overrides}, environ={})
    records = [{"submit_s": 0.0, "duration_s": 2.0, "strategy": "least_loaded"} for _ in range(16)]
    return altlas.run(settings, altlas.Workload.from_records(records), seed=42)


def notebook(result: altlas.Result, extra: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Two parts: three figures over time of one run with a table, and one that is not over time."""
    over_time = [figures.timeline(result), figures.queue_depth(result), figures.readings(result, "utilization_pct")]
    latencies = figures.latencies({"round_robin": [1.0, 2.0, 4.0], "random": [2.0, 3.0, 5.0]}, "simulated")
    return {
        "cells": [
            markdown("# A scenario\n\nDoes it hold?"),
            markdown("## Over time\n\nWhat ran when."),
            code("figures.timeline(run)", *[{FIGURE_MIME: figure} for figure in over_time]),
            code("table", {"text/html": TABLE}),
            markdown("## Latency & more"),
            code("figures.latencies(run)", {FIGURE_MIME: latencies}),
            *(extra or []),
        ]
    }


def markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": source}


def code(source: str, *shown: dict[str, Any]) -> dict[str, Any]:
    outputs = [{"output_type": "display_data", "data": json.loads(json.dumps(data))} for data in shown]
    return {"cell_type": "code", "source": source, "metadata": {}, "outputs": outputs}


def earlier(number: int, **changes: Any) -> EarlierRun:
    """A run of November 2026, on the devices of `view`."""
    values: dict[str, Any] = {
        "run_id": f"202611{number:02d}-120000-abcd",
        "status": "passed",
        "started": datetime(2026, 11, number, 12, tzinfo=UTC),
        "backend": "simulated",
        "devices": ("2x T4",),
        "seed": 42,
        "checks": 4,
        "checks_passed": 4,
        "wall_s": 10.0 + number,
        "scenarios": frozenset({"passed", "failed", "broke"}),
        "metrics": {"passed.makespan_s": 8.0 + number / 10, "passed.tasks": 16.0},
    }
    return EarlierRun(**{**values, **changes})


def view(outcomes: list[ScenarioOutcome], **changes: Any) -> pages.RunView:
    values: dict[str, Any] = {
        "run_id": "20261128-120000-abcd",
        "started": datetime(2026, 11, 28, 12, tzinfo=UTC),
        "seed": 42,
        "backend": "simulated",
        "provenance": "simulated",
        "devices": ["2x T4"],
        "facts": [("Backend", "simulated")],
        "settings": [],
        "command": "altlas run",
        "time_scale": 1.0,
        "pace": 0.0,
        "outcomes": outcomes,
        "wall_s": 12.0,
    }
    return pages.RunView(**{**values, **changes})


def outcomes() -> list[ScenarioOutcome]:
    """One of each verdict; the one that passed ran five times."""
    metrics = {"makespan_s": 12.3, "tasks": 16, "by_strategy": {"random": {"p99_wait_s": 0.25}}}
    common: dict[str, Any] = {"metrics": metrics, "provenance": "simulated", "wall_s": 2.5, "virtual_s": 8.0}
    return [
        ScenarioOutcome("passed", "passed", CHECKS, repeats=REPEATS, key_metrics=["makespan_s", "tasks"], **common),
        ScenarioOutcome("failed", "failed", [*CHECKS, FAILED], event_log_sha256="0" * 64, **common),
        ScenarioOutcome("broke", "broke", CHECKS, error="ValueError: no <kernel> here", **common),
    ]


def write_report(base: Path) -> Path:
    """The pages of a run with one scenario of each verdict and a history; returns its folder."""
    made = base / "20261128-120000-abcd"
    (made / "assets").mkdir(parents=True)
    folder.copy_assets(made)
    shown = outcomes()
    run = view(shown, history=[earlier(number) for number in range(12, 0, -1)])
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no <kernel> here", "traceback": ["line 1"]}
    broken = {**code("1/0"), "outputs": [error]}
    result = small_run()
    for outcome in shown:
        story = read_story(notebook(result, [broken] if outcome.error else None), outcome.name)
        run.titles[outcome.name], run.leads[outcome.name] = story.title, story.lead
        run.findings[outcome.name] = story.findings
        page = pages.scenario_page(run, outcome, story, "altlas run")
        folder.write_text(made / f"{outcome.name}.html", page)
    folder.write_text(made / "index.html", pages.index_page(run))
    return made
