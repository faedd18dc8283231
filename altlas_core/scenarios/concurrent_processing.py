"""Many tasks: at most so many in flight, then all at once under each strategy. Caps, makespan, balance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from altlas_core.config import Settings
from altlas_core.config_schema import MAX_SLOTS
from altlas_core.model import COMPLETED
from altlas_core.scenarios.common import EVEN, Bench, Phase, ScenarioResult
from altlas_core.scenarios.measures import (
    alike,
    jain_index,
    list_schedule,
    need_bytes,
    peak_running,
    percentile,
    places,
    strategies_of,
    usable_places,
)
from altlas_core.strategies import STRATEGIES

if TYPE_CHECKING:
    import pandas as pd

MAKESPAN_FACTOR = 1.5  # on real devices, where starting and reporting takes time: at most so much over the bound


def run(settings: Settings) -> ScenarioResult:
    """Two runs: one with exactly `concurrent_tasks` places, one with every strategy in turn, all tasks at once."""
    bench = Bench("concurrent_processing", settings)
    limited = _in_flight(bench)
    phases = _all_at_once(bench)
    rows = [_judge(bench, phase) for phase in phases]
    _check_work_conserving(bench, phases)
    best = min(rows, key=lambda row: row["makespan_s"])
    metrics: dict[str, Any] = {
        "tasks": sum(len(result.task_list) for result in bench.runs.values()),
        "completed": sum(t.state == COMPLETED for r in bench.runs.values() for t in r.task_list),
        "most_in_flight": peak_running(limited.attempts),
        "makespan_limited_s": limited.makespan_s,
        "best_makespan_s": best["makespan_s"],
        "strategies": {row["strategy"]: {k: v for k, v in row.items() if k != "strategy"} for row in rows},
    }
    tables = {"strategies": _strategy_table(rows), "balance": _balance_table(bench, phases)}
    return bench.finish(metrics, ["tasks", "completed", "most_in_flight", "best_makespan_s"], tables)


def _records(bench: Bench, strategy: str) -> list[dict[str, Any]]:
    case = bench.settings.test.concurrent_processing
    size = {"input_size": case.input_size, "output_size": case.output_size}
    return [{**size, "duration_s": case.duration, "strategy": strategy}] * case.task_count


def _task_bytes(bench: Bench) -> int:
    case = bench.settings.test.concurrent_processing
    return need_bytes(input_size=case.input_size, output_size=case.output_size)


def split_places(wanted: int, devices: int) -> tuple[int, int]:
    """(devices, slots on each) with exactly `wanted` places in all, on as many devices as divide it evenly."""
    used = next(count for count in range(min(wanted, devices), 0, -1) if wanted % count == 0)
    return used, wanted // used


def _in_flight(bench: Bench) -> Phase:
    """A machine with exactly `concurrent_tasks` slots: a new task starts only where one has ended."""
    case = bench.settings.test.concurrent_processing
    wanted = case.concurrent_tasks
    used, slots = split_places(wanted, len(bench.devices))
    slots = min(slots, MAX_SLOTS)
    devices = bench.devices[:used]
    changed = {"gpu.workload.max_concurrent_tasks_per_gpu": slots}
    strategy = bench.spreading_strategy()
    expected_s = list_schedule([case.duration] * case.task_count, used * slots)
    (phase,) = bench.run_phases(
        "limited", [("limited", _records(bench, strategy), expected_s)], changed, devices=devices
    )
    bench.check_completed("limited: all tasks complete", phase.tasks)
    room = sum(usable_places(strategy, places(phase.result.settings, devices, _task_bytes(bench))))
    reachable = min(wanted, case.task_count, room)
    most = peak_running(phase.attempts)
    bench.check(
        "limited: never more in flight than allowed, and as many as can be",
        reachable <= most <= wanted if not bench.slack_s else 0 < most <= wanted,
        f"at most {wanted}, {reachable} reached" if not bench.slack_s else f"at most {wanted}",
        f"{most} at most, on {used} GPU{'s' if used > 1 else ''} with {slots} slot{'s' if slots > 1 else ''} each",
    )
    return phase


def _all_at_once(bench: Bench) -> list[Phase]:
    case = bench.settings.test.concurrent_processing
    here = places(bench.settings, bench.devices, _task_bytes(bench))
    groups = []
    for name in strategies_of(bench.settings):
        slots = sum(usable_places(name, here))
        expected_s = list_schedule([case.duration] * case.task_count, slots)
        groups.append((name, _records(bench, name), expected_s))
    return bench.run_phases("all_at_once", groups)


def _judge(bench: Bench, phase: Phase) -> dict[str, Any]:
    """The checks of one strategy; returns its figures."""
    name = phase.label
    settings = phase.result.settings
    here = places(settings, bench.devices, _task_bytes(bench))
    bench.check_completed(f"{name}: all tasks complete", phase.tasks)
    counts = _counts(bench, phase)
    _check_cap(bench, phase, here)
    bound_s = _check_makespan(bench, phase, sum(usable_places(name, here)))
    if name in EVEN and alike(bench.devices):
        spread = max(counts) - min(counts)
        allowed = 1 if not bench.slack_s else max(1, *here)
        bench.check(
            f"{name}: tasks are spread evenly",
            spread <= allowed,
            f"GPUs differ by at most {allowed} task{'s' if allowed > 1 else ''}",
            f"{min(counts)} to {max(counts)} tasks per GPU",
        )
    if name == "single_gpu":
        used = phase.gpu_ids
        first = next((gpu_id for gpu_id, count in enumerate(here) if count), 0)
        bench.check(
            "single_gpu: one GPU does all the work",
            used == [first],
            f"GPU {first} only",
            f"GPU {', '.join(map(str, used))}",
        )
    waits = [t.started_s - t.submitted_s for t in phase.tasks if t.started_s is not None]
    latencies = [t.finished_s - t.submitted_s for t in phase.tasks if t.finished_s is not None]
    mean = sum(counts) / len(counts)
    return {
        "strategy": name,
        "makespan_s": phase.makespan_s,
        "bound_s": bound_s,
        "throughput_tasks_per_s": len(phase.tasks) / phase.makespan_s if phase.makespan_s else None,
        "wait_p50_s": percentile(waits, 50),
        "latency_p95_s": percentile(latencies, 95),
        "gpus_used": len(phase.gpu_ids),
        "jain_index": jain_index(counts),
        "max_over_mean": max(counts) / mean if mean else None,
    }


def _counts(bench: Bench, phase: Phase) -> list[int]:
    """Tasks that each GPU ran."""
    counts = [0] * len(bench.devices)
    for attempt in phase.attempts:
        counts[attempt.gpu_id] += 1
    return counts


def _check_cap(bench: Bench, phase: Phase, here: list[int]) -> None:
    peaks = [0] * len(bench.devices)
    for gpu_id in phase.gpu_ids:
        peaks[gpu_id] = peak_running([a for a in phase.attempts if a.gpu_id == gpu_id])
    most, cap = max(peaks), max(here)
    within = all(peak <= limit for peak, limit in zip(peaks, here, strict=True))
    if phase.label != "single_gpu":
        bench.check(f"{phase.label}: the cap per GPU is never passed", within, f"at most {cap}", f"at most {most}")
        return
    reachable = min(next((count for count in here if count), 0), len(phase.tasks))
    bench.check(
        "single_gpu: the cap per GPU is reached and never passed",
        within and most == reachable,
        f"{reachable} at a time",
        f"at most {most}",
    )


def _check_makespan(bench: Bench, phase: Phase, slots: int) -> float:
    """Against a list scheduler of ten lines that knows nothing of the distributor; returns its makespan."""
    durations = [task.spec.duration_s or 0.0 for task in phase.tasks]
    end_s = list_schedule(durations, slots, phase.begin_s)
    bound_s = end_s - phase.begin_s
    makespan_s = phase.makespan_s
    known = phase.label in STRATEGIES  # a user's strategy may leave GPUs idle
    if not bench.slack_s and known:
        bench.check(
            f"{phase.label}: makespan is that of list scheduling",
            phase.end_s == end_s,
            f"exactly {bound_s:g} s: {len(durations)} tasks on {slots} slots",
            f"{makespan_s:g} s",
            "a longer one means idle slots while tasks waited; a shorter one, tasks cut short",
        )
    else:
        most_s = MAKESPAN_FACTOR * bound_s + bench.slack_s if known else math.inf
        bench.check(
            f"{phase.label}: makespan is near that of list scheduling",
            bound_s - 0.05 * bench.slack_s <= makespan_s <= most_s,
            f"{bound_s:.3g} s ({len(durations)} tasks on {slots} slots), at most {most_s:.3g} s",
            f"{makespan_s:.3g} s",
        )
    return bound_s


def _check_work_conserving(bench: Bench, phases: list[Phase]) -> None:
    """With more than one GPU, spreading is never slower than one GPU alone."""
    single = next((phase for phase in phases if phase.label == "single_gpu"), None)
    others = [phase for phase in phases if phase.label in STRATEGIES and phase is not single]
    if single is None or not others or len(bench.devices) == 1:
        return
    slowest = max(others, key=lambda phase: phase.makespan_s)
    bench.check(
        "strategies that use all GPUs are never slower than one GPU",
        slowest.makespan_s <= single.makespan_s + bench.slack_s,
        f"at most {single.makespan_s:.4g} s (single_gpu)",
        f"{slowest.makespan_s:.4g} s ({slowest.label})",
    )


def _strategy_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    names = {
        "strategy": "strategy",
        "makespan_s": "makespan (s)",
        "bound_s": "list scheduling (s)",
        "throughput_tasks_per_s": "tasks/s",
        "wait_p50_s": "median wait (s)",
        "latency_p95_s": "latency p95 (s)",
        "gpus_used": "GPUs used",
        "jain_index": "Jain's index",
        "max_over_mean": "fullest / mean",
    }
    return pd.DataFrame(rows)[list(names)].rename(columns=names)


def _balance_table(bench: Bench, phases: list[Phase]) -> pd.DataFrame:
    """Tasks per GPU, one row per strategy."""
    import pandas as pd

    return pd.DataFrame(
        [[phase.label, *_counts(bench, phase)] for phase in phases],
        columns=["strategy", *[f"GPU {spec.gpu_id}" for spec in bench.devices]],
    )
