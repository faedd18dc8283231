"""What the performance scenario found, as tables for people: columns by name, with their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from altlas_core.model import GIB

if TYPE_CHECKING:
    import pandas as pd


def _table(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([{title: row[key] for key, title in names.items()} for row in rows])


def speed_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return _table(
        rows,
        {
            "model": "model",
            "load": "load",
            "gpus": "GPUs used",
            "tasks": "tasks",
            "iterations_per_s": "iterations/s",
            "achieved_tflops": "TFLOP/s",
            "of_peak_pct": "of FP32 peak (%)",
            "iteration_p50_ms": "iteration p50 (ms)",
            "iteration_p95_ms": "p95 (ms)",
            "iteration_p99_ms": "p99 (ms)",
            "task_p50_s": "task p50 (s)",
            "task_p95_s": "task p95 (s)",
            "task_p99_s": "task p99 (s)",
        },
    )


def reading_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    shown = [
        {**row, "memory": None if row["memory_max_bytes"] is None else row["memory_max_bytes"] / GIB} for row in rows
    ]
    return _table(
        shown,
        {
            "model": "model",
            "load": "load",
            "memory": "memory, most (GiB)",
            "utilization_mean_pct": "utilization (%)",
            "utilization_max_pct": "most (%)",
            "temperature_mean_c": "temperature (°C)",
            "temperature_max_c": "most (°C)",
            "power_mean_w": "power (W)",
            "power_max_w": "most (W)",
        },
    )


def scaling_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return _table(
        rows,
        {
            "model": "model",
            "gpus": "GPUs",
            "tasks": "tasks",
            "iterations": "iterations",
            "makespan_s": "makespan (s)",
            "speedup": "speedup",
            "efficiency_pct": "efficiency (%)",
        },
    )
