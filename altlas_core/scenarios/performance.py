"""How fast: models of three sizes, alone and under every strategy, and the same work on 1, 2, 4, 8 GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from altlas_core.config import Settings
from altlas_core.config_schema import ModelCase
from altlas_core.gpu_model.catalog import CATALOG
from altlas_core.kinds import KINDS
from altlas_core.model import Attempt, DeviceSpec, TaskSpec
from altlas_core.scenarios.common import EVEN, Bench, Phase, ScenarioResult
from altlas_core.scenarios.measures import (
    alike,
    all_completed,
    list_schedule,
    need_bytes,
    percentile,
    places,
    strategies_of,
    usable_places,
)
from altlas_core.scenarios.performance_tables import reading_table, scaling_table, speed_table

if TYPE_CHECKING:
    import pandas as pd

ALONE = "alone"
GPU_COUNTS = (1, 2, 4, 8)
MOST_GPUS = 8  # the load is that of so many GPUs at most, however large the machine
MOST_SLOTS = 4
ROUNDING = 1e-9
ROW_METRICS = (  # of a model under a load
    "iterations_per_s",
    "achieved_tflops",
    "iteration_p50_ms",
    "iteration_p95_ms",
    "iteration_p99_ms",
    "task_p50_s",
    "task_p95_s",
    "task_p99_s",
    "memory_mean_bytes",
    "memory_max_bytes",
    "utilization_mean_pct",
    "utilization_max_pct",
    "temperature_mean_c",
    "temperature_max_c",
    "power_mean_w",
    "power_max_w",
)
READINGS = (  # column of the telemetry, name and unit of the metric
    ("memory_used_bytes", "memory", "_bytes"),
    ("utilization_pct", "utilization", "_pct"),
    ("temperature_c", "temperature", "_c"),
    ("power_w", "power", "_w"),
)


def run(settings: Settings) -> ScenarioResult:
    """One run per model (alone, then each strategy with a full machine's load), one run per number of GPUs.

    In a machine with devices of several kinds, alone means alone on the first of each kind.
    """
    bench = Bench("performance", settings)
    bench.work_names = {(case.input_size, case.output_size): case.name for case in settings.test.performance.scenarios}
    rows: list[dict[str, Any]] = []
    for case in settings.test.performance.scenarios:
        rows += [_measure(bench, case, phase) for phase in _model_phases(bench, case)]
    _check_rates(bench, rows)
    _check_readings(bench)
    alone = [row for row in rows if row["load"].startswith(ALONE)]
    models = list(dict.fromkeys(row["model"] for row in rows))
    rates = {model: min(row["iterations_per_s"] for row in alone if row["model"] == model) for model in models}
    scaling = _scaling(bench, rates)
    _check_scaling(bench, scaling)
    best = max(rows, key=lambda row: row["achieved_tflops"])
    most = max(scaling, key=lambda row: (row["gpus"], row["efficiency_pct"]))
    peak = _peak_flops(bench.devices, range(len(bench.devices)))
    metrics: dict[str, Any] = {
        "fastest_load_tflops": best["achieved_tflops"],
        "fastest_model_iterations_per_s": max(row["iterations_per_s"] for row in rows),
        "power_max_w": max((row["power_max_w"] for row in rows if row["power_max_w"] is not None), default=None),
        "peak_tflops": None if peak is None else peak / 1e12,
        "scaling_gpus": most["gpus"],
        "scaling_efficiency_pct": most["efficiency_pct"],
        "models": {
            model: {row["load"]: {name: row[name] for name in ROW_METRICS} for row in rows if row["model"] == model}
            for model in models
        },
        "scaling": _by_model(scaling, "speedup", "speedup_on_{gpus}"),
    }
    keys = ["fastest_load_tflops", "fastest_model_iterations_per_s", "scaling_gpus", "scaling_efficiency_pct"]
    tables = {
        "alone": speed_table(alone),
        "strategies": speed_table([row for row in rows if row not in alone]),
        "readings": reading_table(rows),
        "scaling": scaling_table(scaling),
    }
    result = bench.finish(metrics, keys, tables)
    result.series = {
        "tflops": _by_model(rows, "achieved_tflops", "{load}"),
        "speedup": {
            model: {row["gpus"]: row["speedup"] for row in scaling if row["model"] == model} for model in models
        },
    }
    return result


def _by_model(rows: Sequence[dict[str, Any]], value: str, key: str) -> dict[str, dict[str, Any]]:
    """Model -> (`key` filled in from the row -> the row's `value`)."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[key.format(**row)] = row[value]
    return found


def _size(case: ModelCase) -> dict[str, Any]:
    return {"input_size": case.input_size, "output_size": case.output_size}


def _load(bench: Bench, devices: int) -> int:
    """As many tasks as `devices` GPUs have slots."""
    return devices * min(MOST_SLOTS, bench.settings.gpu.workload.max_concurrent_tasks_per_gpu)


# --- models and strategies ----------------------------------------------------------------------------------------


def _model_phases(bench: Bench, case: ModelCase) -> list[Phase]:
    """A task alone on a GPU; then under each strategy as many tasks as the machine (eight GPUs of it) has slots."""
    here = places(bench.settings, bench.devices, need_bytes(**_size(case)))
    task = {**_size(case), "duration_s": case.duration}
    count = _load(bench, min(MOST_GPUS, len(bench.devices)))
    groups: list[tuple[str, list[dict[str, Any]], float]] = [
        (label, [{**task, "gpu_id": gpu_id}], case.duration) for label, gpu_id in _alone(bench, here).items()
    ]
    for name in strategies_of(bench.settings):
        expected_s = list_schedule([case.duration] * count, sum(usable_places(name, here)))
        groups.append((name, [{**task, "strategy": name}] * count, expected_s))
    phases = bench.run_phases(case.name, groups)
    bench.check_completed(f"{case.name}: all tasks complete", [task for phase in phases for task in phase.tasks])
    return phases


def _alone(bench: Bench, here: Sequence[int]) -> dict[str, int]:
    """Load -> the GPU it has to itself: of each kind of device the first with room; GPU 0 where none has."""
    firsts: dict[str, int] = {}
    for spec in bench.devices:
        if here[spec.gpu_id]:
            firsts.setdefault(spec.kind, spec.gpu_id)
    first, *others = firsts.values() or [0]
    return {ALONE: first, **{f"{ALONE} on GPU {gpu_id}": gpu_id for gpu_id in others}}


def _measure(bench: Bench, case: ModelCase, phase: Phase) -> dict[str, Any]:
    """The figures of one model under one load."""
    flops_each = KINDS["linear"].flops(TaskSpec(**_size(case)))
    iterations = math.fsum(attempt.iterations for attempt in phase.attempts)
    seconds = phase.makespan_s or math.inf
    rate = iterations / seconds
    peak = _peak_flops(bench.devices, phase.gpu_ids)
    latencies = [t.finished_s - t.submitted_s for t in phase.tasks if t.finished_s is not None]
    row: dict[str, Any] = {
        "model": case.name,
        "load": phase.label,
        "gpus": len(phase.gpu_ids),
        "tasks": len(phase.tasks),
        "iterations_per_s": rate,
        "achieved_tflops": rate * flops_each / 1e12,
        "of_peak_pct": 100 * rate * flops_each / peak if peak else None,
    }
    row |= {f"task_p{percent}_s": percentile(latencies, percent) for percent in (50, 95, 99)}
    row |= {f"iteration_p{percent}_ms": value for percent, value in _iteration_ms(phase.attempts).items()}
    table = phase.telemetry
    for column, name, unit in READINGS:
        readings = table[column].dropna()
        row[f"{name}_mean{unit}"] = float(readings.mean()) if len(readings) else None
        row[f"{name}_max{unit}"] = _max(readings)
    return row


def _max(readings: pd.Series[Any]) -> float | None:
    known = readings.dropna()
    return float(known.max()) if len(known) else None


def _peak_flops(devices: Sequence[DeviceSpec], gpu_ids: Sequence[int]) -> float | None:
    """FP32 data sheet peak of these simulated GPUs together; None where it is not known."""
    models = [CATALOG.get(devices[gpu_id].model) for gpu_id in gpu_ids]
    return math.fsum(m.peak_flops["fp32"] for m in models if m) if models and all(models) else None


def _iteration_ms(attempts: Sequence[Attempt]) -> dict[int, float | None]:
    """p50, p95, p99 of the time of one iteration, in ms.

    Measured where the device timed its iterations (the median, over the tasks, of each task's percentile); else from
    the model: each task's mean iteration (seconds held / iterations), percentiles over the tasks.
    """
    means = [1e3 * (a.ended_s - a.started_s) / a.iterations for a in attempts if a.ended_s is not None and a.iterations]
    found: dict[int, float | None] = {}
    for percent in (50, 95, 99):
        key = f"iteration_p{percent}_s"
        timed = [1e3 * a.detail[key] for a in attempts if a.detail and a.detail.get(key) is not None]
        found[percent] = percentile(timed, 50) if timed else percentile(means, percent)
    return found


def _check_rates(bench: Bench, rows: Sequence[dict[str, Any]]) -> None:
    shares = [row["of_peak_pct"] for row in rows if row["of_peak_pct"] is not None]
    if shares:
        bench.check(
            "no GPU computes faster than its peak",
            max(shares) <= 100 * (1 + ROUNDING),
            "at most 100 % of the FP32 peak of the GPUs that worked",
            f"at most {max(shares):.1f} %",
        )
    idle = [row for row in rows if not row["iterations_per_s"] > 0]
    slow = f"{idle[0]['model']} under {idle[0]['load']} did none" if idle else f"{len(rows)} of {len(rows)} loads"
    bench.check("every load gets work done", not idle, "iterations under every load", slow)
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["load"]: row["iterations_per_s"] for row in rows if row["model"] == model}
        spread = {name: rate for name, rate in own.items() if name not in (ALONE, "single_gpu")}
        if "single_gpu" not in own or not spread or len(bench.devices) == 1 or bench.slack_s:
            continue
        name, slowest = min(spread.items(), key=lambda item: item[1])
        bench.check(
            f"{model}: all GPUs together do at least as much as one",
            slowest >= own["single_gpu"] * (1 - ROUNDING),
            f"at least {own['single_gpu']:,.0f} iterations/s (single_gpu)",
            f"{slowest:,.0f} iterations/s ({name})",
        )


def _check_readings(bench: Bench) -> None:
    """Every sample of every run against what its device can show."""
    odd: list[str] = []
    samples = 0
    for result in bench.runs.values():
        table = result.telemetry
        samples += len(table)
        for spec, (_, rows) in zip(result.devices, table.groupby("gpu_id", sort=True), strict=True):
            odd += [f"GPU {spec.gpu_id}: {text}" for text in _outside(bench, spec, rows)]
    bench.check(
        "readings are plausible",
        not odd and samples > 0,
        "0 to 100 % busy, memory within the device, power from idle to the limit, simulated ones up to max_temperature",
        "; ".join(odd[:3]) if odd else f"all of {samples} samples",
    )


def _outside(bench: Bench, spec: DeviceSpec, rows: pd.DataFrame) -> Iterator[str]:
    model = CATALOG.get(spec.model)
    hottest = bench.settings.gpu.detection.max_temperature if spec.simulated else 120.0
    limits = (
        ("utilization_pct", 0.0, 100.0),
        ("memory_used_bytes", 0.0, float(spec.memory_total_bytes * spec.parts)),  # a part's worker is in it too
        ("temperature_c", 0.0, hottest),
        ("power_w", model.idle_w_or_estimate if model else 0.0, 1.05 * (spec.power_limit_w or math.inf)),
    )
    for column, low, high in limits:
        known = rows[column].dropna().astype(float)
        if len(known) and not (known.min() >= low * (1 - ROUNDING) and known.max() <= high * (1 + ROUNDING)):
            yield f"{column} from {known.min():g} to {known.max():g}, allowed {low:g} to {high:g}"


# --- scaling ------------------------------------------------------------------------------------------------------


def _scaling(bench: Bench, rates: dict[str, float]) -> list[dict[str, Any]]:
    """The same number of tasks with the same iterations on 1, 2, 4, ... GPUs of the machine (strong scaling).

    Each task's iterations fill its share of `duration` at the rate its model had alone (on the slowest kind of device,
    where there are several); so one such GPU needs about `duration` times the most GPUs.
    """
    cases = bench.settings.test.performance.scenarios
    counts = [count for count in GPU_COUNTS if count <= len(bench.devices)]
    slots = _load(bench, 1)
    tasks = _load(bench, max(counts))
    strategy = bench.spreading_strategy()
    rows = []
    base: dict[str, float] = {}
    for count in counts:
        groups = []
        for case in cases:
            iterations = max(1, round(rates[case.name] * case.duration * bench.scale / slots))
            record = {**_size(case), "iterations": iterations, "strategy": strategy}
            groups.append((case.name, [record] * tasks, case.duration * max(counts) / count))
        label = f"on_{count}_gpu{'s' if count > 1 else ''}"
        for case, phase in zip(cases, bench.run_phases(label, groups, devices=bench.devices[:count]), strict=True):
            base.setdefault(case.name, phase.makespan_s)
            speedup = base[case.name] / phase.makespan_s if phase.makespan_s else math.nan
            rows.append(
                {
                    "model": case.name,
                    "gpus": count,
                    "tasks": tasks,
                    "iterations": math.fsum(a.iterations for a in phase.attempts),
                    "makespan_s": phase.makespan_s,
                    "speedup": speedup,
                    "efficiency_pct": 100 * speedup / count,
                    "done": all_completed(phase.tasks)[0],
                }
            )
    return rows


def _check_scaling(bench: Bench, rows: Sequence[dict[str, Any]]) -> None:
    most = max(row["gpus"] for row in rows)
    undone = [row for row in rows if not row["done"]]
    bench.check(
        "the same work completes on every number of GPUs",
        not undone,
        f"{len(rows)} of {len(rows)} runs of it",
        f"{len(rows) - len(undone)} of {len(rows)}",
    )
    if most == 1:
        return
    worst = min(rows, key=lambda row: row["efficiency_pct"])
    observed = f"lowest {worst['efficiency_pct']:.4g} % ({worst['model']} on {worst['gpus']} GPUs)"
    if not bench.slack_s and _divides_evenly(bench, most):
        bench.check(
            "work that divides evenly scales without loss",
            abs(worst["efficiency_pct"] - 100) <= 100 * ROUNDING,
            f"100 % efficiency on up to {most} equal GPUs",
            observed,
            "a lower one means GPUs were idle while tasks waited",
        )


def _divides_evenly(bench: Bench, count: int) -> bool:
    """Whether the work can keep all of `count` GPUs busy to the end: equal GPUs, room, a strategy that spreads."""
    devices = bench.devices[:count]
    sizes = [need_bytes(**_size(case)) for case in bench.settings.test.performance.scenarios]
    room = min(min(places(bench.settings, devices, size)) for size in sizes)
    return alike(devices) and room >= _load(bench, 1) and bench.spreading_strategy() in EVEN
