"""Runs that have ended, made without running a notebook: results.json, request.json and notebooks with figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from altlas_core.backends.discover import discover
from altlas_core.config import load_config
from altlas_core.report import resume
from altlas_core.report.environment import Request
from altlas_core.report.files import RAN_TO_ITS_END
from altlas_core.statistics import summarize

STARTED = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)


def check(name: str, passed: bool = True, observed: str = "as it should") -> dict[str, Any]:
    return {"name": name, "passed": passed, "expected": "as it should", "observed": observed}


def broke() -> dict[str, Any]:
    return check(RAN_TO_ITS_END, False, "ValueError: no")


def scenario(
    checks: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, Any] | None = None,
    repeats: Mapping[str, Sequence[float]] | None = None,
    provenance: str = "simulated",
) -> dict[str, Any]:
    """An entry of results.json; `repeats`: the values of each run by metric, whose first stands in the metrics."""
    checks = checks or [check("ids are unique")]
    entry: dict[str, Any] = {
        "passed": all(own["passed"] for own in checks),
        "wall_s": 1.0,
        "virtual_s": 12.5,
        "provenance": provenance,
        "checks": list(checks),
        "metrics": dict(metrics or {}),
        "event_log_sha256": None,
    }
    if repeats is not None:
        count = len(next(iter(repeats.values())))
        summaries = {name: summarize(values) for name, values in repeats.items()}
        told = {
            name: {
                field: getattr(own, field) for field in ("n", "mean", "stdev", "ci95_low", "ci95_high", "min", "max")
            }
            for name, own in summaries.items()
        }
        entry["repeats"] = {"count": count, "warm_up": 0, "seeds": None, "metrics": told}
        entry["metrics"] |= {name: values[0] for name, values in repeats.items()}
    return entry


def write_run(
    reports: Path,
    run_id: str,
    scenarios: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **overrides: Any,
) -> Path:
    """A run's folder. `figures`: by scenario, what its notebook drew; overrides: settings by dotted key."""
    settings = load_config(None, {"gpu.backend": "simulated", **overrides}, environ={})
    machine = discover(settings)
    folder = reports / run_id
    folder.mkdir(parents=True)
    results = {
        "run_id": run_id,
        "altlas_version": "0.1.0",
        "git_commit": None,
        "seed": settings.seed,
        "backend": machine.backend,
        "devices": list(settings.gpu.devices) or ["8x A100-SXM4-80GB"],
        "started_at": STARTED.isoformat(),
        "wall_s": 3.0,
        "passed": all(entry["passed"] for entry in scenarios.values()),
        "scenarios": scenarios,
    }
    (folder / "results.json").write_text(json.dumps(results))
    resume.asked(run_id, STARTED, list(scenarios), settings, machine, Request(None, overrides)).write(folder)
    for name, drawn in (figures or {}).items():
        outputs = [{"output_type": "display_data", "data": {"application/vnd.plotly.v1+json": own}} for own in drawn]
        cell = {"cell_type": "code", "metadata": {}, "source": "", "outputs": outputs}
        (folder / f"{name}.ipynb").write_text(json.dumps({"cells": [cell]}))
    return folder
